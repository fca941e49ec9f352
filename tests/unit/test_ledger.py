"""The ledger: every record in one place, whatever the order, the retries and the crashes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logsvc.errors import StateUnavailable
from logsvc.journal import Journal
from logsvc.ledger import MAX_EPOCHS, MAX_HOLES, Epoch, Ledger, Note, Statement, is_note, note_entry, read_statement
from logsvc.records import Entry
from logsvc.state import State, open_state
from logsvc.tickets import TicketState
from logsvc.timestamps import US_PER_S, format_us
from shippers.ledger import Ledger as ShipperLedger
from shippers.ledger import split
from shippers.record import Origin
from tests.support.records import make_entry

NOW_US = 1_764_000_000_000_000
GRACE_US = 600 * US_PER_S
DAY_US = 86_400 * US_PER_S


class Clock:
    def __init__(self) -> None:
        self.now_us = NOW_US

    def __call__(self) -> int:
        return self.now_us


class NoneDead:
    dead = 0

    def count_of(self, _tenant: str, _start_us: int, _end_us: int) -> int:
        return self.dead


class Rig:
    """A ledger over a real journal and a real database, which can be crashed and opened again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.dead = NoneDead()
        self.calls = 0
        self.open()

    def open(self) -> None:
        self.state: State = open_state(f"sqlite:///{self.directory / 'state.db'}", channels=["file"])
        self.journal = Journal.open(self.directory / "journal")
        self.ledger = self.made()

    def made(self) -> Ledger:
        return Ledger(
            self.state,
            self.journal,
            clock=self.clock,
            grace_us=GRACE_US,
            retention_us=30 * DAY_US,
            dead_letters=self.dead,
            searchable_seq=lambda: self.journal.last_seq,
        )

    def crash(self) -> None:
        """Go on with what is on disk, as after ``kill -9``: nothing is kept that was not."""
        self.ledger = self.made()

    def close(self) -> None:
        self.journal.close()
        self.state.close()

    def send(self, statement: Statement | None, *, accepted: int | None = None, tenant: str = "default") -> None:
        """Do what ingest does with a call."""
        records = accepted if accepted is not None else statement.records if statement else 0
        note = Note(key_id="k1", protocol="native", accepted=records, statement=statement)
        self.calls += 1
        self.ledger.begin(self.calls)
        first = self.journal.append_sync([note_entry(tenant, self.clock.now_us, note)])
        self.ledger.take(tenant, note, self.clock.now_us, 0, first)
        self.ledger.end(self.calls)

    def pass_s(self, seconds: float) -> None:
        self.clock.now_us += round(seconds * US_PER_S)

    def shipper(self) -> dict[str, Any]:
        shippers: Any = self.ledger.loss("default", 0, self.clock.now_us + DAY_US)["shippers"]
        (found,) = shippers
        return dict(found)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def said(first: int, records: int, *, n: int = 1, at_us: int = NOW_US, **more: Any) -> Statement:
    return Statement(
        epoch=more.pop("epoch", "e1"),
        n=n,
        started=format_us(NOW_US - US_PER_S),
        at=format_us(at_us),
        first=first,
        records=records,
        service="shop",
        host="web-1",
        **more,
    )


# --- one epoch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_arrivals_in_any_order_and_any_number_of_times_give_the_same_sums(seed: int) -> None:
    rng = random.Random(seed)
    ends = sorted(rng.sample(range(1, 500), 30))
    batches = list(zip([1, *(end + 1 for end in ends)], [*ends, 500], strict=True))
    arriving = [batch for batch in batches if rng.random() < 0.8] * 2
    rng.shuffle(arriving)
    epoch = Epoch(epoch="e", service="", host="", pid=1, key_id="k", started_us=NOW_US)
    for n, (first, last) in enumerate(arriving, 1):
        epoch.take(said(first, last - first + 1, n=n), NOW_US, NOW_US)
    arrived = {number for first, last in arriving for number in range(first, last + 1)}
    highest = max(arrived)
    assert epoch.arrived == len(arrived)
    assert epoch.duplicated == len(arrived)
    missing = {number for hole in epoch.holes for number in range(hole.first, hole.last + 1)}
    assert missing == set(range(1, highest + 1)) - arrived
    assert sum(epoch.missing(NOW_US)) == len(missing)


