"""The whole path over HTTP, beside Elasticsearch's own bulk API on the same cores in the same run.

``embedded``: two connections send NDJSON (gzip) as fast as they are answered, until all is searchable; then the
same at four fifths of that rate, for the waits that senders and readers see; then searches. The peer gets the
same raw records by two connections through ``_bulk``, into an index with a mapping for just these fields.

``elasticsearch``: the service writes into an Elasticsearch confined to one core, with itself and the loader on
the other. The peer is direct bulk, confined alike, of what the service makes of the same records: the same
documents, mapping and ids, numbered and stamped as the service does it, made searchable each second, as it promises,
and as Elasticsearch does of itself. (The same without that, as who only loads would have it, is told beside it.)

Both take ``WARM`` other records before anything is measured: what a server costs to start is no cost of a record.
A server that compiles as it goes costs four times as much per record at first, so ``elasticsearch`` lets it take
records until it costs no less, first directly and then by way of the service, before either side is measured.
Masking and fingerprints are on, and asserted on a planted record.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import random
import re
import statistics
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import urllib3

from logsvc.normaliser import Normaliser, Origin
from logsvc.records import Entry
from logsvc.store.elastic import ElasticStore, encode_document
from logsvc.timestamps import format_us, system_clock
from tests.support.elasticsearch import drop_indices
from tests.support.service import ServiceProcess

BATCH = 1_000
WARM = 5_000
WARM_RUNS = 8
CONNECTIONS = 2
PACED_S = 20.0
PROBE_EVERY_S = 0.25
STATEMENTS = 500
"""What programs can say; until then each message was one that nobody had ever seen, and a template of its own."""
WORDS = ("charged", "order", "for", "customer", "in", "region", "retry", "queue", "worker", "cache", "timeout", "done")
QUERIES = {
    "two_words": {"q": "timeout retry", "limit": 50},
    "phrase": {"q": '"order for"', "limit": 50},
    "filter_newest_100": {"q": "level:error task:billing.charge", "limit": 100},
    "trace_id": {"q": "trace.id:{trace}"},
}
_MAPPING = {
    "dynamic": False,
    "properties": {
        "@timestamp": {"type": "date"},
        "message": {"type": "text"},
        "duration_ms": {"type": "double"},
        **{
            name: {"type": "keyword"}
            for name in ("level", "service", "task", "task_id", "host", "version", "trace_id", "region")
        },
    },
}


def batches(n: int, rng: random.Random) -> tuple[list[bytes], str]:
    """Return ``n`` records of about 400 bytes as gzipped NDJSON bodies, and one of their trace ids."""
    now_us, trace, bodies = system_clock(), "", []
    statements = [" ".join(rng.choices(WORDS, k=10)) for _ in range(STATEMENTS)]
    for start in range(0, n, BATCH):
        lines = []
        for i in range(start, min(start + BATCH, n)):
            trace = f"{rng.getrandbits(128):032x}"
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
                        "message": f"{rng.choice(statements)} order {rng.randrange(10**6)} in {rng.randrange(500)} ms",
                        "region": "eu-central",
                    }
                )
            )
        bodies.append(gzip.compress(b"\n".join(lines), 1))
    return bodies, trace


# Both sides.


def _lines(bodies: Sequence[bytes]) -> Iterator[list[bytes]]:
    return (gzip.decompress(body).split(b"\n") for body in bodies)


def _at_once(send: Callable[[Any], None], bodies: Sequence[Any]) -> float:
    """Send all bodies over ``CONNECTIONS``; return the seconds that it took."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(send, bodies))
    return time.perf_counter() - began


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    """Return what a process and those that it started have used; those that ended count with their parent."""
    return sum(sum(one.cpu_times()[:4]) if one is process else sum(one.cpu_times()[:2]) for one in _tree(process))


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process and those that it started hold, in bytes, as Linux counts it.

    A page that several of them map, such as a library's code, is in ``rss`` once for each, and in ``pss`` once.
    Both have the pages of the mapped index that happen to be in memory, which are the system's to take back;
    ``anonymous`` has no file's pages.
    """

    rss: int = 0
    pss: int = 0
    anonymous: int = 0

    def most(self, other: Memory) -> Memory:
        """Return the larger of each."""
        return Memory(max(self.rss, other.rss), max(self.pss, other.pss), max(self.anonymous, other.anonymous))


def memory(process: psutil.Process) -> Memory:
    """Return what a process and those that it started hold now; nothing of those that have just ended."""
    sums: Counter[str] = Counter()
    for one in _tree(process):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
            for name, kb in re.findall(r"^(Rss|Pss|Anonymous|Swap): +([0-9]+) kB", text, re.MULTILINE):
                sums[name] += int(kb) << 10
    return Memory(sums["Rss"], sums["Pss"], sums["Anonymous"] + sums["Swap"])


def _confine(process: psutil.Process, core: int) -> None:
    """Keep all threads of a process, and those that they will start, on one core."""
    for one in _tree(process):
        for thread in one.threads():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread.id, {core})


# Elasticsearch by itself.


def _server_process(url: str) -> psutil.Process:
    nodes = httpx.get(f"{url}/_nodes/process", timeout=30).json()["nodes"].values()
    return psutil.Process(next(iter(nodes))["process"]["id"])


def _bulk(url: str, bodies: Sequence[bytes], refresh: str) -> float:
    """Send bulk bodies that were made beforehand, then refresh; return the seconds until all is searchable."""
    with urllib3.PoolManager(maxsize=CONNECTIONS) as http:

        def send(body: bytes) -> None:
            headers = {"content-type": "application/x-ndjson"}
            answer = http.request("POST", f"{url}/_bulk?filter_path=errors", body=body, headers=headers)
            assert msgspec.json.decode(answer.data) == {"errors": False}, answer.data[:500]

        began = time.perf_counter()
        _at_once(send, bodies)
        http.request("POST", f"{url}/{refresh}/_refresh")
        return time.perf_counter() - began


def _peer(url: str, bodies: Sequence[bytes], n: int) -> tuple[float, float]:
    """Return records a second, acknowledged and searchable, and microseconds of CPU a record.

    Args:
        url: Of the server.
        bodies: Of the raw records; the first ``WARM`` are not measured.
        n: How many come after those.
    """
    index = f"bench-{uuid.uuid4().hex}"
    shards = {"number_of_shards": 1, "number_of_replicas": 0}
    httpx.put(f"{url}/{index}", json={"settings": shards, "mappings": _MAPPING}, timeout=60).raise_for_status()
    try:
        action = b'{"create":{"_index":"%b"}}\n' % index.encode()
        made = [b"".join(action + line + b"\n" for line in lines) for lines in _lines(bodies)]
        process = _server_process(url)
        warm = WARM // BATCH
        _bulk(url, made[:warm], index)
        cpu = _cpu_s(process)
        took = _bulk(url, made[warm:], index)
        return n / took, (_cpu_s(process) - cpu) / n * 1e6
    finally:
        drop_indices(url, index)


# The service.


class _Watch(threading.Thread):
    """The most memory that a service's processes had together, looked at four times a second."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._end = threading.Event()
        self._most = Memory()

    def run(self) -> None:
        while not self._end.wait(0.25):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._most = self._most.most(memory(self._process))

    def stop(self) -> Memory:
        """Return the most of each."""
        self._end.set()
        self.join()
        return self._most


