"""Tickets and a clock to test with."""

from __future__ import annotations

from typing import Any

from logsvc.tickets import Evidence, Fingerprint, Point, Severity, Ticket, TicketState, Version, Window
from logsvc.timestamps import US_PER_S, format_us

NOON_US = 1_769_860_800 * US_PER_S  # 2026-01-31T12:00:00Z


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self, now_us: int = NOON_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * US_PER_S)


def make_ticket(id: str = "tkt_1", *, opened_us: int = NOON_US, **changes: Any) -> Ticket:
    """Return a ticket about a burst of errors in billing.charge."""
    values: dict[str, Any] = {
        "id": id,
        "tenant": "default",
        "state": TicketState.OPEN,
        "severity": Severity.HIGH,
        "score": 0.93,
        "kind": "new_error",
        "title": "billing.charge: 42 errors in 5 min, 0.8 expected",
        "task": "billing.charge",
        "tasks": ["billing.charge"],
        "service": "billing",
        "releases": ["2"],
        "window": Window(format_us(opened_us - 300 * US_PER_S), format_us(opened_us)),
        "observed": 42.0,
        "expected": 0.8,
        "unit": "records",
        "evidence": [Evidence("errors", "records", 42.0, 0.8, 0.93, "42 errors where 0.8 were expected")],
        "fingerprints": [Fingerprint("v1:abc", "no such column: <*>", 42, True)],
        "samples": [{"message": "no such column: ai_model"}],
        "query": 'task.name:"billing.charge" AND log.level:>=error',
        "detector": Version("forest", "1"),
        "model": Version("cohort", "1"),
        "series": [Point(format_us(opened_us), 42.0, 0.8)],
        "opened_at": format_us(opened_us),
        "updated_at": format_us(opened_us),
    }
    return Ticket(**(values | changes))
