"""Stopping: the service ends at once and in order, whoever is still listening, and goes on where it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.e2e.conftest import running
from tests.support.service import ServiceProcess


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service on the embedded store, to be stopped by the test."""
    with running(tmp_path) as process:
        yield process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_followed_stops_at_once_and_its_followers_are_told(
    own: ServiceProcess, number: signal.Signals
) -> None:
    key = own.make_key()
    own.use(key)
    command = [sys.executable, "-m", "logsvc", "tail", "-o", "json", "--url", own.url]
    environ = {**os.environ, "LOGSVC_API_KEY": key}
    with (
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tail,
        own.http.stream("GET", "/api/v1/tail") as stream,
    ):
        assert tail.stdout is not None
        assert tail.stderr is not None
        lines = stream.iter_lines()
        assert next(lines) == ": following"
        got = threading.Event()
        first: list[str] = []

        def read() -> None:
            assert tail.stdout is not None
            first.append(tail.stdout.readline())
            got.set()

        threading.Thread(target=read, daemon=True).start()

        # Sent until one comes: nothing says from outside when the command has begun to follow.
        def comes() -> bool:
            own.ingest([{"message": "the last words"}])
            return got.wait(0.2)

        own.wait("a record to be followed", comes)
        assert msgspec.json.decode(first[0])["message"] == "the last words"
        assert own.process is not None
        own.process.send_signal(number)
        assert own.process.wait(8) == 0  # uvicorn would have waited 10 s for the streams
        list(lines)  # ends as a whole answer does, not torn off
        assert tail.wait(20) == 3
        assert "has ended" in tail.stderr.read()
    levels = {msgspec.json.decode(line).get("log.level", "") for line in own.log.splitlines() if line.startswith("{")}
    assert "Traceback" not in own.log
    assert {"error", "critical", "fatal"} & {str(level).lower() for level in levels} == set()


def test_what_was_accepted_last_is_found_after_a_stop(own: ServiceProcess) -> None:
    own.use(own.make_key())
    own.ingest([{"message": f"record {i}"} for i in range(500)])
    assert own.stop() == 0
    own.start()
    own.wait("all records", lambda: own.count("record") == 500)


def test_a_lost_journal_costs_no_record_that_comes_after_it(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        service.use(service.make_key())
        service.ingest({"message": f"before {number}"} for number in range(20))
        service.wait("the records", lambda: service.count("before") == 20)
        service.kill()
        shutil.rmtree(service.data_dir / "journal")
        (service.data_dir / "indexer.checkpoint").unlink(missing_ok=True)
        service.start()
        service.ingest({"message": f"after {number}"} for number in range(10))
        service.wait("the new records", lambda: service.count("after") == 10)
        assert service.count("before") == 20
        assert "the journal ends at 0: it was lost" in service.log


def test_a_stop_is_over_before_a_container_would_be_killed_though_the_store_is_away(tmp_path: Path) -> None:
    process = ServiceProcess(tmp_path, LOGSVC_STORE_URL="http://127.0.0.1:1", LOGSVC_STOP_TIMEOUT="2s")
    try:
        process.start(is_ready=False)
        process.use(process.make_key())
        process.ingest([{"message": "in the journal alone"}])
        assert process.process is not None
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(10) == 0  # an indexer left to itself would try for 30 s
    finally:
        process.close()
