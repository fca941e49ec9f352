"""Signals: the channels in which a unit can be odd, each a calibrated surprise.

Every channel looks back over several multiples of the window and keeps its strangest. A surprise
of 6 means about one window in a million, in every channel, so the strongest decides. What
people would not act on is capped below any cut: a channel counts only from a minimum of records.

========== =============== =========================================================================
channel    windows back    counts when
========== =============== =========================================================================
errors     1, 2, 3, 6, 12  at least 5, and 4.5 more than expected
template   2, 6, 12        at least 5; 3 if never seen and the unit is known for a day, also over 24, 48
warnings   2, 6, 12        at least 8; over 24, 48, 96 as trend
latency    2, 6, 12        at least 5 durations, longer by half, or as many of them by far; 10, a quarter as long;
                           at least 10 runs that should have ended, nearly none of which has
silence    2 to 24, by     at least 10 expected, nearly none seen, and the unit was live
           the step
customer   6, 12           at least 5 errors of one customer or host, of more than five known
trend      24, 48, 96      at least 8 and twice as many errors as half a day ago
========== =============== =========================================================================

Not here: what is normal (baseline.py), when an odd window is a ticket (engine.py, incidents.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.base import BLOCK_STEPS, CHANNELS, CUTS, DAY_US, STEPS_PER_WINDOW, Grid
from detectors.baseline import Baseline, Number, gamma_surprise, lack, normal_surprise, surprise
from detectors.windows import DAY_BLOCKS, BoolArray, FloatArray, IntArray, Row, Series, sliding

ERROR_WINDOWS = (1, 2, 3, 6, 12)
LONG_WINDOWS = (2, 6, 12)
SILENCE_WINDOWS = (2, 3, 4, 6, 8, 12, 18, 24)
SILENCE_STEPS = tuple(range(SILENCE_WINDOWS[0] * STEPS_PER_WINDOW, SILENCE_WINDOWS[-1] * STEPS_PER_WINDOW + 1))
"""Silence is judged over every length up to the longest scale, batches that are due over the scales."""
CUSTOMER_WINDOWS = (6, 12)
TREND_WINDOWS = (24, 48, 96)
NEW_WINDOWS = (24, 48)
SHORT_WINDOWS = 3
"""Up to here a scale tells whether something odd still goes on."""

MAX_WINDOWS = 12
_LOOKED_AT = Row.DURATION_SQUARES + 1
_LONG = [ERROR_WINDOWS.index(n) for n in LONG_WINDOWS]
_LONGEST = [ERROR_WINDOWS.index(n) for n in CUSTOMER_WINDOWS]
_WARNINGS, _LATENCY, _CUSTOMER, _TREND = map(CHANNELS.index, ("warnings", "latency", "customer", "trend"))
LOOK_BACK = MAX_WINDOWS * STEPS_PER_WINDOW
CUT = np.array([CUTS[name] for name in CHANNELS])

_MIN_ERRORS, _MIN_EXCESS = 5, 4.5
_PASSING = 8
_MIN_NEW, _MIN_WARNINGS, _MIN_DURATIONS = 3, 8, 5
_MIN_SHIFT_BUCKETS = 0.45 / np.log(10) * 24
_MIN_SLOW, _MIN_SLOW_BUCKETS, _MIN_WIDER = 5, 24 * np.log10(2), 1.5
_MIN_DROPPED, _MIN_DROP_BUCKETS = 10, 24 * np.log10(4)
_MIN_UNFINISHED, _ENDS_DISPERSION = 10, 0.02
_MIN_GROUPS, _MIN_TREND = 5, 8
_KNOWN_PENALTY = 0.8
_PLAIN_ERRORS, _PLAIN_SHARE, _PLAIN_RECORDS, _PLAIN_SURPRISE, _PLAIN_RATIO = 10, 0.5, 20, 5.0, 5
_PLAIN_US = 300_000_000
"""Plain rules look back as long as this, so that ten failures are as many however short windows are."""
_PLAIN_STEPS = (1, 2, 3, 5, 10, 15, 30, 60)
_SILENCE_DAYS = 7
_MIN_EXPECTED, _MIN_CLUMPS = 10, 5
_MIN_LEVEL = 10
_UNKNOWN_DAY = 1 / 3
"""Of a unit younger than a day it is not known how much less it does at night; as little is expected of it."""
_SILENCE_SPAN = 3 * SILENCE_WINDOWS[-1] * STEPS_PER_WINDOW
"""Steps that silence looks back over: the longest scale, and twice that before."""
_FLEET_CLUMPS = 20.0
_LEAST_FLEET, _STOPPED, _STOPPED_LEVEL = 5, 0.1, 0.6
_PAUSE_BLOCKS = 24
_PAUSE_STEPS = 7 * 1440
"""So many steps tell how a unit pauses, however short they are."""
_PAUSE_ABOUT = 3 * BLOCK_STEPS // 2
_PAUSES_LEAST, _PAUSES_MOST = 20, 100
_STRAYS = (0, 1, 2, 3, 5, 8)
"""So many steps of a pause may have records."""
_LONGER = 1.1
"""A pause is odd if it is so many times longer than any before it."""
_MIN_SCHEDULED = 20
_REGULAR_FEW, _REGULAR_MANY = 4, 20
_LATE_STEPS = 3 * STEPS_PER_WINDOW
"""A batch may come so much later than it ever did."""
_USUAL_ABOUT = (STEPS_PER_WINDOW // 2, 2 * STEPS_PER_WINDOW, 6 * STEPS_PER_WINDOW, 15 * STEPS_PER_WINDOW)
"""Steps on either side by which what is usual is told."""
_ALIKE = 2.0
"""Rates that differ by no more deviations of what chance makes are the same."""
_QUARTER = 3 * STEPS_PER_WINDOW
_LEVEL_STEPS = 36 * STEPS_PER_WINDOW
_LEVEL_PRIOR = 5.0
_RETURN_STEPS = 15 * STEPS_PER_WINDOW
"""What was called silent and came within so many was only late."""


class Stretch(NamedTuple):
    """Windows of one unit that share a baseline; ``low`` names the first, ``blank`` are steps that were abruptly odd."""

    series: Series
    base: Baseline
    low: int
    blank: Sequence[tuple[int, int]] = ()


class Pace(IntEnum):
    """In which way durations are odd, and what ``k`` and ``expected`` are then."""

    TYPICAL = 0  # mean buckets
    TAIL = 1  # durations far longer than usual; how many times as long they are
    UNFINISHED = 2  # runs that ended; how many should have


@dataclass(slots=True)
class Evaluation:
    """The channels of several units; arrays are (channel, unit, window), or (unit, window).

    ``k`` and ``expected`` are those of the scale (``windows``) with the highest surprise. ``short``
    is the highest surprise over short scales, ``plain`` where the plain rules for units that are
    still being learned hold. ``template`` and ``group`` ("customer:ID" or "host:NAME") are
    the strongest ones' places in ``ids``, or -1. ``pace`` says what latency's ``k`` and ``expected`` are.
    """

    stretches: Sequence[Stretch]
    surprise: FloatArray
    k: FloatArray
    expected: FloatArray
    windows: IntArray
    short: FloatArray
    plain: BoolArray
    ids: list[str]
    template: IntArray
    is_new: BoolArray
    group: IntArray
    pace: IntArray

    def _keep(
        self, channel: int, at: IntArray, windows: Sequence[int], s: FloatArray, k: FloatArray, expected: FloatArray
    ) -> BoolArray:
        """Take over the strangest scale, arrays being (scale, unit, window), where it is stranger; return where."""
        short = sum(1 for one in windows if one <= SHORT_WINDOWS)
        if short:
            self.short[at] = np.maximum(self.short[at], s[:short].max(axis=0))
        best = s.argmax(axis=0)
        place = best * best.size + np.arange(best.size).reshape(best.shape)
        strangest = s.take(place)
        better: BoolArray = strangest > self.surprise[channel, at]
        for mine, theirs in (
            (self.surprise, strangest),
            (self.k, k.take(place)),
            (self.expected, expected.take(place)),
            (self.windows, np.array(windows)[best]),
        ):
            mine[channel, at] = np.where(better, theirs, mine[channel, at])
        return better


def evaluate(stretches: Sequence[Stretch], width: int, grid: Grid) -> Evaluation:
    """Return the channels, silence apart, for ``width`` windows of each unit; numpy works on all units at once."""
    shape = (len(CHANNELS), len(stretches), width)
    out = Evaluation(
        stretches=stretches,
        surprise=np.zeros(shape),
        k=np.zeros(shape),
        expected=np.zeros(shape),
        windows=np.ones(shape, np.int64),
        short=np.zeros(shape[1:]),
        plain=np.zeros(shape[1:], np.bool_),
        ids=[],
        template=np.full(shape[1:], -1, np.int64),
        is_new=np.zeros(shape[1:], np.bool_),
        group=np.full(shape[1:], -1, np.int64),
        pace=np.zeros(shape[1:], np.int64),
    )
    counts = np.zeros((shape[1], _LOOKED_AT, LOOK_BACK + width), np.int64)
    for index, (series, _, low, _) in enumerate(stretches):
        series.copy_part(low - LOOK_BACK, low + width, counts[index])
    cumulative = _cumulated(counts)
    sums = _sums_of(cumulative)
    # What each window can see of each row: a channel is asked only where that is enough.
    totals = cumulative[:, :, LOOK_BACK + 1 :] - cumulative[:, :, :width]
    numbers = np.array([stretch.base.numbers for stretch in stretches]).T
    fails = totals[:, Row.ERRORS] >= 2
    failing = np.flatnonzero(fails.any(axis=1))
    if failing.size:
        _errors(out, failing, sums, numbers)
        for index in failing.tolist():
            if stretches[index].base.is_learning:
                _plain(out.plain[index], stretches[index].base, counts[index], grid)
        repeated = failing[(totals[failing, Row.ERRORS] >= _MIN_NEW).any(axis=1)]
        if repeated.size:
            _templates(out, repeated, counts, sums)
            _groups(out, repeated, sums, width)
        _trends(out, _TREND, failing, numbers, fails)
    _new_templates(out, totals[:, Row.ERRORS] >= 1)
    warns = totals[:, Row.WARNINGS] >= _MIN_WARNINGS
    warned = np.flatnonzero(warns.any(axis=1))
    if warned.size:
        _warnings(out, warned, sums, numbers, warns)
    warns = totals[:, Row.WARNINGS] >= 2
    _trends(out, _WARNINGS, np.flatnonzero(warns.any(axis=1)), numbers, warns)
    is_timed = (totals[:, Row.DURATIONS] >= _MIN_DURATIONS) & (numbers[Number.LATENCY_COUNT] > 0)[:, None]
    timed = np.flatnonzero(is_timed.any(axis=1))
    if timed.size:
        _latency(out, timed, sums, numbers, is_timed)
    begun = np.flatnonzero((numbers[Number.FINISHED] > 0) & (totals[:, Row.RECORDS] >= _MIN_UNFINISHED).any(axis=1))
    if begun.size:
        _unfinished(out, begun, sums, numbers)
    return out


def _sums_of(cumulative: FloatArray) -> FloatArray:
    """Return the sums over ``ERROR_WINDOWS`` windows up to each judged, shape (row, scale, unit, window).

    ``cumulative`` has the shape (unit, row, step); see ``_cumulated``.
    """
    ends = np.arange(LOOK_BACK + 1, cumulative.shape[-1])
    starts = ends - STEPS_PER_WINDOW * np.array(ERROR_WINDOWS)[:, None]
    sums = cumulative[:, :, None, LOOK_BACK + 1 :] - cumulative[:, :, starts]
    return np.ascontiguousarray(sums.transpose(1, 2, 0, 3))


def _rates(
    numbers: FloatArray, first: int, at: IntArray, windows: Sequence[int], n: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return (expected, dispersion) of the rate whose numbers begin with ``first``, for ``n`` records."""
    p, doubt, spread, slow_spread, by_time = numbers[first : first + 5, at][:, None, :, None]
    lengths = np.array(windows, np.float64)[:, None, None]
    exposure = np.where(by_time > 0, lengths * STEPS_PER_WINDOW, n)
    return p * exposure, np.broadcast_to(doubt + _at_scale(spread, slow_spread, lengths), n.shape)


