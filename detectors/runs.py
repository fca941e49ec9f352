"""Runs: how odd it is that a run had just these templates, judged by its task's past runs.

A failing run often says what no good one says, or leaves out what all of them say; counts of errors
see neither. Judged is the set of templates, not their number or order: loops and threads change
those on good days.

Nothing here opens a ticket: it is evidence on tickets and runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

CUT = 1.5
"""Surprise from which a run is odd: at most one past run in 32 was as odd."""

_LEAST_RUNS = 60
_LEAST_ODD, _LEAST_SHARE = 3, 0.5
_NEARLY_ALL, _HARDLY_ANY = 0.9, 0.1
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


class OddRuns(NamedTuple):
    """Of the runs of an incident, how many are odd, and what they say that others do not, and the reverse."""

    runs: int
    odd: int
    usual: float  # share of past runs that are as odd as the least odd of these
    added: tuple[str, ...]  # templates in nearly all odd runs and hardly any past one, at most three
    missing: tuple[str, ...]  # the reverse

    def sentence(self) -> str:
        """Return one sentence for people.

        >>> OddRuns(20, 18, 0.004, ("Cannot reach <host>",), ("charged <num>", "done")).sentence()
        '18 of 20 failed runs did what hardly any run before did: none logged "charged <num>", "done"'
        """
        quoted = [", ".join(f'"{text[:80]}"' for text in some) for some in (self.missing, self.added)]
        found = [
            f"{word} {some}" for word, some in zip(("none logged", "nearly all logged"), quoted, strict=True) if some
        ]
        what = f": {found[0]}" if found else ""
        return f"{self.odd} of {self.runs} failed runs did what hardly any run before did{what}"


def odd_runs(past: Iterable[Mapping[str, object]], failed: Iterable[Mapping[str, object]]) -> OddRuns | None:
    """Return how odd failed runs are among past ones; ``None`` unless at least three and half of them are.

    Nor if nothing sets them apart by itself.     Both are records with ``task.id``, ``log.template.id`` and ``log.template.text``; those of ``past`` are in the
    order of time, so its first run may be cut short and does not count.
    """
    texts: dict[str, str] = {}
    before, now = _sets(past, texts), _sets(failed, texts)
    learned = list(before.values())[1:]
    runs = Runs()
    for one in learned:
        runs.learn_one(one)
    surprises = {id: surprise for id, one in now.items() if (surprise := runs.surprise(one)) is not None}
    odd = [id for id, surprise in surprises.items() if surprise >= CUT]
    if len(odd) < max(_LEAST_ODD, _LEAST_SHARE * len(now)):
        return None
    usual = Counter(template for one in learned for template in one)
    seen = Counter(template for id in odd for template in now[id])
    nearly, hardly = _NEARLY_ALL * len(learned), _HARDLY_ANY * len(learned)
    missing = [t for t, n in usual.items() if n >= nearly and not seen[t]]
    added = [t for t, n in seen.items() if n >= _NEARLY_ALL * len(odd) and usual[t] <= hardly]
    if not missing and not added:
        return None
    least = min(surprises[id] for id in odd)
    return OddRuns(len(now), len(odd), 10**-least, *(_texts(some, texts) for some in (added, missing)))


def _sets(records: Iterable[Mapping[str, object]], texts: dict[str, str]) -> dict[str, set[str]]:
    sets: dict[str, set[str]] = {}
    for record in records:
        id, template = record.get("task.id"), record.get("log.template.id")
        if isinstance(id, str) and isinstance(template, str):
            sets.setdefault(id, set()).add(template)
            texts[template] = str(record.get("log.template.text") or template)
    return sets


def _texts(templates: Iterable[str], texts: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(" ".join(texts[template].split()) for template in templates)[:3])
