"""Exploring: what an engineer asks between two searches: which values, what stands around it, all of it as a file.

Not here: search itself, counts over time, the live tail (records.py).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse

from logsvc import query as language
from logsvc.api.auth import Reader
from logsvc.api.parameters import EXAMPLE_RECORD, From, Q, To, example, found, json_response, keyword_field, span_of
from logsvc.api.services import Services, ServicesDep
from logsvc.errors import BadInput
from logsvc.fields import FIELDS, FieldType, resolve
from logsvc.query import Node, Term
from logsvc.records import flatten
from logsvc.store import MAX_PAGE_ROWS, Order, Page, Position, Span
from logsvc.timestamps import format_us

router = APIRouter(prefix="/api/v1", tags=["exploring"])

MAX_VALUES = 1_000
MAX_NEIGHBOURS = 500
_SAMPLED_RECORDS = 1_000
_COLUMNS = "@timestamp,log.level,service.name,task.name,message,error.type,error.message,trace.id,event.id"
_VALUE_COUNTS = [{"value": "billing", "count": 12}]


@router.get(
    "/facets",
    summary="Count the values of a field",
    responses=example({"field": "service.name", "values": _VALUE_COUNTS, "other": 3, "missing": 0, "exact": True}),
)
def facets(
    services: ServicesDep,
    reader: Reader,
    field: Annotated[str, Query(description="Keyword field or labels.KEY.", examples=["service"])],
    q: Q = "",
    start: From = None,
    end: To = None,
    limit: Annotated[int, Query(ge=1, le=MAX_VALUES, description="Values to name.")] = 10,
) -> Response:
    """Return the most frequent values among the hits.

    ``other`` counts the values not named, ``missing`` the records without the field. ``exact`` is
    false where counting everything would have taken too long: a count may then be too low.
    """
    name = keyword_field("field", field)
    node = language.parse(q, now_us=services.clock())
    span = span_of(start, end, services.clock)
    with services.searching(reader.tenant):
        counted = services.store.facets(reader.tenant, node, span, field=name, limit=limit)
    return json_response(
        {
            "field": name,
            "values": [{"value": value, "count": count} for value, count in counted.values],
            "other": counted.other,
            "missing": counted.missing,
            "exact": counted.is_exact,
        }
    )


@router.get(
    "/values",
    summary="Complete a value",
    responses=example({"field": "service.name", "values": _VALUE_COUNTS}),
)
def values(
    services: ServicesDep,
    reader: Reader,
    field: Annotated[str, Query(description="Keyword field or labels.KEY.", examples=["service"])],
    prefix: Annotated[str, Query(max_length=1_000, description="What the value begins with, in its case.")] = "",
    q: Q = "",
    start: From = None,
    end: To = None,
    limit: Annotated[int, Query(ge=1, le=MAX_VALUES, description="Values to name.")] = 20,
) -> Response:
    """Return the most frequent values that begin with ``prefix``, as a person types one."""
    name = keyword_field("field", field)
    node = language.parse(q, now_us=services.clock())
    span = span_of(start, end, services.clock)
    with services.searching(reader.tenant):
        counted = services.store.facets(reader.tenant, node, span, field=name, limit=limit, prefix=prefix)
    return json_response(
        {"field": name, "values": [{"value": value, "count": count} for value, count in counted.values]}
    )


_FIELD_ROWS = [
    {
        "name": field.name,
        "type": field.type.value,
        "description": field.help,
        "aliases": list(field.aliases),
        "values": list(field.values),
    }
    for field in FIELDS.values()
    if field.type not in (FieldType.STORED, FieldType.LABELS)
]


@router.get(
    "/fields",
    summary="List the fields",
    responses=example({"fields": [next(row for row in _FIELD_ROWS if row["values"])], "labels": ["labels.order"]}),
)
def fields(services: ServicesDep, reader: Reader, q: Q = "", start: From = None, end: To = None) -> Response:
    """Return every field that can be searched, and the labels that the newest hits carry (1,000 are looked at)."""
    node = language.parse(q, now_us=services.clock())
    span = span_of(start, end, services.clock)
    with services.searching(reader.tenant):
        page = services.store.search(reader.tenant, node, span, limit=_SAMPLED_RECORDS)
    labels = {name for hit in page.hits for name in flatten(hit.source) if name.startswith("labels.")}
    return json_response({"fields": _FIELD_ROWS, "labels": sorted(labels)})


class Around(Enum):
    """What a record's neighbours share with it."""

    RUN = "run"
    TRACE = "trace"
    SERVICE = "service"
    HOST = "host"


_AROUND = {
    Around.RUN: "task.id",
    Around.TRACE: "trace.id",
    Around.SERVICE: "service.name",
    Around.HOST: "host.name",
}


