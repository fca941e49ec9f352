"""Backtest of what a service has: the same code, and the same flags, as for a file of the same records."""

from __future__ import annotations

import json
import random
import socket
import socketserver
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.service import ServiceProcess

NOW = datetime.now(UTC)


def _records() -> list[dict[str, object]]:
    """Return hours of two tasks, one of which breaks; a line end of Unicode in its message."""
    rng = random.Random(4)
    out: list[dict[str, object]] = []
    for minute in range(200):
        for task in ("billing.charge", "search.query"):
            at = NOW - timedelta(minutes=210 - minute, seconds=rng.random() * 50)
            broken = 25 if task == "billing.charge" and 150 <= minute < 156 else 0
            for n in range(3 + broken):
                failed = {"level": "ERROR", "message": f"no order\u2028{n}", "error.type": "ValueError"}
                done = {"level": "INFO", "message": f"order {n} done", "duration_ms": rng.randrange(20, 40)}
                time = (at + timedelta(milliseconds=n // 2)).isoformat()
                out.append({"@timestamp": time, "service": "shop", "task": task, **(failed if n > 2 else done)})
    return out


class _CutsOnce(socketserver.ThreadingTCPServer):
    """Passes connections on to a port; what comes back on the first is cut off after so many bytes."""

    def __init__(self, port: int, after: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.port, self.after = port, after
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.connections = 0


class _Passing(socketserver.BaseRequestHandler):
    server: _CutsOnce

    def handle(self) -> None:
        self.server.connections += 1
        left = self.server.after if self.server.connections == 1 else None
        with socket.create_connection(("127.0.0.1", self.server.port)) as far:
            up = threading.Thread(target=_pass, args=(self.request, far, None))
            up.start()
            _pass(far, self.request, left)
            up.join()


def _pass(source: socket.socket, target: socket.socket, left: int | None) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data if left is None else data[:left])
            if left is not None and (left := left - len(data)) <= 0:
                break
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow(seconds=25)
def test_a_query_gives_the_flags_of_a_file_of_the_same_records_even_if_the_connection_breaks(
    service: ServiceProcess, tmp_path: Path
) -> None:
    records = _records()
    for first in range(0, len(records), 1000):
        service.ingest(records[first : first + 1000])
    service.wait("all records", lambda: service.count("service:shop") >= len(records))
    file, by_file, by_query, by_part = (tmp_path / name for name in ("logs", "file.json", "query.json", "part.json"))
    file.write_bytes(service.http.get("/api/v1/export", params={"q": "service:shop"}).content)
    key = service.http.headers["Authorization"].removeprefix("Bearer ")
    asked = ("--query", "service:shop", "--from", "now-1d")
    said = service.run("backtest", str(file), "--output", str(by_file)).stdout
    with _CutsOnce(int(service.url.rpartition(":")[2]), after=150_000) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        again = service.run("backtest", *asked, "--output", str(by_query), LOGSVC_API_KEY=key, LOGSVC_URL=proxy.url)
        proxy.shutdown()
        assert proxy.connections == 2
    assert json.loads(by_file.read_text())
    assert by_query.read_bytes() == by_file.read_bytes()
    assert again.stdout == said
    narrow = ("--query", "service:shop task:search.query", "--from", "now-1d", "--url", service.url)
    assert f"{600:,} records" in service.run("backtest", *narrow, "--output", str(by_part), LOGSVC_API_KEY=key).stdout
    assert json.loads(by_part.read_text()) == []
    refused = service.run("backtest", "--query", "level:", "--url", service.url, check=False, LOGSVC_API_KEY=key)
    assert refused.returncode == 2
    assert (
        "no service answers"
        in service.run("backtest", "--query", "", "--url", "http://127.0.0.1:9", check=False).stderr
    )
