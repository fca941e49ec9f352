"""What a shipper says of its own records: each is numbered, queued or dropped, and nothing twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shippers.batcher import Batcher, Settings
from shippers.ledger import KEY, PREFIX
from shippers.record import Origin
from shippers.testing import CapturingTransport
from shippers.transport import Batch, Outcome, Verdict


class Listening(CapturingTransport):
    """Also keeps what the ledger says of the batches that it accepts, and takes at most so many records."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[dict[str, Any]] = []
        self.max_records = 10_000

    def send(self, batch: Batch) -> Outcome:
        if batch.records > self.max_records:
            return Outcome(Verdict.TOO_LARGE)
        outcome = super().send(batch)
        assert batch.statement is not None
        if outcome.verdict is Verdict.ACCEPTED:
            self.said.append(json.loads(batch.statement)[KEY])
        return outcome


@pytest.fixture
def transport() -> Listening:
    return Listening()


@pytest.fixture
def made(transport: Listening) -> Iterator[list[Batcher]]:
    batchers: list[Batcher] = []
    yield batchers
    for batcher in batchers:
        batcher.close(0.0)


def open_batcher(made: list[Batcher], transport: Listening, **settings: Any) -> Batcher:
    batcher = Batcher(
        transport,
        Origin("shop", host="web-1"),
        settings=Settings(flush_interval_s=0.01, backoff_first_s=0.01, **settings),
    )
    made.append(batcher)
    return batcher


def put(batcher: Batcher, count: int) -> None:
    for number in range(count):
        batcher.put({"message": str(number)})


def numbers(said: list[dict[str, Any]]) -> list[int]:
    return sorted(number for one in said for number in range(one["first"], one["first"] + one["records"]))


def test_records_are_numbered_without_a_hole_and_the_end_is_said(transport: Listening, made: list[Batcher]) -> None:
    batcher = open_batcher(made, transport, batch_max_records=7)
    put(batcher, 100)
    assert batcher.flush(20)
    assert "ended" not in transport.said[-1]
    put(batcher, 20)
    batcher.close(20)
    assert numbers(transport.said) == list(range(1, 121))
    last = transport.said[-1]
    assert (last["ended"], last["queued"], last["service"], last["host"]) == (True, 0, "shop", "web-1")
    assert [one["n"] for one in transport.said] == list(range(1, len(transport.said) + 1))


def test_a_program_that_logs_nothing_says_nothing(transport: Listening, made: list[Batcher]) -> None:
    open_batcher(made, transport).close(20)
    assert transport.attempts == 0


def test_who_flushed_before_it_ends_says_so_in_a_batch_without_records(
    transport: Listening, made: list[Batcher]
) -> None:
    batcher = open_batcher(made, transport)
    put(batcher, 3)
    assert batcher.flush(20)
    batcher.close(20)
    last = transport.said[-1]
    assert (last["first"], last["records"], last["ended"]) == (4, 0, True)
    assert len(transport.records) == 3


def test_marks_are_no_records_that_wait(transport: Listening, made: list[Batcher]) -> None:
    batcher = open_batcher(made, transport)
    put(batcher, 3)
    marks = [batcher.mark() for _ in range(5)]
    assert all(mark.wait(20) for mark in marks)
    assert {one["queued"] for one in transport.said} == {0}


def test_what_a_full_queue_drops_was_emitted(transport: Listening, made: list[Batcher]) -> None:
    batcher = open_batcher(made, transport, queue_max_records=20)
    put(batcher, 5_000)
    batcher.put_finished([b"{}"] * 3)
    dropped = batcher.stats()["dropped_queue_full"]
    batcher.close(20)
    last = transport.said[-1]
    reports = sum(1 for record in transport.records if record.get("event.action") == "shipper.dropped")
    assert last["dropped"] == {"queue_full": dropped}
    assert last["first"] + last["records"] - 1 + dropped == 5_003 + reports
    assert batcher.stats()["queued"] == 0


def test_halves_that_are_sent_again_are_counted_once(transport: Listening, made: list[Batcher]) -> None:
    batcher = open_batcher(made, transport)
    transport.max_records = 4
    transport.answer_next(Outcome(Verdict.ACCEPTED), Outcome(Verdict.RETRY, "http_503"))
    put(batcher, 8)
    assert batcher.flush(20)
    assert sorted(set(numbers(transport.said))) == list(range(1, 9))
    batcher.close(20)
    assert transport.said[-1]["acknowledged"] == 8


def test_a_batch_that_is_refused_is_told_with_its_reason(transport: Listening, made: list[Batcher]) -> None:
    batcher = open_batcher(made, transport)
    transport.answer_next(Outcome(Verdict.REFUSED, "http_400"))
    put(batcher, 8)
    assert batcher.flush(20)
    batcher.close(20)
    last = transport.said[-1]
    assert (last["undelivered"], last["acknowledged"]) == ({"refused": 8}, last["first"] - 9)


def test_a_statement_names_nobody(transport: Listening, made: list[Batcher]) -> None:
    batcher = Batcher(transport, Origin("of jane@example.com"), settings=Settings())
    made.append(batcher)
    put(batcher, 1)
    batcher.close(20)
    assert "jane" not in transport.said[-1]["service"]
    assert Batch.of([b"{}"], "identity", PREFIX + b"{}}").lines() == [b"{}"]


def test_a_log_call_in_a_signal_handler_that_interrupts_a_drop_does_not_hang(
    transport: Listening, made: list[Batcher]
) -> None:
    batcher = open_batcher(made, transport)
    done = threading.Event()

    def interrupted() -> None:
        with batcher._ledger._lock:  # where the signal came
            batcher.count_failed(ValueError())
        done.set()

    threading.Thread(target=interrupted, daemon=True).start()
    assert done.wait(20)
