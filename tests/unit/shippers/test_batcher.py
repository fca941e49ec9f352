from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shippers
from shippers import Settings
from shippers import batcher as batcher_module
from shippers.batcher import Backoff, Batcher
from shippers.record import Finisher, Origin
from shippers.testing import CapturingTransport
from shippers.transport import Batch, HttpTransport, Outcome, Verdict
from tests.unit.shippers.support import AWAY, KEY, Service, free_port, hang, reply, serving

FAST: dict[str, Any] = {"flush_interval_s": 0.01, "backoff_first_s": 0.001, "backoff_max_s": 0.002}


class Blocked(CapturingTransport):
    """Accepts, but only when let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()
        self.entered = threading.Event()

    def send(self, batch: Batch) -> Outcome:
        self.entered.set()
        self.let.wait(30.0)
        return super().send(batch)


@pytest.fixture
def closing() -> Iterator[list[Batcher]]:
    opened: list[Batcher] = []
    yield opened
    for batcher in opened:
        batcher.close(0.5)


def make(closing: list[Batcher], transport: Any, spool_root: Path | None = None, **settings: Any) -> Batcher:
    batcher = Batcher(transport, Origin("shop"), spool_root=spool_root, settings=Settings(**{**FAST, **settings}))
    closing.append(batcher)
    return batcher


def put(batcher: Batcher, *messages: str, **more: Any) -> None:
    for message in messages:
        batcher.put({"@timestamp": "2024-12-25T13:00:00Z", "message": message, **more})


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def messages(transport: CapturingTransport) -> list[str]:
    return [record["message"] for record in transport.records if record.get("event.action") != "shipper.dropped"]


# --- retries -----------------------------------------------------------------------------------


def test_a_failed_batch_is_sent_again_until_it_is_taken(closing: list[Batcher]) -> None:
    transport = CapturingTransport()
    transport.answer_next(AWAY, Outcome(Verdict.RETRY, "http_503"), Outcome(Verdict.RETRY, "timeout"))
    batcher = make(closing, transport)
    put(batcher, "one")
    assert [record["message"] for record in transport.wait_for(1)] == ["one"]
    assert transport.attempts == 4


def test_a_wrong_key_loses_nothing_and_is_said_once(
    closing: list[Batcher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transport = CapturingTransport()
    transport.answer_next(*[Outcome(Verdict.DENIED, "http_401")] * 3)
    batcher = make(closing, transport, tmp_path)
    put(batcher, "one")
    put(batcher, "two")
    transport.wait_for(2)
    assert messages(transport) == ["one", "two"]
    assert capsys.readouterr().err.count("check url and api_key") == 1


def test_a_wrong_address_is_said_once_with_the_reason_and_without_the_key(
    closing: list[Batcher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    batcher = make(closing, HttpTransport(url, KEY), tmp_path)
    put(batcher, "one")
    wait_until(lambda: batcher._backoff.failures > 6)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{url} is not available" in err
    assert "connection_refused" in err
    assert str(tmp_path) in err
    assert KEY not in err


def test_an_address_that_echoes_the_key_does_not_bring_it_to_standard_error(
    service: Service, closing: list[Batcher], capsys: pytest.CaptureFixture[str]
) -> None:
    service.always = reply(404, b"x" * 490 + KEY.encode())
    batcher = make(closing, HttpTransport(service.url, KEY))
    put(batcher, "one")
    service.wait_for_attempts(2)
    batcher.close()
    err = capsys.readouterr().err
    assert service.url in err
    assert "xxx[key]" in err
    assert KEY[:8] not in err


def test_a_service_that_is_away_for_a_moment_is_no_complaint(
    closing: list[Batcher], capsys: pytest.CaptureFixture[str]
) -> None:
    transport = CapturingTransport()
    transport.answer_next(AWAY, AWAY)
    put(make(closing, transport), "one")
    transport.wait_for(1)
    closing[0].close()
    assert capsys.readouterr().err == ""


def test_a_program_that_ends_at_once_says_that_the_service_was_not_there(
    closing: list[Batcher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transport = CapturingTransport()
    transport.go_away()
    batcher = make(closing, transport, tmp_path, backoff_first_s=60.0, backoff_max_s=60.0)
    batcher._rng.seed(1)
    put(batcher, "one")
    assert batcher.flush(20.0)
    assert capsys.readouterr().err == ""
    batcher.close()
    assert "is not available" in capsys.readouterr().err


def test_a_batch_too_large_is_sent_in_parts_and_a_single_record_dropped(
    service: Service, closing: list[Batcher]
) -> None:
    service.max_bytes = 2000
    batcher = make(closing, HttpTransport(service.url, KEY), compression="identity", flush_interval_s=0.2)
    put(batcher, *[f"m{number}" for number in range(40)])
    put(batcher, "x" * 5000)
    put(batcher, "last")
    assert batcher.flush(20.0)
    assert batcher.stats()["dropped_too_large"] == 1
    assert [m for m in service.messages() if not m.startswith("dropped")] == [*[f"m{n}" for n in range(40)], "last"]


def test_a_refused_batch_is_dropped_counted_and_told_to_the_service(closing: list[Batcher]) -> None:
    transport = CapturingTransport()
    transport.answer_next(Outcome(Verdict.REFUSED, "http_400"))
    batcher = make(closing, transport)
    put(batcher, "one", "two")
    assert batcher.flush(20.0)
    assert batcher.stats()["dropped_refused"] >= 1
    put(batcher, "three")
    batcher.close()
    reports = [record for record in transport.records if record.get("event.action") == "shipper.dropped"]
    assert sum(int(report["labels"]["count"]) for report in reports) == batcher.stats()["dropped_refused"]
    assert {report["labels"]["reason"] for report in reports} == {"refused"}
    assert "three" in messages(transport)


def test_rejected_records_are_counted(closing: list[Batcher]) -> None:
    transport = CapturingTransport()
    transport.answer_next(Outcome(Verdict.ACCEPTED, rejected=1))
    batcher = make(closing, transport)
    put(batcher, "one")
    assert batcher.flush(20.0)
    assert batcher.stats()["dropped_rejected"] == 1


def test_a_transport_that_raises_is_one_that_failed(closing: list[Batcher]) -> None:
    class Raising(CapturingTransport):
        def send(self, batch: Batch) -> Outcome:
            if self.attempts == 0:
                super().send(Batch.of([]))
                raise RuntimeError("broken transport")
            return super().send(batch)

    transport = Raising()
    put(make(closing, transport), "one")
    assert transport.wait_for(1)


def test_backoff_grows_with_full_jitter_and_starts_again() -> None:
    backoff = Backoff(0.5, 60.0, random.Random(7))
    waits = [backoff.after(AWAY) for _ in range(200)]
    for number, wait in enumerate(waits):
        assert 0 <= wait <= min(60.0, 0.5 * 2**number)
    assert max(waits) > 50.0
    backoff.reset()
    assert backoff.after(AWAY) <= 0.5


def test_retry_after_is_waited_for() -> None:
    backoff = Backoff(0.5, 60.0, random.Random(7))
    asked = Outcome(Verdict.RETRY, "http_503", retry_after_s=90.0)
    assert all(90.0 <= backoff.after(asked) <= 90.5 for _ in range(50))


def test_a_wrong_key_is_tried_seldom_from_the_first() -> None:
    backoff = Backoff(0.5, 60.0, random.Random(7))
    assert backoff.after(Outcome(Verdict.DENIED, "http_401")) >= 30.0


# --- the spool ---------------------------------------------------------------------------------


def test_while_the_service_is_away_records_are_spooled_and_then_sent_in_order(
    closing: list[Batcher], tmp_path: Path
) -> None:
    transport = CapturingTransport()
    transport.go_away()
    batcher = make(closing, transport, tmp_path)
    for number in range(10):
        put(batcher, f"m{number}")
        assert batcher.flush(20.0)
    assert list(tmp_path.rglob("*.batch"))
    transport.come_back()
    transport.wait_for(10)
    assert messages(transport) == [f"m{number}" for number in range(10)]
    assert batcher.flush(20.0)


def test_what_is_spooled_is_masked(closing: list[Batcher], tmp_path: Path) -> None:
    transport = CapturingTransport()
    transport.go_away()
    batcher = make(closing, transport, tmp_path, compression="identity")
    put(batcher, "mail to ann@example.com", password="hunter2")
    assert batcher.flush(20.0)
    data = b"".join(path.read_bytes() for path in tmp_path.rglob("*.batch"))
    assert b"[email]" in data
    assert b"ann@example.com" not in data
    assert b"hunter2" not in data


def test_a_full_spool_drops_the_newest_and_counts(closing: list[Batcher], tmp_path: Path) -> None:
    transport = CapturingTransport()
    transport.go_away()
    batcher = make(closing, transport, tmp_path, spool_max_bytes=1000)
    for number in range(20):
        put(batcher, f"m{number}")
        assert batcher.flush(20.0)
    assert batcher.stats()["dropped_spool_full"] > 0
    transport.come_back()
    transport.wait_for(1)
    batcher.close()
    assert messages(transport)[0] == "m0"


def test_a_spool_that_cannot_be_written_leaves_records_in_memory(closing: list[Batcher], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    transport = CapturingTransport()
    transport.go_away()
    batcher = make(closing, transport, tmp_path / "file" / "spool")
    put(batcher, "one", "two")
    transport.wait_for_attempts(3)
    transport.come_back()
    transport.wait_for(2)
    assert messages(transport) == ["one", "two"]


def test_with_a_key_in_the_environment_the_spool_is_encrypted(
    closing: list[Batcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGSVC_SPOOL_KEY", "ab" * 32)
    transport = CapturingTransport()
    transport.go_away()
    batcher = make(closing, transport, tmp_path, compression="identity")
    put(batcher, "plain words")
    wait_until(lambda: batcher.stats()["spooled_batches"] == 1)
    assert not any(b"plain words" in path.read_bytes() for path in tmp_path.rglob("*.batch"))
    transport.come_back()
    assert transport.wait_for(1)[0]["message"] == "plain words"


def test_a_process_that_was_killed_has_its_spool_sent_by_the_next(service: Service, tmp_path: Path) -> None:
    program = """
