"""Signals: the channels in which a unit can be odd, each a calibrated surprise.

Every channel looks back over several multiples of the window and keeps its strangest. A surprise
of 6 means about one window in a million, in every channel, so the strongest decides. What
people would not act on is capped below any cut: a channel counts only from a minimum of records.

========== =============== ========================================================
channel    windows back    counts when
========== =============== ========================================================
errors     1, 2, 3, 6, 12  at least 5, and 4.5 more than expected
template   2, 6, 12        at least 5; 3 if never seen and the unit is known for a day
warnings   2, 6, 12        at least 8
latency    2, 6, 12        at least 5 durations, longer by half
silence    2, 3, 6, 12, 18 at least 5 expected, nearly none seen, and the unit was live
========== =============== ========================================================

Not here: what is normal (baseline.py), when an odd window is a ticket (engine.py, incidents.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detectors.base import CHANNELS, CUTS, STEPS_PER_WINDOW, Grid
from detectors.baseline import Baseline, Rate, lack, normal_surprise, surprise
from detectors.windows import BoolArray, FloatArray, IntArray, Row, Series, sliding

ERROR_WINDOWS = (1, 2, 3, 6, 12)
LONG_WINDOWS = (2, 6, 12)
SILENCE_WINDOWS = (2, 3, 6, 12, 18)
SHORT_WINDOWS = 3
"""Up to here a scale tells whether something odd still goes on."""

MAX_WINDOWS = 12
LOOK_BACK = MAX_WINDOWS * STEPS_PER_WINDOW
CUT = np.array([CUTS[name] for name in CHANNELS])

_MIN_ERRORS, _MIN_EXCESS = 5, 4.5
_MIN_NEW, _MIN_WARNINGS, _MIN_DURATIONS = 3, 8, 5
_MIN_SHIFT_BUCKETS = 0.45 / np.log(10) * 24
_KNOWN_PENALTY = 0.8
_PLAIN_ERRORS, _PLAIN_SHARE, _PLAIN_RECORDS, _PLAIN_SURPRISE, _PLAIN_RATIO = 10, 0.5, 20, 5.0, 5
_PLAIN_US = 300_000_000
"""Plain rules look back as long as this, so that ten failures are as many however short windows are."""
_PLAIN_STEPS = (1, 2, 3, 5, 10, 15, 30, 60)


@dataclass(slots=True)
class Evaluation:
    """The channels of one unit for the windows named by ``[low, high)``; arrays are (channel, window).

    ``k`` and ``expected`` are those of the scale (``windows``) with the highest surprise. ``short``
    is the highest surprise over short scales, ``plain`` where the plain rules for units that are
    still being learned hold. ``template`` is the strongest template's place in ``ids``, or -1.
    """

    low: int
    surprise: FloatArray
    k: FloatArray
    expected: FloatArray
    windows: IntArray
    short: FloatArray
    plain: BoolArray
    ids: list[str]
    template: IntArray
    is_new: BoolArray
    rates: tuple[Rate, Rate]

    def keep(self, channel: int, s: FloatArray, k: FloatArray, expected: FloatArray, windows: int) -> BoolArray:
        """Take over where ``s`` is the strangest so far, and return where."""
        if windows <= SHORT_WINDOWS:
            np.maximum(self.short, s, out=self.short)
        better: BoolArray = s > self.surprise[channel]
        if better.any():
            self.surprise[channel][better] = s[better]
            self.k[channel][better] = k[better]
            self.expected[channel][better] = expected[better]
            self.windows[channel][better] = windows
        return better


def evaluate(series: Series, base: Baseline, low: int, high: int, grid: Grid) -> Evaluation:
    """Return the channels, silence apart, for the windows named by the steps ``[low, high)``."""
    size = high - low
    out = Evaluation(
        low=low,
        surprise=np.zeros((len(CHANNELS), size)),
        k=np.zeros((len(CHANNELS), size)),
        expected=np.zeros((len(CHANNELS), size)),
        windows=np.ones((len(CHANNELS), size), np.int64),
        short=np.zeros(size),
        plain=np.zeros(size, np.bool_),
        ids=[],
        template=np.full(size, -1, np.int64),
        is_new=np.zeros(size, np.bool_),
        rates=(base.errors, base.warnings),
    )
    counts = series.part(low - LOOK_BACK, high)
    errors = int(counts[Row.ERRORS].sum())
    if errors >= 2:
        _errors(out, base, counts)
        if base.is_learning:
            _plain(out, base, counts, grid)
        if errors >= _MIN_NEW:
            _templates(out, series, base, counts)
    if counts[Row.WARNINGS].sum() >= _MIN_WARNINGS:
        _warnings(out, base, counts)
    if base.latency is not None and counts[Row.DURATIONS].sum() >= _MIN_DURATIONS:
        _latency(out, base, counts)
    return out


def _errors(out: Evaluation, base: Baseline, counts: IntArray) -> None:
    rate = base.errors
    for windows in ERROR_WINDOWS:
        length = windows * STEPS_PER_WINDOW
        n, k = sliding(counts[: Row.WARNINGS], LOOK_BACK, length).astype(np.float64)
        if k.max() < 2:
            continue
        expected = rate.p * (np.full(len(n), float(length)) if rate.by_time else n)
        s = surprise(k, expected, rate.dispersion(windows))
        enough = (k >= _MIN_ERRORS) & (k - expected >= _MIN_EXCESS)
        cap = np.where(enough, np.inf, np.where(k >= _MIN_NEW, 3.0, 2.0))
        out.keep(0, np.minimum(s, cap), k, expected, windows)


def _plain(out: Evaluation, base: Baseline, counts: IntArray, grid: Grid) -> None:
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
        out.plain |= (k >= _PLAIN_ERRORS) & (share | contrast)


def _warnings(out: Evaluation, base: Baseline, counts: IntArray) -> None:
    rate = base.warnings
    for windows in LONG_WINDOWS:
        length = windows * STEPS_PER_WINDOW
        n, _, k = sliding(counts[: Row.DURATIONS], LOOK_BACK, length).astype(np.float64)
        if k.max() < _MIN_WARNINGS / 2:
            continue
        expected = rate.p * (np.full(len(n), float(length)) if rate.by_time else n)
        s = surprise(k, expected, rate.dispersion(windows))
        out.keep(2, np.where(k >= _MIN_WARNINGS, s, np.minimum(s, 2.0)), k, expected, windows)


def _latency(out: Evaluation, base: Baseline, counts: IntArray) -> None:
    usual = base.latency
    assert usual is not None
    for windows in LONG_WINDOWS:
        n, total = sliding(counts[[Row.DURATIONS, Row.DURATION_SUM]], LOOK_BACK, windows * STEPS_PER_WINDOW).astype(
            np.float64
        )
        shift = total / np.maximum(n, 1) - usual.mean
        z = shift / np.sqrt(usual.block_variance + usual.variance * (1 / np.maximum(n, 1) + 1 / usual.count))
        odd = (n >= _MIN_DURATIONS) & (shift > _MIN_SHIFT_BUCKETS)
        s = np.where(odd, normal_surprise(z), np.minimum(normal_surprise(z), 2.0) * (n > 0))
        out.keep(3, s, shift + usual.mean, np.full(len(n), usual.mean), windows)


def _templates(out: Evaluation, series: Series, base: Baseline, counts: IntArray) -> None:
    """A known template surging, or one never seen for this unit: one formula, by its own past."""
    low, high = out.low, out.low + out.surprise.shape[1]
    begin = low - LOOK_BACK
    n = {
        windows: sliding(counts[Row.RECORDS], LOOK_BACK, windows * STEPS_PER_WINDOW).astype(np.float64)
        for windows in LONG_WINDOWS
    }
    # A unit that keeps making new templates (names that no mask catches) is not surprised by one more.
    learned = series.first + 288 * STEPS_PER_WINDOW
    fresh = sum(1 for first in series.template_first.values() if learned <= first < begin)
    for id in series.template_ids(begin, high):
        hits = series.template_errors(id, begin, high)
        if hits.sum() < _MIN_NEW:
            continue
        past = series.template_past(id, begin, base.decay, base.first_block)
        # Never seen before the hour that is looked at, whatever the decay left of it.
        is_new = past == 0 and series.template_first[id] >= begin - LOOK_BACK
        events = past + 0.3 + (fresh if is_new else 0)
        p = events / (base.records + 100)
        least = _MIN_NEW if is_new and base.is_established else _MIN_ERRORS
        for windows in LONG_WINDOWS:
            k = sliding(hits, LOOK_BACK, windows * STEPS_PER_WINDOW).astype(np.float64)
            if k.max() < _MIN_NEW:
                continue
            expected = p * n[windows]
            s = surprise(k, expected, 1 / events + base.errors.slow_spread)
            s = np.maximum(s - (0 if is_new else _KNOWN_PENALTY), 0)
            s = np.where((k >= least) & (k - expected >= least - 0.5), s, np.minimum(s, 2.0))
            better = out.keep(1, s, k, expected, windows)
            if better.any():
                out.template[better] = len(out.ids)
                out.is_new[better] = is_new
        out.ids.append(id)


class Lull(NamedTuple):
    """What was seen and expected over each silence scale, in clumps; expected is 0 where it cannot be said.

    ``usual`` is what would have come had the level before gone on; by it the fleet is measured.
    """

    k: FloatArray
    expected: FloatArray
    doubt: FloatArray
    usual: FloatArray
    clump: float


def lull(
    series: Series, base: Baseline, step: int, live_since: int, grid: Grid, blind: Iterable[tuple[int, int]]
) -> Lull:
    """Return what silence is judged by, for the window named by ``step``; ``blind`` are steps that say nothing.

    Expected is the same time of past clean days, at today's level, or else the level just before.
    A unit counts as live when records came on time for one such span before, so that history sent
    in one go is never taken for a unit that then fell silent.
    """
    sizes = len(SILENCE_WINDOWS)
    k, expected, doubt, normal = np.zeros(sizes), np.zeros(sizes), np.ones(sizes), np.zeros(sizes)
    day = grid.day_steps()
    guard = grid.grace_us // grid.step_us + 1
    longest = SILENCE_WINDOWS[-1] * STEPS_PER_WINDOW
    # Row 0 is now, row j the same steps j days ago.
    days = min((step + 1 - 3 * longest - series.first) // day, 7)
    starts = [step + 1 - 3 * longest - j * day for j in range(max(days, 0) + 1)]
    n = np.array([series.part(start, start + 3 * longest)[Row.ALL] for start in starts], np.float64)
    odd = np.array([series.odd_part(start, start + 3 * longest) for start in starts])
    for begin, end in blind:
        for row, start in enumerate(starts):
            odd[row, max(begin - start, 0) : max(end - start, 0)] = True
        live_since = max(live_since, end)  # nobody was live meanwhile
    weights = 0.8 ** np.arange(len(starts) - 1)
    for index, windows in enumerate(SILENCE_WINDOWS):
        length = windows * STEPS_PER_WINDOW
        k[index] = n[0, -length:].sum()
        usable = ~odd[1:, -3 * length :].any(axis=1)
        w, past = weights[usable], n[1:][usable]
        usual = usual_before = base.per_step * length
        if usable.any():
            usual = float(w @ past[:, -length:].sum(axis=1) / w.sum())
            usual_before = float(w @ past[:, -3 * length : -length].sum(axis=1) / w.sum()) / 2
        normal[index] = usual * n[0, -3 * length : -length].sum() / 2 / max(usual_before, 1.0)
        if live_since > step + 1 - 2 * length - guard:
            continue
        before = n[0, -3 * length : -length]
        # What is already silent must not lower what is expected.
        clean = ~odd[0, -3 * length : -length]
        if clean.sum() < length:
            continue
        level = before[clean].sum() * len(before) / clean.sum() / 2
        if usable.any():
            if level < 0.5 * usual_before:
                continue
            expected[index] = usual * min((level + 5) / (usual_before + 5), 1.2)
            doubt[index] = 0.01 + base.clump / (float(past[:, -length:].sum()) + 0.5)
        elif level >= 10:
            expected[index] = level
            doubt[index] = 0.01 + base.clump / (2 * level + 0.5)
    return Lull(k / base.clump, expected / base.clump, doubt, normal / base.clump, base.clump)


def is_quiet(k: FloatArray, expected: FloatArray) -> BoolArray:
    """Return where next to nothing came of at least five expected records."""
    return (expected >= 5) & (k < 0.12 * expected + 0.5)


def silence(seen: Lull, fleet: FloatArray) -> tuple[float, int]:
    """Return the surprise of silence and the index of its scale; ``fleet`` is how lively the others are, 0…1.

    When everything stops at once, a holiday or the network is the reason, not one task.
    """
    expected = seen.expected * fleet
    odd = is_quiet(seen.k, expected)
    if not odd.any():
        return 0.0, 0
    s = np.where(odd, lack(seen.k, np.maximum(expected, 1e-9), seen.doubt), 0.0)
    best = int(s.argmax())
    return float(s[best]), best
