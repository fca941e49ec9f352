"""Incidents: odd windows of one or several units that belong together, from opening to the end.

- Adjacent odd windows of a unit are one incident; it stays open while windows are not yet normal,
  ends four windows after the last odd one, and takes in what comes back within fifteen, or the same
  within three dozen: what smoulders for hours is one ticket. Each time that it came back it is held
  twice as long, two dozen windows at most, so that people are not told of every flicker.
- A unit that becomes odd within twelve windows of an incident's start, and while it is fresh, joins
  it when both have an error in common, or when the same happens to two tasks of one service; and
  within three dozen when their errors name the same thing or each other. If that shows only after
  both have opened, the younger incident is merged into the older.

A pure function of the judgements, their ticks and the facts; its state is kept by the caller.

Not here: what is odd (engine.py), tickets and people (the service).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from detectors.base import DAY_US, TICK_US, Finding, Grid, Judgement, TemplateCount

HOLD_WINDOWS, _MOST_HOLD_WINDOWS = 4, 24
REJOIN_WINDOWS = 15
_SAME_WINDOWS = 36
"""The same trouble, or the same dependency's, is one incident if no more windows lie between."""
_JOIN_WINDOWS = 12
_FRESH_WINDOWS = 4
_SAME_SERVICE_WINDOWS = 2
_SAME_WORDS_WINDOWS = 3
_REOPEN_SURPRISE, _EXTEND_SURPRISE = 2.5, 1.3
_KINDS = ("new_error", "error_burst", "silence", "latency", "level_mix", "joint")
"""From the most to the least telling; an incident has the most telling kind of its windows."""

_ERRORS = {"new_error", "error_burst", "joint"}


class ChangeKind(Enum):
    """What happened to an incident in a tick."""

    OPENED = "opened"
    UPDATED = "updated"
    RESOLVED = "resolved"
    REOPENED = "reopened"
    MERGED = "merged"


@dataclass(frozen=True, slots=True)
class Facts:
    """What counts cannot tell about a unit's odd window; the caller looks it up.

    ``texts`` has the text of each template by id, ``names`` what the error texts name (explain.py).
    """

    service: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()


@dataclass(slots=True)
class Member:
    """One unit of an incident; ``last_us`` is where its last odd records ended, also after it was resolved."""

    start_us: int
    end_us: int
    strength: float
    errors: int
    records: int
    service: str | None
    names: list[str]
    templates: list[str]
    last_us: int = 0  # an earlier version kept none


@dataclass(slots=True)
class Incident:
    """Everything known of an incident; ``root`` is the unit that was odd first.

    ``findings`` and ``series`` are those of the strongest window of the root, or of the unit that
    is stronger. ``opened_us`` is the moment at which it could first be raised. ``merged_into`` is the
    incident that goes on in its place.
    """

    id: str
    root: str
    kind: str
    start_us: int
    end_us: int
    opened_us: int
    updated_us: int
    last_tick_us: int
    strength: float
    findings: list[Finding]
    templates: dict[str, TemplateCount]
    texts: dict[str, str]
    versions: dict[str, int]
    series: list[tuple[int, float, float]]
    members: dict[str, Member]
    windows: int
    is_notified: bool
    resolved_us: int | None = None
    told_end_us: int = 0
    merged_into: str | None = None
    hold_windows: int = HOLD_WINDOWS

    def odd_templates(self) -> list[TemplateCount]:
        """Return the templates, new ones first, then the most frequent."""
        return sorted(self.templates.values(), key=lambda t: (not t.is_new, -t.n, t.id))


@dataclass(frozen=True, slots=True)
class Change:
    """An incident as it is after a tick, and what happened to it. At most two a tick: opened, resolved."""

    kind: ChangeKind
    incident: Incident


