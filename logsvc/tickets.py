"""Tickets: one record for people per incident, and the states it moves through. No I/O.

Not here: what is anomalous (detectors/), where tickets are kept (state/), who is told (outbox.py).
"""

from __future__ import annotations

from enum import Enum

import msgspec


class TicketState(Enum):
    """Where a ticket stands."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class Severity(Enum):
    """How bad, for routing."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Window(msgspec.Struct, frozen=True):
    """Half-open range of event time, RFC 3339 in UTC."""

    start: str
    end: str


class Evidence(msgspec.Struct, frozen=True):
    """One feature that was odd: what was seen, what was expected, how strange that is."""

    feature: str  # such as errors, new_template, silence, warnings, latency
    unit: str  # such as records, runs, ms
    observed: float
    expected: float
    score: float
    text: str  # one sentence for people


class Fingerprint(msgspec.Struct, frozen=True):
    """A template that stood out."""

    id: str
    text: str
    count: int
    is_new: bool
    first_seen: str | None = None


class Version(msgspec.Struct, frozen=True):
    """Name and version of what judged."""

    name: str
    version: str


class Point(msgspec.Struct, frozen=True):
    """One step of the picture: what was seen against what was expected."""

    start: str
    observed: float
    expected: float


class Ticket(msgspec.Struct, kw_only=True):
    """One incident, for people. This is what the API returns, field by field.

    ``task`` is the first or likely root among ``tasks``; a unit without tasks shows its service.
    ``observed`` and ``expected`` are those of the strongest evidence. Times are RFC 3339 in UTC.
    """

    id: str
    tenant: str
    state: TicketState
    severity: Severity
    score: float
    kind: str  # error_burst, new_error, silence, latency, level_mix, joint, self
    title: str
    task: str | None
    tasks: list[str]
    service: str | None
    releases: list[str]
    window: Window  # from the first odd window's start to the last odd window's end
    observed: float
    expected: float
    unit: str
    evidence: list[Evidence]
    fingerprints: list[Fingerprint]
    samples: list[dict[str, object]]  # records, flat dotted keys
    query: str  # finds the odd records, in our query language
    detector: Version
    model: Version
    series: list[Point]
    opened_at: str  # event time at which it was raised (detected_at)
    updated_at: str
    resolved_at: str | None = None
    is_notified: bool = True  # false when its windows were too old on arrival
    windows: int = 1  # odd windows so far
