"""Tasks: which units detection watches, which it is still learning, and what a person calls normal.

Not here: how that is decided (detectors/), what is odd about them (tickets.py).
"""

from __future__ import annotations

from typing import Annotated, TypedDict

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from loguru import logger

from logsvc.api.auth import Reader, Responder
from logsvc.api.pages import page
from logsvc.api.parameters import example, json_response
from logsvc.api.problems import is_browser
from logsvc.api.services import ServicesDep
from logsvc.detection import WatchedUnit, watched_units
from logsvc.errors import BadInput

router = APIRouter(prefix="/api/v1", tags=["tickets"])

_PINNED = {
    "task": "billing.charge",
    "service": None,
    "pinned_at": "2026-01-24T00:00:00Z",
    "errors": 0.0041,
    "per": "record",
    "accepted_since": None,
}
_EXAMPLE = {
    "total": 2,
    "learning": 1,
    "tasks": [
        {
            "task": "invoices.send",
            "service": None,
            "state": "learning",
            "since": "2026-01-31T09:00:00Z",
            "pinned": None,
        },
        {
            "task": "billing.charge",
            "service": None,
            "state": "watched",
            "since": "2026-01-20T12:00:00Z",
            "pinned": _PINNED,
        },
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
    request: Request,
    services: ServicesDep,
    reader: Reader,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Tasks to show.")] = 1_000,
) -> Response:
    """Return the tasks that detection judged in the last eight days, and in which state each is.

    A task is `learning` until it has three hours and twenty windows of history, or three days: until
    then plain rules alone open tickets for it (ten failures within five minutes that are half of all it did,
    or far more than before). From then on it is `watched` by what is usual for it. What has no task is listed by
    its `service`. `since` is the event time from which the state holds. `pinned` is the rate of errors against
    which growth over hours and days is measured; it stays until somebody accepts another. A browser gets a page.
    """
    found = watched_units(services.state.blobs(reader.tenant, ["learning", "pins"]))
    answer: TaskList = {
        "total": len(found),
        "learning": sum(unit["state"] == "learning" for unit in found),
        "tasks": found[:limit],
    }
    return page("tasks.html", **answer) if is_browser(request) else json_response(answer)


@router.post(
    "/tasks/accept",
    summary="What a task does since yesterday is normal",
    responses={
        **example(_PINNED | {"accepted_since": "2026-01-30T12:00:00Z", "pinned_at": "2026-01-31T12:00:00Z"}),
        403: {"description": "The key lacks the scope `respond`."},
        404: {"description": "Nothing of that name is watched."},
    },
)
def accept(
    services: ServicesDep,
    responder: Responder,
    task: Annotated[str | None, Query(description="Name of the task.")] = None,
    service: Annotated[str | None, Query(description="Or of a service, for what it does without a task.")] = None,
) -> Response:
    """Take all that a task did in the last day for normal, whatever was odd in it, and forget what was usual before.

    For what changed for good: a release with other errors, a task that runs half as often. Its tickets resolve
    by themselves soon after. The pinned rate of errors moves to that day's.
    """
    if (task is None) == (service is None):
        raise BadInput("neither task nor service, or both; expected one of them, such as task=billing.charge")
    unit = f"task:{task}" if task is not None else f"service:{service}"
    answer = services.detection.accept(responder.tenant, unit)
    logger.info("key {} accepted the last day of {} as normal", responder.key_id, unit)
    return json_response(answer)
