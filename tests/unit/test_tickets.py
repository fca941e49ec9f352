"""Tickets: the states they move through, and how bad they are."""

from __future__ import annotations

import pytest

from logsvc.errors import TicketConflict
from logsvc.tickets import Severity, TicketEvent, TicketState, next_state, severity_of

OPEN, ACKNOWLEDGED, RESOLVED = TicketState.OPEN, TicketState.ACKNOWLEDGED, TicketState.RESOLVED


@pytest.mark.parametrize(
    ("state", "event", "after"),
    [
        (None, TicketEvent.OPENED, OPEN),
        (OPEN, TicketEvent.UPDATED, OPEN),
        (OPEN, TicketEvent.ACKNOWLEDGED, ACKNOWLEDGED),
        (ACKNOWLEDGED, TicketEvent.UPDATED, ACKNOWLEDGED),
        (ACKNOWLEDGED, TicketEvent.RESOLVED, RESOLVED),
        (RESOLVED, TicketEvent.UPDATED, RESOLVED),
        (RESOLVED, TicketEvent.REOPENED, OPEN),
    ],
)
def test_a_ticket_moves_only_as_the_diagram_says(
    state: TicketState | None, event: TicketEvent, after: TicketState
) -> None:
    assert next_state(state, event) is after


@pytest.mark.parametrize(
    ("state", "event"), [(None, TicketEvent.RESOLVED), (OPEN, TicketEvent.OPENED), (RESOLVED, TicketEvent.ACKNOWLEDGED)]
)
def test_any_other_move_is_a_conflict_that_says_what_is_possible(state: TicketState | None, event: TicketEvent) -> None:
    with pytest.raises(TicketConflict, match="it can be"):
        next_state(state, event)


def test_a_dependency_that_takes_several_tasks_is_critical() -> None:
    assert severity_of("error_burst", 5, 0.5, 3) is Severity.CRITICAL


def test_silence_is_high_and_a_mild_drift_is_low() -> None:
    assert severity_of("silence", 1.1, 1.0, 1) is Severity.HIGH
    assert severity_of("level_mix", 1.1, 0.0, 1) is Severity.LOW
    assert severity_of("latency", 3, 0.0, 1) is Severity.MEDIUM
