"""Overload: three tenants send three times what the service can index, and what becomes of them.

``python -m tests.benchmarks.overload [SECONDS [CAPACITY]]``, on loopback. First the capacity is measured, unless it is
given in records a second, for two runs that are to be compared. Then it is exceeded: *greedy* (40 connections) offers 2.3 times the capacity, *busy* (8 connections) 0.6 times, *modest* (one)
0.1 times. None of them heeds ``Retry-After``; a body that was refused is sent again a second later. Meanwhile
one searches as *modest*.

It fails (exit code 1) if what was acknowledged is not found exactly once, if *modest* gets less than nine tenths
of what it has to send, or if the backlog is not searchable within a minute after the end.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from tests.benchmarks import over_http
from tests.support.service import ServiceProcess

BATCH = 1_000
BODIES = 20
SHARES = {"greedy": (2.3, 40), "busy": (0.6, 8), "modest": (0.1, 1)}  # of the capacity, and connections
CAPACITY_S = 15.0
RECOVERY_S = 60.0
IDLE_S = 3.0  # the service closes connections that are idle for longer than 5 s


@dataclass
class Sender:
    """What one tenant offered and what it was told."""

    key: str
    connections: int
    rate: float  # bodies a second, all connections together; infinite: as fast as it goes
    offered: int = 0
    acknowledged: int = 0
    refused: Counter[int] = field(default_factory=Counter)  # by status
    waits_s: list[float] = field(default_factory=list)  # of requests, until acknowledged
    bodies_s: list[float] = field(default_factory=list)  # the same, from when a body was sent first

    async def run(self, port: int, bodies: list[bytes], until: float) -> None:
        """Send until the time is up (``time.monotonic``)."""
        await asyncio.gather(*(self._connection(port, bodies, until, number) for number in range(self.connections)))

    async def _connection(self, port: int, bodies: list[bytes], until: float, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            f"POST /api/v1/ingest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\n"
            "Content-Encoding: gzip\r\nContent-Length: "
        )
        every_s = self.connections / self.rate
        last = time.monotonic()
        due = last + number / self.connections * min(every_s, 1.0)
        sent = number
        while (now := time.monotonic()) < until:
            if now < due:
                await asyncio.sleep(min(due, until) - now)
                continue
            due = max(due + every_s, now - 1.0)  # late: it catches up with a second's worth, no more
            body = bodies[sent % len(bodies)]
            sent += 1
            self.offered += BATCH
            first = time.monotonic()
            while time.monotonic() < until:
                began = time.monotonic()
                if began - last > IDLE_S:
                    writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                lines = answer.decode("latin-1").lower().split("\r\n")
                length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
                await reader.readexactly(length)
                last = time.monotonic()
                status = int(lines[0].split()[1])
                if status == 202:
                    self.acknowledged += BATCH
                    self.waits_s.append(time.monotonic() - began)
                    self.bodies_s.append(time.monotonic() - first)
                    break
                self.refused[status] += 1
                await asyncio.sleep(1.0)
        writer.close()


def _bodies() -> list[bytes]:
    """Return bodies without times and ids, so that each time they are sent they are new records."""
    made, _ = over_http.batches(BATCH * BODIES, random.Random(1))
    bodies = []
    for body in made:
        records = [msgspec.json.decode(line) for line in gzip.decompress(body).splitlines()]
        for record in records:
            del record["@timestamp"]
        bodies.append(gzip.compress(msgspec.json.Encoder().encode_lines(records), 1))
    return bodies


def _metrics(service: ServiceProcess) -> dict[str, float]:
    text = service.http.get("/metrics").text
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    }


@dataclass
class Watch:
    """What was seen from outside meanwhile."""

    rss_mb: list[int] = field(default_factory=list)
    pss_mb: list[int] = field(default_factory=list)
    search_ms: list[float] = field(default_factory=list)
    lag_s: list[float] = field(default_factory=list)
    detection_lag_s: list[float] = field(default_factory=list)
    loop_gap_s: list[float] = field(default_factory=list)

    async def run(self, service: ServiceProcess, reader: str, until: float) -> None:
        """Look once a second until the time is up."""
        while time.monotonic() < until:
            await asyncio.to_thread(self._look, service, reader)
            await asyncio.sleep(1.0)

    def _look(self, service: ServiceProcess, reader: str) -> None:
        assert service.process is not None
        memory = over_http.memory(psutil.Process(service.process.pid))
        self.rss_mb.append(memory.rss >> 20)
        self.pss_mb.append(memory.pss >> 20)
        began = time.perf_counter()
        answer = service.http.get(
            "/api/v1/search",
            params={"q": "level:error task:billing.charge", "from": "now-5m"},
            headers={"Authorization": f"Bearer {reader}"},
        )
        assert answer.status_code == 200, answer.text
        self.search_ms.append((time.perf_counter() - began) * 1e3)
        values = _metrics(service)
        self.lag_s.append(values["indexer_lag_seconds"])
        self.detection_lag_s.append(values["detection_cursor_lag_seconds"])
        self.loop_gap_s.append(values["event_loop_longest_gap_seconds"])


def _p99(values: list[float]) -> float:
    return round(sorted(values)[int(len(values) * 0.99)], 3) if values else 0.0


def run(seconds: float = 60.0, capacity: float | None = None, **settings: str) -> dict[str, Any]:
    """Return the figures; ``failures`` names what did not hold. ``capacity`` is measured if it is None."""
    with tempfile.TemporaryDirectory() as directory:
        service = ServiceProcess(Path(directory), **settings)
        try:
            service.start()
            service.use(service.make_key("admin"))
            return _run(service, seconds, capacity)
        finally:
            service.close()


def _run(service: ServiceProcess, seconds: float, capacity: float | None) -> dict[str, Any]:
    bodies = _bodies()
    port = int(service.url.rpartition(":")[2])
    keys = {tenant: service.make_key("ingest", "read", tenant=tenant) for tenant in ("warm", *SHARES)}

    def indexed() -> float:
        return _metrics(service)['indexer_records_total{outcome="appended"}']

    def searchable() -> bool:
        return _metrics(service)["indexer_lag_records"] == 0

    warm = Sender(keys["warm"], 8, float("inf"))
    began = time.monotonic()
    asyncio.run(warm.run(port, bodies, began + CAPACITY_S))
    service.wait("the warm-up to be searchable", searchable, 120)
    capacity = capacity or warm.acknowledged / (time.monotonic() - began)
    print(f"capacity: {capacity:.0f} records a second; three times that for {seconds:g} s", file=sys.stderr, flush=True)

    senders = {
        tenant: Sender(keys[tenant], connections, share * capacity / BATCH)
        for tenant, (share, connections) in SHARES.items()
    }
    watch = Watch()
    before = indexed()
    until = time.monotonic() + seconds

    async def together() -> None:
        await asyncio.gather(
            *(sender.run(port, bodies, until) for sender in senders.values()),
            watch.run(service, keys["modest"], until),
        )

    asyncio.run(together())
    taken = (indexed() - before) / seconds
    ended = time.monotonic()
    failures = []
    try:
        service.wait("the backlog to be searchable", searchable, RECOVERY_S)
    except AssertionError:
        failures.append(f"not searchable within {RECOVERY_S:g} s")
    recovery_s = time.monotonic() - ended
    print(f"after {recovery_s:.0f} s: {failures or 'searchable'}", file=sys.stderr, flush=True)
    service.wait("everything to be searchable", searchable, 600)
    tenants = {}
    for tenant, sender in senders.items():
        answer = httpx.get(
            f"{service.url}/api/v1/count",
            headers={"Authorization": f"Bearer {sender.key}"},
            timeout=60,
            trust_env=False,
        )
        found = answer.json()["count"]
        if found != sender.acknowledged:
            failures.append(f"{tenant}: {sender.acknowledged} acknowledged, {found} found")
        tenants[tenant] = {
            "wanted_per_s": round(sender.rate * BATCH),
            "offered_per_s": round(sender.offered / seconds),
            "acknowledged_per_s": round(sender.acknowledged / seconds),
            "refused_bodies": {str(status): count for status, count in sorted(sender.refused.items())},
            "acknowledged_p50_s": round(statistics.median(sender.waits_s), 3) if sender.waits_s else None,
            "acknowledged_p99_s": _p99(sender.waits_s),
            "longest_request_s": round(max(sender.waits_s, default=0.0), 3),
            "longest_body_s": round(max(sender.bodies_s, default=0.0), 3),
        }
    modest = senders["modest"]
    # Not what it offered: one connection that waits offers less.
    wanted = modest.rate * BATCH * seconds
    if modest.acknowledged < 0.9 * wanted:
        failures.append(f"modest had {wanted:.0f} records to send and got {modest.acknowledged} acknowledged")
    throttled = {
        name.partition('"')[2].rstrip('"}'): value
        for name, value in _metrics(service).items()
        if name.startswith("ingest_throttled_requests_total")
    }
    half = len(watch.pss_mb) // 2
    return {
        "seconds": seconds,
        "capacity_per_s": round(capacity),
        "indexed_per_s": round(taken),
        "tenants": tenants,
        "throttled": throttled,
        "rss_mb_max": max(watch.rss_mb),
        "pss_mb_max": max(watch.pss_mb),
        "pss_mb_median_of_each_half": [statistics.median(part) for part in (watch.pss_mb[:half], watch.pss_mb[half:])],
        "search_p50_ms": round(statistics.median(watch.search_ms), 1),
        "search_p99_ms": _p99(watch.search_ms),
        "indexer_lag_s_max": round(max(watch.lag_s), 1),
        "detection_lag_s_max": round(max(watch.detection_lag_s), 1),
        "loop_gap_s_max": round(max(watch.loop_gap_s), 3),
        "recovery_s": round(recovery_s, 1),
        "failures": failures,
    }


if __name__ == "__main__":
    figures = run(*map(float, sys.argv[1:]))
    print(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())
    sys.exit(bool(figures["failures"]))