import logging, os, signal, sys, shippers
handler = shippers.LogHandler(sys.argv[1], "k", service="shop", spool_dir=sys.argv[2])
logger = logging.getLogger("shop")
logger.addHandler(handler)
for number in range(30):
    logger.warning("m%d", number)
assert handler.flush(20.0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    away = f"http://127.0.0.1:{free_port()}"
    result = subprocess.run([sys.executable, "-c", program, away, str(tmp_path)], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    with serving(int(away.rsplit(":", 1)[1])) as back:
        handler = shippers.LogHandler(back.url, KEY, service="shop", spool_dir=tmp_path)
        logger = logging.Logger("shop")  # noqa: LOG001 - one of its own, not the program\'s
        logger.addHandler(handler)
        logger.warning("later")
        back.wait_for(31)
        handler.close()
        assert back.messages() == [*[f"m{number}" for number in range(30)], "later"]
        assert len({record["event.id"] for record in back.records}) == 31


def test_what_waits_for_a_wrong_address_is_sent_to_the_right_one(service: Service, tmp_path: Path) -> None:
    for url in (f"http://127.0.0.1:{free_port()}", service.url):
        handler = shippers.LogHandler(url, KEY, service="shop", environment="test", spool_dir=tmp_path)
        logger = logging.Logger("shop")  # noqa: LOG001 - one of its own, not the program\'s
        logger.addHandler(handler)
        logger.warning("to %s", url)
        handler.close()
    assert len(service.wait_for(2)) == 2
    assert not list(tmp_path.rglob("*.batch"))


@pytest.mark.parametrize("other", [{"service": "mail"}, {"environment": "production"}])
def test_what_waits_is_of_one_service_and_environment(service: Service, tmp_path: Path, other: dict[str, str]) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    names = {"service": "shop", "environment": "test"}
    for url, named in ((away, names), (service.url, {**names, **other})):
        handler = shippers.LogHandler(url, KEY, **named, spool_dir=tmp_path)
        logger = logging.Logger("shop")  # noqa: LOG001 - one of its own, not the program\'s
        logger.addHandler(handler)
        logger.warning("to %s", url)
        handler.close()
    assert service.messages() == [f"to {service.url}"]


# --- bounds ------------------------------------------------------------------------------------


def test_a_full_queue_drops_the_new_and_reports_how_many(closing: list[Batcher]) -> None:
    transport = Blocked()
    batcher = make(closing, transport, queue_max_records=50, batch_max_records=10)
    put(batcher, "first")
    assert transport.entered.wait(10.0)
    filler = "x" * 900
    for _ in range(20):
        put(batcher, *[filler] * 2000)
        if batcher.stats()["dropped"]:
            break
    dropped = batcher.stats()["dropped_queue_full"]
    assert dropped > 0
    transport.let.set()
    batcher.close(20.0)
    reports = [record for record in transport.records if record.get("event.action") == "shipper.dropped"]
    assert max(int(report["labels"]["total"]) for report in reports) == dropped
    assert reports[0]["event.kind"] == "metric"


def test_large_records_are_bounded_by_their_size(closing: list[Batcher]) -> None:
    transport = Blocked()
    batcher = make(closing, transport, queue_max_bytes=1_000_000)
    batcher._ensure_threads()
    with batcher._changed:  # the encoder can hand nothing over
        batcher._outbox_bytes = 10**9
    put(batcher, *["x" * 100_000] * 60)
    assert batcher.stats()["dropped_queue_full"] >= 38
    with batcher._changed:
        batcher._outbox_bytes = 0
        batcher._changed.notify_all()
    transport.let.set()


def test_block_waits_for_room_instead_of_dropping(closing: list[Batcher]) -> None:
    transport = CapturingTransport()
    batcher = make(closing, transport, when_full="block", block_timeout_s=30.0, queue_max_records=20)
    put(batcher, *[f"m{number}" for number in range(2000)])
    assert batcher.flush(20.0)
    assert messages(transport) == [f"m{number}" for number in range(2000)]
    assert batcher.stats()["dropped"] == 0


def test_memory_stays_bounded_while_the_service_is_away(closing: list[Batcher]) -> None:
    transport = CapturingTransport()
    transport.go_away()
    batcher = make(closing, transport, queue_max_records=2000)
    logger = logging.Logger("shop")  # noqa: LOG001 - one of its own, not the program\'s
    handler = shippers.LogHandler(transport=transport, service="shop", settings=batcher.settings)
    logger.addHandler(handler)
    closing.append(handler.batcher)
    tracemalloc.start()
    try:
        for number in range(30_000):
            logger.info("charge %d failed %s", number, "x" * 500)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 2,000 records of 500 characters with their tuples, and 8 MiB of compressed batches at most.
    assert held < 2000 * 2000 + 10 * 1024 * 1024


@pytest.mark.parametrize(
    "wrong",
    [{"when_full": "explode"}, {"compression": "lzma"}, {"queue_max_records": 0}, {"flush_interval_s": -1.0}],
)
def test_a_setting_that_cannot_be_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


# --- flush and close ---------------------------------------------------------------------------


def test_flush_is_false_while_records_are_only_in_memory(closing: list[Batcher]) -> None:
    transport = CapturingTransport()
    transport.go_away()
    batcher = make(closing, transport)
    put(batcher, "one")
    assert not batcher.flush(0.05)
    transport.come_back()
    assert batcher.flush(20.0)


def test_flush_and_close_without_a_record_are_nothing() -> None:
    before = threading.active_count()
    batcher = Batcher(CapturingTransport(), Origin("shop"))
    assert batcher.flush(0.0)
    batcher.close()
    batcher.close()
    assert threading.active_count() == before


def test_close_ends_the_threads(closing: list[Batcher]) -> None:
    batcher = make(closing, CapturingTransport())
    put(batcher, "one")
    threads = list(batcher._threads)
    assert threads
    batcher.close(20.0)
    assert not any(thread.is_alive() for thread in threads)


def test_close_spools_what_a_hanging_service_does_not_take(service: Service, tmp_path: Path) -> None:
    released = threading.Event()
    service.always = hang(released)
    batcher = Batcher(HttpTransport(service.url, KEY), Origin("shop"), spool_root=tmp_path, settings=Settings(**FAST))
    put(batcher, *[f"m{number}" for number in range(100)])
    service.wait_for_attempts(1)
    batcher.close(0.1)
    assert list(tmp_path.rglob("*.batch"))
    service.always = None
    released.set()
    heir = Batcher(HttpTransport(service.url, KEY), Origin("shop"), spool_root=tmp_path, settings=Settings(**FAST))
    put(heir, "later")
    service.wait_for(101)
    heir.close()
    assert {f"m{number}" for number in range(100)} < set(service.messages())


def test_a_record_after_close_goes_to_the_spool(tmp_path: Path) -> None:
    batcher = Batcher(CapturingTransport(), Origin("shop"), spool_root=tmp_path)
    batcher.close()
    put(batcher, "late")
    transport = CapturingTransport()
    heir = Batcher(transport, Origin("shop"), spool_root=tmp_path, settings=Settings(**FAST))
    put(heir, "one")
    transport.wait_for(2)
    heir.close()
    assert sorted(messages(transport)) == ["late", "one"]


def test_a_record_after_close_without_a_spool_is_counted() -> None:
    batcher = Batcher(CapturingTransport(), Origin("shop"))
    batcher.close()
    put(batcher, "late")
    assert batcher.stats()["dropped_closed"] == 1


EXIT = """
import logging, sys, shippers
handler = shippers.LogHandler(sys.argv[1], "k", service="shop", spool_dir=sys.argv[2])
logger = logging.getLogger("shop")
logger.addHandler(handler)
logger.setLevel("INFO")
for number in range(100):
    logger.info("m%d", number)
"""


def test_a_program_that_simply_ends_has_sent_everything(service: Service, tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", EXIT, service.url, str(tmp_path)], capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert service.messages() == [f"m{number}" for number in range(100)]
    assert not list(tmp_path.rglob("*.batch"))


def test_what_exit_handlers_log_is_sent_too(service: Service, tmp_path: Path) -> None:
    program = f"import atexit, shippers\nshippers.LogHandler\natexit.register(lambda: logger.info('bye'))\n{EXIT}"
    command = [sys.executable, "-c", program, service.url, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    assert service.messages()[-1] == "bye"


def test_daemon_threads_that_log_to_the_end_hold_nothing_back(service: Service, tmp_path: Path) -> None:
    program = f"""{EXIT}
import threading
talking = threading.Event()
def talk():
    while True:
        logger.info("talk")
        talking.set()
threading.Thread(target=talk, daemon=True).start()
talking.wait()
logger.info("end")
"""
    command = [sys.executable, "-c", program, service.url, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert result.returncode == 0
    assert service.messages().count("end") == 1
    assert len({record["event.id"] for record in service.records}) == len(service.records)


def test_an_exit_that_is_interrupted_loses_nothing(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    service.always = hang(released)
    batcher = Batcher(HttpTransport(service.url, KEY), Origin("shop"), spool_root=tmp_path, settings=Settings(**FAST))
    put(batcher, "one")
    service.wait_for_attempts(1)

    def impatient(_thread: threading.Thread, _timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", impatient)
    with pytest.raises(KeyboardInterrupt):
        batcher.close(20.0)
    monkeypatch.undo()
    released.set()
    assert list(tmp_path.rglob("*.batch"))
    for thread in batcher._threads:
        thread.join(20.0)
    assert batcher._spool is not None
    batcher._spool.close()


def test_without_a_thread_to_spare_records_wait_until_there_is_one(
    closing: list[Batcher], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    transport = CapturingTransport()
    batcher = make(closing, transport)
    start, started = threading.Thread.start, []

    def exhausted(thread: threading.Thread) -> None:
        started.append(thread.name)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(batcher_module, "_START_RETRY_S", 0.01)
    monkeypatch.setattr(threading.Thread, "start", exhausted)
    put(batcher, "one")
    assert "no thread to send with" in capfd.readouterr().err
    wait_until(lambda: batcher.flush(0.02))
    assert messages(transport) == ["one"]
    assert batcher.stats()["dropped"] == 0


def test_records_numbered_by_threads_at_once_have_ids_of_their_own() -> None:
    finisher = Finisher(Origin("shop"))
    ids: list[str] = []

    def number() -> None:
        for _ in range(2000):
            ids.append(json.loads(finisher.finish({"message": "x"}))["event.id"])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=number) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(set(ids)) == 8000


def test_a_program_that_ends_while_the_service_is_away_leaves_everything_in_the_spool(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", EXIT, f"http://127.0.0.1:{port}", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert list(tmp_path.rglob("*.batch"))
    # The same program again, now with the service there, delivers both runs at its exit.
    with serving(port) as service:
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert service.messages() == [f"m{number}" for number in range(100)] * 2
    assert not list(tmp_path.rglob("*.batch"))


def test_the_exit_is_bounded_though_the_service_hangs(service: Service, tmp_path: Path) -> None:
    released = threading.Event()
    service.always = hang(released)
    program = EXIT.replace('service="shop",', 'service="shop", settings=shippers.Settings(exit_timeout_s=0.2),')
    command = [sys.executable, "-c", program, service.url, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    released.set()
    assert result.returncode == 0
    assert list(tmp_path.rglob("*.batch"))


# --- fork --------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_logs_for_itself_and_sends_nothing_of_the_parent(service: Service, tmp_path: Path) -> None:
    program = """
import logging, os, sys, shippers
handler = shippers.LogHandler(sys.argv[1], "k", service="shop", spool_dir=sys.argv[2],
                              settings=shippers.Settings(flush_interval_s=0.3))
logger = logging.getLogger("shop")
logger.addHandler(handler)
logger.setLevel("INFO")
logger.info("warm"); assert handler.flush(20)   # a connection and threads exist
for number in range(50):
    logger.info("parent %d", number)            # queued when the fork comes
children = []
for child in range(4):
    pid = os.fork()
    if pid == 0:
        for number in range(50):
            logger.info("child %d %d", child, number)
        handler.close(20)
        os._exit(0)
    children.append(pid)
for number in range(50, 100):
    logger.info("parent %d", number)
codes = [os.waitpid(pid, 0)[1] for pid in children]
sys.exit(any(codes))
"""
    command = [sys.executable, "-W", "ignore", "-c", program, service.url, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    expected = ["warm", *[f"parent {n}" for n in range(100)], *[f"child {c} {n}" for c in range(4) for n in range(50)]]
    assert sorted(service.messages()) == sorted(expected)
    assert len({record["event.id"] for record in service.records}) == len(expected)
    epochs: dict[str, set[int]] = {}
    for record in service.records:
        epochs.setdefault(record["ingest.epoch"], set()).add(record["process.pid"])
    assert len(epochs) == 5
    assert all(len(pids) == 1 for pids in epochs.values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_amid_logging_threads_never_deadlocks(service: Service, tmp_path: Path) -> None:
    program = """
import logging, os, sys, threading, shippers
handler = shippers.LogHandler(sys.argv[1], "k", service="shop", spool_dir=sys.argv[2])
logger = logging.getLogger("shop")
logger.addHandler(handler)
logger.setLevel("INFO")
stop = threading.Event()
def chatter():
    while not stop.is_set():
        logger.info("x" * 2000)          # the slow path, with its lock
        handler.batcher.flush(0.01)
threads = [threading.Thread(target=chatter) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(15):
    pid = os.fork()
    if pid == 0:
        logger.info("child " + "y" * 2000)
        ok = handler.flush(20)
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads: thread.join()
"""
    command = [sys.executable, "-W", "ignore", "-c", program, service.url, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, check=False, timeout=90)
    assert result.returncode == 0, result.stderr
    assert sum(message.startswith("child") for message in service.messages()) == 15


def test_our_threads_import_nothing_since_a_fork_amid_an_import_leaves_its_lock_behind(
    service: Service, tmp_path: Path
) -> None:
    program = """
import logging, sys, shippers
handlers = [shippers.LogHandler(url, "k", service="shop", spool_dir=sys.argv[2]) for url in sys.argv[1].split()]
logger = logging.getLogger("shop")
for handler in handlers:
    logger.addHandler(handler)
before = set(sys.modules)
logger.error("one", extra={"two": [3]})
for handler in handlers:
    assert handler.flush(20.0)
print(*sorted(set(sys.modules) - before))
"""
    urls = f"{service.url} http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", program, urls, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (0, b""), result.stderr


def test_a_multiprocessing_child_flushes_at_its_end(service: Service, tmp_path: Path) -> None:
    program = """
import logging, multiprocessing, sys, shippers
handler = shippers.LogHandler(sys.argv[1], "k", service="shop", spool_dir=sys.argv[2])
logger = logging.getLogger("shop")
logger.addHandler(handler)
logger.setLevel("INFO")
def work(): logger.info("from the child")
process = multiprocessing.get_context("fork").Process(target=work)
process.start(); process.join()
"""
    command = [sys.executable, "-W", "ignore", "-c", program, service.url, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    assert service.messages() == ["from the child"]


def test_a_signal_handler_may_log(service: Service) -> None:
    program = """
import logging, os, signal, sys, shippers
handler = shippers.LogHandler(sys.argv[1], "k", service="shop", spool_dir=None)
logger = logging.getLogger("shop")
logger.addHandler(handler)
logger.setLevel("INFO")
hits = 0
def on_alarm(*_):
    global hits
    hits += 1
    logger.info("alarm " + "z" * 1100)
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
while hits < 60:
    logger.info("main " + "z" * 1100)
signal.setitimer(signal.ITIMER_REAL, 0)
sys.exit(0 if handler.flush(30) else 1)
"""
    command = [sys.executable, "-c", program, service.url]
    result = subprocess.run(command, capture_output=True, check=False, timeout=90)
    assert result.returncode == 0, result.stderr
    assert sum(message.startswith("alarm") for message in service.messages()) >= 60


def test_a_log_call_while_the_threads_start_starts_no_others(
    closing: list[Batcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = CapturingTransport()
    batcher = make(closing, transport)
    start, started = threading.Thread.start, []

    def start_and_log(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)
        if len(started) <= 2:  # as a signal handler would that interrupts start()
            put(batcher, f"during {thread.name}" + "z" * 1100)

    monkeypatch.setattr(threading.Thread, "start", start_and_log)
    put(batcher, "first" + "z" * 1100)
    assert batcher.flush(20.0)
    assert started == ["shippers-encoder", "shippers-sender"]
    assert len(transport.records) == 3


def test_a_signal_handler_that_raises_while_the_threads_start_loses_nothing(
    closing: list[Batcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = CapturingTransport()
    batcher = make(closing, transport)
    start = threading.Thread.start

    def start_and_raise(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "shippers-encoder":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_raise)
    with pytest.raises(KeyboardInterrupt):
        put(batcher, "interrupted")  # its caller is told, and it is as if the call had not been made
    put(batcher, "next")
    assert batcher.flush(20.0)
    assert [message for message in messages(transport) if message != "interrupted"] == ["next"]


# --- the whole way -----------------------------------------------------------------------------


def test_over_http_with_failures_each_record_arrives_in_order(service: Service, closing: list[Batcher]) -> None:
    service.answers.extend([reply(503, Retry_After="0"), reply(429, Retry_After="0"), reply(500), reply(408)])
    batcher = make(closing, HttpTransport(service.url, KEY))
    for number in range(300):
        put(batcher, f"m{number}")
    service.wait_for(300)
    assert service.messages() == [f"m{number}" for number in range(300)]


def test_epochs_number_their_records_without_a_gap(closing: list[Batcher]) -> None:
    transport = CapturingTransport()
    batcher = make(closing, transport)
    threads = [threading.Thread(target=put, args=(batcher, *["m"] * 500)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert batcher.flush(20.0)
    assert sorted(record["event.sequence"] for record in transport.records) == list(range(1, 2001))


def test_a_record_is_on_its_way_without_a_flush(closing: list[Batcher]) -> None:
    transport = CapturingTransport()
    start = time.monotonic()
    put(make(closing, transport, flush_interval_s=0.05), "one")
    transport.wait_for(1, timeout_s=20.0)
    assert json.dumps(transport.records)
    assert time.monotonic() >= start


def test_every_setting_is_documented_with_its_default() -> None:
    readme = (Path(shippers.__file__).parent / "README.md").read_text("utf-8")
    for setting in dataclasses.fields(Settings):
        row = next((line for line in readme.splitlines() if line.startswith(f"| `{setting.name}` |")), "")
        assert row, f"{setting.name} is missing from the table"
        shown = row.split("|")[2].strip().strip("`").replace(",", "")
        if shown.endswith(" MiB"):
            shown = str(int(shown[:-4]) * 1024 * 1024)
        assert shown == str(setting.default)
