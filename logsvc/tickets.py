"""Tickets: one record for people per incident, and the states it moves through. No I/O.

::

    open ⇄ acknowledged → resolved → open (the same trouble came back within its cool-down)

People acknowledge, reopen and resolve; detection opens, updates, resolves and reopens. What
detection finds never takes an acknowledgement away, and never wakes people for a ticket that a
person resolved unless the trouble is new.

Not here: what is anomalous (detectors/), where tickets are kept (state/), who is told (outbox.py).
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import TypedDict

import msgspec

from logsvc.errors import TicketConflict
from logsvc.timestamps import format_us


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
    merged_into: str | None = None  # id of the ticket that goes on in its place


def about_service(
    detector: str,
    tenant: str,
    id: str,
    severity: Severity,
    title: str,
    evidence: list[Evidence],
    *,
    since_us: int,
    now_us: int,
    observed: float,
    expected: float,
    unit: str,
    service: str = "logsvc",
    query: str = "",
) -> Ticket:
    """Return a new ticket of the kind ``self``: about this service, or what reaches it, rather than about a task.

    ``detector`` is what found it (completeness, canary, ledger); it has been so since ``since_us``, and is said
    at ``now_us``, both in microseconds since 1970. ``observed`` and ``expected`` are in ``unit``.
    """
    return Ticket(
        id=id,
        tenant=tenant,
        state=TicketState.OPEN,
        severity=severity,
        score=1.0,
        kind="self",
        title=title,
        task=None,
        tasks=[],
        service=service,
        releases=[],
        window=Window(format_us(min(since_us, now_us)), format_us(now_us)),
        observed=observed,
        expected=expected,
        unit=unit,
        evidence=evidence,
        fingerprints=[],
        samples=[],
        query=query,
        detector=Version(detector, "1"),
        model=Version("none", "none"),
        series=[],
        opened_at=format_us(now_us),
        updated_at=format_us(now_us),
    )


def ticket_id(*parts: object) -> str:
    """Return the id of the ticket that these parts tell apart from all others.

    >>> ticket_id("default", "loss", 17) == ticket_id("default", "loss", 17) != ticket_id("default", "loss", 18)
    True
    """
    text = "\0".join(map(str, parts))
    return "t-" + hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


class TicketList(TypedDict):
    """What ``/api/v1/tickets`` answers: a page, the newest first, and how many tasks are still being learned."""

    tickets: list[Ticket]
    next_cursor: str | None
    learning: int


class TicketEvent(Enum):
    """What detection or a person does to a ticket."""

    OPENED = "opened"
    UPDATED = "updated"
    RESOLVED = "resolved"
    REOPENED = "reopened"
    ACKNOWLEDGED = "acknowledged"


_NEXT: dict[tuple[TicketState | None, TicketEvent], TicketState] = {
    (None, TicketEvent.OPENED): TicketState.OPEN,
    (TicketState.OPEN, TicketEvent.UPDATED): TicketState.OPEN,
    (TicketState.OPEN, TicketEvent.ACKNOWLEDGED): TicketState.ACKNOWLEDGED,
    (TicketState.OPEN, TicketEvent.RESOLVED): TicketState.RESOLVED,
    (TicketState.ACKNOWLEDGED, TicketEvent.UPDATED): TicketState.ACKNOWLEDGED,
    (TicketState.ACKNOWLEDGED, TicketEvent.ACKNOWLEDGED): TicketState.ACKNOWLEDGED,
    (TicketState.ACKNOWLEDGED, TicketEvent.RESOLVED): TicketState.RESOLVED,
    (TicketState.ACKNOWLEDGED, TicketEvent.REOPENED): TicketState.OPEN,
    # A person may have resolved it while detection still sees it.
    (TicketState.RESOLVED, TicketEvent.UPDATED): TicketState.RESOLVED,
    (TicketState.RESOLVED, TicketEvent.RESOLVED): TicketState.RESOLVED,
    (TicketState.RESOLVED, TicketEvent.REOPENED): TicketState.OPEN,
}


def next_state(state: TicketState | None, event: TicketEvent) -> TicketState:
    """Return the state after ``event``; None is a ticket that is not there yet.

    Raises:
        TicketConflict: If the state does not allow it.

    >>> next_state(TicketState.RESOLVED, TicketEvent.REOPENED)
    <TicketState.OPEN: 'open'>
    """
    try:
        return _NEXT[state, event]
    except KeyError:
        now = "not there" if state is None else state.value
        allowed = sorted(e.value for s, e in _NEXT if s is state)
        raise TicketConflict(
            f"the ticket is {now}, so it cannot be {event.value}; it can be {', '.join(allowed)}"
        ) from None


def severity_of(kind: str, strength: float, failing: float, tasks: int) -> Severity:
    """Return how bad an incident is.

    Args:
        kind: What was odd most of all, as in ``Ticket.kind``.
        strength: 1 is where a ticket is due.
        failing: Share of the records that are errors, 0…1; 1 for silence.
        tasks: How many tasks it touches.

    >>> severity_of("error_burst", 4, 0.6, 1), severity_of("latency", 1.1, 0, 1)
    (<Severity.HIGH: 'high'>, <Severity.LOW: 'low'>)
    """
    if kind in {"latency", "level_mix", "joint"}:
        return Severity.MEDIUM if strength >= 2 else Severity.LOW
    if strength >= 2 and failing >= 0.2 and tasks >= 3:
        return Severity.CRITICAL
    if failing >= 0.2 or tasks >= 3 or strength >= 6:
        return Severity.HIGH
    return Severity.MEDIUM
