"""The terminal: what a log says cannot harm it, and what is long or small stays readable."""

from __future__ import annotations

import pytest

from logsvc.api.pages import page
from logsvc.api.tickets import picture
from logsvc.terminal import MAX_SHOWN, burst_chart, clean, pointed, record_line, step_s
from logsvc.tickets import Point
from tests.support.tickets import make_ticket


def _series(step: int) -> list[dict[str, object]]:
    times = [f"2026-01-31T12:{i * step // 60:02}:{i * step % 60:02}Z" for i in range(25)]
    return [{"start": time, "observed": 4.0, "expected": 1.0} for time in times]


@pytest.mark.parametrize("number", [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x1B, 0x9B, 0x7F, 0xD800, 0xDFFF])
def test_nothing_turns_the_order_of_reading_or_moves_the_cursor(number: int) -> None:
    assert clean(f"a{chr(number)}b") == "a�b"
    assert record_line({"message": f"a{chr(number)}b", "log.level": chr(number)}).plain.count("�") == 2


def test_a_long_message_is_cut_and_says_by_how_much() -> None:
    line = record_line({"message": "x" * 32_768, "error.type": "E", "error.message": "y" * 2_001}).plain
    assert line.count("x") == line.count("y") == MAX_SHOWN
    assert "x… (30,768 more; -o json shows all)" in line
    assert "y… (1 more; -o json shows all)" in line


def test_a_message_of_just_the_limit_is_whole() -> None:
    assert "more;" not in record_line({"message": "z" * MAX_SHOWN}).plain


@pytest.mark.parametrize("query", ["level:>", "日本語 AND :", "x" * 300 + " :", "a\n\tb :", "e" * 500])
def test_the_caret_stands_below_its_column(query: str) -> None:
    from rich.cells import cell_len

    shown, caret = pointed(query, len(query) - 1).split("\n")
    assert cell_len(caret) - 1 == cell_len(shown[:-1]) - (cell_len(query[-1]) - 1)
    assert cell_len(shown) < 120


@pytest.mark.parametrize(("step", "first", "last"), [(12, "12:00:00", "12:04:48"), (60, "12:00", "12:24")])
def test_a_chart_tells_its_steps_apart_and_says_how_long_one_is(step: int, first: str, last: str) -> None:
    axis, legend = burst_chart(_series(step)).plain.splitlines()[-2:]
    assert axis.split() == [first, last, "UTC"]
    assert f"records per {step} s" in legend


def test_a_page_tells_the_steps_of_its_chart_apart() -> None:
    ticket = make_ticket(series=[Point(str(p["start"]), 4.0, 1.0) for p in _series(12)])
    shown = bytes(page("ticket.html", ticket=ticket, deliveries=[], bars=picture(ticket), search_url="x").body).decode()
    assert "2026-01-31 12:00:12: 4, expected 1" in shown
    assert "records per 12 s" in shown


def test_one_step_alone_does_not_say_how_long_it_is() -> None:
    assert step_s(["2026-01-31T12:00:00Z"]) is None
    assert "per" not in burst_chart(_series(12)[:1]).plain
