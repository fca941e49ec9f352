"""How fast records go into Elasticsearch through our store, beside the bulk API of the same server.

Both sides write the same documents under the same ids into indices of the same template, with
requests of the same size and as many at a time. The direct side only sends bodies that were built
beforehand, so the difference is what the store itself costs.

Run it alone with ``python -m tests.benchmarks.elastic_store [URL]``.
"""

from __future__ import annotations

import json
import random
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import urllib3

from logsvc.records import Entry
from logsvc.store.elastic import MAX_BULK_BYTES, ElasticStore, encode_document
from tests.support.elasticsearch import drop_indices, server
from tests.support.records import DAY_US, T0, make_entry

BATCH = 20_000
CONCURRENCY = 3


def entries(n: int, seed: int = 7) -> list[Entry]:
    """Return ``n`` ordinary records of about 600 bytes, over one day."""
    rng = random.Random(seed)
    words = [f"{a}{b}" for a in ("pay", "ship", "load", "mail", "disk", "row", "user") for b in range(300)]
    made = []
    for seq in range(1, n + 1):
        fields: dict[str, Any] = {
            "task.name": f"task-{rng.randrange(200)}",
            "host.name": f"host-{rng.randrange(40)}",
            "process.pid": rng.randrange(100, 60_000),
            "trace.id": f"{rng.getrandbits(128):032x}",
            "service.version": "1.4.2",
            "service.environment": "production",
            "log.logger": "shop.billing",
            "log.template.id": f"v1:{rng.randrange(300):016x}",
            "organization.id": f"customer-{rng.randrange(1_000)}",
            "event.duration": rng.randrange(10**6, 10**10),
        }
        message = f"{' '.join(rng.choices(words, k=8))} order={rng.randrange(10**6)} took {rng.randrange(5_000)} ms"
        level = rng.choices(("debug", "info", "warn", "error"), (2, 12, 1, 1))[0]
        time_us = T0 // DAY_US * DAY_US + seq * (DAY_US // (n + 1))
        made.append(
            make_entry(
                seq,
                time_us,
                message,
                ingested_us=time_us + 1_500_000,
                id=str(uuid.UUID(int=rng.getrandbits(128))),
                level=level,
                **fields,
            )
        )
    return made


def _bodies(alias: str, records: Sequence[Entry]) -> Iterator[bytes]:
    """Yield bulk bodies as large as the store's own."""
    body: list[bytes] = []
    size = 0
    for entry in records:
        day = time.strftime("%Y.%m.%d", time.gmtime(entry.time_us // 1_000_000))
        line = b'{"create":{"_index":"%b-%b","_id":"%b"}}\n%b\n' % (
            alias.encode(), day.encode(), entry.id.encode(), encode_document(entry),
        )  # fmt: skip
        if size + len(line) > MAX_BULK_BYTES:
            yield b"".join(body)
            body, size = [], 0
        body.append(line)
        size += len(line)
    yield b"".join(body)


def _through_store(url: str, records: Sequence[Entry]) -> float:
    prefix = f"bench-{uuid.uuid4().hex}"
    store = ElasticStore(url, prefix=prefix, concurrency=CONCURRENCY)
    try:
        store.append(records[:1])  # The index is created outside the measurement.
        store.flush()
        started = time.perf_counter()
        for at in range(1, len(records), BATCH):
            store.append(records[at : at + BATCH])
        store.flush()
        store.refresh()
        return (len(records) - 1) / (time.perf_counter() - started)
    finally:
        store.close()
        drop_indices(url, prefix)


def _directly(url: str, records: Sequence[Entry]) -> float:
    prefix = f"bench-{uuid.uuid4().hex}"
    store = ElasticStore(url, prefix=prefix)
    headers = {"content-type": "application/x-ndjson"}
    bodies = list(_bodies(prefix, records[1:]))
    try:
        store.append(records[:1])
        store.flush()
        with urllib3.PoolManager(maxsize=CONCURRENCY) as http, ThreadPoolExecutor(CONCURRENCY) as pool:

            def send(body: bytes) -> None:
                answer = http.request("POST", f"{url}/_bulk?filter_path=errors", body=body, headers=headers)
                assert json.loads(answer.data) == {"errors": False}, answer.data[:500]

            started = time.perf_counter()
            list(pool.map(send, bodies))
            http.request("POST", f"{url}/{prefix}/_refresh")
            return (len(records) - 1) / (time.perf_counter() - started)
    finally:
        store.close()
        drop_indices(url, prefix)


def server_settings(url: str) -> dict[str, Any]:
    """Return what about the server decides its speed."""
    http = urllib3.PoolManager()
    about = json.loads(http.request("GET", url).data)
    nodes = json.loads(http.request("GET", f"{url}/_nodes/jvm,os").data)["nodes"].values()
    return {
        "version": about["version"]["number"],
        "lucene": about["version"]["lucene_version"],
        "nodes": [
            {
                "java": node["jvm"]["version"],
                "heap_bytes": node["jvm"]["mem"]["heap_max_in_bytes"],
                "options": [arg for arg in node["jvm"]["input_arguments"] if arg.startswith(("-Xm", "-XX:Tiered"))],
                "processors": node["os"]["allocated_processors"],
            }
            for node in nodes
        ],
    }


def run(url: str, n: int = 60_000) -> dict[str, Any]:
    """Measure both ways in turn (direct, store, store, direct) after a warm-up; return records per second."""
    records = entries(n)
    _directly(url, records)
    _through_store(url, records[: n // 4])
    direct, store = [_directly(url, records)], [_through_store(url, records)]
    store.append(_through_store(url, records))
    direct.append(_directly(url, records))
    return {
        "records": n,
        "bytes_per_record": round(sum(len(entry.source) for entry in records) / n),
        "store_records_per_s": round(sum(store) / 2),
        "direct_bulk_records_per_s": round(sum(direct) / 2),
        "store_to_direct": round(sum(store) / sum(direct), 2),
        "server": server_settings(url),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1]), indent=2))
    else:
        with server("bench") as address:
            print(json.dumps(run(address), indent=2))
