"""The canary on a real service: it comes through unseen, and when detection hangs it says so."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tests.support.receiver import Receiver
from tests.support.service import ServiceProcess


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def service(tmp_path: Path, receiver: Receiver) -> Iterator[ServiceProcess]:
    process = ServiceProcess(
        tmp_path,
        LOGSVC_WINDOW="5s",
        LOGSVC_GRACE="1s",
        LOGSVC_CANARY_EVERY="1s",
        LOGSVC_CANARY_DEADLINE="7s",
        LOGSVC_DEAD_MANS_SWITCH_URL=f"http://127.0.0.1:{receiver.port}/s3cret",
        LOGSVC_DEAD_MANS_SWITCH_EVERY="1s",
    )
    try:
        process.start()
        process.use(process.make_key("read"))
        yield process
    finally:
        process.close()


def _metric(service: ServiceProcess, name: str) -> float:
    lines = service.http.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)


def _events(service: ServiceProcess) -> list[dict[str, Any]]:
    path = service.data_dir / "tickets.jsonl"
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.mark.slow(seconds=20)
def test_a_canary_comes_through_unseen_and_one_that_does_not_is_a_ticket(
    service: ServiceProcess, receiver: Receiver
) -> None:
    # On a busy machine the first may be late, and say so: what matters is that nothing else is heard of it.
    service.wait("a canary on a new install", lambda: _metric(service, "logsvc_canary_up") == 1, 60)
    assert _metric(service, 'logsvc_canary_runs_total{outcome="delivered"}') >= 1
    service.wait("the switch to be called", lambda: receiver.requests)
    assert service.count() == 0
    assert {ticket["kind"] for ticket in service.get("/tickets")["tickets"]} <= {"self"}
    assert _metric(service, 'ingest_records_total{outcome="accepted"}') == 0
    before = len(_events(service))

    # The process that judges hangs: the service serves on, and would stay silent.
    assert service.process is not None
    (worker,) = [p for p in psutil.Process(service.process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    worker.send_signal(signal.SIGSTOP)

    def told() -> list[dict[str, Any]]:
        # On a busy machine one may get stuck earlier; then the ticket is updated.
        return [e["data"] for e in _events(service)[before:] if "searchable, but were not judged" in e["data"]["title"]]

    ticket = service.wait("a ticket about it", told, 60)[0]
    assert _events(service)[before]["type"] == "anomaly.opened"
    assert (ticket["kind"], ticket["severity"]) == ("self", "critical")
    assert service.get("/tickets")["tickets"][0]["id"] == ticket["id"]
    assert _metric(service, "logsvc_canary_up") == 0
    calls = len(receiver.requests)

    worker.send_signal(signal.SIGCONT)
    service.wait("it to be resolved", lambda: _events(service)[-1]["type"] == "anomaly.resolved", 60)
    service.wait("the switch to be called again", lambda: len(receiver.requests) > calls)
    assert {event["data"]["tenant"] for event in _events(service)} == {"default"}
    assert "s3cret" not in service.log
