"""Evaluate: how well odd windows and tickets match known incidents.

For any detector whose output is a list of flags, ``{"task", "start", "end", "score",
"detected_at", "kind", "ticket"}``, and any truth as ``simulate.py`` makes it. Times are seconds
since 1970.

- Flags of one ticket belong together; a flag without one is joined with the task's next when that
  starts within half an hour of its end.
- A flag hits an incident of its task if it was raised from the incident's start to a quarter of an
  hour after its end. A ticket none of whose flags hits is false, unless it touches an incident that
  had too little evidence to be scored; it counts once for every two hours it stays open. Flags of a
  true ticket that are far from its incidents are charged as false tickets too.
- Precision is detected incidents over themselves and false tickets, so that splitting an incident
  over many tickets buys nothing. The delay counts windows from the moment at which enough evidence
  existed, for kinds that begin abruptly; the grace, for which every window waits, can be taken off.
- The forest's share is apart: its tickets, how many of them are false, and the measures without it.

Not here: traffic (simulate.py), files and times as text (the caller's).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ABRUPT = frozenset(
    {
        "error_burst",
        "quiet_hour_burst",
        "new_error",
        "silence",
        "missed_schedule",
        "level_mix",
        "latency",
        "cascade",
        "tenant_burst",
        "flapping",
    }
)
JOINT = "joint"
"""Kind of what the forest alone raised."""

_AFTER_S = 900.0
_MERGE_S = 1800.0
_FALSE_S = 7200.0
_FAR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Flag:
    """One odd window; ``detected`` is when it was raised."""

    task: str
    start: float
    end: float
    detected: float
    score: float = 1.0
    kind: str = ""
    ticket: str | None = None


@dataclass(slots=True)
class KindMeasures:
    """How incidents of one kind were seen; ``lateness`` is windows from the evidence to being raised."""

    incidents: int = 0
    detected: int = 0
    lateness: list[float] = field(default_factory=list)  # negative before enough evidence

    @property
    def recall(self) -> float:
        """Detected incidents over all."""
        return self.detected / self.incidents

    def delay(self, share: float, *, grace_s: float = 0.0, window_s: float = 300.0) -> float | None:
        """Return the delay, in windows, within which such a share of the detected was found, less the grace."""
        return _delay(self.lateness, share, grace_s / window_s)


@dataclass(slots=True)
class Measures:
    """What a run of flags is worth; shares are 0…1, None where nothing can be said."""

    window_s: float
    incidents: int
    detected: int
    tickets: int
    false_tickets: int
    task_days: float
    lateness: list[float]  # of abrupt kinds, windows; negative before enough evidence
    tickets_per_incident: float | None
    cascades_on_one_ticket: float | None
    cascade_coverage: float | None  # share of a cascade's tasks that were flagged
    kinds: dict[str, KindMeasures]
    variants: dict[str, KindMeasures]  # by kind/variant, where the truth tells them apart
    missed: list[str]
    false_near: dict[str, int]  # quiet trap → false tickets beside it
    forest_tickets: int  # opened by the forest alone
    forest_false: int

    @property
    def precision(self) -> float:
        """Detected incidents over themselves and false tickets."""
        found = self.detected + self.false_tickets
        return self.detected / found if found else 1.0

    @property
    def recall(self) -> float:
        """Detected incidents over all; 1 without any."""
        return self.detected / self.incidents if self.incidents else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / (self.precision + self.recall) if self.detected else 0.0

    @property
    def false_per_task_day(self) -> float:
        """False tickets for each task and day that was judged."""
        return self.false_tickets / self.task_days if self.task_days else 0.0

    def delay(self, share: float, *, grace_s: float = 0.0) -> float | None:
        """Return the delay, in windows, within which such a share of the detected was found, less the grace."""
        return _delay(self.lateness, share, grace_s / self.window_s)


def _delay(lateness: Iterable[float], share: float, less: float) -> float | None:
    ordered = sorted(max(0.0, late - less) for late in lateness)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def without_forest(flags: Iterable[Flag]) -> list[Flag]:
    """Return the flags that would be there without the forest."""
    return [flag for flag in flags if flag.kind != JOINT]


def measure(truth: Mapping[str, Any], flags: Iterable[Flag]) -> Measures:
    """Return how well flags match the truth; flags from before ``truth["eval_start"]`` do not count."""
    window_s, begin, end = float(truth["window_s"]), float(truth["eval_start"]), float(truth["t_end"])
    incidents: Sequence[Mapping[str, Any]] = truth["incidents"]
    of_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for incident in incidents:
        for task in incident["tasks"]:
            of_task[task].append(incident)
    first: dict[str, float] = {}
    tickets_of: dict[str, int] = defaultdict(int)
    covered: dict[str, set[str]] = defaultdict(set)
    false: list[list[Flag]] = []
    near: dict[str, int] = defaultdict(int)
    total = forest = 0
    for ticket in _tickets(flag for flag in flags if flag.detected >= begin):
        hits = set()
        is_near_unscored = False
        for flag in ticket:
            for incident in of_task[flag.task]:
                if incident["start"] <= flag.detected <= incident["end"] + _AFTER_S:
                    if not incident["scored"]:
                        is_near_unscored = True
                        continue
                    hits.add(incident["id"])
                    covered[incident["id"]].add(flag.task)
                    first[incident["id"]] = min(flag.detected, first.get(incident["id"], math.inf))
        is_forest = ticket[0].kind == JOINT
        if hits:
            total, forest = total + 1, forest + is_forest
            for id in hits:
                tickets_of[id] += 1
            far = [flag for flag in ticket if not any(_is_near(flag, one, window_s) for one in of_task[flag.task])]
            far_tickets = _joined(far)
            total += len(far_tickets)
            false += far_tickets
        elif not is_near_unscored:
            total, forest = total + 1, forest + is_forest
            false.append(ticket)
            for name in {trap["kind"] for trap in truth["benign"] if _touches(ticket, trap)} or {"none"}:
                near[name] += 1
    scored = [incident for incident in incidents if incident["scored"]]
    kinds: dict[str, KindMeasures] = defaultdict(KindMeasures)
    variants: dict[str, KindMeasures] = defaultdict(KindMeasures)
    for incident in scored:
        name = incident["kind"]
        for kind in (kinds[name], variants[f"{name}/{incident['variant']}"] if incident.get("variant") else None):
            if kind is None:
                continue
            kind.incidents += 1
            if incident["id"] in first:
                kind.detected += 1
                kind.lateness.append((first[incident["id"]] - incident["evidence_at"]) / window_s)
    cascades = [one for one in scored if one["kind"] == "cascade" and one["id"] in first]
    return Measures(
        window_s=window_s,
        incidents=len(scored),
        detected=len(first),
        tickets=total,
        false_tickets=sum(_weight(ticket, begin) for ticket in false),
        task_days=sum((end - max(begin, task["cold_start"] or 0)) / 86_400 for task in truth["tasks"]),
        lateness=[late for name, kind in kinds.items() if name in ABRUPT for late in kind.lateness],
        tickets_per_incident=sum(tickets_of.values()) / len(first) if first else None,
        cascades_on_one_ticket=statistics.fmean(tickets_of[one["id"]] == 1 for one in cascades) if cascades else None,
        cascade_coverage=statistics.fmean(len(covered[one["id"]]) / len(one["tasks"]) for one in cascades)
        if cascades
        else None,
        kinds=dict(sorted(kinds.items())),
        variants=dict(sorted(variants.items())),
        missed=[one["id"] for one in scored if one["id"] not in first],
        false_near=dict(near),
        forest_tickets=forest,
        forest_false=sum(ticket[0].kind == JOINT for ticket in false),
    )


def _tickets(flags: Iterable[Flag]) -> list[list[Flag]]:
    named: dict[str, list[Flag]] = {}
    loose: list[Flag] = []
    for flag in flags:
        if flag.ticket is None:
            loose.append(flag)
        else:
            named.setdefault(flag.ticket, []).append(flag)
    return [sorted(ticket, key=lambda flag: flag.detected) for ticket in named.values()] + _joined(loose)


def _joined(flags: Iterable[Flag]) -> list[list[Flag]]:
    """Return flags as tickets: those of a task that follow each other closely."""
    tickets: list[list[Flag]] = []
    end = -math.inf
    for flag in sorted(flags, key=lambda flag: (flag.task, flag.start)):
        if tickets and tickets[-1][0].task == flag.task and flag.start - end <= _MERGE_S:
            tickets[-1].append(flag)
            end = max(end, flag.end)
        else:
            tickets.append([flag])
            end = flag.end
    return tickets


def _is_near(flag: Flag, incident: Mapping[str, Any], window_s: float) -> bool:
    return bool(incident["start"] - 2 * window_s <= flag.detected <= incident["end"] + _AFTER_S + _FAR_S)


def _touches(ticket: Sequence[Flag], trap: Mapping[str, Any]) -> bool:
    return any(
        flag.task in trap["tasks"] and flag.end >= trap["start"] and flag.start <= trap["end"] + _AFTER_S
        for flag in ticket
    )


def _weight(ticket: Sequence[Flag], begin: float) -> int:
    length = max(flag.end for flag in ticket) - max(begin, min(flag.start for flag in ticket))
    return max(1, math.ceil(length / _FALSE_S))
