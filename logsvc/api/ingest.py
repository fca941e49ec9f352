"""POST /api/v1/ingest: the native protocol over HTTP.

The body is read within its bounds, decoded off the event loop, and answered only after the
journal has been fsynced.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from logsvc.api.auth import Sender
from logsvc.api.services import Services, ServicesDep
from logsvc.errors import Overloaded, StoreUnavailable
from logsvc.ingest import Item, ItemResult
from logsvc.keys import Principal
from logsvc.ledger import Statement
from logsvc.protocols import bodies, native

router = APIRouter()

STORE_WAIT_S = 30.0
_STORE_POLL_S = 0.05
LARGE_BYTES = 4 * 1024 * 1024
"""Bodies beyond this are cut into items and normalised one after the other."""

_EXAMPLE = (
    '{"level":"ERROR","service":"billing","task":"billing.charge","task_id":"r-17",'
    '"message":"charge failed","exception":"ValueError: no such plan"}\n'
)


@router.post(
    "/api/v1/ingest",
    status_code=202,
    summary="Ship records",
    tags=["ingest"],
    responses={
        202: {
            "description": "Fsynced. Records that could not be decoded are listed with their position.",
            "content": {
                "application/json": {
                    "example": {"accepted": 2, "rejected": [{"index": 1, "reason": "not a JSON object"}]}
                }
            },
        },
        400: {"description": "Nothing could be decoded, or the body is empty."},
        413: {"description": "The body is over 64 MiB, compressed or not."},
        415: {"description": "The Content-Encoding is none of identity, gzip, deflate, zstd."},
        429: {"description": "The key has used up its quota; send again after Retry-After."},
        503: {"description": "The journal is full, or too much is being sent; send again after Retry-After."},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "NDJSON, a JSON array or one object; plain, gzip, deflate or zstd.",
            "content": {
                "application/x-ndjson": {"schema": {"type": "string"}, "example": _EXAMPLE},
                "application/json": {
                    "schema": {"type": ["object", "array"]},
                    "example": [{"level": "info", "service": "billing", "message": "charged order 17"}],
                },
            },
        }
    },
)
async def ingest(request: Request, services: ServicesDep, sender: Sender) -> Response:
    """Take a batch of records; RECORD names and their short aliases are both understood."""
    try:
        results, statement = await _take_in(request, services, sender)
    except Overloaded as exc:
        services.telemetry.count("ingest_throttled_requests_total", exc.reason)
        raise
    answer = native.render(results, statement)
    if services.acks_from_store:
        await _wait_for_store(services)
    return Response(msgspec.json.encode(answer), status_code=202, media_type="application/json")


async def _take_in(
    request: Request, services: Services, sender: Principal
) -> tuple[list[ItemResult], Statement | None]:
    # Whoever has to come again is told before its body costs anything.
    services.quotas.check(sender.key_id, sender.quota)
    services.journal.check_room(sender.tenant)
    declared = request.headers.get("content-length", "")
    with services.bodies.held(sender.tenant) as take:
        body = await bodies.collect(
            request.stream(), declared_bytes=int(declared) if declared.isdecimal() else 0, take=take
        )
        async with services.decoding.turn(sender.tenant, len(body)):
            text, cut = await asyncio.to_thread(_decode, body, request.headers.get("content-encoding"))
        take(len(text) - len(body))
        async with services.large_bodies.turn(sender.tenant, len(text)) if cut is None else nullcontext():
            items, statement = cut if cut is not None else await asyncio.to_thread(_cut, text)
            charge = (sender.key_id, sender.quota, len(items), len(text))
            services.quotas.take(*charge)
            try:
                results = await services.ingest.accept(
                    sender.tenant,
                    items,
                    source=request.client.host if request.client else "unknown",
                    protocol="native",
                    key_id=sender.key_id,
                    statement=statement,
                )
                return results, statement
            except Overloaded:
                services.quotas.give_back(*charge)
                raise


_Cut = tuple[list[Item], Statement | None]


def _decode(body: bytes, encoding: str | None) -> tuple[bytes, _Cut | None]:
    """Return a body decompressed, and what it holds unless it is large: those are cut in turn."""
    text = bodies.decompress(body, encoding)
    return text, _cut(text) if len(text) <= LARGE_BYTES else None


def _cut(text: bytes) -> _Cut:
    """Return the items of a body, and what a shipper's ledger says of them."""
    text, statement = native.cut_statement(text)
    items = [] if statement is not None and not statement.records and not text.strip() else native.decode(text)
    if statement is not None and statement.records != len(items):
        statement = None  # somebody between changed the batch, so its numbers mean nothing
    return items, statement


async def _wait_for_store(services: Services) -> None:
    # Looked at rather than waited for: a thread for each sender that waits would leave none for the work.
    seq, deadline = services.journal.last_seq, time.monotonic() + STORE_WAIT_S
    while services.indexer.searchable_seq < seq:
        if time.monotonic() >= deadline:
            raise StoreUnavailable(
                f"the records are in the journal, but the store has not taken them within {STORE_WAIT_S:g} s; "
                "sending them again with the same event.id does no harm"
            )
        await asyncio.sleep(_STORE_POLL_S)