def test_a_gap_waits_for_its_grace_and_is_lost_no_more_when_it_arrives(rig: Rig) -> None:
    rig.send(said(1, 100))
    rig.pass_s(1)
    rig.send(said(151, 50, n=3))
    assert (rig.shipper()["waiting"], rig.shipper()["lost"]) == (50, 0)
    assert [(gap["first"], gap["last"]) for gap in rig.shipper()["gaps"]] == [(101, 150)]
    rig.pass_s(601)
    assert (rig.shipper()["waiting"], rig.shipper()["lost"]) == (0, 50)
    rig.send(said(101, 50, n=2))
    assert (rig.shipper()["accepted"], rig.shipper()["lost"], rig.shipper()["gaps"]) == (200, 0, [])


def test_what_waits_in_a_shipper_that_fell_silent_is_lost_unless_it_can_be_read_again(rig: Rig) -> None:
    rig.send(said(1, 10, queued=7))
    rig.send(said(1, 10, queued=7, epoch="agent", replayable=True))
    rig.pass_s(601)
    shippers: Any = rig.ledger.loss("default", 0, rig.clock.now_us)["shippers"]
    assert {shipper["epoch"]: (shipper["lost"], shipper["state"]) for shipper in shippers} == {
        "e1": (7, "silent"),
        "agent": (0, "silent"),
    }


def test_who_lost_something_is_shown_first_and_who_runs_before_those_that_ended(rig: Rig) -> None:
    for epoch, ended in (("done", True), ("older", False), ("newer", False), ("done-last", True)):
        rig.pass_s(1)
        rig.send(said(1, 10, epoch=epoch, ended=ended))
    rig.send(said(1, 10, epoch="dropper", dropped={"queue_full": 3}, ended=True))
    shippers: Any = rig.ledger.loss("default", 0, rig.clock.now_us + 1)["shippers"]
    assert [shipper["epoch"] for shipper in shippers] == ["dropper", "newer", "older", "done-last", "done"]


def test_silence_counts_only_while_this_service_listens(rig: Rig) -> None:
    rig.send(said(1, 10, queued=7))
    rig.pass_s(3_600)  # down
    rig.crash()
    assert (rig.shipper()["waiting"], rig.shipper()["lost"]) == (7, 0)
    rig.pass_s(601)
    assert rig.shipper()["lost"] == 7


def test_silence_does_not_count_while_the_machine_sleeps(rig: Rig) -> None:
    rig.send(said(1, 10, queued=7))

    class Sleeps:
        waits = 0

        def wait(self, _timeout_s: float) -> bool:
            self.waits += 1
            rig.pass_s(8 * 3_600 if self.waits == 1 else 5)
            return self.waits > 3

    rig.ledger._closing = Sleeps()  # type: ignore[assignment]
    rig.ledger._run()
    assert (rig.shipper()["waiting"], rig.shipper()["lost"]) == (7, 0)
    assert not rig.state.list_tickets("default").tickets
    rig.pass_s(601)
    assert rig.shipper()["lost"] == 7


def test_many_short_runs_do_not_make_a_long_one_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logsvc.ledger.MAX_EPOCHS", 20)
    rig.send(said(1, 10, epoch="server"))
    for number in range(25):
        rig.pass_s(1)
        rig.send(said(1, 2, epoch=f"job{number}", ended=True))
    shippers: Any = rig.ledger.loss("default", 0, rig.clock.now_us + 1)["shippers"]
    assert shippers[0]["epoch"] == "server"


def test_drops_that_a_shipper_explains_are_no_loss_without_a_word(rig: Rig) -> None:
    rig.send(said(1, 100))
    rig.send(said(201, 100, n=3, undelivered={"spool_full": 100}, dropped={"queue_full": 5}))
    rig.pass_s(601)
    found = rig.shipper()
    assert (found["emitted"], found["accepted"], found["lost"]) == (305, 200, 0)
    assert found["dropped"] == {"queue_full": 5, "spool_full": 100}