def _poster(service: ServiceProcess, waits: list[float]) -> Callable[[bytes], None]:
    local = threading.local()
    headers = {**service.http.headers, "Content-Encoding": "gzip"}

    def post(body: bytes) -> None:
        if not hasattr(local, "http"):
            local.http = httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False)
        began = time.perf_counter()
        while (answer := local.http.post("/api/v1/ingest", content=body)).status_code in (429, 503):
            time.sleep(float(answer.headers.get("Retry-After", "0.2")))
        answer.raise_for_status()
        waits.append(time.perf_counter() - began)

    return post


def _paced(service: ServiceProcess, bodies: Sequence[bytes], rate: float) -> tuple[list[float], list[float]]:
    """Send ``rate`` records a second for a while.

    Returns:
        The seconds from a body's due time to its acknowledgement, and from a planted record's to its being found.
    """
    acknowledged: list[float] = []
    found: list[float] = []
    began = time.perf_counter()
    post = _poster(service, [])
    turns = itertools.cycle(bodies)

    def send(number: int) -> None:
        due = began + number * BATCH / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        post(next(turns))
        acknowledged.append(time.perf_counter() - due)

    def probe() -> None:
        with httpx.Client(base_url=service.url, headers=service.http.headers, timeout=60, trust_env=False) as http:
            while time.perf_counter() < began + PACED_S:
                id = f"probe-{uuid.uuid4().hex}"
                http.post("/api/v1/ingest", json={"message": "probe", "event.id": id}).raise_for_status()
                asked = time.perf_counter()
                while http.get(f"/api/v1/records/{id}").status_code == 404:
                    time.sleep(0.02)
                found.append(time.perf_counter() - asked)
                time.sleep(PROBE_EVERY_S)

    prober = threading.Thread(target=probe)
    prober.start()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(send, range(int(PACED_S * rate / BATCH))))
    prober.join()
    return acknowledged, found


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]


def _metric(service: ServiceProcess, name: str) -> float:
    text = service.http.get("/metrics").text
    found = re.search(rf"{name} ([0-9.e+-]+)$", text, re.MULTILINE)
    assert found is not None, text[:500]
    return float(found[1])


