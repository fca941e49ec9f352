"""Runs: how odd it is that a run had just these templates, judged by its task's past runs.

A failing run often says what no good one says, or leaves out what all of them say; counts of errors
see neither. Judged is the set of templates, not their number or order: loops and threads change
those on good days.

Nothing here opens a ticket: it is evidence on tickets and runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

CUT = 1.5
"""Surprise from which a run is odd: at most one past run in 32 was as odd."""

_LEAST_RUNS = 60
_MAX_SETS = 1_024


class Runs:
    """The sets of templates of a task's past runs.

    The past may hold failed runs: what is rare among all of them is odd. A task of which many runs
    are like no other has no odd ones.

    >>> runs = Runs()
    >>> for _ in range(99):
    ...     runs.learn_one(["starting", "charged <num>", "done"])
    >>> runs.surprise(["starting", "charged <num>", "done"])
    0.0
    >>> runs.surprise(["starting"])
    2.0
    """

    def __init__(self) -> None:
        self._counts: Counter[frozenset[str]] = Counter()

    def learn_one(self, templates: Iterable[str]) -> None:
        """Take a run that ended.

        Past 1,024 different sets no new one is kept apart: they count as one, the empty set.
        """
        one = frozenset(templates)
        if one not in self._counts and len(self._counts) >= _MAX_SETS:
            one = frozenset()
        self._counts[one] += 1

    def surprise(self, templates: Iterable[str]) -> float | None:
        """Return minus log10 of the share of runs at least as odd, this one among them; ``None`` before 60 runs.

        With this one counted, as odd are those whose set of templates was then seen at most as often: so
        the first run of its kind is as odd as all others that are the only ones of theirs (Good and Turing's
        estimate of what is yet to be seen).
        """
        total = self._counts.total()
        if total < _LEAST_RUNS:
            return None
        mine = self._counts[frozenset(templates)] + 1
        as_odd = sum(n for n in self._counts.values() if n <= mine)
        return math.log10((total + 1) / (as_odd + 1))
