"""What is left after a day was forgotten is what a start anew would know."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.base import BLOCK_STEPS, Count
from detectors.windows import Series, Table, clean_sums

_END = 6 * BLOCK_STEPS


@pytest.mark.parametrize("before", [2 * BLOCK_STEPS, 2 * BLOCK_STEPS + 7])
@pytest.mark.parametrize("seed", range(5))
def test_a_trimmed_table_knows_what_a_new_one_does(before: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Some keys went early, some came late, some do both.
    counts = [(f"early-{rng.integers(9)}", int(rng.integers(before)), 2) for _ in range(40)]
    counts += [(f"late-{rng.integers(3)}", int(rng.integers(before, _END)), 3) for _ in range(20)]
    counts += [(f"both-{rng.integers(4)}", int(rng.integers(_END)), 1) for _ in range(60)]
    rng.shuffle(counts)
    trimmed, fresh = Table(), Table()
    for key, step, n in ((str(key), int(step), int(n)) for key, step, n in counts):
        trimmed.add(key, step, n)
        if step >= before:
            fresh.add(key, step, n)
    trimmed.trim(before)
    assert trimmed.first == fresh.first
    assert trimmed.keys(0, _END) == fresh.keys(0, _END)
    for key in fresh.first:
        assert trimmed.part(key, 0, _END).tolist() == fresh.part(key, 0, _END).tolist()
    gone = {str(key) for key, _, _ in counts} - fresh.first.keys()
    assert trimmed.forgotten == {key: max(int(at) for one, at, _ in counts if one == key) for key in gone}
    trimmed.add("early-0", _END, 5)
    assert trimmed.first["early-0"] == _END
    assert trimmed.part("early-0", _END, _END + 1).tolist() == [5]


def test_sums_after_a_trim_are_those_of_a_start_anew() -> None:
    before, first = 2 * BLOCK_STEPS, 3 * BLOCK_STEPS + 20  # nothing came for more than an hour after
    trimmed = Series(5, {})
    fresh = Series(first, {})
    for step in (5, 40, first, first + 3, 5 * BLOCK_STEPS):
        count = Count("task:a", 0, "level", "error", 2)
        trimmed.add(count, step)
        if step >= before:
            fresh.add(count, step)
    clean_sums([(trimmed, 0, _END)])
    [(ahead_first, ahead_rows)] = clean_sums([(trimmed, before, _END)])
    trimmed.trim(before)
    [(start, rows)], [(fresh_start, fresh_rows)] = clean_sums([(trimmed, 0, _END)]), clean_sums([(fresh, 0, _END)])
    assert start == ahead_first == fresh_start
    assert rows.tolist() == fresh_rows.tolist()
    assert ahead_rows.tolist() == fresh_rows.tolist(), "what is about to be forgotten shows in nothing"
