"""Tickets over HTTP: JSON for programs, a page for a browser."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from logsvc.api.auth import Reader
from logsvc.api.pages import page
from logsvc.api.parameters import json_response
from logsvc.api.problems import is_browser
from logsvc.api.services import Services, ServicesDep
from logsvc.detection import watched_units
from logsvc.errors import NotFound
from logsvc.tickets import Severity, Ticket, TicketState
from logsvc.timestamps import parse_rfc3339

router = APIRouter(prefix="/api/v1/tickets", tags=["tickets"])

_EXAMPLE = {
    "id": "t-54c102d5837e",
    "state": "open",
    "severity": "high",
    "score": 0.93,
    "kind": "new_error",
    "title": "billing.charge: 42 errors in 5 min, 0.8 expected",
    "task": "billing.charge",
    "window": {"start": "2026-01-31T12:00:00Z", "end": "2026-01-31T12:05:00Z"},
    "observed": 42.0,
    "expected": 0.8,
    "unit": "records",
    "query": 'task.name:"billing.charge" AND log.level:>=error',
}


@router.get(
    "",
    summary="List tickets",
    responses={
        200: {"content": {"application/json": {"example": {"tickets": [_EXAMPLE], "next_cursor": None, "learning": 0}}}}
    },
)
def tickets(
    request: Request,
    services: ServicesDep,
    reader: Reader,
    state: Annotated[TicketState | None, Query(description="Only these.")] = None,
    severity: Annotated[Severity | None, Query(description="Only these.")] = None,
    task: Annotated[str | None, Query(description="Only tickets about this task.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="next_cursor of the page before.")] = None,
) -> Response:
    """Return tickets, the newest first. `learning` is how many tasks are still being learned; see `/api/v1/tasks`."""
    found = services.state.list_tickets(
        reader.tenant, state=state, severity=severity, task=task, limit=limit, cursor=cursor
    )
    learning = _learning(services, reader.tenant)
    if is_browser(request):
        return page("tickets.html", tickets=found.tickets, next_cursor=found.next_cursor, learning=len(learning))
    return json_response({"tickets": found.tickets, "next_cursor": found.next_cursor, "learning": len(learning)})


@router.get(
    "/{id}",
    summary="One ticket",
    responses={
        200: {"content": {"application/json": {"example": _EXAMPLE}, "text/html": {}}},
        404: {"description": "This tenant has no such ticket."},
    },
)
def ticket(request: Request, services: ServicesDep, reader: Reader, id: str) -> Response:
    """Return one ticket whole, with where it was delivered; a browser gets a page.

    `data_completeness.share` is how much of what is known to have been emitted in the ticket's window
    can be found; see `/api/v1/loss`. `learning` are those of its tasks that are still being learned, for which
    plain rules alone open tickets.
    """
    found = services.state.get_ticket(reader.tenant, id)
    if found is None:
        raise NotFound(f"there is no ticket {id[:100]!r}; `logsvc tickets list` shows those there are")
    deliveries = services.state.deliveries(reader.tenant, id)
    learning = sorted(_learning(services, reader.tenant) & set(found.tasks))
    if is_browser(request):
        return page(
            "ticket.html",
            ticket=found,
            deliveries=deliveries,
            learning=learning,
            bars=picture(found),
            search_url=search_url(services.public_url, found),
        )
    completeness = services.ledger.completeness(
        reader.tenant, *(parse_rfc3339(moment) // 1_000 for moment in (found.window.start, found.window.end))
    )
    body = {
        **ticket_json(found, services.public_url),
        "learning": learning,
        "data_completeness": completeness,
        "deliveries": deliveries,
    }
    return json_response(body)


def _learning(services: Services, tenant: str) -> set[str]:
    """Return the names of the tasks that are still being learned, and of services for what has no task."""
    units = watched_units(services.state.blobs(tenant, ["learning"]))
    return {str(unit["task"] or unit["service"]) for unit in units if unit["state"] == "learning"}


def ticket_json(ticket: Ticket, public_url: str) -> dict[str, object]:
    """Return a ticket as the API shows it: its fields, its address and that of its records."""
    body: dict[str, object] = msgspec.to_builtins(ticket)
    body["url"] = f"{public_url}/api/v1/tickets/{ticket.id}"
    body["search_url"] = search_url(public_url, ticket)
    return body


def search_url(public_url: str, ticket: Ticket) -> str:
    """Return the address of the search that shows the ticket's records."""
    return f"{public_url}/api/v1/search?" + urlencode({"q": ticket.query})


def picture(ticket: Ticket, width: int = 720, height: int = 160) -> list[dict[str, float]]:
    """Return one bar per step for an SVG of ``width`` × ``height``: x, y, w, h and the expected level's y.

    Steps inside the ticket's window are odd.
    """
    series = ticket.series
    if not series:
        return []
    top = max(max(point.observed, point.expected) for point in series) or 1.0
    step = width / len(series)
    return [
        {
            "x": round(i * step + 1, 1),
            "w": round(max(step - 2, 1), 1),
            "h": round(height * point.observed / top, 1),
            "y": round(height - height * point.observed / top, 1),
            "expected_y": round(height - height * point.expected / top, 1),
            "is_odd": ticket.window.start <= point.start < ticket.window.end,
        }
        for i, point in enumerate(series)
    ]