def _gap_ms(service: ServiceProcess) -> float:
    return _metric(service, "event_loop_longest_gap_seconds") * 1000


def _check_planted(service: ServiceProcess) -> None:
    planted = service.get("/records/planted")
    assert "ann@example.org" not in str(planted)
    assert "hunter2" not in str(planted)
    assert planted["log.template.id"].startswith("v1:")


@contextlib.contextmanager
def _service(**settings: str) -> Iterator[tuple[ServiceProcess, psutil.Process]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        service = ServiceProcess(Path(directory), **settings)
        try:
            service.use(service.make_key())
            service.start()
            service.ingest([{"message": "planted ann@example.org password=hunter2 17", "event.id": "planted"}])
            assert service.process is not None
            process = psutil.Process(service.process.pid)
            _fill(service, batches(WARM, random.Random(0))[0], WARM)
            # Of the processes that it starts, the one that judges comes last, with the first window that is complete.
            service.wait("a window to be judged", lambda: _metric(service, "detection_windows_total") > 0, 300, 1)
            _rest(process)
            yield service, process
        finally:
            service.close()


def _rest(process: psutil.Process) -> None:
    """Wait until the processes that a service starts have read their modules, and it has nothing to do."""
    for _ in range(120):
        before = _cpu_s(process)
        time.sleep(1)
        if _cpu_s(process) - before < 0.1:
            return


def _fill(service: ServiceProcess, bodies: Sequence[bytes], n: int) -> tuple[float, float, list[float]]:
    """Return the seconds until all was acknowledged, and searchable, and each body's wait."""
    waits: list[float] = []
    there = service.count()
    began = time.perf_counter()
    acknowledged_s = _at_once(_poster(service, waits), bodies)
    # A count would ask the store, whose time is being measured.
    service.wait("all to be searchable", lambda: _metric(service, "indexer_lag_records") == 0, 1_200, 0.1)
    searchable_s = time.perf_counter() - began
    assert service.count() >= there + n
    return acknowledged_s, searchable_s, waits


def embedded(url: str, n: int = 200_000) -> dict[str, Any]:
    """Return the figures of the embedded store beside the Elasticsearch at ``url``."""
    bodies, trace = batches(n, random.Random(1))
    with _service() as (service, process):
        watch = _Watch(process)
        watch.start()
        _gap_ms(service)
        cpu = _cpu_s(process)
        acknowledged_s, searchable_s, waits = _fill(service, bodies, n)
        cpu_us = (_cpu_s(process) - cpu) / n * 1e6
        gap_ms = _gap_ms(service)
        most = watch.stop()
        _check_planted(service)
        raw = sum(len(line) + 1 for lines in _lines(bodies) for line in lines)
        index = sum(path.stat().st_size for path in (service.directory / "data/index").rglob("*") if path.is_file())
        figures: dict[str, Any] = {
            "records": n,
            "acknowledged_per_s": round(n / acknowledged_s),
            "searchable_per_s": round(n / searchable_s),
            "cpu_us_per_record": round(cpu_us, 1),
            "ack_ms_p99_at_full_rate": round(_p99(waits) * 1000),
            "event_loop_gap_ms": round(gap_ms),
            "memory_mb": most.rss >> 20,
            "memory_pss_mb": most.pss >> 20,
            "memory_without_mapped_files_mb": most.anonymous >> 20,
            "index_to_raw": round(index / (raw * (n + WARM) / n), 2),
        }
        for name, params in QUERIES.items():
            figures[f"search_ms_{name}"] = median_ms(service, "/search", params, trace)
        day = {"interval": "1m", "by": "level"}
        per_million = median_ms(service, "/histogram", day, trace) / (n + WARM) * 1e6
        figures["histogram_ms_per_million"] = round(per_million, 1)
        rate = 0.8 * n / searchable_s
        acknowledged, found = _paced(service, bodies, rate)
        figures["ack_ms_p99_at_80_percent"] = round(_p99(acknowledged) * 1000)
        figures["searchable_s_p99_at_80_percent"] = round(_p99(found), 2)
    rate, peer_us = _peer(url, batches(WARM, random.Random(0))[0] + bodies, n)
    figures["elasticsearch_per_s"] = round(rate)
    figures["elasticsearch_cpu_us_per_record"] = round(peer_us, 1)
    figures["rate_to_elasticsearch"] = round(n / searchable_s / rate, 2)
    figures["cpu_to_elasticsearch"] = round(cpu_us / peer_us, 2)
    return figures


def elasticsearch(url: str, n: int = 120_000) -> dict[str, Any]:
    """Return the figures of the service in front of an Elasticsearch that has one core, the rest having the other."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return {"skipped": "one core"}
    made, _ = batches(n, random.Random(2))
    others, _ = batches(n, random.Random(3))
    server = _server_process(url)
    _until_steady(lambda: _direct(url, others, n, "1s")[1])
    _confine(server, cores[0])
    _confine(psutil.Process(), cores[1])
    try:
        _until_steady(lambda: _through(url, server, cores[1], others, n)[2])
        direct = [_direct(url, made, n, "1s")]
        rate, cpu_us, server_us = _through(url, server, cores[1], made, n)
        direct.append(_direct(url, made, n, "1s"))
        seldom = _direct(url, made, n, "-1")
    finally:
        for core_holder in (server, psutil.Process()):
            for thread in core_holder.threads():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(thread.id, cores)
    direct_rate = statistics.mean(rate for rate, _ in direct)
    return {
        "records": n,
        "searchable_per_s": round(rate),
        "cpu_us_per_record": round(cpu_us, 1),
        "server_cpu_us_per_record": round(server_us, 1),
        "direct_bulk_per_s": round(direct_rate),
        "direct_server_cpu_us_per_record": round(statistics.mean(us for _, us in direct), 1),
        "rate_to_direct": round(rate / direct_rate, 2),
        "direct_bulk_unrefreshed_per_s": round(seldom[0]),
        "direct_unrefreshed_server_cpu_us_per_record": round(seldom[1], 1),
        "rate_to_direct_unrefreshed": round(rate / seldom[0], 2),
    }


def _until_steady(measure: Callable[[], float]) -> None:
    """Have a server take records until one costs it hardly less than before, ``WARM_RUNS`` times at most."""
    before_us = float("inf")
    for _ in range(WARM_RUNS):
        us = measure()
        if us > 0.95 * before_us:
            return
        before_us = us


def _through(
    url: str, server: psutil.Process, core: int, bodies: Sequence[bytes], n: int
) -> tuple[float, float, float]:
    """Return records a second by way of a new service, its CPU in microseconds a record, and the server's.

    The service begins with an empty index, as who loads directly does: in a larger one all that is added costs more.
    """
    prefix = f"bench-{uuid.uuid4().hex}"
    try:
        with _service(LOGSVC_STORE_URL=url, LOGSVC_STORE_PREFIX=prefix) as (service, process):
            _confine(process, core)
            cpu, server_cpu = _cpu_s(process), _cpu_s(server)
            _, searchable_s, _ = _fill(service, bodies, n)
            used = _cpu_s(process) - cpu, _cpu_s(server) - server_cpu
            _check_planted(service)
            return n / searchable_s, used[0] / n * 1e6, used[1] / n * 1e6
    finally:
        drop_indices(url, prefix)


def _direct(url: str, bodies: Sequence[bytes], n: int, refresh_interval: str) -> tuple[float, float]:
    """Return records a second, and the server's CPU in microseconds a record, of the same documents through ``_bulk``."""
    prefix = f"bench-{uuid.uuid4().hex}"
    store = ElasticStore(url, prefix=prefix)
    try:
        made = _documents(prefix, store, bodies)
        settings = {"index": {"refresh_interval": refresh_interval}}
        httpx.put(f"{url}/{prefix}/_settings", json=settings, timeout=60).raise_for_status()
        server = _server_process(url)
        cpu = _cpu_s(server)
        rate = (n - BATCH) / _bulk(url, made, prefix)
        return rate, (_cpu_s(server) - cpu) / (n - BATCH) * 1e6
    finally:
        store.close()
        drop_indices(url, prefix)


def _documents(prefix: str, store: ElasticStore, bodies: Sequence[bytes]) -> list[bytes]:
    """Return bulk bodies of all but the first batch, of which one record is stored, so that the index stands."""
    normaliser = Normaliser(b"key")
    made, seq = [], 0
    for lines in _lines(bodies):
        entries = normaliser.normalise(lines, Origin("default", "127.0.0.1", "native", "k1", system_clock()))[1]
        entries = [msgspec.structs.replace(entry, seq=seq + i) for i, entry in enumerate(entries, 1)]
        if seq == 0:
            store.append(entries[:1])
            store.flush()
        else:
            made.append(b"".join(_create(prefix, entry) for entry in entries))
        seq += len(entries)
    return made


def _create(prefix: str, entry: Entry) -> bytes:
    day = time.strftime("%Y.%m.%d", time.gmtime(entry.time_us // 1_000_000))
    return b'{"create":{"_index":"%b-%b","_id":"%b"}}\n%b\n' % (
        prefix.encode(), day.encode(), entry.id.encode(), encode_document(entry),
    )  # fmt: skip


def median_ms(service: ServiceProcess, path: str, params: dict[str, Any], trace: str) -> float:
    asked = {**params, "q": str(params.get("q", "")).format(trace=trace)}
    times = []
    for _ in range(15):
        began = time.perf_counter()
        service.get(path, **asked)
        times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1000, 1)
