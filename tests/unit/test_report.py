"""Report: a page that shows each ticket, and in which a log line can do nothing."""

from __future__ import annotations

from logsvc.detection import Opened
from logsvc.report import page

EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)>" onload="alert(3)'


def opened(**changes: object) -> Opened:
    fields = {
        "id": "t-1",
        "opened_at": "2026-11-22T12:05:00Z",
        "resolved_at": None,
        "kind": "error_burst",
        "score": 0.9,
        "tasks": ["billing.charge"],
        "title": "billing.charge: 42 errors in 5 min",
        "merged_into": None,
        "start": "2026-11-22T12:01:00Z",
        "end": "2026-11-22T12:03:00Z",
        "is_notified": True,
        "evidence": ["42 errors in 5 min, 0.8 expected"],
        "templates": [(42, True, "ValueError: no such order")],
        "releases": ["2"],
        "series": [(f"2026-11-22T12:0{i}:00Z", float(i % 3), 0.5) for i in range(6)],
    }
    return Opened(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_ticket_has_its_chart_evidence_and_verdict() -> None:
    text = page("logs.ndjson", 1200, 3, [opened()])
    assert text.count('class="odd"') == 2
    assert text.count("<rect") == 7
    for part in ("42 errors in 5 min, 0.8 expected", "<b>new</b>", "not resolved by the end", "1,200 records"):
        assert part in text


def test_a_merged_ticket_says_which_one_goes_on() -> None:
    assert "t-77" in page("logs.ndjson", 1200, 3, [opened(merged_into="t-77")])


def test_what_a_record_says_is_shown_and_does_nothing() -> None:
    names = dict.fromkeys(("id", "kind", "title", "opened_at"), EVIL)
    lists = {name: [EVIL] for name in ("tasks", "evidence", "releases")}
    text = page(EVIL, 1, 1, [opened(templates=[(1, False, EVIL)], series=[(EVIL, 1.0, 1.0)], **names, **lists)])
    assert "<script" not in text
    assert "<img" not in text
    assert '"alert' not in text
    assert "default-src 'none'" in text


def test_a_history_without_tickets_and_a_ticket_without_a_picture_are_said() -> None:
    assert "0 tickets from" in page("quiet", 5, 1, [])
    assert "1 task was still being learned at the end, with plain rules alone: a.load." in page(
        "q", 5, 1, [], ["a.load"]
    )
    assert "No picture" in page("one", 5, 1, [opened(series=[])])