def test_what_was_acknowledged_before_the_ledger_began_is_not_lost(rig: Rig) -> None:
    rig.send(said(5_001, 100, n=51, acknowledged=5_000))
    rig.pass_s(601)
    assert rig.shipper()["lost"] == 0


def test_holes_are_bounded_and_stay_in_the_sums(rig: Rig) -> None:
    epoch = Epoch(epoch="e", service="", host="", pid=1, key_id="k", started_us=NOW_US)
    for number in range(MAX_HOLES * 3):
        epoch.take(said(2 * number + 2, 1, n=number + 1), NOW_US, NOW_US)
    assert len(epoch.holes) == MAX_HOLES
    assert sum(epoch.missing(NOW_US)) == MAX_HOLES * 3


def test_shippers_are_bounded_and_their_losses_stay_in_the_sums(rig: Rig) -> None:
    for number in range(MAX_EPOCHS + 5):
        statement = said(3, 1, epoch=f"e{number}")
        rig.ledger.take("default", Note(key_id="k", protocol="native", accepted=1, statement=statement), NOW_US, 0, 0)
    about = rig.ledger.completeness("default")
    assert about.missing.lost + about.missing.waiting == 2 * (MAX_EPOCHS + 5)


# --- crashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_after_a_crash_anywhere_the_ledger_says_what_it_said(rig: Rig, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(30):
        rig.send(said(number * 10 + 1, 10, n=number + 1), accepted=10)
        if rng.random() < 0.3:
            rig.send(said(number * 10 + 1, 10, n=number + 1), accepted=10)
        rig.send(None, accepted=3)
        if rng.random() < 0.2:
            rig.ledger.keep()
        if rng.random() < 0.2:
            before = rig.ledger.loss("default", 0, NOW_US + DAY_US)
            rig.crash()
            assert rig.ledger.loss("default", 0, NOW_US + DAY_US) == before
    assert (rig.shipper()["accepted"], rig.shipper()["lost"], rig.shipper()["waiting"]) == (300, 0, 0)


def test_a_note_that_is_durable_and_not_taken_yet_is_read_again_after_a_crash(rig: Rig) -> None:
    note = Note(key_id="k1", protocol="native", accepted=5, statement=said(1, 5))
    rig.ledger.begin(-1)
    rig.journal.append_sync([note_entry("default", NOW_US, note)])
    rig.send(said(6, 5, n=2))
    assert rig.ledger.keep() == 0  # the first call is in flight
    rig.crash()
    assert (rig.shipper()["accepted"], rig.shipper()["duplicated"]) == (10, 0)


def test_a_note_that_cannot_be_read_does_not_stop_the_start(rig: Rig) -> None:
    rig.send(said(1, 10, n=1))
    rig.journal.append_sync([Entry("default", "", 0, NOW_US, NOW_US, "note", None, False, b'{"key_id": 7}')])
    rig.crash()
    assert rig.shipper()["accepted"] == 10


def test_a_database_that_cannot_be_written_holds_nothing_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: State, _rows: object) -> None:
        raise StateUnavailable("the disk is full")

    rig.send(said(1, 10))
    with monkeypatch.context() as patched:
        patched.setattr(State, "keep_ledger", fail)
        assert rig.ledger.keep() == rig.journal.last_seq
    rig.ledger.keep()
    rig.crash()
    assert rig.shipper()["accepted"] == 10


# --- tickets --------------------------------------------------------------------------------------


def tickets(rig: Rig) -> list[Any]:
    return rig.state.list_tickets("default").tickets


