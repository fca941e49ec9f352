"""What the embedded store costs: CPU per record, size on disk, memory, search latencies.

``run()`` returns the figures; ``python -m tests.benchmarks.embedded_store [RECORDS]`` prints them as JSON.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from logsvc.query import parse
from logsvc.records import Entry
from logsvc.store import Span
from logsvc.store.embedded import EmbeddedStore
from tests.support.records import T0, make_entry

BATCH = 20_000


def entries(count: int, spread_us: int = 3_600_000_000) -> Iterator[Entry]:
    """Yield records of about 800 bytes as ingest makes them: 50 tasks, 200 templates, half a million order numbers."""
    rng = random.Random(17)
    words = [f"w{n}" for n in range(3_000)]
    templates = [" ".join(rng.choices(words, k=6)) for _ in range(200)]
    levels = ("debug", "info", "info", "info", "warn", "error")
    for n in range(1, count + 1):
        template = rng.randrange(200)
        message = f"{templates[template]} order {rng.randrange(500_000)} took {rng.randrange(3_000)} ms"
        time_us = T0 + n * spread_us // count
        fields: dict[str, Any] = {
            "event.kind": "event",
            "event.dataset": "shop",
            "event.duration": rng.randrange(10**6, 10**9),
            "data_stream.type": "logs",
            "data_stream.dataset": "shop",
            "log.logger": "shop.orders",
            "log.template.id": f"v1:{template:016x}",
            "log.template.text": f"{templates[template]} order <num> took <num> ms",
            "service.version": "1.2.3",
            "service.environment": "prod",
            "host.name": f"web-{n % 4}",
            "process.pid": 1_000 + n % 4,
            "task.name": f"task-{n % 50}",
            "task.id": uuid.UUID(int=n // 20 * 7919 + 2**100).hex,
            "organization.id": f"c{rng.randrange(500)}",
            "ingest.protocol": "native",
            "ingest.key_id": "k1",
            "ecs.version": "9.0.0",
            "schema.version": "1",
        }
        if n % 3 == 0:
            fields["trace.id"] = uuid.UUID(int=rng.getrandbits(128)).hex
        labels = {"order": str(rng.randrange(500_000)), "region": f"r{n % 5}"}
        identity = uuid.UUID(int=rng.getrandbits(128)).hex
        yield make_entry(n, time_us, message, id=identity, level=rng.choice(levels), labels=labels, **fields)


def run(records: int = 200_000) -> dict[str, float]:
    """Return the figures of one store filled with ``records``, a flush after every 20,000."""
    figures: dict[str, float] = {}
    made = list(entries(records))
    raw = sum(len(entry.source) for entry in made)
    process = psutil.Process()
    before = process.memory_info().rss
    with tempfile.TemporaryDirectory() as directory:
        store = EmbeddedStore(Path(directory) / "index")
        cpu, wall, peak = time.process_time(), time.perf_counter(), 0
        for start in range(0, records, BATCH):
            store.append(made[start : start + BATCH])
            store.flush()
            store.refresh()
            peak = max(peak, process.memory_info().rss)
        figures["index_cpu_us_per_record"] = (time.process_time() - cpu) / records * 1e6
        figures["index_wall_us_per_record"] = (time.perf_counter() - wall) / records * 1e6
        figures["index_rss_growth_mb"] = (peak - before) / 1e6
        figures["raw_bytes_per_record"] = raw / records
        figures["index_to_raw_ratio"] = (store.health().size_bytes or 0) / raw
        minute = Span(T0 + 600_000_000, T0 + 900_000_000)
        queries: dict[str, Callable[[], object]] = {
            "newest_50": lambda: store.search("default", parse("", T0)),
            "newest_50_of_two_words": lambda: store.search("default", parse("w1 order", T0)),
            "newest_50_errors_with_total": lambda: store.search("default", parse("level:error", T0), count_total=True),
            "one_trace": lambda: store.search("default", parse(f"trace.id:{trace}", T0)),
            "prefix": lambda: store.search("default", parse("w1*", T0)),
            "get": lambda: store.get("default", made[records // 2].id),
            "histogram_per_minute_by_level": lambda: store.histogram(
                "default", parse("", T0), Span(), interval_us=60_000_000, by="log.level"
            ),
            "window_counts_5_minutes": lambda: store.window_counts("default", ingested=minute, step_us=60_000_000),
        }
        trace = next(t for e in made[records // 2 :] if (t := msgspec.json.decode(e.source).get("trace.id")))
        for name, ask in queries.items():
            figures[f"{name}_ms"] = statistics.median(_timed(ask) for _ in range(7))
        store.close()
    return {name: round(value, 3) for name, value in figures.items()}


def _timed(ask: Callable[[], object]) -> float:
    start = time.perf_counter()
    ask()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000), indent=2))
