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

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from scipy.special import betainc, log_ndtr

from detectors.base import BLOCK_STEPS, DAY_US, STEPS_PER_WINDOW, Grid
from detectors.windows import FloatArray, Series, Sum

MAX_SURPRISE = 60.0
_HALF_LIFE_US = 3 * DAY_US
_LEARNING_BLOCKS = 3
_LEARNING_WINDOWS = 20
_LEARNING_MOST = 3 * 288
"""A task that works once a night has few windows, but after three of them a habit."""
_YOUNG_BLOCKS = 4
_ESTABLISHED_WINDOWS = 288  # a day of five-minute windows


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happens per exposure, with the doubt about it.

    ``doubt`` is 1/r of a negative binomial; ``spread`` and ``slow_spread`` are the over-dispersion
    of windows and of blocks. ``by_time`` means that the exposure is steps, not records.
    """

    p: float
    doubt: float
    spread: float
    slow_spread: float
    by_time: bool


@dataclass(frozen=True, slots=True)
class Latency:
    """Logarithmic duration: mean and variance in buckets, and the variances of a window's and a block's mean."""

    mean: float
    variance: float
    window_variance: float
    block_variance: float
    count: float


class Number(IntEnum):
    """Where ``Baseline.numbers`` has the numbers of each channel, in the order of their classes' fields."""

    ERRORS = 0
    WARNINGS = 5
    LATENCY = 10
    LATENCY_COUNT = 14
    TREND_RATE = 15  # of errors half a day ago; 0 while the unit is too young
    TREND_DOUBT = 16
    END = 17


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
    latency: Latency | None
    first_block: int
    decay: FloatArray
    numbers: FloatArray
    pasts: dict[tuple[int, int], FloatArray] = field(default_factory=dict)


def learn(series: Series, until: int, grid: Grid) -> Baseline:
    """Return the baseline from everything clean before the step ``until``, the edge of a window."""
    first, rows = series.clean_sums(until)
    count = len(rows)
    block_us = BLOCK_STEPS * grid.step_us
    ages = np.arange(count, 0, -1, dtype=np.float64) - 1
    decay = np.exp2(-ages * (block_us / _HALF_LIFE_US))
    total = decay @ rows if count else np.zeros(len(Sum))
    busy = float(rows[:, Sum.BUSY_WINDOWS].sum()) if count else 0.0
    age = (until - series.first) / STEPS_PER_WINDOW
    # The same time of day: blocks whose middle is at most an hour and a half away, past days only.
    per_day = DAY_US / block_us
    away = np.abs((ages + 1 + per_day / 2) % per_day - per_day / 2) * block_us
    same = (away <= max(block_us, 3_600_000_000)) & (ages + 1 >= per_day / 2)
    days = np.exp2(-(ages + 1) / per_day * 0.32)  # .8 a day
    hour = (days * same) @ rows if count else np.zeros(len(Sum))
    errors = _rate(rows, decay, total, hour, (Sum.ERRORS, Sum.ERRORS2, Sum.ERRORS_RECORDS))
    warnings = _rate(rows, decay, total, hour, (Sum.WARNINGS, Sum.WARNINGS2, Sum.WARNINGS_RECORDS))
    latency = _latency(rows, decay, total, hour)
    numbers = np.zeros(Number.END)
    numbers[: Number.WARNINGS] = _numbers(errors)
    numbers[Number.WARNINGS : Number.LATENCY] = _numbers(warnings)
    if latency is not None:
        numbers[Number.LATENCY : Number.TREND_RATE] = (
            latency.mean,
            latency.variance,
            latency.window_variance,
            latency.block_variance,
            latency.count,
        )
    # Half a day that does not count, so that what grows slowly is not measured against itself.
    old = ages * block_us >= DAY_US / 2
    if (old & (rows[:, Sum.RECORDS] > 0)).sum() * block_us >= DAY_US:
        past = (decay * old) @ rows
        exposure = float(past[Sum.STEPS if errors.by_time else Sum.RECORDS])
        numbers[Number.TREND_RATE] = max((float(past[Sum.ERRORS]) + 0.7) / (exposure + 60), 1e-9)
        numbers[Number.TREND_DOUBT] = 1 / (float(past[Sum.ERRORS]) + 0.7)
    per_step = float(total[Sum.RECORDS]) / max(float(total[Sum.STEPS]), 1.0)
    return Baseline(
        until=until,
        is_learning=age < _LEARNING_BLOCKS * 12 or (busy < _LEARNING_WINDOWS and age < _LEARNING_MOST),
        is_established=age >= _ESTABLISHED_WINDOWS and busy >= _LEARNING_WINDOWS,
        records=float(total[Sum.RECORDS]),
        clump=_clump(rows, decay),
        per_step=per_step,
        per_step_now=max(per_step, float(hour[Sum.RECORDS]) / max(float(hour[Sum.STEPS]), BLOCK_STEPS)),
        errors=errors,
        warnings=warnings,
        latency=latency,
        first_block=first,
        decay=decay,
        numbers=numbers,
    )