def _at_scale(of_window: FloatArray, of_block: FloatArray, windows: FloatArray) -> FloatArray:
    """Return the variance beyond chance of a mean over so many windows.

    It is a block's if what varies does so slowly, and grows as the mean gets shorter if it varies
    fast, to a window's at most.
    """
    return np.where(windows <= SHORT_WINDOWS, of_window, np.minimum(of_window, of_block * MAX_WINDOWS / windows))


def _surprise_where(where: BoolArray, k: FloatArray, expected: FloatArray, dispersion: FloatArray) -> FloatArray:
    s = np.zeros(k.shape)
    s[where] = surprise(k[where], expected[where], dispersion[where])
    return s


def _errors(out: Evaluation, at: IntArray, sums: FloatArray, numbers: FloatArray) -> None:
    n, k = sums[Row.RECORDS][:, at], sums[Row.ERRORS][:, at]
    expected, dispersion = _rates(numbers, Number.ERRORS, at, ERROR_WINDOWS, n)
    s = _surprise_where(k >= 2, k, expected, dispersion)
    enough = (k >= _MIN_ERRORS) & (k - expected >= _MIN_EXCESS)
    cap = np.where(enough, np.inf, np.where(k >= _MIN_NEW, 3.0, 2.0))
    out._keep(0, at, ERROR_WINDOWS, np.minimum(s, cap), k, expected)


