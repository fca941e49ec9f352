"""Windows: what one unit did, step by step, and block by block.

Counts only ever add up, so the arrays depend on the set of records and not on their order. A block
is twelve windows; its row of sums leaves out every step that belongs to something odd, so nothing
odd ever trains a baseline. Rows are recomputed when a count or a mark in their block changed, and
therefore are the same after a restart.

Not here: what is normal (baseline.py), what is odd (signals.py).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from detectors.base import BLOCK_STEPS, STEPS_PER_WINDOW, Count

if TYPE_CHECKING:
    from detectors.baseline import Baseline

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Row(IntEnum):
    """Rows of ``Series.counts``."""

    RECORDS = 0  # at info or above: DEBUG switched on is no load
    ERRORS = 1
    WARNINGS = 2
    DURATIONS = 3  # records with a duration
    DURATION_SUM = 4  # of their logarithmic buckets
    DURATION_SQUARES = 5
    ALL = 6  # records at any level


class Sum(IntEnum):
    """Columns of ``Series.blocks``: sums over the clean steps, and over squares of clean windows."""

    STEPS = 0
    RECORDS = 1
    ERRORS = 2
    WARNINGS = 3
    DURATIONS = 4
    DURATION_SUM = 5
    DURATION_SQUARES = 6
    ERRORS2 = 7
    ERRORS_RECORDS = 8
    RECORDS2 = 9
    WARNINGS2 = 10
    WARNINGS_RECORDS = 11
    BUSY_WINDOWS = 12
    DURATION_WINDOWS = 13  # windows with a duration
    WINDOW_SQUARES = 14  # over windows, the square of their sum of buckets by their durations


class Table:
    """Records by key (a template, a customer) and step; ``first`` has the step of each key's first."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[str, dict[int, int]]] = {}  # block → key → step → records
        self._clean: dict[int, dict[str, int]] = {}  # block → key → clean records, as far as asked
        self.first: dict[str, int] = {}

    def add(self, key: str, step: int, n: int) -> None:
        """Add ``n`` records."""
        steps = self._blocks.setdefault(step // BLOCK_STEPS, {}).setdefault(key, {})
        steps[step] = steps.get(step, 0) + n
        self.first[key] = min(step, self.first.get(key, step))
        self._clean.pop(step // BLOCK_STEPS, None)

    def change(self, block: int) -> None:
        """Say that other steps of a block are odd now."""
        self._clean.pop(block, None)

    def keys(self, start: int, end: int) -> list[str]:
        """Return the keys with a record in the blocks of ``[start, end)``, sorted."""
        return sorted({key for block in _blocks(start, end) for key in self._blocks.get(block, ())})

    def part(self, key: str, start: int, end: int) -> IntArray:
        """Return the key's records in each step of ``[start, end)``."""
        out: IntArray = np.zeros(end - start, np.int64)
        for block in _blocks(start, end):
            for step, n in self._blocks.get(block, {}).get(key, {}).items():
                if start <= step < end:
                    out[step - start] = n
        return out

    def busy(self, start: int, end: int, least: int) -> list[str]:
        """Return the keys with at least so many records in ``[start, end)``, sorted."""
        totals: dict[str, int] = {}
        for block in _blocks(start, end):
            for key, steps in self._blocks.get(block, {}).items():
                totals[key] = totals.get(key, 0) + sum(n for step, n in steps.items() if start <= step < end)
        return sorted(key for key, total in totals.items() if total >= least)

    def past(self, key: str, until: int, base: Baseline, odd: npt.NDArray[np.int16], first_step: int) -> float:
        """Return the decayed count of the key's clean records before ``until``; ``odd`` begins with ``first_step``."""
        whole = min(until, base.until) // BLOCK_STEPS
        kept = base.pasts.get((id(self), key, whole))
        if kept is None:
            kept = 0.0
            for index, weight in enumerate(base.decay[: max(whole - base.first_block, 0)].tolist()):
                n = self._clean_in(base.first_block + index, key, odd, first_step)
                if n:
                    kept += weight * n
            base.pasts[id(self), key, whole] = kept
        for block in _blocks(whole * BLOCK_STEPS, until):
            steps = self._blocks.get(block, {}).get(key)
            if steps:
                kept += sum(n for step, n in steps.items() if step < until and odd[step - first_step] == 0)
        return kept

    def _clean_in(self, block: int, key: str, odd: npt.NDArray[np.int16], first_step: int) -> int:
        steps = self._blocks.get(block, {}).get(key)
        if not steps:
            return 0
        known = self._clean.setdefault(block, {})
        n = known.get(key)
        if n is None:
            n = known[key] = sum(n for step, n in steps.items() if odd[step - first_step] == 0)
        return n

    def trim(self, before: int) -> None:
        """Forget everything before the step ``before``."""
        kept: dict[int, dict[str, dict[int, int]]] = {}
        self.first, self._clean = {}, {}
        for block, keys in self._blocks.items():
            for key, steps in keys.items():
                recent = {step: n for step, n in steps.items() if step >= before}
                if recent:
                    kept.setdefault(block, {})[key] = recent
                    low = min(recent)
                    self.first[key] = min(low, self.first.get(key, low))
        self._blocks = kept


def _blocks(start: int, end: int) -> range:
    return range(start // BLOCK_STEPS, (end - 1) // BLOCK_STEPS + 1)


class Series:
    """Counts of one unit. Steps are absolute; ``first`` and ``last`` bound those with a record."""

    def __init__(self, step: int) -> None:
        self.base = step - step % BLOCK_STEPS  # absolute step of column 0
        self.counts: IntArray = np.zeros((len(Row), BLOCK_STEPS), np.int64)
        self.odd: npt.NDArray[np.int16] = np.zeros(BLOCK_STEPS, np.int16)  # how many marks cover the step
        self.blocks: FloatArray = np.zeros((1, len(Sum)))
        self._dirty = {0}
        self.first = self.last = step
        self.templates = Table()
        self.customers = Table()  # records at error or above
        self.failing_versions: dict[int, dict[str, int]] = {}  # step → version → errors

    def add(self, count: Count, step: int) -> None:
        """Add one count; dimensions that are not used are ignored."""
        self._cover(step)
        column = step - self.base
        n = count.n
        match count.dimension:
            case "level":  # every record has one
                self.counts[Row.ALL, column] += n
                self.first = min(self.first, step)
                self.last = max(self.last, step)
                if count.key not in {"trace", "debug"}:
                    self.counts[Row.RECORDS, column] += n
                if count.key in {"error", "fatal"}:
                    self.counts[Row.ERRORS, column] += n
                elif count.key == "warn":
                    self.counts[Row.WARNINGS, column] += n
            case "duration":
                bucket = int(count.key)
                self.counts[Row.DURATIONS, column] += n
                self.counts[Row.DURATION_SUM, column] += n * bucket
                self.counts[Row.DURATION_SQUARES, column] += n * bucket * bucket
            case "template":
                self.templates.add(count.key, step, n)
            case "customer_error":
                self.customers.add(count.key, step, n)
            case "version_error":
                versions = self.failing_versions.setdefault(step, {})
                versions[count.key] = versions.get(count.key, 0) + n
            case _:
                return
        self._dirty.add(column // BLOCK_STEPS)

    def _cover(self, step: int) -> None:
        """Grow the arrays by whole blocks until ``step`` has a column."""
        size = self.counts.shape[1]
        before = max(0, -((step - self.base) // BLOCK_STEPS)) if step < self.base else 0
        short = step - self.base + 1 - size
        after = max(-(-short // BLOCK_STEPS), size // BLOCK_STEPS // 4 + 1) if short > 0 else 0
        if not before and not after:
            return
        pad = (before * BLOCK_STEPS, after * BLOCK_STEPS)
        self.counts = np.pad(self.counts, ((0, 0), pad))
        self.odd = np.pad(self.odd, pad)
        self.blocks = np.pad(self.blocks, ((before, after), (0, 0)))
        self._dirty = {block + before for block in self._dirty}
        self.base -= pad[0]

    def mark(self, start: int, end: int, by: int) -> None:
        """Say that ``[start, end)`` belongs (``by`` 1) or no longer belongs (-1) to something odd."""
        if end > self.base:
            self._cover(end - 1)
        low, high = max(start - self.base, 0), end - self.base
        if low < high:
            self.odd[low:high] += np.int16(by)
            blocks = range(low // BLOCK_STEPS, (high - 1) // BLOCK_STEPS + 1)
            self._dirty.update(blocks)
            for block in blocks:
                self.templates.change(self.base // BLOCK_STEPS + block)
                self.customers.change(self.base // BLOCK_STEPS + block)

    def part(self, start: int, end: int) -> IntArray:
        """Return the counts of ``[start, end)``, shape (rows, steps); 0 where nothing is known."""
        out = np.zeros((len(Row), end - start), np.int64)
        self.copy_part(start, end, out)
        return out

    def copy_part(self, start: int, end: int, out: IntArray) -> None:
        """Copy the counts of ``[start, end)`` to ``out``, shape (rows, steps), where something is known."""
        low, high = max(start, self.base), min(end, self.base + self.counts.shape[1])
        if low < high:
            out[:, low - start : high - start] = self.counts[:, low - self.base : high - self.base]

    def copy_records(self, start: int, end: int, n: FloatArray, odd: BoolArray) -> None:
        """Copy the records at any level in each step of ``[start, end)``, and which steps are odd."""
        low, high = max(start, self.base), min(end, self.base + self.counts.shape[1])
        if low < high:
            here, there = slice(low - start, high - start), slice(low - self.base, high - self.base)
            n[here] = self.counts[Row.ALL, there]
            np.greater(self.odd[there], 0, out=odd[here])

    def records_in(self, start: int, end: int) -> int:
        """Return the records at any level in ``[start, end)``."""
        return int(self.counts[Row.ALL, max(start - self.base, 0) : max(end - self.base, 0)].sum())

    def last_before(self, step: int) -> int:
        """Return the last step before ``step`` with a record, or the one before the first."""
        busy = np.flatnonzero(self.counts[Row.ALL, : max(step - self.base, 0)])
        return int(busy[-1]) + self.base if busy.size else self.base - 1

    def odd_part(self, start: int, end: int) -> BoolArray:
        """Return which steps of ``[start, end)`` are odd."""
        out = np.zeros(end - start, np.bool_)
        low, high = max(start, self.base), min(end, self.base + self.odd.size)
        if low < high:
            out[low - start : high - start] = self.odd[low - self.base : high - self.base] > 0
        return out

    def clean_sums(self, until: int) -> tuple[int, FloatArray]:
        """Return (first block, sums) of the past before ``until``: one row per block, the last may be partial.

        ``until`` is the edge of a window.
        """
        if self._dirty:
            for block in self._dirty:
                low = block * BLOCK_STEPS
                self.blocks[block] = self._sums(low, low + BLOCK_STEPS)
            self._dirty.clear()
        # Nothing before the first record is history.
        first = (self.first - self.base) // BLOCK_STEPS
        whole = min(max((until - self.base) // BLOCK_STEPS, first), len(self.blocks))
        rows = self.blocks[first:whole]
        low = whole * BLOCK_STEPS
        high = min(until - self.base, self.counts.shape[1])
        if high > low:
            rows = np.vstack([rows, self._sums(low, high)])
        return self.base // BLOCK_STEPS + first, rows

    def _sums(self, low: int, high: int) -> FloatArray:
        out = np.zeros(len(Sum))
        begin = self.first - self.base
        clean = self.odd[low:high] == 0
        if begin > low:
            clean &= np.arange(low, high) >= begin
        steps = int(clean.sum())
        if not steps:
            return out
        counts = self.counts[:, low:high] * clean
        out[Sum.STEPS] = steps
        out[Sum.RECORDS : Sum.DURATION_SQUARES + 1] = counts[: Row.ALL].sum(axis=1)
        windows = counts[:3].reshape(3, -1, STEPS_PER_WINDOW).sum(axis=2)
        n, e, w = windows.astype(np.float64)
        out[Sum.ERRORS2 : Sum.DURATION_WINDOWS] = (e @ e, e @ n, n @ n, w @ w, w @ n, (n > 0).sum())
        if out[Sum.DURATIONS]:
            timed = counts[Row.DURATIONS : Row.DURATION_SQUARES].reshape(2, -1, STEPS_PER_WINDOW).sum(axis=2)
            number, total = timed[:, timed[0] > 0].astype(np.float64)
            out[Sum.DURATION_WINDOWS], out[Sum.WINDOW_SQUARES] = len(number), (total * total / number).sum()
        return out

    def template_errors(self, id: str, start: int, end: int) -> IntArray:
        """Return how many of a template's records can be errors: their counts do not say the level, the step's do."""
        errors: IntArray = np.minimum(self.templates.part(id, start, end), self.part(start, end)[Row.ERRORS])
        return errors

    def trim(self, before: int) -> bool:
        """Forget everything before the step ``before``; return whether nothing is left."""
        if self.last < before:
            return True
        if self.first >= before:
            return False
        cut = max((before - self.base) // BLOCK_STEPS, 0)
        low = before - self.base
        self.counts[:, :low] = 0
        self.counts = self.counts[:, cut * BLOCK_STEPS :].copy()
        self.odd = self.odd[cut * BLOCK_STEPS :].copy()
        self.blocks = self.blocks[cut:].copy()
        self.base += cut * BLOCK_STEPS
        self._dirty = {block - cut for block in self._dirty if block >= cut} | {0}
        self.templates.trim(before)
        self.customers.trim(before)
        self.failing_versions = {step: v for step, v in self.failing_versions.items() if step >= before}
        busy = np.flatnonzero(self.counts[Row.ALL])
        self.first = int(busy[0]) + self.base if busy.size else self.last
        return False


def sliding(values: IntArray, lead: int, length: int) -> IntArray:
    """Return the sums over the ``length`` columns that end with each column from ``lead`` on.

    >>> sliding(np.array([[1, 2, 3, 4]]), 2, 3).tolist()
    [[6, 9]]
    """
    cumulative: IntArray = np.zeros((*values.shape[:-1], values.shape[-1] + 1), np.int64)
    np.cumsum(values, axis=-1, out=cumulative[..., 1:])
    high, low = cumulative[..., lead + 1 :], cumulative[..., lead + 1 - length : cumulative.shape[-1] - length]
    sums: IntArray = np.subtract(high, low)
    return sums