class Incidents:
    """All incidents of one tenant that can still change."""

    def __init__(self, grid: Grid, tenant: str, kept: bytes | None = None) -> None:
        self._grid = grid
        self._tenant = tenant
        self._incidents: list[Incident] = _decode(kept) if kept else []

    def encode(self) -> bytes:
        """Return the state to be kept beside the cursor."""
        return json.dumps([dataclasses.asdict(i) for i in self._incidents], separators=(",", ":")).encode()

    @property
    def open(self) -> list[Incident]:
        """Return the incidents that are not resolved."""
        return [i for i in self._incidents if i.resolved_us is None]

    def apply(
        self, judgements: Iterable[Judgement], cutoff_us: int, describe: Callable[[Judgement], Facts]
    ) -> list[Change]:
        """Take the judgements of a tick in their order; return what changed, in the order of opening."""
        changed: dict[str, ChangeKind] = {}
        out: list[Change] = []
        for judgement in judgements:
            incident = self._find(judgement)
            if incident is None and judgement.is_raised:
                facts = describe(judgement)
                incident = self._related(judgement, facts, self._incidents)
                if incident is None:
                    incident = self._open(judgement, cutoff_us)
                    changed[incident.id] = ChangeKind.OPENED
                else:
                    changed.setdefault(incident.id, ChangeKind.UPDATED)
                incident.members[judgement.unit] = Member(
                    start_us=judgement.start_us,
                    end_us=judgement.end_us,
                    strength=judgement.strength,
                    errors=judgement.errors,
                    records=judgement.records,
                    service=facts.service,
                    names=sorted(facts.names),
                    templates=[t.id for t in judgement.templates],
                )
                incident.texts.update(facts.texts)
            if incident is None:
                continue
            known = len(incident.texts)
            kind = self._extend(incident, judgement, cutoff_us, describe)
            if kind is not None and changed.get(incident.id) is not ChangeKind.OPENED:
                changed[incident.id] = max(kind, changed.get(incident.id, kind), key=lambda k: k is ChangeKind.REOPENED)
            if len(incident.texts) > known and (two := self._same(incident, judgement)) is not None:
                older, younger = two
                self._merge(older, younger, cutoff_us)
                changed.setdefault(older.id, ChangeKind.UPDATED)
                if changed.pop(younger.id, None) is not ChangeKind.OPENED:  # else nobody has heard of it
                    out.append(Change(ChangeKind.MERGED, copy.deepcopy(younger)))
        for incident in list(self._incidents):
            if incident.id in changed:
                incident.updated_us = max(cutoff_us, incident.updated_us)
                incident.told_end_us = incident.end_us
                out.append(Change(changed[incident.id], copy.deepcopy(incident)))
            if incident.resolved_us is None and self._is_over(incident, cutoff_us):
                incident.resolved_us = incident.updated_us = cutoff_us
                out.append(Change(ChangeKind.RESOLVED, copy.deepcopy(incident)))
        forgotten = (_SAME_WINDOWS + HOLD_WINDOWS) * self._grid.window_us + self._grid.grace_us
        self._incidents = [
            i
            for i in self._incidents
            if i.resolved_us is None
            or cutoff_us < max(i.last_tick_us, i.end_us, *(m.last_us for m in i.members.values())) + forgotten
        ]
        return out

    def of(self, judgement: Judgement) -> Incident | None:
        """Return the incident that a judgement belongs to."""
        return self._find(judgement)

    def is_over_due(self, cutoff_us: int) -> bool:
        """Return whether ``apply`` would change something at this tick even without judgements."""
        return any(i.resolved_us is None and self._is_over(i, cutoff_us) for i in self._incidents)

    def _is_over(self, incident: Incident, cutoff_us: int) -> bool:
        if incident.end_us <= cutoff_us - DAY_US:
            return True  # history that was sent late is over
        last = max(incident.end_us + self._grid.grace_us, incident.last_tick_us)
        return cutoff_us >= last + incident.hold_windows * self._grid.window_us

    def _find(self, judgement: Judgement) -> Incident | None:
        for incident in reversed(self._incidents):
            member = incident.members.get(judgement.unit)
            if member is None or (incident.resolved_us is not None and not judgement.is_raised):
                continue
            windows = HOLD_WINDOWS
            if judgement.is_raised:
                windows = _SAME_WINDOWS if _is_same(judgement, incident, member) else REJOIN_WINDOWS
            near = windows * self._grid.window_us
            last_us = max(member.end_us, member.last_us if judgement.is_raised else 0)
            if judgement.start_us <= last_us + near and judgement.end_us >= member.start_us - near:
                return incident
        return None

    def _same(self, incident: Incident, judgement: Judgement) -> tuple[Incident, Incident] | None:
        """Return an open incident and another that turns out to be about the same, the older first."""
        member = incident.members[judgement.unit]
        facts = Facts(member.service, names=frozenset(member.names))
        others = [one for one in self.open if one is not incident]
        other = self._related(judgement, facts, others) if incident.resolved_us is None else None
        if other is None:
            return None
        older, younger = sorted((incident, other), key=lambda one: (one.opened_us, one.id))
        return older, younger

    def _merge(self, older: Incident, younger: Incident, cutoff_us: int) -> None:
        """Let the older incident go on with all that is known of the younger."""
        for unit, member in younger.members.items():
            mine = older.members.setdefault(unit, member)
            if mine is not member:
                mine.start_us, mine.end_us = min(mine.start_us, member.start_us), max(mine.end_us, member.end_us)
                mine.last_us = max(mine.last_us, member.last_us)
                mine.names = sorted({*mine.names, *member.names})
                mine.templates += [id for id in member.templates if id not in mine.templates]
                if member.strength > mine.strength:
                    mine.strength, mine.errors, mine.records = member.strength, member.errors, member.records
        if (_KINDS.index(younger.kind), -younger.strength) < (_KINDS.index(older.kind), -older.strength):
            older.kind, older.findings = younger.kind, younger.findings
        if younger.start_us < older.start_us:
            older.root, older.series = younger.root, younger.series
        older.strength = max(older.strength, younger.strength)
        older.start_us, older.end_us = min(older.start_us, younger.start_us), max(older.end_us, younger.end_us)
        older.last_tick_us = max(older.last_tick_us, younger.last_tick_us)
        older.windows += younger.windows
        older.is_notified |= younger.is_notified
        for template in younger.templates.values():
            _add_template(older, template)
        _add_versions(older, younger.versions.items())
        older.texts |= younger.texts
        younger.merged_into, younger.resolved_us, younger.updated_us = older.id, cutoff_us, cutoff_us
        self._incidents = [one for one in self._incidents if one is not younger]

    def _related(self, judgement: Judgement, facts: Facts, incidents: Iterable[Incident]) -> Incident | None:
        window = self._grid.window_us
        for incident in incidents:
            for unit, member in incident.members.items():
                if judgement.start_us > member.end_us + _FRESH_WINDOWS * window:
                    continue
                if judgement.end_us < member.start_us - _FRESH_WINDOWS * window:
                    continue
                apart_us = abs(judgement.start_us - incident.start_us)
                if apart_us <= _SAME_WINDOWS * window and _name_the_same(judgement, facts, incident, unit, member):
                    return incident
                if apart_us <= _JOIN_WINDOWS * window and self._is_alike(judgement, facts, incident, unit, member):
                    return incident
        return None

    def _is_alike(self, judgement: Judgement, facts: Facts, incident: Incident, unit: str, member: Member) -> bool:
        """Return whether a unit's errors are those of a member, or the same happens to both of one service."""
        is_error = judgement.kind in _ERRORS and incident.kind in _ERRORS
        # What any task says in any failure is shared by those that fail together, not by all within an hour.
        near = abs(judgement.start_us - member.start_us) <= _SAME_WORDS_WINDOWS * self._grid.window_us
        telling = {t.id for t in judgement.templates[:3] if near or not t.is_common}
        if is_error and telling.intersection(member.templates[:3]):
            return True
        if judgement.kind == incident.kind == "silence" and _is_of_fleet(judgement) and _is_of_fleet(incident):
            return True
        if facts.service is None or facts.service != member.service:
            return False
        # A task and the rest of its service are one program.
        is_same_kind = judgement.kind == incident.kind or (is_error and "service:" in f"{unit} {judgement.unit}")
        return (
            is_same_kind and abs(judgement.start_us - member.start_us) <= _SAME_SERVICE_WINDOWS * self._grid.window_us
        )

    def _is_slow(self, judgement: Judgement) -> bool:
        return bool(judgement.findings) and judgement.findings[0].scale_us > _JOIN_WINDOWS * self._grid.window_us

    def _open(self, judgement: Judgement, cutoff_us: int) -> Incident:
        seed = f"{self._tenant}\0{judgement.unit}\0{judgement.start_us}\0{judgement.end_us}\0{cutoff_us}"
        detected = judgement.window_end_us + self._grid.grace_us
        incident = Incident(
            id="t-" + hashlib.blake2b(seed.encode(), digest_size=6).hexdigest(),
            root=judgement.unit,
            kind=judgement.kind,
            start_us=judgement.start_us,
            end_us=judgement.end_us,
            # A window that was due before could not have been raised before its late records came.
            opened_us=detected if detected > cutoff_us - TICK_US else cutoff_us,
            updated_us=cutoff_us,
            last_tick_us=cutoff_us,
            strength=0.0,
            findings=[],
            templates={},
            texts={},
            versions={},
            series=[],
            members={},
            windows=0,
            is_notified=False,
        )
        self._incidents.append(incident)
        return incident

    def _extend(
        self, incident: Incident, judgement: Judgement, cutoff_us: int, describe: Callable[[Judgement], Facts]
    ) -> ChangeKind | None:
        """Take one window in; return what people should hear of it, if anything."""
        member = incident.members[judgement.unit]
        is_first = incident.windows == 0
        if judgement.is_raised:
            member.last_us = max(member.last_us, judgement.end_us)
            member.templates += [t.id for t in judgement.templates if t.id not in member.templates]
        # What grows over hours is odd as a whole, and hardly in any few windows of it.
        recent = math.inf if judgement.is_raised and self._is_slow(judgement) else judgement.recent
        if incident.resolved_us is not None:
            if recent < _REOPEN_SURPRISE or judgement.end_us <= incident.end_us:
                return None
        elif recent < _EXTEND_SURPRISE and judgement.window_end_us > member.end_us and not is_first:
            return None
        member.start_us = min(member.start_us, judgement.start_us)
        member.end_us = max(member.end_us, judgement.end_us)
        if is_first or judgement.start_us < incident.start_us or judgement.end_us > incident.end_us:
            incident.last_tick_us = max(incident.last_tick_us, cutoff_us)
        incident.start_us = min(incident.start_us, judgement.start_us)
        incident.end_us = max(incident.end_us, judgement.end_us)
        if not judgement.is_raised:
            return None
        known = len(incident.templates)
        kind = incident.kind
        strength = incident.strength
        incident.windows += 1
        incident.is_notified = incident.is_notified or judgement.end_us > cutoff_us - DAY_US
        for template in judgement.templates:
            _add_template(incident, template)
        if any(t.id not in incident.texts for t in judgement.templates):
            facts = describe(judgement)
            incident.texts.update(facts.texts)
            member.names = sorted({*member.names, *facts.names})
        _add_versions(incident, judgement.versions)
        if judgement.strength > member.strength:
            member.strength, member.errors, member.records = judgement.strength, judgement.errors, judgement.records
        is_telling = _KINDS.index(judgement.kind) <= _KINDS.index(incident.kind)
        is_stronger = (judgement.strength, _observed(judgement.findings)) > (
            incident.strength,
            _observed(incident.findings),
        )
        if not incident.findings or (is_telling and is_stronger):
            incident.strength = max(judgement.strength, incident.strength)
            incident.findings = list(judgement.findings)
            incident.kind = judgement.kind
        if judgement.unit == incident.root:
            incident.series = list(judgement.series)
        if incident.resolved_us is not None:
            incident.resolved_us = None
            incident.hold_windows = min(2 * incident.hold_windows, _MOST_HOLD_WINDOWS)
            return ChangeKind.REOPENED
        is_news = (
            len(incident.templates) > known
            or incident.kind != kind
            or incident.strength > 1.25 * strength
            or incident.end_us >= incident.told_end_us + self._grid.window_us
        )
        return ChangeKind.UPDATED if is_news else None


