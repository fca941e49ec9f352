"""Windows: what one unit did, step by step, and block by block.

Counts only ever add up, so the arrays depend on the set of records and not on their order. A block
is twelve windows; its row of sums leaves out every step that belongs to something odd, so nothing
odd ever trains a baseline. Rows are recomputed when a count or a mark in their block changed, and
therefore are the same after a restart. Steps are kept in the narrowest integers that hold them:
about 80 kB for eight days of a busy task.

Not here: what is normal (baseline.py), what is odd (signals.py).
"""

from __future__ import annotations

import itertools
import math
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

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


Odd = dict[int, npt.NDArray[np.int16]]
"""Block → how many marks cover each of its steps; blocks without any are absent."""

_BELOW_INFO = frozenset({"trace", "debug"})
_OF_LEVEL = {"error": Row.ERRORS, "fatal": Row.ERRORS, "warn": Row.WARNINGS}
_SUMMED_STEPS = 1 << 16
"""So many steps are summed at once: of hundreds of units their last hour, or the eight days of a few after a start."""
_CLUMPED = 5
"""From so many counts on it is known how a table's keys come together."""
DAY_BLOCKS = 24
"""A key is young for so many blocks after it was first seen."""
CENTRE = 200
"""Squares of durations are kept about this bucket (a fifth of a second), so that they stay small."""


_ENTRY = struct.Struct("<IBI")
"""Of a ``Table``: number of the key, step within the block, records."""


_ENTRIES = np.dtype([("number", "<u4"), ("offset", "u1"), ("n", "<u4")])


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
    # As that, of the sum of squares about the centre, and of its product with the sum about the centre.
    WINDOW_FOURTHS = 15
    WINDOW_THIRDS = 16


class Past(NamedTuple):
    """What is known of a table's clean past: each key's decayed count by number, and of all keys two numbers.

    ``clump`` is how many records of one key come together beyond what it always brings. ``newcomers``
    is how many, decayed, are of keys that were first seen in the day before: of hosts that live for a day, all.
    """

    counts: FloatArray
    clump: float
    newcomers: float