@router.get(
    "/records/{id:path}/context",
    summary="What stands around a record",
    responses=example(
        {"by": "run", "field": "task.id", "value": "17", "before": [], "record": EXAMPLE_RECORD, "after": []}
    ),
)
def context(
    services: ServicesDep,
    reader: Reader,
    id: str,
    by: Annotated[
        Around | None,
        Query(description="What neighbours share; the first of run, trace, service that the record has if missing."),
    ] = None,
    before: Annotated[int, Query(ge=0, le=MAX_NEIGHBOURS)] = 20,
    after: Annotated[int, Query(ge=0, le=MAX_NEIGHBOURS)] = 20,
) -> Response:
    """Return the records just before and just after one, oldest first, in its task run, trace, service or host."""
    hit = found(services.store, reader.tenant, id)
    record = flatten(hit.source)
    chosen = by or next((around for around, name in _AROUND.items() if name in record), Around.SERVICE)
    name = _AROUND[chosen]
    value = record.get(name)
    if not isinstance(value, str):
        have = ", ".join(around.value for around, field in _AROUND.items() if field in record)
        raise BadInput(f"by={chosen.value}: the record has no {name}; take one of {have}")
    node = Term(name, value)

    def neighbours(limit: int, order: Order) -> list[dict[str, object]]:
        if not limit:
            return []
        page = services.store.search(reader.tenant, node, limit=limit, after=hit.position, order=order)
        return [flatten(neighbour.source) for neighbour in page.hits]

    with services.searching(reader.tenant):
        older, newer = neighbours(before, Order.NEWEST_FIRST), neighbours(after, Order.OLDEST_FIRST)
    return json_response(
        {"by": chosen.value, "field": name, "value": value, "before": older[::-1], "record": record, "after": newer}
    )


class ExportFormat(Enum):
    """How records are written to a file."""

    NDJSON = "ndjson"
    CSV = "csv"


@router.get(
    "/export",
    summary="Export records",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "All hits, streamed; an answer that ends early was cut off by an error.",
            "content": {
                "application/x-ndjson": {"example": '{"message":"charge failed"}\n'},
                "text/csv": {"example": "message\r\ncharge failed\r\n"},
            },
        }
    },
)
def export(
    services: ServicesDep,
    reader: Reader,
    q: Q = "",
    start: From = None,
    end: To = None,
    format: Annotated[ExportFormat, Query(description="One object a line, or a table.")] = ExportFormat.NDJSON,
    fields: Annotated[
        str | None,
        Query(description=f"Fields to write, with commas between them; CSV has {_COLUMNS} without it."),
    ] = None,
    order: Annotated[Order, Query(description="desc: newest first.")] = Order.OLDEST_FIRST,
) -> Response:
    """Stream every hit, oldest first by default, up to ``to`` or the moment of the request.

    In CSV, text that a spreadsheet would run as a formula has an apostrophe before it.
    """
    now_us = services.clock()
    node = language.parse(q, now_us=now_us)
    span = span_of(start, end, services.clock)
    if span.end_us is None:
        span = Span(span.start_us, max(now_us, span.start_us or 0))
    names = [_name(name) for name in fields.split(",")] if fields else None
    # The first page is asked for before the answer begins, so that what is wrong has a status.
    first = _page(services, reader.tenant, node, span, order, None)
    pages = _pages(services, reader.tenant, node, span, order, first)
    is_csv = format is ExportFormat.CSV
    lines = _table(pages, names or _COLUMNS.split(",")) if is_csv else _objects(pages, names)
    return StreamingResponse(
        lines,
        media_type="text/csv; charset=utf-8; header=present" if is_csv else "application/x-ndjson",
        headers={
            "Cache-Control": "no-store",
            "Content-Disposition": f'attachment; filename="records-{format_us(now_us)[:10]}.{format.value}"',
        },
    )


def _name(name: str) -> str:
    field = resolve(name.strip())
    if field is None:
        raise BadInput(
            f"fields: there is no field {name.strip()[:100]!r}; an application's own attribute is labels.KEY"
        )
    return field.name


def _page(services: Services, tenant: str, node: Node, span: Span, order: Order, after: Position | None) -> Page:
    with services.searching(tenant):
        return services.store.search(tenant, node, span, limit=MAX_PAGE_ROWS, after=after, order=order)


def _pages(
    services: Services, tenant: str, node: Node, span: Span, order: Order, page: Page
) -> Iterator[list[dict[str, object]]]:
    while True:
        yield [flatten(hit.source) for hit in page.hits]
        if page.next is None:
            return
        page = _page(services, tenant, node, span, order, page.next)


def _objects(pages: Iterator[list[dict[str, object]]], names: list[str] | None) -> Iterator[bytes]:
    encoder = msgspec.json.Encoder()
    for records in pages:
        if names is not None:
            records = [{name: record[name] for name in names if name in record} for record in records]
        yield encoder.encode_lines(records)


def _table(pages: Iterator[list[dict[str, object]]], names: list[str]) -> Iterator[bytes]:
    yield _csv([names])
    for records in pages:
        yield _csv([[_cell(record.get(name)) for name in names] for record in records])


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")


def _csv(rows: list[list[Any]]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)  # RFC 4180
    return out.getvalue().encode()


def _cell(value: object) -> object:
    """Return a value as a table holds it.

    A spreadsheet runs text that begins like a formula, and anyone who may send records could write one. An
    apostrophe before it makes it text (OWASP, "CSV Injection"); NDJSON has values as they are.

    >>> _cell("=1+1"), _cell("-5"), _cell(["a", "b"])
    ("'=1+1", '-5', 'a b')
    """
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value
