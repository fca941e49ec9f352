"""Searches in one very large day: what people wait for when a service has had ten million records since midnight.

The day is made by the embedded store itself, in a data directory on which a service is then started; each query
is asked over HTTP. ``python -m tests.benchmarks search_at_scale --records 10000000`` takes the better part of an
hour, nearly all of it to fill the index.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from logsvc.fields import LEVELS
from logsvc.records import Entry, stored_id
from logsvc.store.embedded import EmbeddedStore
from logsvc.timestamps import system_clock
from tests.benchmarks import over_http
from tests.support.records import DAY_US, rfc3339
from tests.support.service import ServiceProcess

BATCH = 100_000
_TASKS = ("billing.charge", "email.send", "reports.build")


def entries(first: int, count: int, day_us: int, step_us: int) -> Iterator[Entry]:
    """Yield records like those of ``over_http.batches`` after ingest, numbered from ``first``, ``step_us`` apart."""
    rng = random.Random(first)
    for seq in range(first, first + count):
        # As from several machines: a little out of order.
        time_us = day_us + min(DAY_US - 1, seq * step_us + rng.randrange(2_000_000))
        words = " ".join(rng.choices(over_http.WORDS, k=10))
        level = "error" if rng.random() < 0.02 else "info"
        event_id = f"{rng.getrandbits(128):032x}"
        task = _TASKS[seq % 3]
        at = rfc3339(time_us)
        source = {
            "@timestamp": at,
            "event.ingested": at,
            "event.id": event_id,
            "event.kind": "event",
            "event.dataset": f"service-{seq % 7}",
            "event.duration": round(rng.lognormvariate(3, 1) * 1e6),
            "event.severity": LEVELS[level],
            "data_stream.type": "logs",
            "data_stream.dataset": f"service-{seq % 7}",
            "data_stream.namespace": "default",
            "log.level": level,
            "log.template.id": f"v1:{rng.getrandbits(64):016x}",
            "log.template.text": f"{words} order <num> in <num> ms",
            "message": f"{words} order {rng.randrange(10**6)} in {rng.randrange(500)} ms",
            "service.name": f"service-{seq % 7}",
            "service.version": "1.4.2",
            "service.environment": "unknown",
            "host.name": f"host-{seq % 20}",
            "trace.id": f"{rng.getrandbits(128):032x}",
            "task.name": task,
            "task.id": f"{rng.getrandbits(64):016x}",
            "labels": {"region": "eu-central"},
            "ingest.source": "127.0.0.1",
            "ingest.protocol": "native",
            "ingest.key_id": "k1",
            "ingest.pipeline_version": "1",
            "ecs.version": "9.0.0",
            "schema.version": "1",
        }
        yield Entry(
            tenant="default",
            id=stored_id("default", event_id),
            seq=seq,
            time_us=time_us,
            ingested_us=time_us,
            unit=f"task:{task}",
            duration_bucket=None,
            has_client_id=False,
            source=msgspec.json.encode(source),
        )


def fill(index: Path, records: int, at_most: int | None = None) -> int:
    """Fill an index until it has ``records`` (or ``at_most`` more) and return how many it has; it may be gone on with."""
    store = EmbeddedStore(index, heap_bytes=200_000_000)  # large commits save most of the merging
    day_us = (system_clock() // DAY_US - 1) * DAY_US
    try:
        there = store.last_seq()
        until = records if at_most is None else min(records, there + at_most)
        while there < until:
            count = min(BATCH, until - there)
            store.append(list(entries(there + 1, count, day_us, DAY_US // records)))
            store.flush()
            there += count
        return there
    finally:
        store.close()


def ask(service: ServiceProcess, records: int) -> dict[str, Any]:
    """Return the medians of the queries, in milliseconds over HTTP."""
    newest = service.get("/search", q="", limit=1)["records"][0]["trace.id"]
    first = service.get("/search", q="", limit=1, order="asc")["records"][0]["trace.id"]
    figures: dict[str, Any] = {"records": records}
    for name, params in over_http.QUERIES.items():
        figures[f"search_ms_{name}"] = over_http.median_ms(service, "/search", params, first)
    figures["search_ms_trace_id_of_newest"] = over_http.median_ms(service, "/search", {"q": "trace.id:{trace}"}, newest)
    cursor = service.get("/search", q="timeout retry")["next_cursor"]
    figures["search_ms_second_page"] = over_http.median_ms(
        service, "/search", {"q": "timeout retry", "cursor": cursor}, ""
    )
    oldest = {"q": "timeout retry", "order": "asc"}
    figures["search_ms_oldest_first"] = over_http.median_ms(service, "/search", oldest, "")
    return figures


def run(records: int, directory: Path | None = None) -> dict[str, Any]:
    """Return the figures; an index in ``directory`` is used, and gone on with if it has too few records."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        service = ServiceProcess(directory or Path(temporary))
        try:
            service.use(service.make_key())
            fill(service.data_dir / "index", records)
            service.start()
            return ask(service, records)
        finally:
            service.close()