def test_one_ticket_tells_of_an_incident_follows_it_and_ends_with_it(rig: Rig) -> None:
    rig.send(said(1, 10, queued=7))
    rig.ledger.tick()
    assert tickets(rig) == []
    rig.pass_s(601)
    rig.ledger.tick()
    (opened,) = tickets(rig)
    assert (opened.kind, opened.observed, opened.service, opened.state) == ("self", 7.0, "shop", TicketState.OPEN)
    rig.send(said(1, 10, epoch="e2", dropped={"queue_full": 3}))
    rig.ledger.tick()
    (updated,) = tickets(rig)
    assert updated.observed == 10.0
    assert "3 queue_full" in updated.evidence[1].text
    rig.crash()
    rig.ledger.tick()
    rig.pass_s(1_801)
    rig.ledger.tick()
    (over,) = tickets(rig)
    assert (over.id, over.state) == (opened.id, TicketState.RESOLVED)
    rig.ledger.tick()
    rig.crash()
    rig.pass_s(3_600)
    rig.ledger.tick()
    assert len(tickets(rig)) == 1  # what was told is not told again
    rig.send(said(11, 10, n=2, epoch="e2", dropped={"queue_full": 4}))
    rig.ledger.tick()
    assert [ticket.observed for ticket in tickets(rig) if ticket.state is TicketState.OPEN] == [1.0]


def test_a_ticket_is_resolved_when_all_has_arrived_after_all(rig: Rig) -> None:
    rig.send(said(1, 10))
    rig.send(said(21, 10, n=3))
    rig.pass_s(601)
    rig.ledger.tick()
    rig.send(said(11, 10, n=2))
    rig.ledger.tick()
    (ticket,) = tickets(rig)
    assert ticket.state is TicketState.RESOLVED
    assert "have arrived" in ticket.title


def test_a_tenant_hears_of_its_own_losses_alone(rig: Rig) -> None:
    rig.send(said(1, 10, dropped={"queue_full": 3}), tenant="acme")
    rig.ledger.tick()
    assert tickets(rig) == []
    assert len(rig.state.list_tickets("acme").tickets) == 1
    assert rig.ledger.completeness("default").emitted == 0


# --- completeness ---------------------------------------------------------------------------------


def test_completeness_counts_everything_once_and_is_never_rounded_up(rig: Rig) -> None:
    rig.send(said(1, 1_000_000))
    rig.send(said(1, 1_000_000))
    about = rig.ledger.completeness("default")
    assert (about.share, about.emitted, about.searchable, about.numbered_share) == (1.0, 1_000_000, 1_000_000, 1.0)
    rig.send(said(1_000_001, 1_000_000, n=2, queued=1))
    about = rig.ledger.completeness("default")
    assert (about.share, about.emitted, about.missing.waiting) == (0.999999, 2_000_001, 1)
    rig.dead.dead = 5
    assert rig.ledger.completeness("default").searchable == 1_999_995


def test_completeness_is_unknown_where_nothing_was_counted(rig: Rig) -> None:
    assert rig.ledger.completeness("default").share is None
    rig.send(said(1, 10))
    assert rig.ledger.completeness("default").share == 1.0
    assert rig.ledger.completeness("default", NOW_US - DAY_US).share is None
    assert rig.ledger.completeness("default", NOW_US + DAY_US, NOW_US + 2 * DAY_US).share is None


def test_a_loss_counts_in_the_range_in_which_it_happened(rig: Rig) -> None:
    rig.send(said(1, 10))
    rig.pass_s(3_600)
    rig.send(said(11, 10, n=2, at_us=rig.clock.now_us, dropped={"queue_full": 10}))
    early = rig.ledger.completeness("default", NOW_US, NOW_US + 600 * US_PER_S)
    late = rig.ledger.completeness("default", NOW_US + 3_000 * US_PER_S)
    assert (early.share, late.share) == (1.0, 0.5)


def test_sums_older_than_a_day_are_kept_by_the_hour_and_end_with_retention(rig: Rig) -> None:
    for _ in range(12):
        rig.send(None, accepted=1)
        rig.pass_s(300)
    rig.pass_s(2 * 86_400)
    rig.ledger.tick()
    rig.crash()
    assert rig.ledger.completeness("default").emitted == 12
    assert len([key for _, key in rig.state.load_ledger() if key.startswith("flow:")]) <= 2
    rig.pass_s(31 * 86_400)
    rig.ledger.tick()
    assert [key for tenant, key in rig.state.load_ledger() if tenant] == []


