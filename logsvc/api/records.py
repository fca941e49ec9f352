"""Finding records: search, count, histogram, one record, and a live tail.

A cursor pins what the first page resolved (the range of time, the total), so that relative times
and running writes neither skip nor repeat a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from logsvc import query as language
from logsvc.api.auth import Reader
from logsvc.api.loss import EXAMPLE_COMPLETENESS
from logsvc.api.parameters import EXAMPLE_RECORD, From, Q, To, example, found, json_response, keyword_field, span_of
from logsvc.api.services import Services, ServicesDep
from logsvc.errors import BadInput, Overloaded, StateUnavailable, StoreUnavailable
from logsvc.keys import Principal, key_from_headers
from logsvc.records import flatten
from logsvc.store import MAX_BUCKETS, MAX_PAGE_ROWS, Order, Page, Position, Span
from logsvc.timestamps import format_duration, format_us, parse_duration

router = APIRouter(prefix="/api/v1", tags=["records"])

MAX_INTERVAL_US = 3_650 * 86_400_000_000
TAIL_POLL_S = 0.4
TAIL_KEEPALIVE_S = 15.0
TAIL_CHECK_KEY_S = 5.0
MAX_TAILS = 200
_NICE_INTERVALS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 7 * 86400)

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Cursor(msgspec.Struct, array_like=True, frozen=True):
    """Where a page ended and what the walk is bound to."""

    time_us: _Int64
    seq: _Int64
    start_us: _Int64 | None
    end_us: _Int64 | None
    total: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    is_exact: bool
    binding: bytes


def _binding(tenant: str, q: str, order: Order) -> bytes:
    return hashlib.blake2b(f"{tenant}\0{order.value}\0{q}".encode(), digest_size=8).digest()


def _encode(cursor: _Cursor) -> str:
    return urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode().rstrip("=")


def _decode(text: str, binding: bytes) -> _Cursor:
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        cursor = msgspec.msgpack.decode(raw, type=_Cursor)
    except ValueError as exc:
        raise BadInput("the cursor is not one of ours; pass next_cursor of the page before as it was") from exc
    if cursor.binding != binding:
        raise BadInput("the cursor belongs to another query; keep q and order as they were on the first page")
    return cursor


@router.get(
    "/search",
    summary="Search records",
    responses=example(
        {
            "records": [EXAMPLE_RECORD],
            "next_cursor": "mNMAB…",
            "total": {"value": 1, "relation": "eq"},
            "data_completeness": EXAMPLE_COMPLETENESS,
            "took_ms": 3,
        }
    ),
)
def search(
    services: ServicesDep,
    reader: Reader,
    q: Q = "",
    start: From = None,
    end: To = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_ROWS, description="Rows a page.")] = 50,
    cursor: Annotated[str | None, Query(description="next_cursor of the page before.")] = None,
    order: Annotated[Order, Query(description="desc: newest first.")] = Order.NEWEST_FIRST,
) -> Response:
    """Return one page of records, newest first by default; walk on with ``next_cursor``.

    `total.relation` is `eq`, or `gte` when the value is a lower bound, which is 2,000 at least; `/api/v1/count` is exact.
    `data_completeness.share` is how much of what is known to have been emitted in the range, whatever the
    query, can be found: `searchable / emitted`, and null where that is not known; see `/api/v1/loss`.
    """
    started = time.perf_counter()
    node = language.parse(q, now_us=services.clock())
    binding = _binding(reader.tenant, q, order)
    if cursor:
        place = _decode(cursor, binding)
        span = Span(place.start_us, place.end_us)
        after: Position | None = Position(place.time_us, place.seq)
    else:
        place, after, span = None, None, span_of(start, end, services.clock)
    with services.searching(reader.tenant):
        page = services.store.search(
            reader.tenant, node, span, limit=limit, after=after, order=order, count_total=place is None
        )
    total = place.total if place else page.total or 0
    is_exact = place.is_exact if place else page.is_exact
    next_cursor = None
    if page.next is not None:
        next_cursor = _encode(_Cursor(*page.next, span.start_us, span.end_us, total, is_exact, binding))
    return json_response(
        {
            "records": [flatten(hit.source) for hit in page.hits],
            "next_cursor": next_cursor,
            "total": {"value": total, "relation": "eq" if is_exact else "gte"},
            "data_completeness": services.ledger.completeness(reader.tenant, span.start_us, span.end_us),
            "took_ms": round((time.perf_counter() - started) * 1000),
        }
    )


@router.get("/count", summary="Count records", responses=example({"count": 42}))
def count(services: ServicesDep, reader: Reader, q: Q = "", start: From = None, end: To = None) -> Response:
    """Return the exact number of hits; over all time without ``from``."""
    node = language.parse(q, now_us=services.clock())
    span = span_of(start, end, services.clock)
    with services.searching(reader.tenant):
        return json_response({"count": services.store.count(reader.tenant, node, span)})


@router.get(
    "/histogram",
    summary="Count records over time",
    responses=example(
        {
            "interval": "1m",
            "buckets": [{"start": "2026-01-31T12:00:00Z", "count": 3, "by": {"info": 2, "error": 1}}],
        }
    ),
)
def histogram(
    services: ServicesDep,
    reader: Reader,
    q: Q = "",
    start: From = None,
    end: To = None,
    interval: Annotated[
        str | None, Query(description="Width of a bucket; chosen for about 60 buckets if missing.", examples=["5m"])
    ] = None,
    by: Annotated[str | None, Query(description="Keyword field that splits the counts.", examples=["level"])] = None,
) -> Response:
    """Return the buckets that hold records, oldest first; over all time without ``from``."""
    node = language.parse(q, now_us=services.clock())
    by_name = keyword_field("by", by) if by else None
    span = span_of(start, end, services.clock)
    # Without both ends the data's own ends bound the buckets.
    first = (
        span.start_us if span.start_us is not None else _edge(services, reader.tenant, node, span, Order.OLDEST_FIRST)
    )
    last = span.end_us if span.end_us is not None else _edge(services, reader.tenant, node, span, Order.NEWEST_FIRST)
    if first is None or last is None:
        return json_response({"interval": interval or "1m", "buckets": []})
    width_us = _interval_us(interval) if interval else _nice_interval_us(last - first)
    if (last - first) // width_us > MAX_BUCKETS:
        raise BadInput(
            f"interval={interval} makes {(last - first) // width_us} buckets of this range; at most {MAX_BUCKETS}: "
            "take a longer interval or a shorter range"
        )
    with services.searching(reader.tenant):
        buckets = services.store.histogram(reader.tenant, node, span, interval_us=width_us, by=by_name)
    rows: list[dict[str, object]] = []
    for bucket in buckets:
        row: dict[str, object] = {"start": format_us(bucket.start_us), "count": bucket.count}
        if by_name:
            row["by"] = bucket.by
        rows.append(row)
    return json_response({"interval": format_duration(timedelta(microseconds=width_us)), "buckets": rows})


def _edge(services: Services, tenant: str, node: language.Node, span: Span, order: Order) -> int | None:
    hits = services.store.search(tenant, node, span, limit=1, order=order).hits
    return hits[0].position.time_us if hits else None


def _interval_us(text: str) -> int:
    width = parse_duration(text)
    width_us = round(width.total_seconds() * 1_000_000)
    if not 1_000 <= width_us <= MAX_INTERVAL_US:
        raise BadInput(f"interval={text} is out of range; expected 1ms to 3650d")
    return width_us


def _nice_interval_us(length_us: int) -> int:
    for seconds in _NICE_INTERVALS_S:
        if length_us <= 60 * seconds * 1_000_000:
            return seconds * 1_000_000
    return _NICE_INTERVALS_S[-1] * 1_000_000 * (1 + length_us // (1000 * _NICE_INTERVALS_S[-1] * 1_000_000))


@router.get("/records/{id:path}", summary="One record", responses=example(EXAMPLE_RECORD))
def record(services: ServicesDep, reader: Reader, id: str) -> Response:
    """Return the record whose ``event.id`` (or stored id) is ``id``."""
    return json_response(flatten(found(services.store, reader.tenant, id).source))


@router.get(
    "/tail",
    summary="Follow records live",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events: `data` is one record as JSON, `id` a place to go on from.",
            "content": {"text/event-stream": {"example": 'id: 17\ndata: {"message":"charge failed"}\n\n'}},
        }
    },
)
async def tail(
    request: Request,
    services: ServicesDep,
    reader: Reader,
    q: Q = "",
    last_event_id: Annotated[
        int | None, Header(ge=0, le=2**63 - 1, description="The last `id` seen: go on after it, not from now.")
    ] = None,
) -> Response:
    """Stream what is accepted from now on and matches ``q``, within two seconds of its arrival.

    After a broken connection send ``Last-Event-ID``, as browsers do by themselves: nothing is
    skipped, and the records of the last moment may come again.
    """
    node = language.parse(q, now_us=services.clock())
    own, free = services.tails[reader.tenant], MAX_TAILS - services.tails.total()
    # A tenant may have as many as it leaves free, so that there is always one for the next tenant.
    if own >= free:
        raise Overloaded(f"{own} tails of this tenant are running, as many as it may have now; end one and try again")
    now_seq = services.journal.last_seq
    start = now_seq if last_event_id is None else min(last_event_id, now_seq)
    return StreamingResponse(
        _follow(request, services, reader, node, start),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _follow(
    request: Request, services: Services, reader: Principal, node: language.Node, after_seq: int
) -> AsyncIterator[bytes]:
    """Walk, again and again, over what has become searchable since the last walk; never more than a page in memory."""
    tenant, key = reader.tenant, key_from_headers(request.headers) or ""
    loop = asyncio.get_running_loop()
    services.tails[tenant] += 1
    try:
        yield b": following\nid: %d\n\n" % after_seq
        until = after_seq  # how far this walk goes
        after: Position | None = None  # where its last page ended
        quiet_since = checked_at = time.monotonic()
        while not (services.stopping.is_set() or await request.is_disconnected()):
            if time.monotonic() - checked_at > TAIL_CHECK_KEY_S:
                checked_at = time.monotonic()
                with contextlib.suppress(StateUnavailable):  # as for a request, whose key was seen lately
                    if await loop.run_in_executor(services.tail_threads, services.keys.verify, key) != reader:
                        yield b": the key is revoked or expired\n\n"
                        return
            if after is None:
                until = services.indexer.searchable_seq
            if until > after_seq:
                look = partial(_page_since, services, tenant, node, after_seq, after)
                with contextlib.suppress(StoreUnavailable):  # the same page is asked for again
                    page = await loop.run_in_executor(services.tail_threads, look)
                    for hit in page.hits:
                        if hit.position.seq <= until:  # a refresh ran since; the next walk comes to the others
                            quiet_since = time.monotonic()
                            # A walk goes by time, so only its end is a place to go on from.
                            yield b"id: %d\ndata: %s\n\n" % (after_seq, msgspec.json.encode(flatten(hit.source)))
                    after = page.next
                    if after is not None:
                        continue
                    after_seq = until
                    yield b"id: %d\n\n" % after_seq
            if time.monotonic() - quiet_since > TAIL_KEEPALIVE_S:
                quiet_since = time.monotonic()
                yield b": still here\n\n"
            await asyncio.sleep(TAIL_POLL_S)
    finally:
        services.tails[tenant] -= 1
        if not services.tails[tenant]:
            del services.tails[tenant]


def _page_since(services: Services, tenant: str, node: language.Node, after_seq: int, after: Position | None) -> Page:
    return services.store.search(
        tenant, node, limit=MAX_PAGE_ROWS, after=after, order=Order.OLDEST_FIRST, min_seq=after_seq + 1
    )
