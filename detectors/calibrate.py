"""Calibrate: one setting for people, the false tickets that a task may open a day, and what it does to the cuts.

A surprise is the decadic logarithm of how rarely chance brings as much, so a budget ten times as
large lowers every cut by one, and a budget ten times as small raises it by one. The cuts of
``base.CUTS`` are those of the default budget; how far they keep it on traffic without incidents,
``python -m tests.benchmarks detection_quality --full`` says. What people would not act on stays
below any cut.

What a budget does not move: the plain rules for units that are still being learned, which have no
surprise, and how much odder than anything learned the forest wants a shape, which only smaller
budgets raise.

Not here: surprises (signals.py), where budgets are set (the caller's).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from detectors.base import CHANNELS, CUTS
from detectors.windows import FloatArray

DEFAULT_BUDGET = 0.01
"""False tickets a task and day."""

LEAST_BUDGET, MOST_BUDGET = 0.0001, 1.0


def decades(budget: float) -> float:
    """Return by how much a budget raises every cut; negative where it lowers them.

    Raises:
        ValueError: If the budget is not within ``LEAST_BUDGET`` and ``MOST_BUDGET``.

    >>> [round(decades(budget), 2) for budget in (0.1, 0.03, 0.01, 0.001)]
    [-1.0, -0.48, 0.0, 1.0]
    """
    if not LEAST_BUDGET <= budget <= MOST_BUDGET:
        raise ValueError(f"a budget of {budget} false tickets; expected {LEAST_BUDGET} to {MOST_BUDGET} a task and day")
    return float(np.log10(DEFAULT_BUDGET / budget))


@lru_cache(maxsize=1024)
def _cuts(budget: float) -> FloatArray:
    return np.array([CUTS[name] for name in CHANNELS]) + decades(budget)


class Budgets:
    """The budget of each unit: its own in ``units``, else ``default``; in false tickets a task and day."""

    def __init__(self, default: float = DEFAULT_BUDGET, units: Mapping[str, float] | None = None) -> None:
        self._default = default
        self._units = dict(units or {})

    def add(self, units: Mapping[str, float]) -> None:
        """Set the budgets of further units."""
        self._units |= units

    def cuts(self, unit: str) -> FloatArray:
        """Return the cut of each channel; a surprise over its cut is a strength."""
        return _cuts(self._units.get(unit, self._default))

    def joint(self, unit: str) -> float:
        """Return what the forest's strength must reach."""
        # Nothing clean that was learned reached 1; how seldom that happens is not known well enough to go below.
        return max(1.0, float(self.cuts(unit)[0]) / CUTS[CHANNELS[0]])
