"""Tasks: which units detection watches, and which it is still learning.

Not here: how that is decided (detectors/), what is odd about them (tickets.py).
"""

from __future__ import annotations

from typing import Annotated, TypedDict

from fastapi import APIRouter, Query
from fastapi.responses import Response

from logsvc.api.auth import Reader
from logsvc.api.parameters import example, json_response
from logsvc.api.services import ServicesDep
from logsvc.detection import WatchedUnit, watched_units

router = APIRouter(prefix="/api/v1", tags=["tickets"])

_EXAMPLE = {
    "total": 2,
    "learning": 1,
    "tasks": [
        {"task": "invoices.send", "service": None, "state": "learning", "since": "2026-01-31T09:00:00Z"},
        {"task": "billing.charge", "service": None, "state": "watched", "since": "2026-01-30T12:00:00Z"},
    ],
}


class TaskList(TypedDict):
    """What ``/api/v1/tasks`` answers; those that are being learned come first."""

    total: int
    learning: int
    tasks: list[WatchedUnit]


@router.get(
    "/tasks", summary="Which tasks are watched, and which are still being learned?", responses=example(_EXAMPLE)
)
def tasks(
    services: ServicesDep,
    reader: Reader,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Tasks to show.")] = 1_000,
) -> Response:
    """Return the tasks that detection judged in the last eight days, and in which state each is.

    A task is `learning` until it has three hours and twenty windows of history, or three days: until
    then plain rules alone open tickets for it (ten failures within five minutes that are half of all it did,
    or far more than before). From then on it is `watched` by what is usual for it. What has no task is listed by
    its `service`. `since` is the event time from which the state holds.
    """
    found = watched_units(services.state.blobs(reader.tenant))
    answer: TaskList = {
        "total": len(found),
        "learning": sum(unit["state"] == "learning" for unit in found),
        "tasks": found[:limit],
    }
    return json_response(answer)
