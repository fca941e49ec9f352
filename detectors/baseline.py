"""Baseline: what is normal for one unit now, learned from its own clean past only.

Counts of errors are low, so they are treated as counts: a probability with doubt about it, never a
mean with a deviation. Recent days weigh more (half-life three days), and the same time of day
raises what is expected where it usually has more.

Formulas and constants: negative binomial surprise as measured on simulated incidents; the upper
tail of counts with mean ``m`` and dispersion ``d`` (variance ``m + d m²``) is
``I_{m/(m+1/d)}(k, 1/d)``, a regularised incomplete beta function.

Not here: the counts (windows.py), which channels there are (signals.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import betainc, gammaincc, log_ndtr

from detectors.base import BLOCK_STEPS, DAY_US, HORIZON_US, STEPS_PER_WINDOW, Grid, Pin
from detectors.windows import CENTRE, BoolArray, FloatArray, Past, Series, Sum, clean_sums

MAX_SURPRISE = 60.0
_HALF_LIFE_US = 3 * DAY_US
_LEARNING_BLOCKS = 3
_LEARNING_WINDOWS = 20
_LEARNING_MOST = 3 * 288
"""A task that works once a night has few windows, but after three of them a habit."""
_YOUNG_BLOCKS = 4
_LEAST_DURATIONS = 30
_LEAST_ENDED, _LEAST_HOURS, _MOST_ENDED = 10, 6, 9.0
_BY_TIME = 0.3
_PADDED = 32
"""Histories are filled up to a multiple of so many blocks, with nothing, so that many can be summed at once."""
_ESTABLISHED_WINDOWS = 288  # a day of five-minute windows


class Rate(NamedTuple):
    """How often something happens per exposure, with the doubt about it.

    ``doubt`` is 1/r of a negative binomial; ``spread`` and ``slow_spread`` are the over-dispersion
    of windows and of blocks. ``by_time``, 0 or 1, says that the exposure is steps, not records.
    """

    p: float
    doubt: float
    spread: float
    slow_spread: float
    by_time: float


class Number(IntEnum):
    """Where ``Baseline.numbers`` has the numbers of each channel: a ``Rate``'s in the order of its fields."""

    ERRORS = 0
    WARNINGS = 5
    LATENCY = 10
    """Of the logarithmic duration, in buckets: its mean, its variance, and those of a window's and a block's mean."""
    LATENCY_COUNT = 14  # durations; 0 with too few to say
    TAIL = 15  # of the square of its distance from the mean: the variance of one, of a window's and of a block's mean
    TREND_RATE = 18  # of errors half a day ago; 0 while the unit is too young
    TREND_DOUBT = 19  # with the over-dispersion of blocks
    WARNINGS_TREND_RATE = 20
    WARNINGS_TREND_DOUBT = 21
    TREND_PINNED = 22  # the step in which the rate of errors was pinned; 0 if it is just that of half a day ago
    FINISHED = 23
    """Durations and errors to a record that is neither, where every hour had them; and the steps that a run may take."""
    END = 25


def hold(pin: Pin, base: Baseline) -> None:
    """Let trends be measured against a pin, where it is lower than what was usual half a day ago."""
    numbers = base.numbers
    if pin.by_time == (base.errors.by_time > 0) and pin.rate < numbers[Number.TREND_RATE]:
        numbers[Number.TREND_RATE], numbers[Number.TREND_DOUBT] = pin.rate, pin.doubt
        numbers[Number.TREND_PINNED] = pin.at