def _numbers(rate: Rate) -> tuple[float, float, float, float, float]:
    return rate.p, rate.doubt, rate.spread, rate.slow_spread, float(rate.by_time)


def _rate(
    rows: FloatArray, decay: FloatArray, total: FloatArray, hour: FloatArray, columns: tuple[Sum, Sum, Sum]
) -> Rate:
    kind, squares, products = columns
    events, records = float(total[kind]), float(total[Sum.RECORDS])
    # Where most records are of this kind, as in programs that log only errors, their number says
    # nothing about how much was done, so time is the exposure.
    by_time = events > 0.3 * records
    exposure = Sum.STEPS if by_time else Sum.RECORDS
    p = (events + 0.7) / (float(total[exposure]) + 60)
    p_hour = max(p, (float(hour[kind]) + 150 * p) / (float(hour[exposure]) + 150))
    if by_time:
        m = p * STEPS_PER_WINDOW
        windows = float(total[Sum.STEPS]) / STEPS_PER_WINDOW
        residual = float(total[squares]) - 2 * m * events + windows * m * m - events
        weight = windows * m * m
    else:
        residual = float(total[squares] - 2 * p * total[products] + p * p * total[Sum.RECORDS2]) - p * records
        weight = p * p * float(total[Sum.RECORDS2])
    expected = p * rows[:, exposure]
    slow = float(decay @ ((rows[:, kind] - expected) ** 2 - expected))
    slow_weight = float(decay @ expected**2)
    return Rate(
        p=p_hour,
        doubt=1 / (events + 0.7),
        spread=_spread(residual, weight),
        slow_spread=_spread(slow, slow_weight),
        by_time=by_time,
    )


def _spread(residual: float, weight: float) -> float:
    return min(max((residual + 1.25) / (weight + 50), 0.004), 3.0)


def _clump(rows: FloatArray, decay: FloatArray) -> float:
    windows = rows[:, Sum.STEPS] / STEPS_PER_WINDOW
    known = windows > 1
    n, windows = rows[known, Sum.RECORDS], windows[known]
    mean = float(decay[known] @ (n * (1 - 1 / windows)))
    return max(1.0, float(decay[known] @ (rows[known, Sum.RECORDS2] - n * n / windows)) / mean) if mean > 0 else 1.0


def _latency(rows: FloatArray, decay: FloatArray, total: FloatArray, hour: FloatArray) -> Latency | None:
    count = float(total[Sum.DURATIONS])
    if count < 30:
        return None
    mean = float(total[Sum.DURATION_SUM]) / count
    variance = max(float(total[Sum.DURATION_SQUARES]) / count - mean * mean, 0.25)
    known = rows[:, Sum.DURATIONS] > 0
    n = rows[known, Sum.DURATIONS]
    means = rows[known, Sum.DURATION_SUM] / n
    weights = decay[known] * n
    between = float(weights @ ((means - mean) ** 2 - variance / n)) / float(weights.sum())
    # The same among windows: what wobbles within the hour must not look slow in a short one.
    squares = float(total[Sum.WINDOW_SQUARES]) - 2 * mean * float(total[Sum.DURATION_SUM]) + count * mean * mean
    among = (squares - variance * float(total[Sum.DURATION_WINDOWS])) / count
    # A few hours of past days wobble themselves: they count as much as three blocks of any time, and
    # what is left of their wobble, and of that of a young baseline, is doubt.
    blocks = float(decay[known].sum())
    shrink = 30 + 3 * count / blocks
    mean_hour = (float(hour[Sum.DURATION_SUM]) + shrink * mean) / (float(hour[Sum.DURATIONS]) + shrink)
    block_variance = max(between, 0.25) * (1 + _YOUNG_BLOCKS / blocks)
    doubt = block_variance / (float(hour[Sum.STEPS]) / BLOCK_STEPS + 3)
    return Latency(
        mean=mean_hour,
        variance=variance,
        window_variance=max(among * (1 + _YOUNG_BLOCKS / blocks), block_variance) + doubt,
        block_variance=block_variance + doubt,
        count=count,
    )


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


def normal_surprise(z: FloatArray) -> FloatArray:
    """Return ``-log10 P(Z >= z)`` of a standard normal."""
    s: FloatArray = np.minimum(-log_ndtr(-z) / np.log(10), MAX_SURPRISE)
    return s


def _minus_log10(tail: FloatArray) -> FloatArray:
    return np.minimum(-np.log10(np.maximum(tail, 1e-300)), MAX_SURPRISE)
