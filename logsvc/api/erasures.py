"""Erasing by query: first how many records it would be, then, when that number is said back, for good.

Every erasure leaves two lines in ``DATA_DIR/erasures.jsonl``: before it, who wants to erase what (``intended``),
and after it what came of it (``done``, with how many, or ``failed``). One without the other was interrupted:
perhaps all of it was done.

Not here: how a store erases (store/), what an earlier backup still holds (backup.py).
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response
from loguru import logger

from logsvc import durable
from logsvc import query as language
from logsvc.api.auth import Admin
from logsvc.api.parameters import From, To, example, json_response, span_of
from logsvc.api.services import ServicesDep
from logsvc.errors import BadInput, Conflict, StoreUnavailable
from logsvc.store import Span
from logsvc.timestamps import format_us

router = APIRouter(prefix="/api/v1", tags=["erasing"])

_WAIT_S = 300.0


@router.post(
    "/erasures",
    summary="Erase records",
    responses={
        **example({"matched": 3, "erased": 0, "dead_letters": 0, "to": "2026-01-31T12:00:00.000000Z"}),
        403: {"description": "The key lacks the scope `admin`."},
        409: {"description": "Another number of records matches now; nothing was erased."},
    },
)
def erase(
    services: ServicesDep,
    admin: Admin,
    q: Annotated[str, Query(min_length=1, description="As for search; `*` for everything.", examples=["user.hash:x"])],
    start: From = None,
    end: To = None,
    expected: Annotated[
        int | None,
        Query(ge=0, description="How many records will go, as the answer without it said as `matched`."),
    ] = None,
) -> Response:
    """Say how many records match or, with ``expected``, erase exactly those, for good.

    Without ``to`` the present moment bounds both; pass the ``to`` of the first answer with the second.
    Erased are the records in the store, in the journal and among the dead letters (which are not in
    ``matched``); backups keep what they have, and tickets their samples.
    """
    now_us = services.clock()
    node = language.parse(q, now_us=now_us)
    span = span_of(start, end, services.clock)
    if span.end_us is None:
        span = Span(span.start_us, max(now_us, span.start_us or 0))
    assert span.end_us is not None
    if not q.strip():
        raise BadInput("q is empty; write q=* to erase everything")
    with services.searching(admin.tenant):
        matched = services.store.count(admin.tenant, node, span)
    if expected is None:
        return json_response({"matched": matched, "erased": 0, "dead_letters": 0, "to": format_us(span.end_us)})
    if matched != expected:
        raise Conflict(f"{matched} records match now, not {expected}; nothing was erased, ask again without expected")
    line: dict[str, object] = {
        "id": f"erasure-{secrets.token_hex(6)}",
        "tenant": admin.tenant,
        "key": admin.key_id,
        "query": language.render(node),
        "from": None if span.start_us is None else format_us(span.start_us),
        "to": format_us(span.end_us),
    }

    def note(outcome: str, **more: object) -> None:
        noted = {"time": format_us(services.clock()), "outcome": outcome, **line, **more}
        durable.append_line(services.erasures, msgspec.json.encode(noted))
        logger.warning("erasure {}: {}", outcome, noted)

    try:
        note("intended", records=matched)
    except OSError as exc:
        raise StoreUnavailable(
            f"cannot write {services.erasures.name}: {exc.strerror}; nothing was erased, for nobody would know of it"
        ) from exc
    try:
        erased = services.indexer.erase(admin.tenant, node, span, _WAIT_S)
    except Exception as exc:
        with suppress(OSError):
            note("failed", error=str(exc) or type(exc).__name__)
        if not isinstance(exc, TimeoutError):
            raise
        raise StoreUnavailable(
            str(exc) or "the store has not come to it in time; look how many match before retrying"
        ) from exc
    try:
        note("done", records=erased.records, dead_letters=erased.dead_letters)
    except OSError as exc:
        # The intention is there, and whoever asked has the answer.
        logger.error("erasure done, but cannot write {}: {}: {}", services.erasures.name, exc.strerror, line)
    return json_response(
        {
            "matched": matched,
            "erased": erased.records,
            "dead_letters": erased.dead_letters,
            "to": format_us(span.end_us),
        }
    )