# --- what shippers say ----------------------------------------------------------------------------


def test_what_a_shipper_writes_is_what_is_read() -> None:
    shipper = ShipperLedger(Origin("shop", host="web-1", epoch="abc"))
    shipper.state(10, queued=3)
    shipper.count_dropped("queue_full", 2)
    shipper.count_undelivered("spool_full", 4)
    statement = read_statement(shipper.state(5, queued=0, is_ended=True))
    assert statement is not None
    assert (statement.epoch, statement.service, statement.host) == ("abc", "shop", "web-1")
    assert (statement.n, statement.first, statement.records, statement.queued) == (2, 11, 5, 0)
    assert (statement.dropped, statement.undelivered, statement.ended) == ({"queue_full": 2}, {"spool_full": 4}, True)


def test_the_halves_of_a_batch_have_its_numbers_between_them() -> None:
    shipper = ShipperLedger(Origin("shop", epoch="abc"))
    first, second = (read_statement(part) for part in split(shipper.state(11, queued=0, is_ended=True), 5))
    assert first is not None
    assert second is not None
    assert (first.first, first.records, first.ended) == (1, 5, False)
    assert (second.first, second.records, second.ended) == (6, 6, True)


@pytest.mark.parametrize(
    "line",
    [
        b'{"message": "no statement"}',
        b'{"shipper.ledger":{}}',
        b'{"shipper.ledger":{"epoch":"e","n":1,"started":"x","at":"y","first":1,"records":1}}',
        b'{"shipper.ledger":{"epoch":"e","n":1,"started":"2026-01-01T00:00:00Z","at":"2026-01-01T00:00:00Z","first":-1,'
        b'"records":1}}',
        b'{"shipper.ledger":',
    ],
)
def test_a_line_that_is_no_statement_stays_a_record(line: bytes) -> None:
    assert read_statement(line) is None


def test_what_a_statement_names_is_masked_and_bounded() -> None:
    reasons = ",".join(f'"reason_{"x" * number}":1' for number in range(100))
    line = (
        '{"shipper.ledger":{"epoch":"e","n":1,"started":"2026-01-01T00:00:00Z","at":"2026-01-01T00:00:00Z","first":1,'
        f'"records":1,"service":"of jane@example.com","dropped":{{{reasons}}}}}}}'
    )
    statement = read_statement(line.encode())
    assert statement is not None
    assert "jane" not in statement.service
    assert len(statement.dropped) == 32
    assert sum(statement.dropped.values()) == 100


def test_a_note_is_no_record() -> None:
    assert is_note(note_entry("default", NOW_US, Note(key_id="k", protocol="native")))
    assert not is_note(make_entry(1))


def test_a_range_of_time_sums_the_same_flows_as_loss_lists_also_after_they_were_joined_and_a_crash(rig: Rig) -> None:
    rng = random.Random(7)
    for _ in range(300):
        rig.pass_s(rng.choice((1, 60, 400, 5_000)))
        emitted_us = rig.clock.now_us - rng.choice((0, 600, 20_000, 200_000)) * US_PER_S
        epoch, records = f"e{rng.randrange(9)}", rng.randrange(20)
        rig.send(said(rng.randrange(1, 400), records, epoch=epoch, at_us=emitted_us, dropped={"queue_full": 3}))
        rig.send(None, accepted=rng.randrange(5))
    rig.ledger.tick()
    for _ in range(2):
        for _ in range(50):
            since_us = rng.randrange(NOW_US - DAY_US, rig.clock.now_us)
            until_us = since_us + rng.choice((1, 300, 3_600, 50_000, 400_000)) * US_PER_S
            complete = rig.ledger.completeness("default", since_us, until_us)
            clients: Any = rig.ledger.loss("default", since_us, until_us)["clients"]
            arrived = sum(client["accepted"] - client["duplicated"] for client in clients)
            assert complete.searchable == arrived
            assert complete.missing.dropped == sum(sum(client["dropped"].values()) for client in clients)
            assert complete.missing.lost >= sum(client["lost"] for client in clients)
        rig.crash()