def _plain(plain: BoolArray, base: Baseline, counts: IntArray, grid: Grid) -> None:
    """Ten failures that are half of all there is, or far more than the unit's own few minutes before."""
    longest = max(STEPS_PER_WINDOW, min(_PLAIN_US // grid.step_us, LOOK_BACK))
    n_all, k_all = np.cumsum(counts[: Row.WARNINGS], axis=1)[:, LOOK_BACK:].astype(np.float64)
    for length in _PLAIN_STEPS:
        if length > longest:
            break
        n, k = sliding(counts[: Row.WARNINGS], LOOK_BACK, length).astype(np.float64)
        n_before, k_before = n_all - n, k_all - k
        expected = n * (k_before + 0.7) / (n_before + 60)
        s = surprise(k, expected, 1 / (k_before + 0.7) + base.errors.spread)
        contrast = (n_before >= _PLAIN_RECORDS) & (s >= _PLAIN_SURPRISE) & (k >= _PLAIN_RATIO * expected)
        share = (k >= _PLAIN_SHARE * n) & (length >= STEPS_PER_WINDOW)
        plain |= (k >= _PLAIN_ERRORS) & (share | contrast)


def _warnings(out: Evaluation, at: IntArray, sums: FloatArray, numbers: FloatArray, where: BoolArray) -> None:
    n, k = sums[Row.RECORDS, _LONG][:, at], sums[Row.WARNINGS, _LONG][:, at]
    expected, dispersion = _rates(numbers, Number.WARNINGS, at, LONG_WINDOWS, n)
    s = _surprise_where(k >= _MIN_WARNINGS / 2, k, expected, dispersion)
    s = np.where(k >= _MIN_WARNINGS, s, np.minimum(s, 2.0)) * where[at]
    out._keep(2, at, LONG_WINDOWS, s, k, expected)


def _latency(out: Evaluation, at: IntArray, sums: FloatArray, numbers: FloatArray, where: BoolArray) -> None:
    n, total = sums[Row.DURATIONS, _LONG][:, at], sums[Row.DURATION_SUM, _LONG][:, at]
    first = Number.LATENCY
    mean, variance, window_variance, block_variance, count = numbers[first : first + 5, at][:, None, :, None]
    lengths = np.array(LONG_WINDOWS, np.float64)[:, None, None]
    shift = total / np.maximum(n, 1) - mean
    between = _at_scale(window_variance, block_variance, lengths)
    z = shift / np.sqrt(between + variance * (1 / np.maximum(n, 1) + 1 / count))
    odd = (n >= _MIN_DURATIONS) & (shift > _MIN_SHIFT_BUCKETS)
    # What fails at once is told by its errors; what succeeds at once has done nothing.
    failed = sums[Row.ERRORS, _LONG][:, at]
    dropped = (n >= _MIN_DROPPED) & (shift < -_MIN_DROP_BUCKETS) & (failed <= 0.2 * n)
    s = normal_surprise(np.where(dropped, -z, z))
    s = np.where(odd | dropped, s, np.minimum(s, 2.0) * (n > 0)) * where[at]
    out._keep(_LATENCY, at, LONG_WINDOWS, s, shift + mean, np.broadcast_to(mean, n.shape))
    # A few that take far longer hardly move the mean, but they do move the mean square of the distance from it. If
    # m of n are slower by b, the mean grows by m b / n and that by m b² / n, which says how many and by how much.
    squares = sums[Row.DURATION_SQUARES, _LONG][:, at] / np.maximum(n, 1) - mean * (2 * shift + mean)
    of_one, of_window, of_block = numbers[Number.TAIL : Number.TREND_RATE, at][:, None, :, None]
    wider = np.maximum(squares - variance, 1e-9)
    slower = wider / np.maximum(shift, 1e-9)
    slow = n * shift / slower
    odd = (slow >= _MIN_SLOW) & (slower >= _MIN_SLOW_BUCKETS) & (squares >= _MIN_WIDER * variance) & (shift > 0)
    odd &= where[at]
    s = np.zeros(n.shape)
    spread = (of_one / np.maximum(n, 1) + of_window / lengths + of_block)[odd]
    s[odd] = gamma_surprise(squares[odd], np.broadcast_to(variance, n.shape)[odd], spread)
    better = out._keep(_LATENCY, at, LONG_WINDOWS, s, slow, 10 ** (np.minimum(slower, 240) / 24))
    out.pace[at] = np.where(better, Pace.TAIL, out.pace[at])


def _unfinished(out: Evaluation, at: IntArray, sums: FloatArray, numbers: FloatArray) -> None:
    """Runs that begin and do not end: next to none of what usually follows the records that are not of an end."""
    ended = (sums[Row.DURATIONS, _LONG] + sums[Row.ERRORS, _LONG])[:, at]
    on = np.maximum(sums[Row.RECORDS, _LONG][:, at] - ended, 0)
    ratio, steps = numbers[Number.FINISHED : Number.END, at][:, None, :, None]
    lengths = STEPS_PER_WINDOW * np.array(LONG_WINDOWS, np.float64)[:, None, None]
    expected = ratio * on * np.maximum(1 - steps / lengths, 0)
    odd = (expected >= _MIN_UNFINISHED) & (ended <= 0.1 * expected)
    if not odd.any():
        return
    s = np.zeros(on.shape)
    s[odd] = lack(ended[odd], expected[odd], _ENDS_DISPERSION)
    better = out._keep(_LATENCY, at, LONG_WINDOWS, s, ended, expected)
    out.pace[at] = np.where(better, Pace.UNFINISHED, out.pace[at])


def _templates(out: Evaluation, at: IntArray, counts: IntArray, sums: FloatArray) -> None:
    """A known template surging, or one never seen for this unit: one formula, by its own past."""
    width = counts.shape[2] - LOOK_BACK
    hits: list[IntArray] = []
    ids: list[tuple[int, str]] = []
    pasts: list[FloatArray] = []
    news: list[BoolArray] = []
    of_units: list[tuple[float, float, bool, int]] = []  # records, spread, whether established, novelties
    for index in at.tolist():
        series, base, low, _ = out.stretches[index]
        table, kin = series.templates, series.kin
        begin = low - LOOK_BACK
        alike: dict[str, list[str]] = {}  # of each template, the fingerprints seen
        fresh: int | None = None
        for id, steps in table.recent(begin, low + width, _MIN_NEW, kin):
            mine = np.minimum(steps, counts[index, Row.ERRORS])
            if mine.sum() < _MIN_NEW:
                continue
            alike = alike or series.alike()
            # Known errors with new values are known: what is seen of one fingerprint is seen of its template.
            kindred = alike[kin.get(id, id)]
            past = table.past(kindred, begin, begin + width, base, series.odd)
            # Never seen before the hour that is looked at, whatever the decay left of it.
            is_new = np.zeros(width, np.bool_)
            if (lead := _first(series, kindred) + LOOK_BACK - begin) >= 0 and not is_remembered(series, kindred):
                is_new[: lead + 1] = past[: lead + 1] == 0
                if fresh is None and is_new.any():
                    fresh = _novelties(series, alike, base)
            ids.append((index, id))
            hits.append(mine)
            pasts.append(past)
            news.append(is_new)
            of_units.append((base.records, base.errors.slow_spread, base.is_established, fresh or 0))
    if not hits:
        return
    units = np.array([index for index, _ in ids])
    # Each by template and window.
    records, spread, is_established, novelties = np.array(of_units).T[:, :, None]
    is_new = np.stack(news)
    events = np.stack(pasts) + 0.3 + is_new * novelties
    least = np.where(is_new & (is_established > 0), _MIN_NEW, _MIN_ERRORS)
    p, dispersion = events / (records + 100), 1 / events + spread
    n = sums[Row.RECORDS, _LONG][:, units]
    k = _sums_of(_cumulated(np.stack(hits)[:, None]))[0, _LONG]
    expected = p * n
    s = _surprise_where(k >= _MIN_NEW, k, expected, np.broadcast_to(dispersion, k.shape))
    s = np.maximum(s - (1 - is_new) * _KNOWN_PENALTY, 0)
    s = np.where((k >= least) & (k - expected >= least - 0.5), s, np.minimum(s, 2.0))
    for places in _rounds(units):
        kept = out._keep(1, units[places], LONG_WINDOWS, s[:, places], k[:, places], expected[:, places])
        for place, better in zip(places, kept, strict=True):
            if better.any():
                index, id = ids[place]
                out.template[index, better] = len(out.ids)
                out.is_new[index, better] = is_new[place, better]
                out.ids.append(id)


def _rounds(units: IntArray) -> list[IntArray]:
    """Return the places of all units' first, of their second, and so on; those of a unit lie next to each other."""
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    rank = np.arange(len(units)) - np.repeat(starts, np.diff(starts, append=len(units)))
    return [np.flatnonzero(rank == n) for n in range(int(rank.max()) + 1)]


def is_remembered(series: Series, ids: Iterable[str]) -> bool:
    """Return whether one of a template's fingerprints was seen so long ago that only this is left of it."""
    groups = {series.kin.get(id, id) for id in ids}
    return any(series.kin.get(id, id) in groups for id in series.templates.forgotten)


def _first(series: Series, ids: Iterable[str]) -> int:
    return min(series.templates.first[id] for id in ids)


def _groups(out: Evaluation, at: IntArray, sums: FloatArray, width: int) -> None:
    """One customer's or host's errors against its own past: a failure that the aggregate hides."""
    hits: list[IntArray] = []
    ids: list[tuple[int, str]] = []
    facts: list[FloatArray] = []
    usual: list[tuple[float, float]] = []  # records in a step, errors in a record
    for index, feature in itertools.product(at.tolist(), ("customer", "host")):
        series, base, low = out.stretches[index][:3]
        table = series.groups[feature]
        if base.is_learning or len(table.first) <= _MIN_GROUPS:
            continue
        begin = low - LOOK_BACK
        found = table.recent(begin, low + width, _MIN_ERRORS)
        if not found:
            continue
        known = np.searchsorted(np.sort(np.array([*table.first.values()])), np.arange(low, low + width), side="right")
        past = table.remember(min(begin, base.until) // BLOCK_STEPS, base, series.odd)
        # Of a host that lives for a day as many are expected as of those before it.
        young = {id for id in table.keys(begin, low + width) if table.first[id] > begin - DAY_BLOCKS * BLOCK_STEPS}
        of_young = past.newcomers / max(len(young), 1)
        clump = np.full(width, past.clump)
        for id, steps in found:
            events = table.past([id], begin, begin + width, base, series.odd) + 0.3
            if id in young:
                events = np.maximum(events, of_young)
            # The strangest of many is strange by chance: a Bonferroni correction.
            facts.append(np.array([events / (base.records + 100), 1 / events + base.errors.slow_spread, known, clump]))
            ids.append((index, f"{feature}:{id}"))
            usual.append((base.per_step_now, 0.0 if base.errors.by_time else base.errors.p))
            hits.append(steps)
    if not hits:
        return
    units = np.array([index for index, _ in ids])
    # Each by customer or host, and window.
    p, dispersion, known_ones, clump = np.stack(facts, axis=1)
    n = sums[Row.RECORDS, _LONGEST][:, units]
    # What is more than usual may all be of this one: how much each does is not counted.
    per_step, error_rate = np.array(usual).T[:, None, :, None]
    more = np.maximum(n - per_step * STEPS_PER_WINDOW * np.array(CUSTOMER_WINDOWS)[:, None, None], 0)
    expected = p * n + error_rate * more
    k = _sums_of(_cumulated(np.stack(hits)[:, None]))[0, _LONGEST]
    enough = (k >= _MIN_ERRORS) & (known_ones > _MIN_GROUPS)
    # What always comes several at a time is as surprising as so many times fewer that come alone.
    s = _surprise_where(enough, k / clump, expected / clump, np.broadcast_to(dispersion, k.shape))
    s = np.maximum(s - np.log10(np.maximum(known_ones, 1)), 0)
    for places in _rounds(units):
        kept = out._keep(_CUSTOMER, units[places], CUSTOMER_WINDOWS, s[:, places], k[:, places], expected[:, places])
        for place, better in zip(places, kept, strict=True):
            if better.any():
                index, id = ids[place]
                out.group[index, better] = len(out.ids)
                out.ids.append(id)


def _new_templates(out: Evaluation, where: BoolArray) -> None:
    """An error never seen for this unit, over hours: of a task that seldom runs, an hour has too few.

    Asked where it came again within two windows; ``where`` says by unit and window where it may have.
    """
    width, back = where.shape[1], NEW_WINDOWS[-1] * STEPS_PER_WINDOW
    for index in np.flatnonzero(where.any(axis=1)).tolist():
        series, base, low, _ = out.stretches[index]
        table = series.templates
        begin = low + 1 - back
        if not base.is_established or max(table.first.values(), default=-1) < begin:
            continue
        alike = series.alike()
        firsts = {group: _first(series, ids) for group, ids in alike.items()}
        if all(first < begin for first in firsts.values()):
            continue
        fresh = _novelties(series, alike, base)
        n, errors = series.part(begin, low + width)[: Row.WARNINGS]
        ends = low + 1 + np.arange(width)
        for id, steps in table.recent(begin, low + width, _MIN_NEW, series.kin):
            group = series.kin.get(id, id)
            if firsts[group] < begin or is_remembered(series, alike[group]):
                continue
            total = _cumulated(np.stack([n, np.minimum(steps, errors)]))
            starts = ends - STEPS_PER_WINDOW * np.array(NEW_WINDOWS)[:, None]
            seen, k = total[:, None, ends - begin] - total[:, starts - begin]
            is_back = total[1, ends - begin] > total[1, ends - begin - 2 * STEPS_PER_WINDOW]
            expected = seen * (fresh + 0.3) / (base.records + 100)
            dispersion = np.full(k.shape, 1 / (fresh + 0.3) + base.errors.slow_spread)
            s = _surprise_where((k >= _MIN_NEW) & (firsts[group] >= starts) & is_back, k, expected, dispersion)
            better = out._keep(1, np.array([index]), NEW_WINDOWS, s[:, None], k[:, None], expected[:, None])[0]
            if better.any():
                out.template[index, better] = len(out.ids)
                out.is_new[index, better] = True
                out.ids.append(id)


def _novelties(series: Series, alike: Mapping[str, Sequence[str]], base: Baseline) -> int:
    """Return how many errors the unit had that were new after its first day, and came again within hours.

    A unit that keeps making new ones (names that no mask catches) is not surprised by one more. A few
    that came and went say nothing, for many usual errors are not seen every day; more than that do.
    """
    learned = series.first + 288 * STEPS_PER_WINDOW
    span = NEW_WINDOWS[-1] * STEPS_PER_WINDOW
    until = base.until - span  # that they would have come again by what is known
    stayed = passed = 0
    for ids in alike.values():
        first = _first(series, ids)
        if learned <= first < until:
            errors = int(series.template_errors(ids, first, first + span).sum())
            stayed += errors >= _MIN_NEW
            passed += 0 < errors < _MIN_NEW
    return stayed + max(passed - _PASSING, 0)


def _trends(out: Evaluation, channel: int, at: IntArray, numbers: FloatArray, where: BoolArray) -> None:
    """Errors, or warnings, that grow slowly, against a baseline that is half a day old; what was abrupt is left out.

    Once a window is often enough: it is asked at each whole one's end.
    """
    row, first, place = (
        (Row.WARNINGS, Number.WARNINGS, Number.WARNINGS_TREND_RATE)
        if channel == _WARNINGS
        else (Row.ERRORS, Number.ERRORS, Number.TREND_RATE)
    )
    width = where.shape[1]
    at = at[numbers[place, at] > 0]
    ending = (np.array([stretch.low + 1 for stretch in out.stretches])[:, None] + np.arange(width)) % STEPS_PER_WINDOW
    where = (where & (ending == 0))[at]
    edges = np.flatnonzero(where.any(axis=0)).tolist()
    if not edges:
        return
    back = TREND_WINDOWS[-1] * STEPS_PER_WINDOW
    counts = np.zeros((len(at), row + 1, back + width))
    for part, index in zip(counts, at.tolist(), strict=True):
        series, _, low, blank = out.stretches[index]
        series.copy_part(low - back, low + width, part)
        for start, end in blank:
            part[:, max(start - low + back, 0) : max(end - low + back, 0)] = 0
    total = _cumulated(counts)
    ends = np.array([back + 1 + i for i in edges])
    lengths = STEPS_PER_WINDOW * np.array(TREND_WINDOWS)[:, None]
    n, k = (
        (total[:, i][:, None, ends] - total[:, i][:, ends - lengths]).transpose(1, 0, 2) for i in (Row.RECORDS, row)
    )
    rate, doubt = numbers[[place, place + 1]][:, None, at, None]
    by_time = numbers[first + 4, at][None, :, None]
    expected = rate * np.where(by_time > 0, lengths[:, :, None], n)
    enough = (k >= _MIN_TREND) & (k >= 2 * expected) & where[:, edges]
    s = np.zeros((len(TREND_WINDOWS), len(at), width))
    found = np.zeros((2, *s.shape))
    s[:, :, edges] = _surprise_where(enough, k, expected, np.broadcast_to(doubt, k.shape))
    # Of long stretches there are few, whatever they are of, so they need not be as odd as short ones.
    s *= CUT[channel] / CUT[_TREND]
    found[0][:, :, edges], found[1][:, :, edges] = k, expected
    out._keep(channel, at, TREND_WINDOWS, s, found[0], found[1])


class Lull(NamedTuple):
    """What was seen and expected over each of ``SILENCE_STEPS``, in records; expected is 0 where it cannot be said.

    ``rests_on`` is how many records it is expected by, ``usual`` what would have come had the level
    before gone on; by it the fleet is measured. ``clump`` says how many come together. ``begins``
    says that a batch is expected, which begins from nothing. ``before`` is what came before, in as long a time.
    ``strays`` is in how many steps something came.
    All have the shape (units, lengths).
    """

    k: FloatArray
    expected: FloatArray
    rests_on: FloatArray
    usual: FloatArray
    clump: FloatArray
    begins: BoolArray
    before: FloatArray
    strays: IntArray


class Pauses(NamedTuple):
    """How a unit pauses when nothing is wrong, in records that the hours about a pause would have brought in it.

    Beyond ``least`` a pause of ``x`` is as likely as ``exp(-often - (x - least) / excess)``: an exponential tail,
    of the longest ``among``. ``longest`` is the longest of all. Each is an array over ``_STRAYS``, the steps with
    records that may lie within a pause.
    """

    longest: FloatArray
    least: FloatArray
    excess: FloatArray
    often: FloatArray
    among: FloatArray


class Habit(NamedTuple):
    """What past days say about the windows from ``low`` on.

    ``by_step`` has the shape (_Habit, steps), from as far back as silence looks before the window at ``low``;
    ``least``, of shape (scales, windows), what a batch that is late brought at least on past days like this
    one, 0 without a rule.
    """

    low: int
    by_step: npt.NDArray[np.float32]
    least: npt.NDArray[np.float32]


class _Habit(IntEnum):
    USUAL = 0  # records, as of past days about this time
    EXACT = 1  # and in this very step
    SEEN = 2  # records that ``USUAL`` rests on
    DAYS = 3  # that say something about this step


class Watched(NamedTuple):
    """A unit that can fall silent: records come on time since the step ``live_since``."""

    series: Series
    base: Baseline
    live_since: int


def habits(
    watched: Sequence[tuple[Series, Baseline]], low: int, width: int, grid: Grid, blind: Sequence[tuple[int, int]]
) -> list[Habit]:
    """Return the habits of units for ``width`` windows, from past days only, so that they hold as long as those do.

    How much is usual rests on as much time about a step as has the same rate, by what chance makes of it.
    Source: Lepski's choice of a bandwidth.
    """
    size, day = len(watched), grid.day_steps()
    span, about = _SILENCE_SPAN, _USUAL_ABOUT[-1]
    days = np.arange(1, _SILENCE_DAYS + 1)
    starts = [low + 1 - span - about - j * day for j in days.tolist()]
    n = np.zeros((size, _SILENCE_DAYS, about + span + width - 1 + about))
    odd = np.zeros(n.shape, np.bool_)
    known = np.zeros(n.shape, np.bool_)
    for index, (series, _) in enumerate(watched):
        for row, start in enumerate(starts):
            if start + n.shape[2] <= series.first:
                break
            series.copy_records(start, start + n.shape[2], n[index, row], odd[index, row])
            known[index, row, max(series.first - start, 0) : max(low - start, 0)] = True
    for begin, end in blind:
        for row, start in enumerate(starts):
            odd[:, row, max(begin - start, 0) : max(end - start, 0)] = True
    clean = known & ~odd
    # With no clean day the others say more than none: nothing is missed that never came, even if that was called odd.
    usable = np.where(clean.any(axis=1, keepdims=True), clean, known)
    weights = 0.8 ** (days - 1)[:, None] * usable
    least = _least(n[:, :, about:], odd[:, :, about:], known[:, :, about:], low, width, grid)
    n = _tamed(n, usable)
    by_step = np.zeros((len(_Habit), size, n.shape[2]))
    weighted, weight = (weights * n).sum(axis=1), weights.sum(axis=1)
    by_step[_Habit.EXACT] = weighted / np.maximum(weight, 1e-9)
    by_step[_Habit.DAYS] = usable.sum(axis=1)
    sums = _cumulated(np.stack([weighted, weight, (weights**2).sum(axis=1), (usable * n).sum(axis=1)]))
    clump = np.array([base.clump for _, base in watched])[:, None]
    usual, rests_on = by_step[_Habit.EXACT], np.zeros((size, n.shape[2]))
    is_steady = np.ones(usual.shape, np.bool_)
    at = np.arange(n.shape[2])
    finer: list[tuple[FloatArray, FloatArray]] = []
    for half in _USUAL_ABOUT:
        since, through = np.maximum(at - half, 0), np.minimum(at + half + 1, len(at))
        events, weight, squares, seen = sums[..., through] - sums[..., since]
        rate = events / np.maximum(weight, 1e-9)
        for fine, noise in finer:
            is_steady &= (fine - rate) ** 2 <= _ALIKE**2 * clump * rate * noise
        if finer:
            usual = np.where(is_steady, rate, usual)
            rests_on = np.where(is_steady, seen, rests_on)
        finer.append((rate, squares / np.maximum(weight, 1e-9) ** 2))
    by_step[_Habit.USUAL], by_step[_Habit.SEEN] = usual, rests_on
    inner = by_step[:, :, about : about + span + width - 1].astype(np.float32)
    return [Habit(low, inner[:, index], least[index]) for index in range(size)]


def _tamed(n: FloatArray, usable: BoolArray) -> FloatArray:
    """Return the records of days with what was far more than on most days taken down to twice as much.

    By the hour about each quarter, for that is long enough to tell; a load that came once is not usual.
    Shape (units, days, steps).
    """
    size, days, width = n.shape
    quarters = -(-width // _QUARTER)
    sums = np.zeros((2, size, days, quarters + 3))
    for total, values in zip(sums, (n * usable, usable), strict=True):
        starts = np.arange(0, width, _QUARTER)
        total[..., 2:-1] = np.add.reduceat(values, starts, axis=-1, dtype=np.float64)
    events, steps = sums[..., :-3] + sums[..., 1:-2] + sums[..., 2:-1] + sums[..., 3:]
    rate = events / np.maximum(steps, 1)
    ranked = np.sort(np.where(steps > 0, rate, np.inf), axis=1)
    middle = np.take_along_axis(ranked, np.maximum((steps > 0).sum(axis=1, keepdims=True) - 1, 0) // 2, axis=1)
    most = np.where(np.isfinite(middle), 2 * middle + 1 / _QUARTER, np.inf)
    share = np.repeat(np.minimum(1.0, most / np.maximum(rate, 1e-9)), _QUARTER, axis=2)
    tamed: FloatArray = n * share[..., :width]
    return tamed


def _least(
    n: FloatArray, odd: BoolArray, known: BoolArray, low: int, width: int, grid: Grid
) -> npt.NDArray[np.float32]:
    """Return what a batch brought at least on past days like this one, even if it came late; shape (units, scales, windows).

    The arrays are of the steps of past days, shape (units, days, steps).
    """
    span = _SILENCE_SPAN
    lengths = STEPS_PER_WINDOW * np.array(SILENCE_WINDOWS)
    # From here on the last axes are (scale, window): a tail of the scale's length, and twice as long before that.
    ends = span + np.arange(width)
    tails, befores = ends - lengths[:, None], ends - 3 * lengths[:, None]
    total, odd_total = _cumulated(n), _cumulated(odd)
    tail = total[:, :, None, ends] - total[:, :, tails]
    is_known = known[:, :, tails]
    clean = is_known & (odd_total[:, :, None, ends] == odd_total[:, :, befores])
    # Nor was it missed if it came an hour later: after clocks were changed it does so on every day.
    late = is_known & ~clean & (total[:, :, None, ends + _RETURN_STEPS] - total[:, :, None, ends] >= _MIN_SCHEDULED)
    clean |= late
    usable = np.where(clean.any(axis=1, keepdims=True), clean, is_known)
    steps = low + np.arange(width)
    is_weekend = _is_weekend(steps - np.arange(_SILENCE_DAYS + 1)[:, None] * grid.day_steps(), grid)
    same = (is_weekend[1:] == is_weekend[0])[:, None]
    # One weekend day says little: what is expected on another has come on working days as well.
    alike = usable & (same | is_weekend[0] | late)
    earlier = total[:, :, None, ends - _LATE_STEPS] - total[:, :, tails - _LATE_STEPS]
    least = np.where(alike, np.minimum(tail, earlier), np.inf).min(axis=1)
    is_regular = (alike.sum(axis=1) >= 3) & (usable & same).any(axis=1) & (least >= _MIN_SCHEDULED)
    return np.where(is_regular, least, 0.0).astype(np.float32)


def habits_from(low: int, grid: Grid) -> int:
    """Return the first step that the habits of windows from ``low`` on rest on."""
    return low + 1 - _SILENCE_SPAN - _USUAL_ABOUT[-1] - _SILENCE_DAYS * grid.day_steps()


def may_be_silent(watched: Sequence[Watched], known: Sequence[Habit], low: int, width: int) -> BoolArray:
    """Return where ``lulls`` may find a unit quiet, never too seldom; shape (units, windows).

    For many windows at once: ``known`` are the habits of the block that the windows lie in. Of all lengths
    between two scales the longer says how much may be expected, the shorter how little must have come.
    """
    n = np.zeros((len(watched), _SILENCE_SPAN + width - 1))
    below, usual = np.zeros(n.shape), np.zeros(n.shape)
    odd = np.zeros(n.shape[1], np.bool_)
    for index, ((series, _, _), habit) in enumerate(zip(watched, known, strict=True)):
        series.copy_records(low + 1 - _SILENCE_SPAN, low + width, n[index], odd, below[index])
        there = slice(low - habit.low, low - habit.low + n.shape[1])
        usual[index] = habit.by_step[[_Habit.USUAL, _Habit.EXACT], there].max(axis=0)
    scales = STEPS_PER_WINDOW * np.array(SILENCE_WINDOWS)[:, None]
    longer = np.concatenate([scales[1:], scales[-1:]])
    ends = _SILENCE_SPAN + np.arange(width)
    total, total_all, total_usual = _cumulated(n), _cumulated(n + below), _cumulated(usual)
    tail = total_all[:, None, ends] - total_all[:, ends - scales]
    before = total[:, ends - scales] - total[:, ends - 3 * longer]
    by_days = 1.25 * (total_usual[:, None, ends] - total_usual[:, ends - longer])
    least = np.array([habit.least[:, low - habit.low :][:, :width] for habit in known])
    most = np.maximum(np.maximum(by_days, before * (before >= _MIN_LEVEL)), least)
    clump = np.array([unit.base.clump for unit in watched])[:, None, None]
    may: BoolArray = np.any((most >= _MIN_EXPECTED) & (tail < 0.13 * most + 0.6 * clump), axis=1)
    return may


def lulls(
    watched: Sequence[Watched], known: Sequence[Habit], step: int, grid: Grid, blind: Sequence[tuple[int, int]]
) -> Lull:
    """Return what silence is judged by, for the window named by ``step``; ``blind`` are steps that say nothing.

    Expected is the same time of past clean days, at today's level, or else the level just before; for
    a batch that begins from nothing, the least of past days that are working days, or not, like this
    one. A unit counts as live when records came on time for one such span before, so that history sent
    in one go is never taken for a unit that then fell silent.
    """
    guard = grid.grace_us // grid.step_us + 1
    span = _SILENCE_SPAN
    start = step + 1 - span
    counts = np.zeros((12, len(watched), span))
    n, below, clean, is_odd, usual, usual_clean, exact, seen, days, unknown, is_busy, compared = counts
    odd = np.zeros(n.shape, np.bool_)
    least = np.zeros((len(watched), len(SILENCE_STEPS)))
    at_scales = [SILENCE_STEPS.index(scale * STEPS_PER_WINDOW) for scale in SILENCE_WINDOWS]
    for index, ((series, _, _), habit) in enumerate(zip(watched, known, strict=True)):
        series.copy_records(start, step + 1, n[index], odd[index], below[index])
        there = slice(step - habit.low, step - habit.low + span)
        usual[index], exact[index], seen[index], days[index] = habit.by_step[:, there]
        unknown[index] = days[index] == 0
        least[index, at_scales] = habit.least[:, step - habit.low]
    live_since = np.array([unit.live_since for unit in watched])
    for begin, end in blind:
        odd[:, max(begin - start, 0) : max(end - start, 0)] = True
        live_since = np.maximum(live_since, end)  # nobody was live meanwhile
    clump = np.array([unit.base.clump for unit in watched])[:, None]
    lengths = np.array(SILENCE_STEPS)
    # Where each length begins, as much twice before it, and the hours before it.
    tails, befores, longs = _before(span, 1), _before(span, 3), _before(span - _LEVEL_STEPS, 1)
    days *= exact
    # What is already silent must not lower what is expected.
    clean[:], is_odd[:], usual_clean[:], is_busy[:] = n * ~odd, odd, usual * ~odd, n + below > 0
    usual_clean *= 1 - unknown
    compared[:] = clean * (1 - unknown)
    total = _cumulated(counts)
    at_tails = total[:, :, tails]
    tail_of, before_of, long_of = (
        total[:, :, -1:] - at_tails,
        at_tails - total[:, :, befores],
        at_tails - total[:, :, longs],
    )
    # DEBUG switched on makes nothing expected, but what writes it is not silent.
    tail = tail_of[0] + tail_of[1]
    usual_of, exact_of, seen_of, came_of, is_usable = *tail_of[[4, 6, 7, 8]], tail_of[9] == 0
    before, _, clean_before, odd_before, _, usual_before, exact_before = before_of[:7]
    compared_before, compared_long, usual_long = before_of[11], long_of[11], long_of[5]
    # A level that is not much above nothing says little, and none is believed beyond twice the usual.
    level = (compared_long + _LEVEL_PRIOR) / (usual_long + _LEVEL_PRIOR)
    # It holds if what came last agrees: a task may have less to do than hours ago.
    lately = compared_before + 2 * np.sqrt(clump * (compared_before + clump))
    level = np.minimum(level, (lately + _LEVEL_PRIOR) / (usual_before + _LEVEL_PRIOR))
    steps = 2 * lengths - odd_before
    by_days = usual_of * np.minimum(level, 1.2)
    # What begins from nothing, such as a nightly batch, is expected as little as it ever was on such days;
    # its records come together, but day by day.
    begins = is_usable & (exact_before < 0.2 * exact_of) & (before < 0.1 * exact_of)
    by_days = np.where(begins, least, by_days)
    clump = np.where(begins, 1.0, clump)
    is_live = (live_since[:, None] <= step + 1 - 2 * lengths - guard) & (steps >= lengths)
    # What came for a few hours and was never seen to stop may be a batch that is over.
    is_steady = (step - np.array([unit.series.first for unit in watched]) >= grid.day_steps() // 2)[:, None]
    by_itself = clean_before * lengths / np.maximum(steps, 1)
    by_level = _UNKNOWN_DAY * by_itself * ((by_itself >= _MIN_LEVEL) & is_steady)
    expected = np.where(is_live, np.where(is_usable, by_days, by_level), 0.0)
    flat = np.array([unit.base.per_step for unit in watched])[:, None] * lengths
    normal = np.where(is_usable, usual_of * np.minimum(level, 2.0), flat)
    # On as many as came on past days within it, or about each step of it; and on those of the level.
    rests_on = np.maximum(np.where(begins, 0, seen_of / lengths), came_of)
    rests_on = np.where(begins, rests_on, 1 / (1 / np.maximum(rests_on, 1e-9) + 1 / np.maximum(compared_long, 1e-9)))
    rests_on = np.where(is_usable, rests_on, 2 * by_itself)
    strays = tail_of[10].astype(np.int64)
    return Lull(tail, expected, rests_on, normal, np.broadcast_to(clump, tail.shape), begins, before / 2, strays)


def _before(place: int, times: int) -> slice:
    """Return the places that lie each of ``SILENCE_STEPS`` so many times before another."""
    first, last = place - times * SILENCE_STEPS[0], place - times * SILENCE_STEPS[-1]
    return slice(first, last - 1 if last else None, -times)


def _cumulated(values: npt.NDArray[Any]) -> FloatArray:
    out = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=out[..., 1:])
    return out


def liveliness(seen: Lull) -> FloatArray:
    """Return (seen, usual, just before) of each unit as parts of the fleet, shape (3, units, scales).

    None counts for much more than others: a batch of thousands of records must not decide alone whether
    everything is quiet.
    """
    k, usual, before = seen.k / seen.clump, seen.usual / seen.clump, seen.before / seen.clump
    weight = np.minimum(1.0, _FLEET_CLUMPS / np.maximum(usual, 1e-9))
    return np.stack((np.minimum(k, 2 * usual) * weight, usual * weight, np.minimum(before, 2 * usual) * weight))


def patience(series: Series, until: int, grid: Grid, blind: Sequence[tuple[int, int]]) -> int:
    """Return after how many steps without a record a unit that comes at regular intervals is overdue; 0 for others.

    It is regular when its long gaps, those of at least half the longest, are alike and make up most of the
    time: four within a tenth, or twenty within two fifths. Records that come by chance do not do so.
    It is overdue a quarter of an hour, or as much as its gaps differ, after the longest; what comes once
    or twice a day may be an hour later, when clocks go back.
    """
    day = grid.day_steps()
    busy = series.busy_steps(until - _SILENCE_DAYS * day, until)
    if len(busy) <= _REGULAR_FEW:
        return 0
    gaps = np.diff(busy)
    is_clean = np.ones(len(gaps), np.bool_)
    if series.odd:
        odd = _cumulated(series.odd_part(int(busy[0]), int(busy[-1]) + 1))
        is_clean = odd[busy[1:] - busy[0]] == odd[busy[:-1] - busy[0] + 1]
    for begin, end in blind:
        is_clean &= (busy[1:] < begin) | (busy[:-1] >= end)
    for at in np.flatnonzero(2 * gaps >= day).tolist():
        gaps[at] -= rest_steps(series, int(busy[at]), int(busy[at + 1]), day, grid)
    gaps = gaps[is_clean]
    longest = int(gaps.max(initial=0))
    if longest < 2 * STEPS_PER_WINDOW:
        return 0
    long = gaps[2 * gaps >= longest]
    likeness = 0.6 if len(long) >= _REGULAR_MANY else 0.9
    if len(long) < _REGULAR_FEW or long.min() < likeness * longest or 2 * long.sum() < gaps.sum() + len(gaps):
        return 0
    late = _LATE_STEPS + (day // 24 if 2 * longest >= day else 0)
    return longest + max(late, longest - int(long.min()))


def rest_steps(series: Series, start: int, end: int, gap: int, grid: Grid) -> int:
    """Return how many steps of ``[start, end)`` are of weekends, if a unit with such gaps comes once a day and never then."""
    day = grid.day_steps()
    if 2 * gap < day or 2 * (end - start) < day:
        return 0
    if _is_weekend(series.busy_steps(end - (_SILENCE_DAYS + 1) * day, end), grid).any():
        return 0
    hour = max(day // 24, 1)
    return hour * int(_is_weekend(np.arange(start, end, hour), grid).sum())


def _is_weekend(steps: IntArray, grid: Grid) -> BoolArray:
    """Return which steps are of a Saturday or Sunday, in UTC; 1970 began on a Thursday."""
    of_weekend: BoolArray = (steps * grid.step_us // DAY_US + 3) % 7 >= 5
    return of_weekend


def pauses(series: Series, until: int, grid: Grid, blind: Sequence[tuple[int, int]]) -> Pauses | None:
    """Return how a unit paused in the week before the step ``until``, at most; None while it paused too seldom to tell.

    Each pause is measured by the mean rate of the three hours about it, so that a quiet night has no
    long ones. Source of the tail: the mean excess over a high threshold (peaks over threshold), the
    shape being 0.
    """
    low = max(series.first, until - min(_SILENCE_DAYS * grid.day_steps(), _PAUSE_STEPS))
    if until - low < _PAUSE_BLOCKS * BLOCK_STEPS:
        return None
    n, below = np.zeros(until - low), np.zeros(until - low)
    odd = np.zeros(until - low, np.bool_)
    series.copy_records(low, until, n, odd, below)
    for begin, end in blind:
        odd[max(begin - low, 0) : max(end - low, 0)] = True
    clean = ~odd
    total, steps = _cumulated(n * clean), _cumulated(clean)
    at = np.arange(until - low)
    since, through = np.maximum(at - _PAUSE_ABOUT, 0), np.minimum(at + _PAUSE_ABOUT, until - low)
    rate = (total[through] - total[since]) / np.maximum(steps[through] - steps[since], 1)
    passed = _cumulated(rate * clean)
    busy = np.flatnonzero(n + below)
    out = []
    for strays in _STRAYS:
        first, last = busy[: -1 - strays] + 1, busy[1 + strays :]
        is_pause = (last > first + strays) & (steps[last] - steps[first] == last - first)
        found = np.sort(passed[last[is_pause]] - passed[first[is_pause]])[::-1]
        count = min(max(len(found) // 10, _PAUSES_LEAST), _PAUSES_MOST)
        if len(found) <= count:
            return None
        least = float(found[count])
        excess = max(float(found[:count].mean()) - least, 1.0)
        often = math.log(max(float(passed[-1]) / (count * excess), 1.0))
        out.append((float(found[0]), least, excess, often, count))
    return Pauses(*np.array(out).T)


def is_quiet(seen: Lull) -> BoolArray:
    """Return where next to nothing came of at least ten expected records."""
    quiet: BoolArray = (seen.expected >= _MIN_EXPECTED) & (seen.k < 0.12 * seen.expected + 0.5 * seen.clump)
    return quiet


def silence(seen: Lull, unit: int, fleet: FloatArray, past: Pauses | None) -> tuple[float, int]:
    """Return the surprise of one unit's silence and the index of its scale.

    ``fleet`` is how lively the others are, 0…1: when everything stops at once, a holiday or the
    network is the reason, not one task. What comes independently is told by the unit's own pauses
    where it has enough of them, by the variance of its windows where it has not.
    """
    k, expected = seen.k[unit], seen.expected[unit] * fleet
    clump, rests_on, begins = seen.clump[unit], seen.rests_on[unit], seen.begins[unit]
    # In clumps: what so many records more make less likely by a factor of e.
    # How much less a holiday makes one task do is known by others only, so but roughly.
    clumps, doubt = expected / clump, 0.01 + clump / (rests_on + 0.5) + 0.2 * (1 - fleet)
    if past is not None:
        # What was in flight when it began, or a trickle, is told from by pauses that had as much in them.
        order = np.searchsorted(_STRAYS, seen.strays[unit])
        known = order < len(_STRAYS)
        longest, least, excess, often, among = (values[np.minimum(order, len(_STRAYS) - 1)] for values in past)
        by_pauses = np.maximum(often + (expected - least) / excess, 0.0)
        by_pauses *= known & (expected > _LONGER * longest)
        k = np.where(begins, k, 0.0)
        clumps = np.where(begins, clumps, by_pauses)
        doubt += np.where(begins, 0.0, 1 / among)
    odd = (clumps >= _MIN_CLUMPS) & (seen.k[unit] < 0.12 * expected + 0.5 * clump)
    if not odd.any():
        return 0.0, 0
    s = np.where(odd, lack(k / clump, np.maximum(clumps, 1e-9), doubt), 0.0)
    best = int(s.argmax())
    return float(s[best]), best


def fleet_level(k: FloatArray, usual: FloatArray, before: FloatArray) -> FloatArray:
    """Return how much of the usual a fleet does, 0…1, by scale; see ``liveliness``.

    From four fifths on it is as lively as ever, for chance makes a fifth; with hardly any fleet nothing is known.
    What was lively and stops all at once does not do so for a holiday, so it does not excuse anyone.
    """
    lively = np.minimum(k / np.maximum(usual, 1), 1)
    level = np.where(lively < 0.6, lively, np.minimum(2 * lively - 0.6, 1.0))
    has_stopped = (lively < _STOPPED) & (before >= 0.3 * usual)
    return np.where(usual < _LEAST_FLEET, 1.0, np.where(has_stopped, _STOPPED_LEVEL, level))
