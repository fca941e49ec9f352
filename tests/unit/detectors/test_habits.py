"""Habits of real tasks that look like trouble and are none, and trouble that looks like a habit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from detectors.base import BLOCK_STEPS, Count
from detectors.baseline import learn
from detectors.explain import sentence
from detectors.signals import Habit, habits, rest_steps
from detectors.windows import Past, Series
from tests.unit.detectors.traffic import HOUR_US, MINUTE_US, NOW_US, Event, grid, normal, opened, replay

UNIT = "task:billing.charge"
DAY, HOUR = 1440, 60
MONDAY = 4 * DAY  # 1970 began on a Thursday
_USUAL, _EXACT, _SEEN, _DAYS = 0, 1, 2, 3


def nightly(starts: Iterable[int], minutes: int) -> Series:
    """Return a task that does something only from these steps on, four records a minute."""
    out: Series | None = None
    for start in starts:
        for step in range(start, start + minutes):
            out = out or Series(step, {})
            out.add(Count(UNIT, 0, "level", "info", 4), step)
    assert out is not None
    return out


def habit(series: Series, step: int) -> Habit:
    """Return what past days say of the window that ends with a step, and of those after it in its hour."""
    low = step - step % BLOCK_STEPS
    [found] = habits([(series, learn([(series, low)], grid())[0])], low, BLOCK_STEPS, grid(), [])
    at = step - low
    return Habit(step, found.by_step[:, at : at + found.by_step.shape[1] - BLOCK_STEPS + 1], found.least[:, at:])


def test_what_came_for_an_hour_yesterday_is_not_expected_after_that_hour() -> None:
    series = nightly([MONDAY + 2 * HOUR], 60)
    after = habit(series, MONDAY + DAY + 5 * HOUR).by_step
    # The first steps are of before the task was first seen.
    assert after[_DAYS, -3 * HOUR :].min() == 1
    assert (after[_EXACT, -2 * HOUR :] == 0).all()
    assert after[_USUAL, -2 * HOUR :].sum() < 4 * 10  # of 240


def test_what_is_usual_rests_on_as_much_time_as_has_the_same_rate() -> None:
    steady = habit(nightly([0], 3 * DAY), 2 * DAY + 12 * HOUR).by_step
    np.testing.assert_allclose(steady[_USUAL], 4)
    assert steady[_SEEN, -1] == 2 * 4 * 151  # two days, two hours and a half of each
    after = habit(nightly([day * DAY + 12 * HOUR for day in range(3)], 60), 3 * DAY + 14 * HOUR).by_step
    assert (after[_USUAL, -30:] == 0).all()


def test_a_load_that_came_once_is_not_usual() -> None:
    series = nightly([0], 4 * DAY)
    for step in range(3 * DAY + 12 * HOUR, 3 * DAY + 13 * HOUR):
        series.add(Count(UNIT, 0, "level", "info", 96), step)
    usual = habit(series, 4 * DAY + 13 * HOUR).by_step[_USUAL, -HOUR:]
    assert usual.max() < 2 * 4  # of 44, were it believed
    assert usual.min() > 0.9 * 4


def test_a_night_that_was_called_silent_for_long_is_still_known() -> None:
    series = nightly([MONDAY + 2 * HOUR, MONDAY + DAY + 2 * HOUR], 60)
    series.mark(MONDAY + 3 * HOUR, MONDAY + DAY + 2 * HOUR, 1)
    series.mark(MONDAY + DAY + 3 * HOUR, MONDAY + 2 * DAY, 1)
    after = habit(series, MONDAY + 2 * DAY + 5 * HOUR).by_step
    assert after[_DAYS].min() >= 1
    assert (after[_EXACT, -2 * HOUR :] == 0).all()


def test_a_batch_that_came_an_hour_later_is_expected_later() -> None:
    nights = [MONDAY + day * DAY + 2 * HOUR for day in range(-3, 3)]
    due = MONDAY + 3 * DAY + 2 * HOUR + 30
    assert habit(nightly(nights, 40), due).least[:, 0].max() >= 40
    nights[-1] += HOUR
    late = nightly(nights, 40)
    late.mark(nights[-1] - HOUR, nights[-1], 1)  # it was called silent meanwhile
    assert habit(late, due).least[:, 0].max() == 0
    missed = nightly(nights[:-1], 40)
    missed.mark(nights[-1] - HOUR, nights[-1] + 20 * HOUR, 1)
    assert habit(missed, due).least[:, 0].max() >= 40


def test_what_comes_once_on_working_days_has_rest_at_weekends() -> None:
    friday = MONDAY + 4 * DAY + 9 * HOUR
    working = nightly([MONDAY + day * DAY + 9 * HOUR for day in range(5)], 3)
    assert rest_steps(working, friday, friday + 2 * DAY, DAY, grid()) == 33 * HOUR
    assert rest_steps(working, friday, friday + 3 * DAY, DAY, grid()) == 2 * DAY
    daily = nightly([MONDAY + day * DAY + 9 * HOUR for day in range(6)], 3)
    assert rest_steps(daily, friday + DAY, friday + 3 * DAY, DAY, grid()) == 0


def past_of(errors: Sequence[tuple[int, str, int]], days: int) -> Past:
    """Return what is known of errors: (step, customer, how many)."""
    series = nightly(range(0, days * DAY, 10), 1)
    for step, customer, n in errors:
        series.add(Count(UNIT, 0, "customer_error", customer, n), step)
    until = days * DAY
    [base] = learn([(series, until)], grid())
    return series.groups["customer"].remember(until // BLOCK_STEPS, base, series.odd)


def test_how_many_errors_of_one_customer_come_together_is_learned_but_not_of_one_hour() -> None:
    rng = np.random.default_rng(1)
    steps = rng.integers(0, 5 * DAY, 60).tolist()
    each = [(step, f"c{rng.integers(200)}") for step in steps]
    assert past_of([(step, c, 1) for step, c in each], 5).clump < 1.2
    assert past_of([(step, c, 1) for step, c in each] + [(3000, "c7", 80)], 5).clump < 1.3
    assert 3.5 < past_of([(step, c, 4) for step, c in each], 5).clump < 4.5
    # What one customer brings all the time is its own past, and no clump.
    assert past_of([(step, "c1", 4) for step in range(0, 5 * DAY, 60)], 5).clump == 1


def test_of_hosts_that_live_for_a_day_as_many_errors_are_expected_as_there_were() -> None:
    old = past_of([(step, f"h{step // 90 % 5}", 1) for step in range(0, 6 * DAY, 90)], 6)
    young = past_of([(step, f"h{step // DAY}-{step // 90 % 2}", 1) for step in range(0, 6 * DAY, 90)], 6)
    assert old.newcomers < 0.05 * old.counts.sum()
    assert young.newcomers > 0.8 * young.counts.sum()


def runs(start_us: int, end_us: int, *, ends: bool = True, bucket: int = 200, seed: int = 7) -> list[Event]:
    """Return records of runs that begin, and that end unless they hang."""
    out = []
    for event in normal(UNIT, start_us, end_us, seed=seed, per_minute=2, errors=0, warnings=0):
        out.append(event._replace(duration_bucket=None))
        if ends:
            done = event.time_us + 200_000
            out.append(event._replace(time_us=done, ingested_us=done + 1_000_000, duration_bucket=bucket))
    return out


def test_runs_that_begin_and_do_not_end_are_told() -> None:
    begin = NOW_US - 40 * MINUTE_US
    [incident] = opened(replay(runs(NOW_US - 16 * HOUR_US, begin) + runs(begin, NOW_US, ends=False, seed=8), NOW_US))
    assert (incident.kind, incident.findings[0].feature) == ("latency", "unfinished")
    assert incident.opened_us <= begin + 32 * MINUTE_US
    assert " runs ended in " in sentence(incident.findings[0])


def test_runs_that_end_far_too_soon_are_told() -> None:
    begin = NOW_US - 20 * MINUTE_US
    [incident] = opened(replay(runs(NOW_US - 16 * HOUR_US, begin) + runs(begin, NOW_US, bucket=170, seed=8), NOW_US))
    assert (incident.kind, incident.findings[0].feature) == ("latency", "latency")
    assert incident.findings[0].observed < incident.findings[0].expected / 4
