"""Tickets over HTTP: JSON for programs, one plain page for a browser.

The page is rendered here, without scripts; every text of a log is escaped by the template.
"""

from __future__ import annotations

import shlex
from functools import cache
from typing import Annotated
from urllib.parse import urlencode

import jinja2
import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from logsvc.api.auth import Reader
from logsvc.api.parameters import json_response
from logsvc.api.problems import is_browser
from logsvc.api.services import ServicesDep
from logsvc.errors import NotFound
from logsvc.terminal import few, moment, step_s
from logsvc.tickets import Severity, Ticket, TicketState
from logsvc.timestamps import parse_rfc3339

router = APIRouter(prefix="/api/v1/tickets", tags=["tickets"])

_PAGE_HEADERS = {
    # Nothing of a log may run or load anything.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

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


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("logsvc.api"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["picture"] = picture
    environment.globals["moment"] = moment
    environment.globals["step_s"] = step_s
    environment.filters["few"] = few
    environment.filters["shellquote"] = shlex.quote
    return environment


@router.get(
    "",
    summary="List tickets",
    responses={200: {"content": {"application/json": {"example": {"tickets": [_EXAMPLE], "next_cursor": None}}}}},
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
    """Return tickets, the newest first."""
    page = services.state.list_tickets(
        reader.tenant, state=state, severity=severity, task=task, limit=limit, cursor=cursor
    )
    if is_browser(request):
        html = _templates().get_template("tickets.html").render(tickets=page.tickets, next_cursor=page.next_cursor)
        return HTMLResponse(html, headers=_PAGE_HEADERS)
    return json_response({"tickets": page.tickets, "next_cursor": page.next_cursor})


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
    can be found; see `/api/v1/loss`.
    """
    found = services.state.get_ticket(reader.tenant, id)
    if found is None:
        raise NotFound(f"there is no ticket {id[:100]!r}; `logsvc tickets list` shows those there are")
    deliveries = services.state.deliveries(reader.tenant, id)
    if is_browser(request):
        page = (
            _templates()
            .get_template("ticket.html")
            .render(ticket=found, deliveries=deliveries, search_url=search_url(services.public_url, found))
        )
        return HTMLResponse(page, headers=_PAGE_HEADERS)
    completeness = services.ledger.completeness(
        reader.tenant, *(parse_rfc3339(moment) // 1_000 for moment in (found.window.start, found.window.end))
    )
    body = {**ticket_json(found, services.public_url), "data_completeness": completeness, "deliveries": deliveries}
    return json_response(body)


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
