"""The loss ledger end to end: real processes that are killed, drop, spool, fork and send twice, and a real service."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shippers
from shippers.transport import Batch, HttpTransport, Outcome, Verdict
from tests.support.service import ServiceProcess

Report = dict[str, Any]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    process = ServiceProcess(tmp_path_factory.mktemp("loss"), LOGSVC_LOSS_GRACE="1s")
    try:
        process.start()
        process.key = process.make_key()  # type: ignore[attr-defined]
        process.use(process.key)  # type: ignore[attr-defined]
        yield process
    finally:
        process.close()


def of(service: ServiceProcess, name: str) -> list[Report]:
    """Return what the ledger says of each process of a service."""
    found: list[Report] = service.get("/loss", service=name)["shippers"]
    return found


def balance(shipper: Report) -> int:
    """Return how many records are in no place: none, ever."""
    dropped = sum(shipper["dropped"].values())
    return int(shipper["emitted"] - shipper["accepted"] - dropped - shipper["waiting"] - shipper["lost"])


def handler(service: ServiceProcess, name: str, transport: Any = None, **settings: Any) -> shippers.LogHandler:
    return shippers.LogHandler(
        transport=transport or HttpTransport(service.url, service.key),  # type: ignore[attr-defined]
        service=name,
        spool_dir=None,
        settings=shippers.Settings(flush_interval_s=0.05, **settings),
    )


def log(to: shippers.LogHandler, count: int) -> None:
    for number in range(count):
        to.handle(logging.makeLogRecord({"msg": f"record {number}", "levelno": 20, "levelname": "INFO"}))


def run(service: ServiceProcess, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that logs, in a process of its own."""
    environ = {**os.environ, "LOGSVC_URL": service.url, "LOGSVC_API_KEY": service.key}  # type: ignore[attr-defined]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environ, capture_output=True, text=True, timeout=60
    )


def name() -> str:
    return f"loss-{uuid.uuid4().hex[:8]}"


def test_a_process_that_ends_in_order_is_known_to_be_complete(service: ServiceProcess) -> None:
    who = name()
    shipper = handler(service, who)
    log(shipper, 2_500)
    shipper.close()
    (found,) = of(service, who)
    assert (found["state"], found["emitted"], found["accepted"], found["lost"]) == ("ended", 2_500, 2_500, 0)
    assert (found["dropped"], found["waiting"], found["gaps"]) == ({}, 0, [])


def test_a_killed_process_has_lost_what_it_had_in_memory_and_a_ticket_says_whose(service: ServiceProcess) -> None:
    who = name()
    ended = run(
        service,
        f"""
        import logging, os, signal, shippers
        from shippers.transport import HttpTransport

        class Killed(HttpTransport):
            sent = 0
            def send(self, batch):
                outcome = super().send(batch)
                self.sent += batch.records
                if self.sent >= 30:
                    os.kill(os.getpid(), signal.SIGKILL)
                return outcome

        transport = Killed(os.environ["LOGSVC_URL"], os.environ["LOGSVC_API_KEY"])
        settings = shippers.Settings(batch_max_records=10)
        handler = shippers.LogHandler(transport=transport, service="{who}", spool_dir=None, settings=settings)
        for number in range(1000):
            handler.handle(logging.makeLogRecord({{"msg": "one of many"}}))
        signal.pause()
        """,
    )
    assert ended.returncode == -9

    def is_lost() -> bool:
        (found,) = of(service, who)
        return bool(found["lost"])

    service.wait("the loss to be known", is_lost)
    (found,) = of(service, who)
    assert (found["emitted"], found["accepted"], found["lost"], found["state"]) == (1000, 30, 970, "silent")

    def ticket() -> Any:
        tickets = service.get("/tickets")["tickets"]
        return next((t for t in tickets if any(who in e["text"] for e in t["evidence"])), None)

    opened = service.wait("a ticket about it", ticket)
    assert (opened["kind"], opened["severity"], opened["unit"]) == ("self", "high", "records")
    assert "970 without a word" in next(e["text"] for e in opened["evidence"] if who in e["text"])
    assert service.get(f"/tickets/{opened['id']}")["data_completeness"]["share"] < 1
    assert service.get("/search")["data_completeness"]["missing"]["lost"] >= 970


def test_what_a_full_queue_drops_is_told_by_reason(service: ServiceProcess) -> None:
    who = name()
    shipper = handler(service, who, queue_max_records=50)
    log(shipper, 20_000)
    dropped = shipper.batcher.stats()["dropped_queue_full"]
    shipper.close()
    (found,) = of(service, who)
    assert found["dropped"] == {"queue_full": dropped}
    # The shipper's own reports of drops are records too.
    assert found["emitted"] >= 20_000
    assert found["accepted"] == service.wait("them to be searchable", lambda: searchable(service, who, found))
    assert (found["lost"], found["waiting"], balance(found)) == (0, 0, 0)