class Table:
    """Records by key (a template, a customer) and step; ``first`` has the step of each key's first.

    Of groups, such as customers, it is also learned how their records come.

    A block is one run of bytes, an entry for each count that was added: a dict of dicts would take
    ten times the memory.
    """

    def __init__(self, *, is_of_groups: bool = False) -> None:
        self._is_of_groups = is_of_groups
        self._blocks: dict[int, bytearray] = {}
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.forgotten: dict[str, int] = {}  # key → its last step, of those whose counts were trimmed

    def add(self, key: str, step: int, n: int) -> None:
        """Add ``n`` records."""
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._names)
            self._names.append(key)
        block, offset = divmod(step, BLOCK_STEPS)
        self._blocks.setdefault(block, bytearray()).extend(_ENTRY.pack(number, offset, n))
        self.first[key] = min(step, self.first.get(key, step))

    def _entries(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (key's number, step, records) in ``[start, end)``."""
        for block in _blocks(start, end):
            low = block * BLOCK_STEPS
            for number, offset, n in _ENTRY.iter_unpack(self._blocks.get(block, b"")):
                if start <= low + offset < end:
                    yield number, low + offset, n

    def keys(self, start: int, end: int) -> list[str]:
        """Return the keys with a record in ``[start, end)``, sorted."""
        return sorted({self._names[number] for number, _, _ in self._entries(start, end)})

    def part(self, key: str, start: int, end: int) -> IntArray:
        """Return the key's records in each step of ``[start, end)``."""
        out: IntArray = np.zeros(end - start, np.int64)
        wanted = self._numbers.get(key)
        for number, step, n in self._entries(start, end) if wanted is not None else ():
            if number == wanted:
                out[step - start] += n
        return out

    def recent(
        self, start: int, end: int, least: int, kin: Mapping[str, str] | None = None
    ) -> list[tuple[str, IntArray]]:
        """Return groups of keys with at least so many records in ``[start, end)``, each with those in each step.

        ``kin`` has the group of a key; a key that is not in it is a group of its own. A group is named
        by its busiest key, and they are sorted by that.
        """
        entries = list(self._entries(start, end))
        totals: dict[int, int] = {}
        for number, _, n in entries:
            totals[number] = totals.get(number, 0) + n
        groups: dict[str, list[int]] = {}
        for number in totals:
            name = self._names[number]
            groups.setdefault(name if kin is None else kin.get(name, name), []).append(number)
        found: dict[int, IntArray] = {}  # by key
        out: list[tuple[str, IntArray]] = []
        for group in groups.values():
            if sum(totals[number] for number in group) >= least:
                steps: IntArray = np.zeros(end - start, np.int64)
                found |= dict.fromkeys(group, steps)
                _, name = min((-totals[number], self._names[number]) for number in group)
                out.append((name, steps))
        for number, step, n in entries if found else ():
            if number in found:
                found[number][step - start] += n
        return sorted(out, key=lambda one: one[0])

    def past(self, keys: Iterable[str], start: int, end: int, base: Baseline, odd: Odd) -> FloatArray:
        """Return the decayed count of the keys' clean records before each step of ``[start, end)``."""
        whole = min(start, base.until) // BLOCK_STEPS
        known = self.remember(whole, base, odd).counts
        numbers = [self._numbers[key] for key in keys]
        kept = sum(float(known[number]) for number in numbers if number < len(known))
        wanted = set(numbers)
        low = whole * BLOCK_STEPS
        since = np.zeros(end - low)
        for number, step, n in self._entries(low, end - 1):
            if number in wanted and not is_odd(odd, step):
                since[step + 1 - low] += n
        total: FloatArray = kept + np.cumsum(since)[start - low :]
        return total

    def remember(self, whole: int, base: Baseline, odd: Odd) -> Past:
        """Return what is known of the keys' clean records before the block ``whole``, found once a baseline."""
        known = base.pasts.get((id(self), whole))
        if known is None:
            known = base.pasts[id(self), whole] = self._past(whole, base, odd)
        return known

    def _past(self, whole: int, base: Baseline, odd: Odd) -> Past:
        whole = min(whole, base.first_block + len(base.decay))
        known = np.sort(np.fromiter(self._blocks, np.int64, len(self._blocks)))
        blocks = known[np.searchsorted(known, base.first_block) : np.searchsorted(known, whole)]
        if not blocks.size:
            return Past(np.zeros(0), 1.0, 0.0)
        parts = [self._blocks[block] for block in blocks.tolist()]
        entries = np.frombuffer(b"".join(parts), _ENTRIES)
        place = np.repeat(np.arange(len(blocks)), np.array(list(map(len, parts))) // _ENTRY.size)
        marked = [(at, odd[block]) for at, block in enumerate(blocks.tolist()) if block in odd] if odd else ()
        if marked:
            is_clean = np.ones((len(blocks), BLOCK_STEPS), np.bool_)
            for at, marks in marked:
                is_clean[at] = marks == 0
            used = is_clean[place, entries["offset"]]
            entries, place = entries[used], place[used]
        # By key and block first, in whole numbers, then block by block: the order of arrival must not show.
        cells = entries["number"].astype(np.int64) * len(blocks) + place
        cells, which = np.unique(cells, return_inverse=True)
        number, place = np.divmod(cells, len(blocks))
        n = np.bincount(which, entries["n"], len(cells))
        weighted = base.decay[blocks - base.first_block][place] * n
        counts: FloatArray = np.bincount(number, weighted, len(self._names)).astype(np.float64)
        if not self._is_of_groups or len(n) < _CLUMPED:
            return Past(counts, 1.0, 0.0)
        # How many of a key come together: a size-biased mean, less what the key always brings. The largest counts
        # as the second largest, for it may be an incident that nobody saw. Sums are exact, whatever their order.
        weight, n = weighted / n, np.minimum(n, np.partition(n, -2)[-2])
        mean = np.bincount(number, n, len(self._names)) / max(whole - base.first_block, 1)
        clump = math.fsum(weight * n * (n - mean[number])) / math.fsum(weight * n)
        # Which come of keys not older than a day.
        first = np.array([self.first.get(name, 0) for name in self._names]) // BLOCK_STEPS
        later = blocks[place] >= base.first_block + DAY_BLOCKS
        young = later & (blocks[place] < first[number] + DAY_BLOCKS)
        share = math.fsum(weighted[young]) / (math.fsum(weighted[later]) + _CLUMPED)
        newcomers = share * math.fsum(counts)
        return Past(counts, max(clump, 1.0), newcomers)

    def trim(self, before: int) -> bool:
        """Forget everything before the step ``before``; return whether ``Past`` of what is left still tells the keys."""
        left = {self._numbers[key]: key for key, step in self.first.items() if step < before}
        if not left:
            return True
        edge = before // BLOCK_STEPS
        blocks = sorted(self._blocks)
        # Most keys come again soon, so their first step is found in the first blocks that are left.
        for block in blocks[bisect_left(blocks, edge) :]:
            firsts: dict[int, int] = {}
            for number, step, _ in self._entries(max(block * BLOCK_STEPS, before), (block + 1) * BLOCK_STEPS):
                if number in left:
                    firsts[number] = min(step, firsts.get(number, step))
            for number, step in firsts.items():
                self.first[left.pop(number)] = step
            if not left:
                break
        if left:
            for number, step, _ in self._entries(blocks[0] * BLOCK_STEPS, before):
                if (key := left.get(number)) is not None:
                    self.forgotten[key] = max(step, self.forgotten.get(key, step))
            for key in left.values():
                del self.first[key]
        kept = list(self._entries(before, (edge + 1) * BLOCK_STEPS))
        for block in blocks[: bisect_left(blocks, edge + 1)]:
            del self._blocks[block]
        is_renumbered = 2 * len(self.first) < len(self._names)
        if is_renumbered:
            # Numbers of what is gone are given out anew.
            kept += self._entries((edge + 1) * BLOCK_STEPS, (blocks[-1] + 1) * BLOCK_STEPS)
            self._blocks, self._numbers = {}, {}
            names, self._names = self._names, []
        else:
            names = self._names
        for number, step, n in kept:
            self.add(names[number], step, n)
        return not is_renumbered


def is_odd(odd: Odd, step: int) -> bool:
    """Return whether a mark covers a step."""
    marks = odd.get(step // BLOCK_STEPS)
    return marks is not None and bool(marks[step % BLOCK_STEPS])


def _blocks(start: int, end: int) -> range:
    return range(start // BLOCK_STEPS, (end - 1) // BLOCK_STEPS + 1)


class Series:
    """Counts of one unit. Steps are absolute; ``first`` and ``last`` bound those with a record."""

    def __init__(self, step: int, kin: Mapping[str, str]) -> None:
        self.base = step - step % BLOCK_STEPS  # absolute step of column 0
        self._size = BLOCK_STEPS
        # As ``Row``, but for ALL, which is kept as what lies below info, and for the centred squares.
        # None where there was nothing yet.
        self._rows: list[npt.NDArray[np.unsignedinteger[Any]] | None] = [None] * len(Row)
        self.odd: Odd = {}
        self.blocks: FloatArray = np.zeros((1, len(Sum)))  # sums of each, but of those that are dirty
        self.dirty = {0}
        self.first = self.last = step
        self.templates = Table()  # by fingerprint
        self.kin = kin  # fingerprint → template, of those known
        # Records at error or above, of one of many.
        self.groups = {name: Table(is_of_groups=True) for name in ("customer", "host")}
        self.failing_versions: dict[int, dict[str, int]] = {}  # step → version → errors

    def add(self, count: Count, step: int) -> None:
        """Add one count; dimensions that are not used are ignored."""
        _, _, dimension, key, n = count
        if dimension == "level":  # every record has one
            column = self._column(step)
            if step < self.first:
                self.first = step
            elif step > self.last:
                self.last = step
            if key in _BELOW_INFO:
                self._put(Row.ALL, column, n)
            else:
                self._put(Row.RECORDS, column, n)
                row = _OF_LEVEL.get(key)
                if row is not None:
                    self._put(row, column, n)
        elif dimension == "duration":
            column, bucket = self._column(step), int(key)
            self._put(Row.DURATIONS, column, n)
            self._put(Row.DURATION_SUM, column, n * bucket)
            self._put(Row.DURATION_SQUARES, column, n * (bucket - CENTRE) ** 2)
        elif dimension == "template":
            self.templates.add(key, step, n)
        elif dimension in {"customer_error", "host_error"}:
            self.groups[dimension.removesuffix("_error")].add(key, step, n)
        elif dimension == "version_error":
            versions = self.failing_versions.setdefault(step, {})
            versions[key] = versions.get(key, 0) + n

    def _column(self, step: int) -> int:
        """Return the column of a step that is to be counted in."""
        column = step - self.base
        if not 0 <= column < self._size:
            self.cover(step)
            column = step - self.base
        self.dirty.add(column // BLOCK_STEPS)
        return column

    def _put(self, row: Row, column: int, n: int) -> None:
        values = self._rows[row]
        if values is None:
            values = self._rows[row] = np.zeros(self._size, np.uint8)
        value = values.item(column) + n
        try:
            values[column] = value
        except OverflowError:
            values = self._rows[row] = values.astype(np.min_scalar_type(value))
            values[column] = value

    def cover(self, step: int) -> None:
        """Grow the arrays by whole blocks until ``step`` has a column."""
        if self.base <= step < self.base + self._size:
            return
        before = max(0, -((step - self.base) // BLOCK_STEPS)) if step < self.base else 0
        short = step - self.base + 1 - self._size
        # A quarter more, so that growing is rare; at most a day of the usual window.
        after = max(-(-short // BLOCK_STEPS), min(self._size // BLOCK_STEPS // 4, 24) + 1) if short > 0 else 0
        if not before and not after:
            return
        pad = (before * BLOCK_STEPS, after * BLOCK_STEPS)
        self._rows = [None if values is None else np.pad(values, pad) for values in self._rows]
        self.blocks = np.pad(self.blocks, ((before, after), (0, 0)))
        self.dirty = {block + before for block in self.dirty}
        self.base -= pad[0]
        self._size += pad[0] + pad[1]

    @property
    def end(self) -> int:
        """The step after the last that there is room for."""
        return self.base + self._size

    def mark(self, start: int, end: int, by: int) -> None:
        """Say that ``[start, end)`` belongs (``by`` 1) or no longer belongs (-1) to something odd."""
        if end > self.base:
            self.cover(end - 1)
        start = max(start, self.base)
        for block in _blocks(start, end) if start < end else ():
            marks = self.odd.setdefault(block, np.zeros(BLOCK_STEPS, np.int16))
            low = block * BLOCK_STEPS
            marks[max(start - low, 0) : end - low] += np.int16(by)
            if by < 0 and not marks.any():
                del self.odd[block]
            self.dirty.add(block - self.base // BLOCK_STEPS)

    def part(self, start: int, end: int) -> IntArray:
        """Return the counts of ``[start, end)``, shape (rows, steps); 0 where nothing is known."""
        out = np.zeros((len(Row), end - start), np.int64)
        self.copy_part(start, end, out)
        return out

    def copy_part(self, start: int, end: int, out: IntArray) -> None:
        """Copy the counts of ``[start, end)`` to ``out``, shape (the first rows, steps), where something is known."""
        low, high = max(start, self.base), min(end, self.base + self._size)
        if low >= high:
            return
        here, there = slice(low - start, high - start), slice(low - self.base, high - self.base)
        for row, values in zip(out, self._rows, strict=False):
            if values is not None:
                row[here] = values[there]
        if len(out) > Row.ALL:
            out[Row.ALL] += out[Row.RECORDS]
        if len(out) > Row.DURATION_SQUARES and self._rows[Row.DURATIONS] is not None:
            shift = 2 * CENTRE * out[Row.DURATION_SUM] - CENTRE * CENTRE * out[Row.DURATIONS]
            out[Row.DURATION_SQUARES] += shift

    def copy_records(
        self, start: int, end: int, n: FloatArray, odd: BoolArray, below: FloatArray | None = None
    ) -> None:
        """Copy the records in each step of ``[start, end)``, and which steps are odd; to ``below``, those below info."""
        low, high = max(start, self.base), min(end, self.base + self._size)
        if low < high:
            here, there = slice(low - start, high - start), slice(low - self.base, high - self.base)
            for row, out in ((Row.RECORDS, n), (Row.ALL, below)):
                values = self._rows[row]
                if values is not None and out is not None:
                    out[here] = values[there]
            if self.odd:
                odd[:] = self.odd_part(start, end)

    def records_in(self, start: int, end: int) -> int:
        """Return the records at any level in ``[start, end)``."""
        there = slice(max(start - self.base, 0), max(end - self.base, 0))
        rows = (self._rows[Row.RECORDS], self._rows[Row.ALL])
        return sum(int(values[there].sum()) for values in rows if values is not None)

    def errors_in(self, start: int, end: int) -> int:
        """Return the records at error or above in ``[start, end)``."""
        values = self._rows[Row.ERRORS]
        return 0 if values is None else int(values[max(start - self.base, 0) : max(end - self.base, 0)].sum())

    def busy_steps(self, start: int, end: int) -> IntArray:
        """Return the steps of ``[start, end)`` with a record at any level, rising."""
        low, high = max(start - self.base, 0), max(end - self.base, 0)
        some = [values[low:high] for row in (Row.RECORDS, Row.ALL) if (values := self._rows[row]) is not None]
        if not some:
            return np.zeros(0, np.int64)
        is_busy = some[0] > 0 if len(some) == 1 else (some[0] > 0) | (some[1] > 0)
        busy: IntArray = np.flatnonzero(is_busy) + (self.base + low)
        return busy

    def last_before(self, step: int) -> int:
        """Return the last step before ``step`` with a record, or the one before the first."""
        found = [self.base - 1]
        for values in (self._rows[Row.RECORDS], self._rows[Row.ALL]):
            if values is not None:
                busy = np.flatnonzero(values[: max(step - self.base, 0)])
                found += [int(busy[-1]) + self.base] if busy.size else []
        return max(found)

    def first_from(self, step: int, until: int) -> int:
        """Return the first step from ``step`` on with a record, ``until`` if there is none."""
        if self.first >= step:
            return self.first
        found = until
        for values in (self._rows[Row.RECORDS], self._rows[Row.ALL]):
            if values is not None and (busy := values[step - self.base :] > 0).any():
                found = min(found, step + int(busy.argmax()))
        return found

    def odd_part(self, start: int, end: int) -> BoolArray:
        """Return which steps of ``[start, end)`` are odd."""
        out = np.zeros(end - start, np.bool_)
        for block in _blocks(start, end) if self.odd else ():
            marks = self.odd.get(block)
            if marks is not None:
                low = block * BLOCK_STEPS
                begin, stop = max(start, low), min(end, low + BLOCK_STEPS)
                out[begin - start : stop - start] = marks[begin - low : stop - low] > 0
        return out

    def alike(self) -> dict[str, list[str]]:
        """Return the fingerprints seen, by their template, sorted."""
        out: dict[str, list[str]] = {}
        for id in sorted(self.templates.first):
            out.setdefault(self.kin.get(id, id), []).append(id)
        return out

    def template_errors(self, ids: Iterable[str], start: int, end: int) -> IntArray:
        """Return how many records of fingerprints can be errors: their counts do not say the level, the step's do."""
        total = np.zeros(end - start, np.int64)
        for id in ids:
            total += self.templates.part(id, start, end)
        errors: IntArray = np.minimum(total, self.part(start, end)[Row.ERRORS])
        return errors

    def trim(self, before: int) -> bool:
        """Forget everything before the step ``before``; return whether nothing is left."""
        if self.last < before:
            return True
        if self.first >= before:
            return False
        cut = max((before - self.base) // BLOCK_STEPS, 0)
        low, gone = before - self.base, cut * BLOCK_STEPS
        for row, values in enumerate(self._rows):
            if values is not None:
                values[:low] = 0
                kept = values[gone:].copy()
                self._rows[row] = kept if kept.any() else None
        self.blocks = self.blocks[cut:].copy()
        self.base += gone
        self._size -= gone
        self.odd = {block: marks for block, marks in self.odd.items() if block >= self.base // BLOCK_STEPS}
        self.dirty = {block - cut for block in self.dirty if block >= cut}
        self.failing_versions = {step: v for step, v in self.failing_versions.items() if step >= before}
        used = [values for row in (Row.RECORDS, Row.ALL) if (values := self._rows[row]) is not None]
        first = min((int(values.argmax()) for values in (v > 0 for v in used)), default=0)
        self.first = self.base + first
        self.dirty |= {0, first // BLOCK_STEPS}  # nothing before the first record is history
        return False


class _Run(NamedTuple):
    """Columns ``[low, high)`` of a unit; those before the step ``first`` are no history."""

    series: Series
    low: int
    high: int
    first: int


def clean_sums(pasts: Sequence[tuple[Series, int, int]]) -> list[tuple[int, FloatArray]]:
    """Return (first step, sums) of the past of each unit: one row per block, the first and the last may be partial.

    ``pasts`` are (unit, from, until). Until is the edge of a window, and from, the edge of a block: what lies before
    it shows in nothing, so that it does not matter whether it is still known.
    """
    runs: list[_Run] = []  # to be summed anew
    for series, _, until in pasts:
        # Through the step itself, whatever there happens to be room for: hours without records are history too.
        series.cover(until - 1)
        dirty = sorted(series.dirty)
        while dirty:
            # Blocks in a row at once: after a start, all of them.
            end = next((i for i in range(1, len(dirty)) if dirty[i] != dirty[0] + i), len(dirty))
            runs.append(_Run(series, dirty[0] * BLOCK_STEPS, (dirty[0] + end) * BLOCK_STEPS, series.first))
            del dirty[:end]
        series.dirty.clear()
    for (series, low, high, _), sums in zip(runs, _sums(runs, BLOCK_STEPS), strict=True):
        series.blocks[low // BLOCK_STEPS : high // BLOCK_STEPS] = sums
    out: list[tuple[int, FloatArray]] = []
    begun: list[tuple[int, _Run]] = []  # whose first block is but in part history
    for at, (series, oldest, until) in enumerate(pasts):
        # Nothing before the first record is history.
        start = series.first_from(oldest, until)
        first = (start - series.base) // BLOCK_STEPS
        whole = min(max((until - series.base) // BLOCK_STEPS, first), len(series.blocks))
        rows = series.blocks[first:whole]
        low, high = whole * BLOCK_STEPS, min(until, series.end) - series.base
        if high > low:
            rows = np.vstack([rows, *_sums_together([_Run(series, low, high, start)], high - low)])
        if start > series.first and start % BLOCK_STEPS and first < whole:
            rows = rows.copy()
            begun.append((at, _Run(series, first * BLOCK_STEPS, (first + 1) * BLOCK_STEPS, start)))
        out.append((start, rows))
    for (at, _), sums in zip(begun, _sums([run for _, run in begun], BLOCK_STEPS), strict=True):
        out[at][1][0] = sums[0]
    return out


def _sums(runs: Sequence[_Run], width: int) -> Iterator[FloatArray]:
    """Yield the sums over columns of units, a row for each ``width`` of them: a block, or windows of one."""
    some: list[_Run] = []
    steps = 0
    for run in runs:
        some.append(run)
        steps += run.high - run.low
        if steps >= _SUMMED_STEPS:
            yield from _sums_together(some, width)
            some, steps = [], 0
    yield from _sums_together(some, width)


def _sums_together(runs: Sequence[_Run], width: int) -> list[FloatArray]:
    ends = list(itertools.accumulate(run.high - run.low for run in runs))
    if not ends:
        return []
    counts = np.zeros((Row.ALL, ends[-1]), np.int64)
    is_clean = np.ones(ends[-1], np.bool_)
    for (series, low, high, first), end in zip(runs, ends, strict=True):
        start, before = end - (high - low), first - series.base
        series.copy_part(series.base + low, series.base + high, counts[:, start:end])
        if series.odd:
            is_clean[start:end] = ~series.odd_part(series.base + low, series.base + high)
        if low < before:
            is_clean[start : min(start + before - low, end)] = False
    counts *= is_clean
    # Slices of every fifth step: numpy adds up whole arrays far faster than five numbers at a time.
    windows: FloatArray = np.sum(
        [counts[:, step::STEPS_PER_WINDOW] for step in range(STEPS_PER_WINDOW)], axis=0, dtype=np.float64
    )
    n, e, w, timed, total, squares = windows
    some_timed = np.maximum(timed, 1)
    apart = total - CENTRE * timed
    about = squares - CENTRE * (total + apart)
    of_windows = np.empty((len(Sum) - 1, windows.shape[1]))
    of_windows[: len(windows)] = windows
    for column, values in (
        (Sum.ERRORS2, e * e),
        (Sum.ERRORS_RECORDS, e * n),
        (Sum.RECORDS2, n * n),
        (Sum.WARNINGS2, w * w),
        (Sum.WARNINGS_RECORDS, w * n),
        (Sum.BUSY_WINDOWS, n > 0),
        (Sum.DURATION_WINDOWS, timed > 0),
        (Sum.WINDOW_SQUARES, total * total / some_timed),
        (Sum.WINDOW_FOURTHS, about * about / some_timed),
        (Sum.WINDOW_THIRDS, about * apart / some_timed),
    ):
        of_windows[column - 1] = values
    sums = np.empty((ends[-1] // width, len(Sum)))
    sums[:, Sum.STEPS] = is_clean.reshape(-1, width).sum(axis=1)
    sums[:, Sum.RECORDS :] = of_windows.reshape(len(of_windows), len(sums), -1).sum(axis=2).T
    return np.split(sums, [end // width for end in ends[:-1]])


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
