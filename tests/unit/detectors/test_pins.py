"""Pins: a ramp of days is measured against what was usual before it, until a person says that it is normal."""

from __future__ import annotations

import json

import pytest

from detectors import engine
from detectors.base import Count, Judgement
from detectors.engine import Judge
from tests.unit.detectors.traffic import DAY_US, NOW_US, grid

UNIT, OTHER = "task:billing.charge", "task:email.send"
START_US = NOW_US // DAY_US * DAY_US
GRID = grid(window_s=1200)
A_STEP, STEPS = 40, 360
"""Records in each of a day's steps."""


def day(number: int, errors: float, *, unit: str = UNIT) -> list[Count]:
    """Return the counts of a day in which so many of a thousand records are errors, evenly spread."""
    out, owed = [], 0.0
    for step in range(STEPS):
        at = START_US + number * DAY_US + step * GRID.step_us
        owed += A_STEP * errors / 1000
        n, owed = int(owed), owed - int(owed)
        out.append(Count(unit, at, "level", "info", A_STEP - n))
        if n:
            out.append(Count(unit, at, "level", "error", n))
            out.append(Count(unit, at, "template", "known", n))
    return out


def end_of(number: int) -> int:
    return START_US + (number + 1) * DAY_US


def live(judge: Judge, rates: list[float], first: int = 0, *, other: bool = False) -> list[Judgement]:
    """Let days pass, each of which arrives as a whole when it is over; return what was raised."""
    out = []
    for number, errors in enumerate(rates, start=first):
        counts = day(number, errors) + (day(number, 5, unit=OTHER) if other else [])
        out += judge.advance(counts, end_of(number) + 5_000_000, {"known": "known"})
    return [one for one in out if one.is_raised]


RAMP = [4, 4, 4, 4, 5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 10, 11, 12]
"""A quarter more from one day to the next at most, thrice as much within two weeks."""


@pytest.fixture(scope="module")
def ramp() -> tuple[Judge, list[Judgement]]:
    judge = Judge(GRID)
    return judge, live(judge, RAMP)


def test_a_ramp_of_two_weeks_is_seen_against_the_pin_and_by_nothing_else(
    ramp: tuple[Judge, list[Judgement]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, raised = ramp
    assert {(one.unit, one.kind) for one in raised} == {(UNIT, "error_burst")}
    [first] = {finding.name for one in raised for finding in one.findings if finding.feature == "trend"}
    assert first == "2026-11-25"  # after three days
    monkeypatch.setattr(engine, "_PIN_DAYS", 1000)
    assert live(Judge(GRID), RAMP) == []


def test_what_a_person_accepts_is_normal_and_the_next_ramp_is_seen_from_there(
    ramp: tuple[Judge, list[Judgement]],
) -> None:
    judge, _ = ramp
    last = len(RAMP)
    held = judge.accept(UNIT, end_of(last - 1) + 5_000_000)
    assert held is not None
    assert held.rate == pytest.approx(0.012, rel=0.1)
    assert live(judge, [12, 12, 12], last) == []
    assert judge.accept("task:unknown", end_of(last)) is None
    raised = live(judge, [14, 17, 20, 24, 28, 32], last + 3)
    assert {one.unit for one in raised} == {UNIT}


def test_pins_outlive_a_restart() -> None:
    judge = Judge(GRID)
    live(judge, RAMP[:9], other=True)
    judge.accept(OTHER, end_of(8) + 5_000_000)
    kept = judge.memory()
    again = Judge(GRID, kept)
    before = [
        count
        for number in range(9)
        for unit, rate in ((UNIT, RAMP[number]), (OTHER, 5))
        for count in day(number, rate, unit=unit)
    ]
    horizon = judge.horizon_us(end_of(8) + 5_000_000)
    again.restore([count for count in before if count.step_us >= horizon], end_of(8) + 5_000_000, {"known": "known"})
    rest = RAMP[9:13]
    told = [(one.unit, one.window_end_us, one.strength) for one in live(judge, rest, 9, other=True)]
    assert told
    assert [(one.unit, one.window_end_us, one.strength) for one in live(again, rest, 9, other=True)] == told
    assert json.loads(kept["pins"])["units"].keys() == {UNIT, OTHER}
