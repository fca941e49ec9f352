"""The whole path over HTTP: records acknowledged and searchable a second, CPU and memory, search latencies.

Two connections send NDJSON (gzip) to a service process; beside it, on the Elasticsearch given, the
direct bulk API gets records of the same size in the same run. Masking and fingerprints are on, and
asserted on a planted record.
"""

from __future__ import annotations

import gzip
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from logsvc.timestamps import format_us, system_clock
from tests.support.service import ServiceProcess

BATCH = 1_000
CONNECTIONS = 2
_WORDS = ("charged", "order", "for", "customer", "in", "region", "retry", "queue", "worker", "cache", "timeout", "done")
QUERIES = {
    "two_words": {"q": "timeout retry", "limit": 50},
    "phrase": {"q": '"order for"', "limit": 50},
    "filter_newest_100": {"q": "level:error task:billing.charge", "limit": 100},
    "trace_id": {"q": "trace.id:{trace}"},
}


def batches(n: int, rng: random.Random) -> tuple[list[bytes], str]:
    """Return ``n`` records of about 400 bytes as gzipped NDJSON bodies, and one of their trace ids."""
    now_us, trace, bodies = system_clock(), "", []
    for start in range(0, n, BATCH):
        lines = []
        for i in range(start, min(start + BATCH, n)):
            trace = f"{rng.getrandbits(128):032x}"
            words = " ".join(rng.choices(_WORDS, k=10))
            lines.append(
                msgspec.json.encode(
                    {
                        "@timestamp": format_us(now_us - (n - i) * 1_000),
                        "level": "error" if rng.random() < 0.02 else "info",
                        "service": f"service-{i % 7}",
                        "task": ("billing.charge", "email.send", "reports.build")[i % 3],
                        "task_id": f"{rng.getrandbits(64):016x}",
                        "host": f"host-{i % 20}",
                        "version": "1.4.2",
                        "trace_id": trace,
                        "duration_ms": round(rng.lognormvariate(3, 1), 2),
                        "message": f"{words} order {rng.randrange(10**6)} in {rng.randrange(500)} ms",
                        "region": "eu-central",
                    }
                )
            )
        bodies.append(gzip.compress(b"\n".join(lines), 1))
    return bodies, trace


def _send(service: ServiceProcess, bodies: list[bytes]) -> tuple[float, list[float]]:
    waits: list[float] = []
    headers = {**service.http.headers, "Content-Encoding": "gzip"}

    def send(mine: list[bytes]) -> None:
        with httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False) as http:
            for body in mine:
                began = time.perf_counter()
                while http.post("/api/v1/ingest", content=body).status_code == 503:
                    time.sleep(0.2)
                waits.append(time.perf_counter() - began)

    began = time.perf_counter()
    threads = [threading.Thread(target=send, args=(bodies[number::CONNECTIONS],)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, waits


def run(n: int = 200_000, **settings: str) -> dict[str, Any]:
    """Return the figures of a service with ``settings`` (``LOGSVC_STORE_URL`` …)."""
    rng = random.Random(1)
    bodies, trace = batches(n, rng)
    with tempfile.TemporaryDirectory() as directory:
        service = ServiceProcess(Path(directory), **settings)
        try:
            service.use(service.make_key())
            service.start()
            service.ingest([{"message": "planted ann@example.org password=hunter2 17", "event.id": "planted"}])
            assert service.process is not None
            process = psutil.Process(service.process.pid)
            cpu = _cpu_s(process)
            began = time.perf_counter()
            acknowledged_s, waits = _send(service, bodies)
            rss = sum(one.memory_info().rss for one in _tree(process))
            service.wait("all to be searchable", lambda: service.count() >= n + 1, 600, 0.2)
            searchable_s = time.perf_counter() - began
            cpu = _cpu_s(process) - cpu
            planted = service.get("/records/planted")
            assert "ann@example.org" not in str(planted)
            assert "hunter2" not in str(planted)
            assert planted["log.template.id"].startswith("v1:")
            figures: dict[str, Any] = {
                "records": n,
                "acknowledged_per_s": round(n / acknowledged_s),
                "searchable_per_s": round(n / searchable_s),
                "cpu_us_per_record": round(cpu / n * 1e6, 1),
                "ack_ms_p99": round(statistics.quantiles(waits, n=100)[98] * 1000),
                "rss_mb": round(rss / 2**20),
            }
            for name, params in QUERIES.items():
                figures[f"search_ms_{name}"] = _median_ms(service, "/search", params, trace)
            day = {"interval": "1m", "by": "level"}
            figures["histogram_ms_by_level"] = _median_ms(service, "/histogram", day, trace)
            return figures
        finally:
            service.close()


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    """Return what the service's processes have used; those that ended count with their parent."""
    return sum(sum(one.cpu_times()[:4]) if one is process else sum(one.cpu_times()[:2]) for one in _tree(process))


def _median_ms(service: ServiceProcess, path: str, params: dict[str, Any], trace: str) -> float:
    asked = {**params, "q": str(params.get("q", "")).format(trace=trace)}
    times = []
    for _ in range(15):
        began = time.perf_counter()
        service.get(path, **asked)
        times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1000, 1)
