"""Every window and grace that people may set: new applications, quiet days, history with a burst in it."""

from __future__ import annotations

import random

import pytest

from detectors.base import Grid
from tests.unit.detectors.traffic import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    NOW_US,
    Event,
    burst,
    grid,
    normal,
    opened,
    replay,
)

TASKS = ("task:billing.charge", "task:email.send", "task:report.build")
WINDOWS_S = (10, 30, 60, 300)
ALL = [grid(window_s, grace_s) for window_s in WINDOWS_S for grace_s in (2, 5, 60)]
SOME = [grid(10, 2), grid(30, 60), grid(60, 5), grid(300, 60)]


def name(cut: Grid) -> str:
    return f"{cut.window_us // 1_000_000}s+{cut.grace_us // 1_000_000}s"


@pytest.mark.parametrize(("per_minute", "minutes"), [(3, 0.5), (20, 4)])
@pytest.mark.parametrize("cut", ALL, ids=name)
def test_an_application_that_fails_after_two_good_minutes_has_one_ticket(
    cut: Grid, per_minute: float, minutes: float
) -> None:
    end, begin = NOW_US + 12 * MINUTE_US, NOW_US + 2 * MINUTE_US
    events = [e for unit in TASKS for e in normal(unit, NOW_US, end, seed=1, per_minute=per_minute)]
    [incident] = opened(replay(events + burst(TASKS[0], begin, n=40, minutes=minutes), end, cut=cut))
    assert list(incident.members) == [TASKS[0]]
    assert incident.opened_us <= begin + (minutes + 1) * MINUTE_US + cut.window_us + cut.grace_us


@pytest.mark.parametrize("cut", SOME, ids=name)
def test_hours_of_usual_errors_and_deployments_open_nothing(cut: Grid) -> None:
    hours = 2 if cut.window_us < 60_000_000 else 6
    end = NOW_US + hours * HOUR_US
    events: list[Event] = []
    for unit in TASKS:
        for event in normal(unit, NOW_US, end, seed=3, per_minute=8):
            release, since_us = divmod(event.time_us - NOW_US, HOUR_US)
            if not release or since_us > 20_000_000:  # a restart takes a while
                events.append(event._replace(version=str(release)))
        for release in range(1, hours):
            at = NOW_US + release * HOUR_US + 21_000_000
            events.append(Event(at, at + 500_000, unit, "warn", f"{unit}-started-{release}", str(release)))
    assert opened(replay(events, end, cut=cut)) == []


@pytest.mark.parametrize("cut", SOME, ids=name)
@pytest.mark.parametrize("days_ago", [1.4, 1 / 24])
def test_a_burst_in_history_is_one_ticket_with_its_window_and_told_only_if_recent(cut: Grid, days_ago: float) -> None:
    begin = round(NOW_US - days_ago * DAY_US)
    recent = days_ago < 1
    per_minute = 1.5 if cut.window_us <= 10_000_000 else 3
    events = [
        e
        for unit in TASKS
        for e in normal(unit, NOW_US - 2 * DAY_US, NOW_US, seed=1, per_minute=per_minute, arrives_us=NOW_US)
    ]
    events += burst(TASKS[0], begin, n=40, minutes=4, arrives_us=NOW_US + (12_000_000 if recent else 0))
    [incident] = opened(replay(events, NOW_US + MINUTE_US, cut=cut))
    assert list(incident.members) == [TASKS[0]]
    assert incident.is_notified is recent
    assert abs(incident.start_us - begin) <= max(MINUTE_US, cut.step_us)
    assert abs(incident.end_us - begin - 4 * MINUTE_US) <= max(MINUTE_US, cut.window_us)


@pytest.mark.parametrize(("cut", "seed"), [(grid(60, 5), 0), (grid(300, 60), 1)])
def test_history_in_any_chunks_while_the_present_is_judged_is_neither_silence_nor_slowness(
    cut: Grid, seed: int
) -> None:
    rng = random.Random(seed)
    end = NOW_US + 30 * MINUTE_US
    events = [e for unit in TASKS for e in normal(unit, NOW_US, end, seed=seed, per_minute=6)]
    for unit in TASKS:
        past = normal(unit, NOW_US - round(1.5 * DAY_US), NOW_US, seed=seed + 9, per_minute=6)
        # Chunks of an hour or so, in any order, and a little of it spread thinly over all ticks.
        chunks = [int(rng.uniform(0, 60_000_000)) for _ in range(40)]
        for event in past:
            chunk = chunks[(event.time_us - NOW_US) // HOUR_US]
            late = chunk if rng.random() < 0.9 else int(rng.uniform(0, 60_000_000))
            events.append(event._replace(ingested_us=NOW_US + 5_000_000 + late))
    assert [(i.kind, i.root) for i in opened(replay(events, end, cut=cut))] == []