def searchable(service: ServiceProcess, who: str, found: Report) -> int:
    count = service.count(f"service.name:{who}")
    return count if count >= found["accepted"] else 0


class Twice(HttpTransport):
    """The answer to each batch is lost once, so it is sent again."""

    def send(self, batch: Batch) -> Outcome:
        """Send, and forget the answer at the first time."""
        outcome = super().send(batch)
        seen: set[bytes] = self.__dict__.setdefault("seen", set())
        if batch.body in seen:
            return outcome
        seen.add(batch.body)
        return Outcome(Verdict.RETRY, "answer_lost")


def test_records_sent_twice_are_counted_once_and_the_others_as_duplicates(service: ServiceProcess) -> None:
    who = name()
    transport = Twice(service.url, service.key)  # type: ignore[attr-defined]
    shipper = handler(service, who, transport, backoff_first_s=0.01, batch_max_records=100)
    log(shipper, 400)
    assert shipper.flush(20)
    shipper.close()
    found = of(service, who)[0]
    assert (found["emitted"], found["accepted"], found["duplicated"], found["lost"]) == (400, 400, 400, 0)
    assert service.wait("them to be searchable", lambda: searchable(service, who, found)) == 400


def test_parent_and_child_of_a_fork_are_two_epochs_and_both_complete(service: ServiceProcess) -> None:
    who = name()
    ended = run(
        service,
        f"""
        import logging, os, shippers
        handler = shippers.LogHandler(service="{who}", spool_dir=None)
        logging.getLogger().addHandler(handler)
        for number in range(100):
            logging.warning("before %d", number)
        child = os.fork()
        for number in range(50 if child else 70):
            logging.warning("after %d", number)
        if child:
            os.waitpid(child, 0)
        handler.close()
        if not child:
            os._exit(0)
        """,
    )
    assert ended.returncode == 0, ended.stderr
    found = sorted(of(service, who), key=lambda shipper: shipper["emitted"])
    assert [(s["emitted"], s["accepted"], s["state"]) for s in found] == [(70, 70, "ended"), (150, 150, "ended")]


def test_clients_that_number_nothing_are_counted_by_key_and_protocol(service: ServiceProcess) -> None:
    key = service.make_key("ingest")
    body = b'{"message":"one"}\nno json\n{"message":"two","time":"nonsense"}\n'
    answer = service.http.post("/api/v1/ingest", content=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 202
    report = service.get("/loss")
    ours = [client for client in report["clients"] if client["numbered"] == 0]
    assert [(c["protocol"], c["accepted"], c["refused"], c["flagged"]) for c in ours] == [
        ("native", 2, {"not_json": 1}, 1)
    ]
    assert report["data_completeness"]["numbered_share"] < 1


def test_the_command_answers_in_a_table_and_in_json(service: ServiceProcess) -> None:
    environ = {"LOGSVC_URL": service.url, "LOGSVC_API_KEY": service.key, "COLUMNS": "200"}  # type: ignore[attr-defined]
    body = {"message": "one", "service": "other"}
    service.ingest([body])
    shown = service.run("loss", **environ).stdout
    assert "can be found" in shown
    assert "By key and protocol" in shown
    assert '"data_completeness"' in service.run("loss", "-o", "json", "--from", "now-1h", **environ).stdout


def test_down_and_up_killed_and_full_everything_is_in_one_place(service: ServiceProcess, tmp_path: Path) -> None:
    """The service is killed twice while a shipper spools beyond its bound: each record has arrived or a reason."""
    who = name()
    shipper = shippers.LogHandler(
        service.url,
        service.key,  # type: ignore[attr-defined]
        service=who,
        spool_dir=tmp_path / "spool",
        settings=shippers.Settings(
            flush_interval_s=0.05,
            spool_max_bytes=20_000,
            spool_fsync=False,
            backoff_first_s=0.05,
            backoff_max_s=0.2,
            batch_max_records=200,
        ),
    )
    stats = shipper.batcher.stats
    try:
        log(shipper, 1_000)
        assert shipper.flush(20)
        service.kill()
        log(shipper, 5_000)
        assert shipper.flush(20)  # in the spool, or dropped
        assert 0 < stats()["dropped_spool_full"] < 5_000
        service.start()
        service.wait("the spool to be sent", lambda: not stats()["spooled_batches"])
        log(shipper, 500)
        assert shipper.flush(20)
        service.kill()  # what is known is in the journal, if not in the database yet
        service.start()
    finally:
        shipper.close()
    (found,), dropped = of(service, who), stats()["dropped_spool_full"]
    assert found["dropped"] == {"spool_full": dropped}
    assert (found["lost"], found["waiting"], found["state"], balance(found)) == (0, 0, "ended", 0)
    assert found["spooled"] > 0
    assert service.wait("them to be searchable", lambda: searchable(service, who, found)) == found["accepted"]
