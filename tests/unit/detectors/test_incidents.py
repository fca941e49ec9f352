"""Incidents by hand-made judgements: what belongs together, for how long, and what shows it only later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectors.base import Finding, Judgement, TemplateCount
from detectors.incidents import Change, ChangeKind, Facts, Incident, Incidents
from tests.unit.detectors.traffic import HOUR_US, MINUTE_US, NOW_US, grid

A, B, C = "task:billing.charge", "task:email.send", "task:report.build"
REFUSED, LOCKED = "ConnectionRefused: cannot reach <dep>", "database is locked"


def odd(
    unit: str,
    minute: float,
    *,
    error: str = REFUSED,
    kind: str = "error_burst",
    recent: float = 9.0,
    strength: float = 2.0,
    scale_us: int = 5 * MINUTE_US,
) -> Judgement:
    """Return an odd window that ends at a minute, its records being those of the two minutes before."""
    end = round(NOW_US + minute * MINUTE_US)
    return Judgement(
        unit=unit,
        start_us=end - 2 * MINUTE_US,
        end_us=end,
        window_end_us=end,
        strength=strength,
        kind=kind,
        is_raised=True,
        recent=recent,
        findings=(Finding("errors", "records", 40.0, 1.0, strength, scale_us),),
        records=100,
        errors=40,
        templates=(TemplateCount(error, 40, False, end),) if error else (),
        versions=(),
        series=(),
    )


def run(
    windows: Sequence[Judgement], until_minute: float, named: Mapping[str, str] | None = None
) -> tuple[list[Change], dict[str, Incident]]:
    """Apply windows a minute after they end, and every minute until the last; ``named`` is what an error names."""
    incidents = Incidents(grid(), "default")
    changes: list[Change] = []

    def describe(judgement: Judgement) -> Facts:
        ids = [t.id for t in judgement.templates]
        return Facts(
            judgement.unit, dict(zip(ids, ids, strict=True)), frozenset((named or {}).get(id, f"of {id}") for id in ids)
        )

    for minute in range(int(until_minute) + 1):
        cutoff = NOW_US + minute * MINUTE_US
        due = [w for w in windows if w.window_end_us + MINUTE_US == cutoff]
        changes += incidents.apply(due, cutoff, describe)
        # What is kept is all there is.
        incidents = Incidents(grid(), "default", incidents.encode())
    return changes, {change.incident.id: change.incident for change in changes}


def kinds(changes: Sequence[Change]) -> list[str]:
    return [change.kind.value for change in changes if change.kind is not ChangeKind.UPDATED]


def test_the_same_error_hours_later_is_the_same_ticket() -> None:
    changes, found = run([odd(A, 5), odd(A, 170)], 240)
    assert len(found) == 1
    assert kinds(changes) == ["opened", "resolved", "reopened", "resolved"]


def test_what_flickers_is_held_longer_each_time() -> None:
    # Away for half an hour each time: at first it looks over, then no more.
    flicker = [odd(A, minute) for start in range(5, 300, 35) for minute in (start, start + 5)]
    changes, found = run(flicker, 500)
    assert len(found) == 1
    assert kinds(changes) == ["opened", "resolved", "reopened", "resolved"]
    rare = [odd(A, minute) for minute in range(5, 900, 150)]
    changes, _ = run(rare, 1100)
    last = changes[-1].incident
    assert last.hold_windows == 24
    assert last.resolved_us == last.last_tick_us + 2 * HOUR_US


def test_another_error_hours_later_is_another_ticket() -> None:
    changes, _ = run([odd(A, 5), odd(A, 170, error=LOCKED)], 240)
    assert kinds(changes) == ["opened", "resolved", "opened", "resolved"]


def test_the_same_error_half_a_day_later_is_another_ticket() -> None:
    changes, _ = run([odd(A, 5), odd(A, 300)], 360)
    assert kinds(changes) == ["opened", "resolved", "opened", "resolved"]


def test_errors_that_grow_over_hours_keep_their_ticket_open() -> None:
    slow = [odd(A, minute, recent=0.5, scale_us=4 * HOUR_US) for minute in range(5, 100, 5)]
    assert kinds(run(slow, 110)[0]) == ["opened"]
    # What is an hour back keeps nothing open.
    past = [odd(A, 5)] + [odd(A, minute, recent=0.5, scale_us=HOUR_US) for minute in range(10, 60, 5)]
    assert kinds(run(past, 60)[0]) == ["opened", "resolved"]


def test_a_task_that_fails_late_by_the_same_dependency_joins_its_ticket() -> None:
    named = {REFUSED: "ledger-db", LOCKED: "ledger-db"}
    going_on = [odd(A, minute) for minute in range(5, 100, 5)]
    changes, found = run([*going_on, odd(B, 90, error=LOCKED)], 110, named)
    assert kinds(changes) == ["opened"]
    [incident] = found.values()
    assert list(incident.members) == [A, B]


def test_tickets_that_turn_out_to_be_one_are_merged_into_the_older() -> None:
    named = {REFUSED: "ledger-db", LOCKED: "ledger-db"}
    windows = [
        odd(A, 5, error="took too long"),
        odd(B, 8, error=LOCKED, strength=4.0),
        odd(A, 11, error=REFUSED),  # now it says what the other said
        odd(B, 14, error=LOCKED),
    ]
    changes, found = run(windows, 60, named)
    assert kinds(changes) == ["opened", "opened", "merged", "resolved"]
    older, younger = sorted(found.values(), key=lambda one: one.opened_us)
    assert younger.merged_into == older.id
    assert younger.resolved_us is not None
    assert older.merged_into is None
    assert sorted(older.members) == [A, B]
    assert older.root == A
    assert older.strength == 4.0
    assert older.end_us == windows[-1].end_us  # it goes on with what comes after
    assert {LOCKED, REFUSED} <= older.templates.keys()


def test_tickets_that_have_nothing_in_common_stay_apart() -> None:
    changes, found = run([odd(A, 5), odd(B, 6, error=LOCKED), odd(C, 7, error="other"), odd(A, 9, error="fourth")], 60)
    assert len(found) == 3
    assert not any(change.kind is ChangeKind.MERGED for change in changes)
