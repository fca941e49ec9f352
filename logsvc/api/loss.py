"""Loss: where records went, and how complete what can be searched is.

Not here: how that is known (ledger.py).
"""

from __future__ import annotations

from typing import Annotated, TypedDict

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response

from logsvc.api.auth import Reader
from logsvc.api.parameters import From, To, example, json_response, span_of
from logsvc.api.services import ServicesDep
from logsvc.query import Range
from logsvc.timestamps import US_PER_S, format_us

router = APIRouter(prefix="/api/v1", tags=["service"])

MAX_SHIPPERS = 1_000
_DEFAULT_US = 86_400 * US_PER_S

EXAMPLE_COMPLETENESS = {
    "share": 0.997,
    "emitted": 120_000,
    "searchable": 119_640,
    "missing": {"waiting": 0, "backlog": 20, "refused": 0, "dropped": 300, "lost": 40, "dead": 0},
    "numbered_share": 1.0,
    "counted_from": "2026-01-01T00:00:00Z",
}
_EXAMPLE = {
    "from": "2026-01-30T12:00:00Z",
    "to": "2026-01-31T12:00:00Z",
    "indexed": 119_640,
    "data_completeness": EXAMPLE_COMPLETENESS,
    "shippers": [
        {
            "epoch": "9f3c0a7d51e2b846",
            "service": "billing",
            "host": "web-1",
            "pid": 1842,
            "key_id": "k-3f2a",
            "state": "silent",
            "started_at": "2026-01-31T09:00:00Z",
            "heard_at": "2026-01-31T11:40:00Z",
            "emitted": 5_340,
            "queued": 40,
            "spooled": 0,
            "sent": 5_000,
            "accepted": 5_000,
            "duplicated": 0,
            "dropped": {"queue_full": 300},
            "waiting": 0,
            "lost": 40,
            "gaps": [],
        }
    ],
    "shippers_total": 1,
    "clients": [
        {
            "key_id": "k-3f2a",
            "protocol": "native",
            "accepted": 119_660,
            "duplicated": 0,
            "flagged": 3,
            "numbered": 119_660,
            "lost": 0,
            "refused": {},
            "dropped": {"queue_full": 300},
        }
    ],
}


class LossReport(TypedDict):
    """What ``/api/v1/loss`` answers; the shipper that lost most comes first."""

    indexed: int
    data_completeness: dict[str, object]
    shippers: list[dict[str, object]]
    shippers_total: int
    clients: list[dict[str, object]]


@router.get("/loss", summary="Where did records go?", responses=example(_EXAMPLE))
def loss(
    services: ServicesDep,
    reader: Reader,
    start: From = None,
    end: To = None,
    service: Annotated[str | None, Query(description="Only shippers of this service.")] = None,
    host: Annotated[str | None, Query(description="Only shippers on this host.")] = None,
    key: Annotated[str | None, Query(description="Only what came with the key of this id.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_SHIPPERS, description="Shippers to show.")] = 100,
) -> Response:
    """Return where the records of the last day, or of a range, went.

    `data_completeness` has the sums of the range: every record that is known to have been emitted is
    either `searchable` or in one place of `missing`: `waiting` (in a shipper's queue or spool, or on the
    way), `backlog` (accepted, not yet searchable), `refused` (the sender was told), `dropped` (in a
    shipper, by reason), `lost` (a number that never arrived, or a process killed with records in memory,
    after LOGSVC_LOSS_GRACE), `dead` (dead letters). `share` is `searchable / emitted`, and null where
    that is not known. `numbered_share` says how much came from shippers that number their records; of
    the rest nobody can know what never arrived.

    `shippers` are the runs of processes heard of in the range, each with its figures since it started;
    the one that lost most comes first, else those that run, the last heard of first; `shippers_total` is how
    many there are. `accepted` are the distinct numbers that arrived (refused ones too), `duplicated` those
    that came again, `gaps` the newest ranges that are missing. `state` is `ended` after a goodbye, `silent`
    when nothing was heard for LOGSVC_LOSS_GRACE, else `live`. `clients` are the sums by key and protocol, of those who number
    nothing too. `indexed` is how many records that arrived in the range the store holds.
    """
    ledger, now_us = services.ledger, services.clock()
    span = span_of(start, end, services.clock)
    end_us = now_us if span.end_us is None else span.end_us
    start_us = max(end_us - _DEFAULT_US, ledger.counted_us) if span.start_us is None else span.start_us
    report = ledger.loss(reader.tenant, start_us, end_us, service=service, host=host, key_id=key)
    shippers = report.pop("shippers")
    assert isinstance(shippers, list)
    with services.searching(reader.tenant):
        indexed = services.store.count(reader.tenant, Range("event.ingested", start_us, end_us, includes_high=False))
    return json_response(
        {
            "from": format_us(start_us),
            "to": format_us(end_us),
            "indexed": indexed,
            "data_completeness": msgspec.to_builtins(ledger.completeness(reader.tenant, start_us, end_us)),
            "shippers": shippers[:limit],
            "shippers_total": len(shippers),
            **report,
        }
    )
