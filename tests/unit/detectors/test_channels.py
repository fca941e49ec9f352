"""Channels beyond the burst: one customer, what grows slowly, what does not come, what wobbles."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import numpy as np
import pytest

from detectors.base import BLOCK_STEPS, CUTS, DAY_US, Count, Judgement
from detectors.baseline import Baseline, learn
from detectors.engine import Judge
from detectors.explain import sentence
from detectors.signals import Lull, Stretch, evaluate, fleet_level, habits, patience, pauses, silence
from detectors.windows import Series
from tests.unit.detectors.traffic import (
    HOUR_US,
    MINUTE_US,
    NOW_US,
    Event,
    burst,
    counts,
    grid,
    normal,
    opened,
    replay,
)

UNIT = "task:billing.charge"
OTHER = "task:email.send"


def with_customers(events: list[Event], seed: int) -> list[Event]:
    rng = random.Random(seed)
    return [event._replace(customer=f"c{rng.randrange(40)}") for event in events]


def extra(start_us: int, end_us: int, n: int, *, seed: int, customer: str = "", power: float = 1.0) -> list[Event]:
    """Return ``n`` known errors; with a power below 1 they become more towards the end."""
    rng = random.Random(seed)
    times = sorted(int(start_us + (end_us - start_us) * rng.random() ** power) for _ in range(n))
    return [
        Event(t, t + 1_000_000, UNIT, "error", f"{UNIT}-known-{rng.randrange(3)}", customer=customer) for t in times
    ]


def test_one_customer_of_forty_that_fails_is_seen_and_named() -> None:
    history = with_customers(normal(UNIT, NOW_US - 30 * HOUR_US, NOW_US, seed=2, per_minute=3, errors=0.03), 1)
    begin = NOW_US - 70 * MINUTE_US
    [incident] = opened(replay(history + extra(begin, NOW_US - 10 * MINUTE_US, 9, seed=1, customer="c7"), NOW_US))
    assert incident.findings[0].feature == "customer"
    assert incident.findings[0].name == "c7"
    assert incident.kind == "error_burst"


def test_one_host_of_forty_that_fails_is_seen_and_named() -> None:
    history = with_customers(normal(UNIT, NOW_US - 30 * HOUR_US, NOW_US, seed=2, per_minute=3, errors=0.03), 1)
    begin = NOW_US - 70 * MINUTE_US
    events = history + extra(begin, NOW_US - 10 * MINUTE_US, 9, seed=1, customer="c7")
    [incident] = opened(replay([e._replace(host=e.customer, customer="") for e in events], NOW_US))
    assert (incident.findings[0].feature, incident.findings[0].name) == ("host", "c7")


def test_as_many_errors_spread_over_all_customers_are_no_ticket() -> None:
    history = with_customers(normal(UNIT, NOW_US - 30 * HOUR_US, NOW_US, seed=2, per_minute=3, errors=0.03), 1)
    spread = with_customers(extra(NOW_US - 70 * MINUTE_US, NOW_US - 10 * MINUTE_US, 9, seed=1), 2)
    assert opened(replay(history + spread, NOW_US)) == []


def test_errors_that_grow_for_hours_are_seen_though_no_window_stands_out() -> None:
    history = normal(UNIT, NOW_US - 44 * HOUR_US, NOW_US, seed=3, per_minute=1, errors=0.02)
    changes = replay(history + extra(NOW_US - 7 * HOUR_US, NOW_US, 45, seed=3, power=0.5), NOW_US)
    assert len(opened(changes)) == 1
    assert changes[0].incident.findings[0].feature == "trend"


@pytest.mark.parametrize(("times", "feature"), [(8, "latency_tail"), (1, None)])
def test_a_fifth_of_all_runs_that_take_far_longer_is_seen(times: int, feature: str | None) -> None:
    begin = NOW_US - 40 * MINUTE_US
    history = normal(UNIT, NOW_US - 30 * HOUR_US, NOW_US, seed=5, per_minute=2, errors=0.0)
    slow = [e.time_us > begin and i % 5 == 0 for i, e in enumerate(history)]
    by = round(24 * np.log10(times))
    events = [
        e._replace(duration_bucket=(e.duration_bucket or 0) + by * is_slow)
        for e, is_slow in zip(history, slow, strict=True)
    ]
    found = opened(replay(events, NOW_US))
    assert [one.findings[0].feature for one in found] == ([feature] if feature else [])
    for one in found:
        assert one.kind == "latency"
        assert sentence(one.findings[0]).endswith(
            f" durations in 30 min some {one.findings[0].name} times as long as usual"
        )
        assert abs(float(one.findings[0].name) - times) < 3


def nightly(days: int, *, late_us: int = 0, skips: int | None = None) -> list[Event]:
    """Return a batch of every day at the same time, and a task that runs all the time."""
    start = NOW_US - days * DAY_US
    out = normal(OTHER, start, NOW_US + 2 * HOUR_US, seed=1, per_minute=0.5)
    for day in range(days + 1):
        begin = start + day * DAY_US + (late_us if day == days else 0)
        if day != skips:
            out += normal(UNIT, begin, begin + 15 * MINUTE_US, seed=day, per_minute=10)
    return out


@pytest.mark.parametrize(("late_min", "skips", "tickets"), [(4, None, 0), (0, 4, 1)])
def test_a_nightly_batch_that_does_not_come_is_missed(late_min: int, skips: int | None, tickets: int) -> None:
    # From Wednesday to Sunday would not do: what rests at the weekend is not missed.
    events = [
        event._replace(time_us=event.time_us - 3 * DAY_US, ingested_us=event.ingested_us - 3 * DAY_US)
        for event in nightly(4, late_us=late_min * MINUTE_US, skips=skips)
    ]
    found = opened(replay(events, NOW_US - 3 * DAY_US + 2 * HOUR_US))
    assert [(one.root, one.kind) for one in found] == [(UNIT, "silence")] * tickets


def wobbling(days: float, seed: int) -> list[Event]:
    """Return a task whose errors, warnings and durations go up and down together every ten minutes."""
    rng = np.random.default_rng(seed)
    out = []
    for start in range(int(NOW_US - days * DAY_US), NOW_US, 10 * MINUTE_US):
        factor = float(np.exp(rng.normal(0, 0.5)))
        part = normal(
            UNIT,
            start,
            start + 10 * MINUTE_US,
            seed=start // MINUTE_US,
            per_minute=3,
            errors=0.01 * factor**1.5,
            warnings=0.04 * factor**1.5,
        )
        shift = round(24 * np.log10(factor))
        out += [event._replace(duration_bucket=(event.duration_bucket or 0) + shift) for event in part]
    return out


def in_clumps(start_us: int, end_us: int, seed: int) -> list[Event]:
    """Return a task that works for ten minutes, two records a minute, and pauses for as long as chance wants."""
    rng = random.Random(seed)
    out = []
    at = start_us
    while at < end_us:
        out += normal(UNIT, at, min(at + 10 * MINUTE_US, end_us), seed=at, per_minute=2, errors=0.0)
        at += 10 * MINUTE_US + round(rng.expovariate(1 / 20) * MINUTE_US)
    return out


@pytest.mark.parametrize("seed", [6, 9])
def test_a_pause_of_a_task_that_works_in_clumps_is_no_silence(seed: int) -> None:
    start = NOW_US - 36 * HOUR_US
    events = normal(OTHER, start, NOW_US, seed=1, per_minute=0.2) + in_clumps(start, NOW_US, seed)
    assert opened(replay(events, NOW_US)) == []


def test_what_wobbles_together_every_ten_minutes_opens_nothing() -> None:
    assert opened(replay(wobbling(2.5, 2), NOW_US)) == []


def test_windows_are_judged_alike_one_by_one_and_an_hour_at_once() -> None:
    start = NOW_US - 47 * HOUR_US
    events = with_customers(normal(UNIT, start, NOW_US, seed=3, per_minute=2, errors=0.03), 1)
    begin = NOW_US // HOUR_US * HOUR_US - HOUR_US
    events += extra(begin - HOUR_US, begin + HOUR_US, 40, seed=5, customer="c7", power=0.5)
    events += [e._replace(template="never-seen") for e in extra(begin, begin + HOUR_US, 12, seed=6, customer="c8")]
    series = Series(start // MINUTE_US, {})
    for count in counts(events, MINUTE_US):
        series.add(count, count.step_us // MINUTE_US)
    low = begin // MINUTE_US
    [base] = learn([(series, low)], grid())
    assert not base.is_learning
    together = evaluate([Stretch(series, base, low)], BLOCK_STEPS, grid())
    assert (together.surprise.max(axis=(1, 2))[[0, 1, 3, 5, 6]] > 0).all()
    assert {together.ids[at] for at in together.template[0].tolist() if at >= 0} >= {"never-seen"}
    for at in range(BLOCK_STEPS):
        alone = evaluate([Stretch(series, base, low + at)], 1, grid())
        for name in ("surprise", "k", "expected", "windows"):
            np.testing.assert_allclose(getattr(alone, name)[:, 0, 0], getattr(together, name)[:, 0, at], rtol=1e-12)
        assert alone.short[0, 0] == pytest.approx(together.short[0, at], rel=1e-12)
        for name in ("template", "group"):
            theirs, mine = (int(getattr(one, name)[0, where]) for one, where in ((together, at), (alone, 0)))
            assert (theirs >= 0, mine >= 0) in {(True, True), (False, False)}
            assert theirs < 0 or together.ids[theirs] == alone.ids[mine]


def arrivals(minutes: Iterable[float]) -> Series:
    out = Series(0, {})
    for minute in minutes:
        out.add(Count(UNIT, 0, "level", "info", 3), round(minute))
    return out


@pytest.mark.parametrize(
    ("minutes", "most"),
    [
        ([60 * i for i in range(24 * 4)], 75),  # hourly
        ([60 * i + i * 7 % 11 for i in range(24 * 4)], 67 + 15),  # hourly, when it is its turn
        ([15 * i + j for i in range(96 * 2) for j in (0, 1, 3)], 27),  # every quarter of an hour, for some minutes
        ([1440 * i + 7 * (i % 2) for i in range(7)], 1440 + 7 + 75),  # once a day: an hour later when clocks go back
        ([60 * i for i in range(24 * 4) if 8 <= i % 24 < 18], 0),  # in the hours of work only
        ([300 * i * i % 9973 for i in range(60)], 0),  # whenever
        ([1440 * i for i in range(4)], 0),  # not often enough to know
    ],
)
def test_what_comes_at_regular_intervals_is_overdue_once_it_is_later_than_ever(minutes: list[float], most: int) -> None:
    end = round(max(minutes)) + 30
    assert patience(arrivals(minutes), end - end % BLOCK_STEPS + BLOCK_STEPS, grid(), []) == most


def by_runs(days: float, seed: int, *, a_day: float = 720, debug_on: bool = False) -> Series:
    """Return a task whose runs write three records each, and that is busier or calmer every five minutes."""
    rng = np.random.default_rng(seed)
    out = Series(0, {})
    for start in range(0, round(days * 1440), 5):
        n = rng.poisson(a_day / 288 * rng.gamma(5, 1 / 5))
        for minute in rng.integers(start, start + 5, n).tolist():
            out.add(Count(UNIT, 0, "level", "info", 3), minute)
            if debug_on:
                out.add(Count(UNIT, 0, "level", "debug", 12), minute)
    return out


def lull(expected: float, base: Baseline) -> Lull:
    """Return what is known when nothing came of so many expected records."""
    one = np.full((1, 1), expected)
    strays = np.zeros((1, 1), np.int64)
    return Lull(0 * one, one, 5 * one, one, np.full((1, 1), base.clump), one < 0, one, strays)


def test_what_comes_alone_is_told_by_pauses_and_missed_sooner_than_its_variance_says() -> None:
    series = by_runs(4, seed=0)
    until = 4 * 1440 // BLOCK_STEPS * BLOCK_STEPS
    [base] = learn([(series, until)], grid())
    past = pauses(series, until, grid(), [])
    assert past is not None
    assert past.excess[0] < 1.3 * 3 < 0.9 * base.clump
    seen = lull(54, base)  # 18 runs
    alone = np.ones(1)
    assert silence(seen, 0, alone, None)[0] < CUTS["silence"] <= silence(seen, 0, alone, past)[0]
    # Nor does a fleet that is a little calmer, as it often is by chance, excuse it.
    assert silence(seen, 0, fleet_level(*np.array([[85.0], [100], [100]])), past) == silence(seen, 0, alone, past)
    assert silence(seen, 0, fleet_level(*np.array([[40.0], [100], [100]])), past)[0] < CUTS["silence"]


def test_a_pause_hardly_longer_than_those_before_is_no_silence() -> None:
    series = by_runs(4, seed=1)
    until = 3 * 1440
    before = pauses(series, until, grid(), [])
    for minute in range(until - 300, until - 240):  # an hour in which nothing came
        for values in series._rows:
            if values is not None:
                values[minute - series.base] = 0
    after = pauses(series, until, grid(), [])
    assert before is not None
    assert after is not None
    assert after.longest[0] > 1.5 * before.longest[0]
    [base] = learn([(series, until)], grid())
    seen, alone = lull(1.05 * after.longest[0], base), np.ones(1)
    assert silence(seen, 0, alone, before)[0] > 0 == silence(seen, 0, alone, after)[0]


def test_debug_switched_on_makes_nothing_expected() -> None:
    plain, wordy = (by_runs(3, seed=2, debug_on=on) for on in (False, True))
    low = 3 * 1440 - BLOCK_STEPS
    usual = [
        habits([(s, learn([(s, low)], grid())[0])], low, BLOCK_STEPS, grid(), [])[0].by_step for s in (plain, wordy)
    ]
    np.testing.assert_array_equal(*usual)
    known = [pauses(series, low, grid(), []) for series in (plain, wordy)]
    assert None not in known
    np.testing.assert_array_equal(*known)


def test_a_batch_of_one_saturday_is_not_expected_on_sunday() -> None:
    saturday = 2 * 1440  # 1970 began on a Thursday
    series = arrivals(i for day in range(3) for i in range(1440 * day, 1440 * day + 60))
    for minute in range(saturday + 600, saturday + 620):
        series.add(Count(UNIT, 0, "level", "info", 10), minute)
    low = saturday + 1440 + 600
    [habit] = habits([(series, learn([(series, low)], grid())[0])], low, BLOCK_STEPS, grid(), [])
    assert habit.by_step[:2].max() < 1  # of ten a minute
    assert habit.least.max() == 0


def stretch_of(events: list[Event], window_us: int) -> Stretch:
    """Return the window that ends at a moment, as of the hour before it."""
    series = Series(min(e.time_us for e in events) // MINUTE_US, {})
    for count in counts(events, MINUTE_US):
        series.add(count, count.step_us // MINUTE_US)
    low = window_us // MINUTE_US - 1
    return Stretch(series, learn([(series, low - low % BLOCK_STEPS)], grid())[0], low)


def test_warnings_that_triple_for_hours_are_seen_though_no_hour_stands_out() -> None:
    begin = NOW_US - 4 * HOUR_US
    usual = normal(UNIT, NOW_US - 60 * HOUR_US, NOW_US, seed=3, per_minute=1, warnings=0.015)
    some, many = (normal(UNIT, begin, NOW_US, seed=5, per_minute=n, warnings=1, errors=0) for n in (0.005, 0.05))
    found = evaluate([stretch_of(usual + more, NOW_US) for more in (some, many)], 1, grid())
    assert found.surprise[2, 0, 0] < CUTS["warnings"] <= found.surprise[2, 1, 0]
    assert found.windows[2, 1, 0] > 12


@pytest.mark.parametrize(("template", "is_odd"), [("never-seen", True), (f"{UNIT}-known-1", False)])
def test_an_error_never_seen_of_a_task_that_seldom_runs_counts_over_hours(template: str, is_odd: bool) -> None:
    events = normal(UNIT, NOW_US - 60 * HOUR_US, NOW_US, seed=4, per_minute=0.3, errors=0.03)
    hits = burst(UNIT, NOW_US - 221 * MINUTE_US, n=5, minutes=275, template=template)
    found = evaluate([stretch_of(events + hits, NOW_US)], 1, grid())
    assert (found.surprise[1, 0, 0] >= CUTS["template"]) == is_odd
    assert bool(found.is_new[0, 0]) == is_odd


@pytest.mark.parametrize(("many", "n", "is_odd"), [(6, 1, True), (30, 1, False), (8, 3, False)])
def test_a_task_that_often_has_errors_never_seen_is_not_surprised_by_one_more(many: int, n: int, is_odd: bool) -> None:
    events = normal(UNIT, NOW_US - 60 * HOUR_US, NOW_US, seed=4, per_minute=0.3, errors=0.03)
    for i in range(many):
        events += burst(UNIT, NOW_US - 30 * HOUR_US + i * 40 * MINUTE_US, n=n, minutes=30, template=f"once-{i}")
    hits = burst(UNIT, NOW_US - 221 * MINUTE_US, n=5, minutes=275, template="never-seen")
    found = evaluate([stretch_of(events + hits, NOW_US)], 1, grid())
    assert (found.surprise[1, 0, 0] >= CUTS["template"]) == is_odd


def test_an_hourly_task_that_does_not_come_is_missed() -> None:
    start = NOW_US - 4 * DAY_US
    hourly = [event for hour in range(93) for event in burst(UNIT, start + hour * HOUR_US, n=3, minutes=2, template="")]
    events = normal(OTHER, start, NOW_US, seed=1, per_minute=0.5)
    events += [event._replace(level="info", template="") for event in hourly]
    [missed] = opened(replay(events, NOW_US, cut=grid(1500)))
    assert (missed.root, missed.kind) == (UNIT, "silence")
    assert NOW_US - 4 * HOUR_US <= missed.start_us < NOW_US - 3 * HOUR_US


def test_an_error_is_known_for_two_weeks_after_it_came_last() -> None:
    cut, begin = grid(3000), NOW_US - 18 * DAY_US
    judge = Judge(cut)
    memory: dict[str, bytes] = {}
    found: list[Judgement] = []
    came = {"thirteen": (5, 17), "seventeen": (1, 17)}  # days ago → days on which it comes
    for day in range(18):
        start = begin + day * DAY_US
        events = normal(UNIT, start, start + DAY_US, seed=day, per_minute=0.1, errors=0.0)
        for place, (template, days) in enumerate(came.items()):
            if day in days:
                events += burst(UNIT, start + (5 + 9 * place) * HOUR_US, n=8, minutes=30, template=template)
        memory |= judge.memory() if day < 17 else {}
        found = judge.advance(counts(events, cut.step_us), start + DAY_US)
    assert {t.id: t.is_new for one in found for t in one.templates} == {"thirteen": False, "seventeen": True}
    assert "thirteen" in memory["marks"].decode()


def test_a_task_is_learning_until_it_has_some_hours_of_history() -> None:
    judge = Judge(grid())
    hours = 4
    said = []
    for hour in range(hours):
        start = NOW_US + hour * HOUR_US
        events = normal(UNIT, start, start + HOUR_US, seed=hour, per_minute=2)
        judge.advance(counts(events, grid().step_us), start + HOUR_US)
        said += [json.loads(kept) for name, kept in judge.memory().items() if name == "learning"]
    [first, second] = [one[UNIT] for one in said]
    assert (first[0], second[0]) == (True, False)
    assert NOW_US + 3 * HOUR_US <= second[1] < NOW_US + 4 * HOUR_US
    # Kept over a restart.
    assert Judge(grid(), {"learning": json.dumps(said[-1]).encode()}).memory() == {}
