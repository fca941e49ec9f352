"""Parameters: what the routes that find records take alike, and how their answers are shown."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import Query
from fastapi.responses import Response

from logsvc.errors import BadInput, NotFound
from logsvc.fields import FieldType, resolve
from logsvc.records import stored_id
from logsvc.store import Hit, Span, Store
from logsvc.timestamps import Clock, parse_time

Q = Annotated[
    str,
    Query(
        description='Words, "phrases", field:value, field:*, prefix*, /regex/, field:>=10, [a TO b], AND OR NOT, parentheses. '
        "Empty finds everything.",
        examples=['level:>=error task:"billing.charge"', "timeout AND NOT service:web"],
    ),
]
From = Annotated[
    str | None,
    Query(alias="from", description="Inclusive start: RFC 3339 or relative.", examples=["now-15m"]),
]
To = Annotated[
    str | None,
    Query(alias="to", description="Exclusive end: RFC 3339 or relative.", examples=["2026-01-31T12:00:00Z"]),
]

EXAMPLE_RECORD = {
    "@timestamp": "2026-01-31T12:00:00.123456Z",
    "event.id": "01KG9M3V7X2N4P6R8T0V2X4Z6B",
    "log.level": "error",
    "message": "charge failed",
    "service.name": "billing",
    "task.name": "billing.charge",
    "labels.order": "17",
}


def json_response(body: object) -> Response:
    """Return ``body`` as JSON."""
    return Response(msgspec.json.encode(body), media_type="application/json")


def example(body: object) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a reading route for its description, with ``body`` as the good one."""
    return {
        200: {"content": {"application/json": {"example": body}}},
        400: {"description": "A parameter or the query is wrong; the problem says where."},
        401: {"description": "No key, or an unknown one."},
        403: {"description": "The key lacks the scope `read`."},
    }


def span_of(start: str | None, end: str | None, clock: Clock) -> Span:
    """Return the range of time that ``from`` and ``to`` mean now.

    Raises:
        BadInput: If one is no time, or ``from`` is the later one.
    """
    now_us = clock()
    span = Span(
        parse_time(start, now_us) if start else None,
        parse_time(end, now_us) if end else None,
    )
    if span.start_us is not None and span.end_us is not None and span.start_us > span.end_us:
        raise BadInput(f"from ({start}) lies after to ({end})")
    return span


def keyword_field(parameter: str, name: str) -> str:
    """Return the full name of a field whose values can be told apart.

    Raises:
        BadInput: If it is none; the message names the ``parameter``.
    """
    field = resolve(name)
    if field is None:
        raise BadInput(f"{parameter}={name}: no such field; an application's own attribute is labels.{name}")
    if field.type not in (FieldType.KEYWORD, FieldType.KEYWORD_TEXT, FieldType.LABELS) or field.name == "labels":
        raise BadInput(
            f"{parameter}={name}: {field.name} is no keyword field; take one such as log.level or labels.KEY"
        )
    return field.name


def found(store: Store, tenant: str, id: str) -> Hit:
    """Return the record whose ``event.id``, or stored id, is ``id``.

    Raises:
        NotFound: If there is none.
    """
    hit = store.get(tenant, stored_id(tenant, id)) or store.get(tenant, id)
    if hit is None:
        raise NotFound(f"no record has the event.id {id[:200]!r}")
    return hit