def pins(pasts: Sequence[tuple[Series, int]], accepted: int = 0) -> list[Pin]:
    """Return of each unit the rate of errors in everything clean before a step, the edge of a window."""
    out = []
    known = clean_sums([(series, 0, until) for series, until in pasts])
    for (_, until), (_, rows) in zip(pasts, known, strict=True):
        errors, records, steps = rows[:, [Sum.ERRORS, Sum.RECORDS, Sum.STEPS]].sum(axis=0).tolist()
        by_time = errors > _BY_TIME * records
        events = errors + 0.7
        rate = events / ((steps if by_time else records) + 60)
        spread = _slow_spread(rows[None], np.ones(len(rows)), Sum.ERRORS, np.array([rate]), np.array([by_time]))
        out.append(Pin(rate, 1 / events + float(spread[0]), by_time, until, accepted))
    return out


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is normal, as of one moment.

    While ``is_learning`` only plain rules may open a ticket; a template is new after the first day
    (``is_established``) more readily. ``per_step`` is the mean of records, ``clump`` how many come
    together, as the variance of a window's records over their mean: silence is judged by what comes
    independently. ``per_step_now`` is the mean of records at this time of day, where that is more.
    ``decay`` weighs each block from ``first_block`` to ``until``. ``numbers`` repeats the rates as an
    array, to be stacked with those of other units; ``pasts`` remembers what ``Table.past`` found,
    which holds as long as this does.
    """

    until: int
    is_learning: bool
    is_established: bool
    records: float
    clump: float
    per_step: float
    per_step_now: float
    errors: Rate
    warnings: Rate
    first_block: int
    decay: FloatArray
    numbers: FloatArray
    pasts: dict[tuple[int, int], Past] = field(default_factory=dict)


def oldest(until: int, grid: Grid) -> int:
    """Return the step from which on a baseline before the step ``until`` is learned, the edge of a block.

    That is what will still be known when the last window of the coming block is due. So a baseline holds for its
    block also where a day is forgotten meanwhile, and can be learned ahead of that. 0 where a block is longer than
    a day: what is known then matters.
    """
    if grid.day_steps() < BLOCK_STEPS:
        return 0
    due_us = grid.end_us(until + BLOCK_STEPS - 1) + grid.grace_us
    low = -(-(due_us // DAY_US * DAY_US - HORIZON_US) // grid.step_us)
    return low + -low % BLOCK_STEPS


def learn(pasts: Sequence[tuple[Series, int]], grid: Grid) -> list[Baseline]:
    """Return of each unit the baseline from everything clean before a step, the edge of a window.

    Numpy works on many units at once; what is learned of one never depends on which others there are.
    """
    found = clean_sums([(series, oldest(until, grid), until) for series, until in pasts])
    out: dict[int, Baseline] = {}
    alike: dict[int, list[int]] = {}
    for at, (_, rows) in enumerate(found):
        alike.setdefault(-(-len(rows) // _PADDED) * _PADDED or _PADDED, []).append(at)
    for length, places in alike.items():
        some = [(*pasts[at], *found[at]) for at in places]
        out |= zip(places, _learn(some, length, grid), strict=True)
    return [out[at] for at in range(len(pasts))]


def _learn(pasts: Sequence[tuple[Series, int, int, FloatArray]], length: int, grid: Grid) -> list[Baseline]:
    """Return the baselines of (unit, step, first step, sums of blocks) that have no more than so many blocks."""
    rows = np.zeros((len(pasts), length, len(Sum)))
    for mine, (_, _, _, known) in zip(rows, pasts, strict=True):
        mine[length - len(known) :] = known
    decay, weights = _weights(length, grid)
    # What is summed has one shape for each length, so that the sums are the same to the last bit.
    total, hour, past = (weights @ rows).swapaxes(0, 1)
    numbers = np.zeros((len(pasts), Number.END))
    for first, columns in (
        (Number.ERRORS, (Sum.ERRORS, Sum.ERRORS2, Sum.ERRORS_RECORDS)),
        (Number.WARNINGS, (Sum.WARNINGS, Sum.WARNINGS2, Sum.WARNINGS_RECORDS)),
    ):
        numbers[:, first : first + len(Rate._fields)] = _rates(rows, decay, total, hour, columns)
    timed = np.flatnonzero(total[:, Sum.DURATIONS] >= _LEAST_DURATIONS)
    if timed.size:
        found = _latencies(rows[timed], decay, total[timed], hour[timed])
        numbers[timed, Number.LATENCY : Number.TREND_RATE] = found
        numbers[timed, Number.FINISHED : Number.END] = _finishing(rows[timed], total[timed], found, grid)
    block_us = BLOCK_STEPS * grid.step_us
    is_old = np.arange(length, 0, -1) - 1 >= DAY_US / 2 / block_us
    grown = np.flatnonzero((is_old & (rows[:, :, Sum.RECORDS] > 0)).sum(axis=1) * block_us >= DAY_US)
    for first, kind, place in (
        (Number.ERRORS, Sum.ERRORS, Number.TREND_RATE),
        (Number.WARNINGS, Sum.WARNINGS, Number.WARNINGS_TREND_RATE),
    ):
        by_time = numbers[grown, first + Rate._fields.index("by_time")] > 0
        events = past[grown, kind] + 0.7
        p = np.maximum(events / (np.where(by_time, past[grown, Sum.STEPS], past[grown, Sum.RECORDS]) + 60), 1e-9)
        numbers[grown, place] = p
        numbers[grown, place + 1] = 1 / events + _slow_spread(rows[grown], weights[2], kind, p, by_time)
    busy = rows[:, :, Sum.BUSY_WINDOWS].sum(axis=1).tolist()
    records = total[:, Sum.RECORDS]
    per_step = records / np.maximum(total[:, Sum.STEPS], 1.0)
    per_step_now = np.maximum(per_step, hour[:, Sum.RECORDS] / np.maximum(hour[:, Sum.STEPS], BLOCK_STEPS))
    clumps = _clumps(rows, decay)
    out = []
    for at, (_, until, since, known) in enumerate(pasts):
        age = (until - since) / STEPS_PER_WINDOW
        mine = numbers[at].copy()
        rates = mine.tolist()
        out.append(
            Baseline(
                until=until,
                is_learning=age < _LEARNING_BLOCKS * 12 or (busy[at] < _LEARNING_WINDOWS and age < _LEARNING_MOST),
                is_established=age >= _ESTABLISHED_WINDOWS and busy[at] >= _LEARNING_WINDOWS,
                records=float(records[at]),
                clump=float(clumps[at]),
                per_step=float(per_step[at]),
                per_step_now=float(per_step_now[at]),
                errors=Rate(*rates[Number.ERRORS : Number.WARNINGS]),
                warnings=Rate(*rates[Number.WARNINGS : Number.LATENCY]),
                first_block=since // BLOCK_STEPS,
                decay=decay[length - len(known) :],
                numbers=mine,
            )
        )
    return out


@lru_cache(maxsize=64)
def _weights(length: int, grid: Grid) -> tuple[FloatArray, FloatArray]:
    """Return how much each of the last so many blocks counts, and the weights of (all, this time of day, the past)."""
    block_us = BLOCK_STEPS * grid.step_us
    ages = np.arange(length, 0, -1, dtype=np.float64) - 1
    decay = np.exp2(-ages * (block_us / _HALF_LIFE_US))
    # The same time of day: blocks whose middle is at most an hour and a half away, past days only.
    per_day = DAY_US / block_us
    away = np.abs((ages + 1 + per_day / 2) % per_day - per_day / 2) * block_us
    same = (away <= max(block_us, 3_600_000_000)) & (ages + 1 >= per_day / 2)
    days = np.exp2(-(ages + 1) / per_day * 0.32)  # .8 a day
    # Half a day that does not count, so that what grows slowly is not measured against itself.
    old = ages * block_us >= DAY_US / 2
    return decay, np.stack([decay, days * same, decay * old])


def _rates(
    rows: FloatArray, decay: FloatArray, total: FloatArray, hour: FloatArray, columns: tuple[Sum, Sum, Sum]
) -> FloatArray:
    """Return the rate of each unit, shape (units, fields of ``Rate``)."""
    kind, squares, products = columns
    events, records, steps = total[:, kind], total[:, Sum.RECORDS], total[:, Sum.STEPS]
    # Where most records are of this kind, as in programs that log only errors, their number says
    # nothing about how much was done, so time is the exposure.
    by_time = events > _BY_TIME * records
    p = (events + 0.7) / (np.where(by_time, steps, records) + 60)
    of_hour = np.where(by_time, hour[:, Sum.STEPS], hour[:, Sum.RECORDS])
    p_hour = np.maximum(p, (hour[:, kind] + 150 * p) / (of_hour + 150))
    m, windows = p * STEPS_PER_WINDOW, steps / STEPS_PER_WINDOW
    residual = np.where(
        by_time,
        total[:, squares] - 2 * m * events + windows * m * m - events,
        total[:, squares] - 2 * p * total[:, products] + p * p * total[:, Sum.RECORDS2] - p * records,
    )
    weight = np.where(by_time, windows * m * m, p * p * total[:, Sum.RECORDS2])
    slow = _slow_spread(rows, decay, kind, p, by_time)
    return np.stack((p_hour, 1 / (events + 0.7), _spread(residual, weight), slow, by_time), axis=1)


def _slow_spread(rows: FloatArray, weights: FloatArray, kind: Sum, p: FloatArray, by_time: BoolArray) -> FloatArray:
    """Return the over-dispersion among blocks."""
    expected = p[:, None] * np.where(by_time[:, None], rows[:, :, Sum.STEPS], rows[:, :, Sum.RECORDS])
    residual = (((rows[:, :, kind] - expected) ** 2 - expected) * weights).sum(axis=1)
    return _spread(residual, (expected**2 * weights).sum(axis=1))


def _spread(residual: FloatArray, weight: FloatArray) -> FloatArray:
    return np.clip((residual + 1.25) / (weight + 50), 0.004, 3.0)


def _clumps(rows: FloatArray, decay: FloatArray) -> FloatArray:
    windows = rows[:, :, Sum.STEPS] / STEPS_PER_WINDOW
    weight = decay * (windows > 1)
    windows = np.maximum(windows, 1.0)
    n = rows[:, :, Sum.RECORDS]
    mean = (weight * n * (1 - 1 / windows)).sum(axis=1)
    variance = (weight * (rows[:, :, Sum.RECORDS2] - n * n / windows)).sum(axis=1)
    clumps: FloatArray = np.maximum(1.0, np.divide(variance, mean, out=np.ones(len(rows)), where=mean > 0))
    return clumps


def _latencies(rows: FloatArray, decay: FloatArray, total: FloatArray, hour: FloatArray) -> FloatArray:
    """Return what is usual for durations, shape (units, eight numbers)."""
    count = total[:, Sum.DURATIONS]
    mean = total[:, Sum.DURATION_SUM] / count
    variance = np.maximum(total[:, Sum.DURATION_SQUARES] / count - mean * mean, 0.25)
    n = rows[:, :, Sum.DURATIONS]
    known = decay * (n > 0)
    weights = decay * n
    some = np.maximum(n, 1.0)
    means = rows[:, :, Sum.DURATION_SUM] / some
    apart = (means - mean[:, None]) ** 2 - variance[:, None] / some
    between = (weights * apart).sum(axis=1) / weights.sum(axis=1)
    # The same among windows: what wobbles within the hour must not look slow in a short one.
    squares = total[:, Sum.WINDOW_SQUARES] - 2 * mean * total[:, Sum.DURATION_SUM] + count * mean * mean
    among = (squares - variance * total[:, Sum.DURATION_WINDOWS]) / count
    # A few hours of past days wobble themselves: they count as much as three blocks of any time, and
    # what is left of their wobble, and of that of a young baseline, is doubt.
    blocks = known.sum(axis=1)
    shrink = 30 + 3 * count / blocks
    mean_hour = (hour[:, Sum.DURATION_SUM] + shrink * mean) / (hour[:, Sum.DURATIONS] + shrink)
    block_variance = np.maximum(between, 0.25) * (1 + _YOUNG_BLOCKS / blocks)
    doubt = block_variance / (hour[:, Sum.STEPS] / BLOCK_STEPS + 3)
    window_variance = np.maximum(among * (1 + _YOUNG_BLOCKS / blocks), block_variance) + doubt
    tail = _squares(rows, decay, total, mean, variance)
    tail[2] *= 1 + _YOUNG_BLOCKS / blocks
    return np.stack((mean_hour, variance, window_variance, block_variance + doubt, count, *tail), axis=1)


def _finishing(rows: FloatArray, total: FloatArray, latency: FloatArray, grid: Grid) -> FloatArray:
    """Return how many runs end to a record of none that does, and the steps one may take, shape (units, 2)."""
    ended = rows[:, :, Sum.DURATIONS] + rows[:, :, Sum.ERRORS]
    on = np.maximum(rows[:, :, Sum.RECORDS] - ended, 0)
    all_ended = total[:, Sum.DURATIONS] + total[:, Sum.ERRORS]
    ratio = all_ended / np.maximum(total[:, Sum.RECORDS] - all_ended, 1.0)
    expected = ratio[:, None] * on
    says = expected >= _LEAST_ENDED
    # The least of all hours but one, for that may be what nobody saw.
    least = np.sort(np.where(says, ended / np.maximum(expected, 1e-9), np.inf), axis=1)[:, 1]
    is_steady = (says.sum(axis=1) >= _LEAST_HOURS) & (least >= 0.5) & (ratio <= _MOST_ENDED)
    steps = 10 ** ((latency[:, 0] + 2 * np.sqrt(latency[:, 1])) / 24) / 1e3 / grid.step_us
    return np.stack((ratio * is_steady, steps), axis=1)


def _squares(
    rows: FloatArray, decay: FloatArray, total: FloatArray, mean: FloatArray, variance: FloatArray
) -> FloatArray:
    """Return how much squared distances from the mean vary: single ones, a window's and a block's mean of them.

    Shape (3, units). Single ones as those of a normal; what windows vary beyond that is theirs, for it cannot be told
    from single ones that vary more, and what blocks vary beyond their windows is the blocks'.
    """
    count, windows = total[:, Sum.DURATIONS], total[:, Sum.DURATION_WINDOWS]
    d, cross = mean - CENTRE, total[:, Sum.DURATION_SUM] - CENTRE * total[:, Sum.DURATIONS]
    around = total[:, Sum.DURATION_SQUARES] - CENTRE * (total[:, Sum.DURATION_SUM] + cross)
    squared = total[:, Sum.WINDOW_SQUARES] - CENTRE * (total[:, Sum.DURATION_SUM] + cross)
    # Of each window (a - 2 d b + n d²)² / n, a and b being its sums about the centre.
    of_windows = (
        total[:, Sum.WINDOW_FOURTHS]
        + 4 * d**2 * squared
        + count * d**4
        - 4 * d * total[:, Sum.WINDOW_THIRDS]
        + 2 * d**2 * around
        - 4 * d**3 * cross
        - count * variance**2
    )
    n = rows[:, :, Sum.DURATIONS]
    own = rows[:, :, Sum.DURATION_SQUARES] - mean[:, None] * (2 * rows[:, :, Sum.DURATION_SUM] - mean[:, None] * n)
    apart = own / np.maximum(n, 1) - variance[:, None]
    of_blocks = (decay * n * apart**2).sum(axis=1)
    blocks = (decay * (n > 0)).sum(axis=1)
    normal = 2 * variance**2
    single = np.maximum((of_windows - of_blocks) / np.maximum(windows - blocks, 1), normal)
    of_window = (single - normal) * windows / count
    return np.stack((normal, of_window, np.maximum((of_blocks - blocks * single) / count, 0.01 * variance**2)))


def surprise(k: FloatArray, expected: FloatArray, dispersion: float | FloatArray) -> FloatArray:
    """Return ``-log10 P(K >= k)`` for counts with this mean and dispersion.

    >>> surprise(np.array([0.0, 5.0]), np.array([1.0, 1.0]), 0.01).round(1).tolist()
    [0.0, 2.4]
    """
    r = 1 / np.asarray(dispersion, np.float64)
    tail = betainc(np.maximum(k, 1e-9), r, expected / (expected + r))
    return np.where(k > 0, _minus_log10(tail), 0.0)


def lack(k: FloatArray, expected: FloatArray, dispersion: float | FloatArray) -> FloatArray:
    """Return ``-log10 P(K <= k)`` for counts with this mean and dispersion."""
    r = 1 / np.asarray(dispersion, np.float64)
    return _minus_log10(betainc(r, k + 1, r / (expected + r)))


def gamma_surprise(x: FloatArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
    """Return ``-log10 P(X >= x)`` of a gamma variable with this mean and variance.

    >>> gamma_surprise(np.array([1.0, 4.0]), np.array([1.0]), np.array([1.0])).round(2).tolist()
    [0.43, 1.74]
    """
    shape = mean**2 / variance
    return _minus_log10(gammaincc(shape, shape * x / mean))


def normal_surprise(z: FloatArray) -> FloatArray:
    """Return ``-log10 P(Z >= z)`` of a standard normal."""
    s: FloatArray = np.minimum(-log_ndtr(-z) / np.log(10), MAX_SURPRISE)
    return s


def _minus_log10(tail: FloatArray) -> FloatArray:
    return np.minimum(-np.log10(np.maximum(tail, 1e-300)), MAX_SURPRISE)
