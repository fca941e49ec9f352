"""POST /api/v1/ingest: the native protocol over HTTP.

The body is read within its bounds, decoded off the event loop, and answered only after the
journal has been fsynced.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from logsvc.api.auth import Sender
from logsvc.api.services import Services, ServicesDep
from logsvc.errors import StoreUnavailable
from logsvc.ingest import Item
from logsvc.protocols import bodies, native

router = APIRouter()

STORE_WAIT_S = 30.0
LARGE_BYTES = 4 * 1024 * 1024
"""Bodies beyond this are normalised one after the other."""

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
    declared = request.headers.get("content-length", "")
    with services.bodies.held(sender.tenant) as take:
        body = await bodies.collect(
            request.stream(), declared_bytes=int(declared) if declared.isdecimal() else 0, take=take
        )
        encoding = request.headers.get("content-encoding")
        size, items = await asyncio.to_thread(_decode, body, encoding)
        take(size - len(body))
        async with services.large_bodies if size > LARGE_BYTES else nullcontext():
            results = await services.ingest.accept(
                sender.tenant,
                items,
                source=request.client.host if request.client else "unknown",
                protocol="native",
                key_id=sender.key_id,
            )
    answer = native.render(results)
    if services.acks_from_store:
        await asyncio.to_thread(_wait_for_store, services)
    return Response(msgspec.json.encode(answer), status_code=202, media_type="application/json")


def _decode(body: bytes, encoding: str | None) -> tuple[int, list[Item]]:
    """Return the size of a body, decompressed, and its items."""
    text = bodies.decompress(body, encoding)
    return len(text), native.decode(text)


def _wait_for_store(services: Services) -> None:
    if not services.indexer.wait_searchable(services.journal.last_seq, STORE_WAIT_S):
        raise StoreUnavailable(
            f"the records are in the journal, but the store has not taken them within {STORE_WAIT_S:g} s; "
            "sending them again with the same event.id does no harm"
        )
