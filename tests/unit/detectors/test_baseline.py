"""Baselines: many are learned together, each as if alone."""

from __future__ import annotations

import numpy as np

from detectors.base import BLOCK_STEPS, STEPS_PER_WINDOW, Count, Grid
from detectors.baseline import Baseline, learn
from detectors.windows import Series

GRID = Grid(window_us=300_000_000, grace_us=60_000_000)
NOW = 29_000_000 // BLOCK_STEPS * BLOCK_STEPS


def unit(seed: int) -> Series:
    """Return a unit with minutes to days of history, busy or hardly so, parts of it odd."""
    rng = np.random.default_rng(seed)
    first = NOW - int(rng.integers(1, 3_000)) if seed % 7 else NOW - 3
    series = Series(first, {})
    for step in range(first, NOW + 30, 1 if seed % 2 else 17):
        for level, mean in (("info", 5.0), ("error", 0.3 if seed % 3 else 4.0), ("warn", 0.2), ("debug", seed % 2)):
            if n := int(rng.poisson(mean)):
                series.add(Count("task:a", step * GRID.step_us, "level", level, n), step)
        if seed % 4:
            series.add(Count("task:a", step * GRID.step_us, "duration", str(int(rng.normal(200, 9))), 2), step)
    if seed % 5 == 0:
        series.mark(NOW - 200, NOW - 90, 1)
    return series


def numbers(base: Baseline) -> list[object]:
    """Return all that is in a baseline, to the last bit."""
    decay = base.decay.tobytes()
    return [getattr(base, name) for name in base.__slots__ if name not in {"decay", "numbers"}] + [
        decay,
        base.numbers.tobytes(),
    ]


def test_what_is_learned_of_a_unit_does_not_depend_on_which_others_there_are() -> None:
    edges = [NOW + STEPS_PER_WINDOW * (seed % 3) for seed in range(16)]
    together = learn([(unit(seed), until) for seed, until in enumerate(edges)], GRID)
    for seed, until in enumerate(edges):
        [alone] = learn([(unit(seed), until)], GRID)
        assert numbers(alone) == numbers(together[seed])
        pair = learn([(unit(15 - seed), NOW), (unit(seed), until)], GRID)
        assert numbers(pair[1]) == numbers(alone)
    assert {base.is_learning for base in together} == {True, False}


def test_what_is_learned_is_the_same_however_often_it_was_learned_meanwhile() -> None:
    series, late = unit(1), Count("task:a", (NOW - 100) * GRID.step_us, "level", "error", 3)
    for until in range(NOW - 10 * BLOCK_STEPS, NOW, STEPS_PER_WINDOW):
        learn([(series, until)], GRID)
    series.add(late, NOW - 100)
    fresh = unit(1)
    fresh.add(late, NOW - 100)
    assert numbers(learn([(series, NOW)], GRID)[0]) == numbers(learn([(fresh, NOW)], GRID)[0])