def _add_template(incident: Incident, template: TemplateCount) -> None:
    old = incident.templates.get(template.id)
    if old is None or old.n < template.n:
        is_new = template.is_new or (old is not None and old.is_new)
        incident.templates[template.id] = template._replace(is_new=is_new)


def _add_versions(incident: Incident, versions: Iterable[tuple[str, int]]) -> None:
    for version, count in versions:
        incident.versions[version] = max(count, incident.versions.get(version, 0))


def _is_same(judgement: Judgement, incident: Incident, member: Member) -> bool:
    """Return whether a unit of an incident is odd as it was: by the same errors, or in the same way."""
    if judgement.kind in _ERRORS and incident.kind in _ERRORS:
        return not {t.id for t in judgement.templates}.isdisjoint(member.templates)
    return judgement.kind == incident.kind


def _name_the_same(judgement: Judgement, facts: Facts, incident: Incident, unit: str, member: Member) -> bool:
    """Return whether a unit's errors name what a member's name, or one of them the other."""
    if judgement.kind not in _ERRORS or incident.kind not in _ERRORS:
        return False
    return (
        not facts.names.isdisjoint(member.names) or _name(unit) in facts.names or _name(judgement.unit) in member.names
    )


def _is_of_fleet(one: Judgement | Incident) -> bool:
    """Return whether a unit fell silent with most of the others."""
    return bool(one.findings) and one.findings[0].name == "fleet"


def _observed(findings: Sequence[Finding]) -> float:
    return findings[0].observed if findings else 0.0


def _name(unit: str) -> str:
    return unit.partition(":")[2]


def _decode(kept: bytes) -> list[Incident]:
    out = []
    for item in json.loads(kept):
        values: dict[str, Any] = dict(item)
        values["findings"] = [Finding(*f) for f in values["findings"]]
        values["templates"] = {id: TemplateCount(*t) for id, t in values["templates"].items()}
        values["members"] = {unit: Member(**m) for unit, m in values["members"].items()}
        values["series"] = [tuple(point) for point in values["series"]]
        out.append(Incident(**values))
    return out
