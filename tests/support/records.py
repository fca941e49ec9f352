"""Entries for tests: made from a few keyword arguments, as ingest would make them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from logsvc.fields import LEVELS
from logsvc.records import Entry, stored_id
from logsvc.store import AppendResult, Store

T0 = 1_795_348_800_000_000
"""2026-11-22T12:00:00Z in microseconds: the moment that tests count from."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000


def rfc3339(us: int, extra_ns: int = 0) -> str:
    """Return ``us`` with nine digits, as a record carries it."""
    moment = EPOCH + timedelta(microseconds=us)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}{extra_ns:03d}Z"


def make_entry(
    seq: int,
    time_us: int = T0,
    message: str = "hello",
    *,
    tenant: str = "default",
    id: str | None = None,
    ingested_us: int | None = None,
    level: str = "info",
    service: str = "shop",
    labels: dict[str, str] | None = None,
    has_client_id: bool | None = None,
    **fields: Any,
) -> Entry:
    """Return the entry of one record; other ``fields`` have ECS names: ``**{"task.name": "x"}``."""
    event_id = f"e{seq}" if id is None else id
    ingested_us = time_us if ingested_us is None else ingested_us
    source: dict[str, Any] = {
        "@timestamp": rfc3339(time_us),
        "event.ingested": rfc3339(ingested_us),
        "event.id": event_id,
        "event.severity": LEVELS[level],
        "data_stream.namespace": tenant,
        "log.level": level,
        "log.template.id": "v1:0",
        "message": message,
        "service.name": service,
        **fields,
    }
    if labels:
        source["labels"] = labels
    task = source.get("task.name")
    duration = source.get("event.duration")
    return Entry(
        tenant=tenant,
        id=stored_id(tenant, event_id),
        seq=seq,
        time_us=time_us,
        ingested_us=ingested_us,
        unit=f"task:{task}" if task else f"service:{service}",
        duration_bucket=None if not duration or duration <= 0 else math.floor(24 * math.log10(duration)),
        has_client_id=id is not None if has_client_id is None else has_client_id,
        source=msgspec.json.encode(source),
    )


def take(store: Store, entries: Sequence[Entry]) -> AppendResult:
    """Append, and return what became of the entries once all of it is known."""
    return store.append(entries) + store.flush()
