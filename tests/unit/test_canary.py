"""Canary: what does not come through becomes a ticket that says how far it came, and the next success resolves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from loguru import logger

from logsvc.canary import Canary, DeadMansSwitch, Run, Stage
from logsvc.errors import StoreUnavailable
from logsvc.names import SHADOW_TENANT, is_tenant
from logsvc.settings import CanarySettings
from logsvc.state import DeliveryState, State, open_state
from logsvc.tickets import Severity, Ticket, TicketState
from tests.support.receiver import Receiver
from tests.support.tickets import FakeClock, make_ticket

SETTINGS = CanarySettings(every=timedelta(hours=1), deadline=timedelta(minutes=10))


class FakeCourse:
    """Reaches a stage after so many seconds of fake time each, up to the last it can."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self.stage_s = 30.0
        self.last = Stage.DELIVERED
        self.trouble: Exception | None = None
        self.planted: dict[str, float] = {}
        self.cleared = 0

    def clear(self) -> None:
        self.cleared += 1

    def plant(self, task: str) -> Run:
        if self.last is Stage.STARTED:
            raise StoreUnavailable("nobody listens")
        assert task not in self.planted
        self.planted[task] = self._seconds()
        return Run(task, 0)

    def reached(self, run: Run) -> Stage:
        if self.trouble is not None:
            raise self.trouble
        passed = 1 + int((self._seconds() - self.planted[run.task]) / self.stage_s)
        return Stage(min(passed, self.last))


class Bench:
    """A canary with a fake course in fake time, on a real state database."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.seconds = 0.0
        self.is_closing = False
        self.course = FakeCourse(lambda: self.seconds)
        self.path = directory / "canary.json"
        self.state = open_state(
            f"sqlite:///{directory / 'state.db'}", channels=["file"], own_channels={SHADOW_TENANT: "canary"}
        )
        self.canary = self.make()

    def make(self) -> Canary:
        return Canary(
            self.course,
            self.state,
            self.path,
            "ops",
            SETTINGS,
            clock=self.clock,
            monotonic=lambda: self.seconds,
            pause=self._pause,
        )

    def _pause(self, seconds: float) -> bool:
        self.pass_time(seconds)
        return self.is_closing

    def pass_time(self, seconds: float) -> None:
        self.seconds += seconds
        self.clock.advance(seconds)

    def tickets(self) -> list[Ticket]:
        return self.state.list_tickets("ops").tickets


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.state.close()


def test_a_burst_that_comes_through_opens_nothing_and_leaves_nothing(bench: Bench) -> None:
    assert bench.canary.why_not_well() == "no canary has come through yet"
    assert bench.canary.run_once() is Stage.DELIVERED
    assert bench.canary.why_not_well() is None
    assert bench.tickets() == []
    assert bench.course.cleared == 2
    stages = bench.canary.metrics()["logsvc_canary_stage_seconds"]()
    assert stages == {"ingested": 0, "searchable": 30, "judged": 60, "ticket": 90, "delivered": 120}


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (Stage.STARTED, "its records were not taken in"),
        (Stage.INGESTED, "are not searchable"),
        (Stage.SEARCHABLE, "were not judged"),
        (Stage.JUDGED, "opened no ticket"),
        (Stage.TICKET, "was not delivered"),
    ],
)
def test_one_that_gets_stuck_opens_a_critical_ticket_that_says_where(bench: Bench, last: Stage, said: str) -> None:
    bench.course.last = last
    assert bench.canary.run_once() is last
    assert bench.seconds == pytest.approx(600, abs=1)
    (ticket,) = bench.tickets()
    assert (ticket.kind, ticket.severity, ticket.state) == ("self", Severity.CRITICAL, TicketState.OPEN)
    assert said in ticket.title
    assert [delivery.event_type for delivery in bench.state.deliveries("ops", ticket.id)] == ["anomaly.opened"]
    assert str(bench.canary.why_not_well()).startswith("the canary has not come through since 2026-01-31T12:10:0")


def test_a_late_one_counts_as_failed_and_the_next_one_resolves(bench: Bench) -> None:
    bench.course.stage_s = 200
    bench.canary.run_once()
    bench.canary.run_once()  # still: one ticket, said once
    bench.course.stage_s, bench.course.last = 1, Stage.INGESTED
    bench.canary.run_once()  # now it gets stuck elsewhere
    bench.course.last = Stage.DELIVERED
    assert bench.canary.run_once() is Stage.DELIVERED
    (ticket,) = bench.tickets()
    assert (ticket.state, ticket.resolved_at is not None) == (TicketState.RESOLVED, True)
    heard = [delivery.event_type for delivery in bench.state.deliveries("ops", ticket.id)]
    assert heard == ["anomaly.opened", "anomaly.updated", "anomaly.resolved"]
    bench.pass_time(3600)
    bench.course.last = Stage.TICKET
    bench.canary.run_once()
    assert [ticket.state for ticket in bench.tickets()] == [TicketState.OPEN, TicketState.RESOLVED]


def test_a_store_that_is_away_fails_it_and_is_named(bench: Bench) -> None:
    bench.course.trouble = StoreUnavailable("elastic.example does not answer")
    assert bench.canary.run_once() is Stage.INGESTED
    (ticket,) = bench.tickets()
    assert ticket.evidence[1].text == "elastic.example does not answer"


def test_what_a_person_resolved_stays_so_while_the_trouble_is_the_same(bench: Bench) -> None:
    bench.course.last = Stage.INGESTED
    bench.canary.run_once()
    (ticket,) = bench.tickets()
    ticket.state = TicketState.RESOLVED
    bench.state.keep_tickets("ops", [("anomaly.resolved", ticket)], now_us=bench.clock())
    bench.canary.run_once()
    bench.course.last = Stage.SEARCHABLE
    bench.canary.run_once()
    assert [ticket.state for ticket in bench.tickets()] == [TicketState.RESOLVED]


def test_it_remembers_over_a_restart_and_resolves_what_another_process_opened(bench: Bench) -> None:
    bench.course.last = Stage.INGESTED
    bench.canary.run_once()
    bench.course.last = Stage.DELIVERED
    after = bench.make()
    assert after.why_not_well() is not None
    assert after.first_due_s() == 60
    after.run_once()
    assert [ticket.state for ticket in bench.tickets()] == [TicketState.RESOLVED]


def test_a_run_that_the_end_of_the_service_cuts_off_is_no_failure(bench: Bench) -> None:
    bench.course.last = Stage.INGESTED
    bench.is_closing = True
    assert bench.canary.run_once() is None
    assert bench.tickets() == []
    assert not bench.path.exists()


@pytest.mark.parametrize(
    ("since_s", "due_s"),
    [(0, 3600), (1800, 1800), (3599, 60), (100_000, 60), (-100_000, 3600)],
    ids=["just now", "half an hour ago", "nearly due", "overdue", "the clock was set back"],
)
def test_the_first_run_after_a_start_is_due_when_it_would_have_been(bench: Bench, since_s: int, due_s: int) -> None:
    assert bench.make().first_due_s() == 60
    bench.canary.run_once()
    bench.clock.advance(since_s)
    assert bench.make().first_due_s() == due_s


def test_a_clock_that_jumps_makes_no_alarm_and_a_thread_that_hangs_does(bench: Bench) -> None:
    bench.canary.run_once()
    for seconds in (86_400, -10 * 86_400):
        bench.clock.advance(seconds)
        assert bench.canary.why_not_well() is None
    bench.pass_time(3600 + 600 + 61)
    assert str(bench.canary.why_not_well()).startswith("no canary since ")


def test_a_damaged_memory_begins_anew(bench: Bench) -> None:
    bench.path.write_bytes(b'{"succeeded_us": ')
    assert bench.make().why_not_well() == "no canary has come through yet"


# ------------------------------------------------------------------------------------------------ the shadow tenant


def test_the_shadow_tenant_is_heard_on_its_own_channel_alone_counts_nowhere_and_is_forgotten(bench: Bench) -> None:
    state: State = bench.state
    hidden, seen = make_ticket("t-1", tenant=SHADOW_TENANT), make_ticket("t-2", tenant="ops")
    for ticket in (hidden, seen):
        state.commit_tick(
            ticket.tenant, 5_000_000, now_us=bench.clock(), tickets=[ticket], events=[("anomaly.opened", ticket)]
        )
    assert [delivery.channel for delivery in state.deliveries(SHADOW_TENANT, "t-1")] == ["canary"]
    assert [delivery.channel for delivery in state.deliveries("ops", "t-2")] == ["file"]
    row = state.claim("canary", now_us=bench.clock(), lease_us=1)
    assert row is not None
    state.mark_failed(row.seq, "lost", bench.clock())
    assert state.count_outbox() == {("canary", DeliveryState.FAILED): 1, ("file", DeliveryState.PENDING): 1}
    assert state.count_tickets()[TicketState.OPEN] == 1
    state.forget_tenant(SHADOW_TENANT)
    assert (state.list_tickets(SHADOW_TENANT).tickets, state.checkpoint(SHADOW_TENANT)) == ([], None)
    assert state.checkpoint("ops") == 5_000_000
    assert not is_tenant(SHADOW_TENANT)


# ----------------------------------------------------------------------------------------------- dead man's switch


def test_the_address_is_called_while_all_is_well_and_only_then() -> None:
    receiver = Receiver()
    reasons: list[str] = []
    outcomes: list[str] = []
    switch = DeadMansSwitch(
        f"http://127.0.0.1:{receiver.port}/ping/s3cret", timedelta(minutes=1), lambda: reasons, on_call=outcomes.append
    )
    try:
        assert switch.call() == "called"
        reasons.append("detection is blind")
        assert switch.call() == "withheld"
        assert len(receiver.requests) == 1
        reasons.clear()
        receiver.answers.append((500, {}))
        assert switch.call() == "failed"
        assert switch.call() == "called"
    finally:
        switch.close()
        receiver.close()
    assert outcomes == ["called", "withheld", "failed", "called"]


def test_what_cannot_be_asked_is_not_well_and_the_address_is_in_no_log() -> None:
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)))

    def broken() -> list[str]:
        raise OSError("no such database")

    try:
        assert DeadMansSwitch("http://127.0.0.1:1/s3cret", timedelta(minutes=1), broken).call() == "withheld"
        assert DeadMansSwitch("http://127.0.0.1:1/s3cret", timedelta(minutes=1), list).call() == "failed"
    finally:
        logger.remove(sink)
    assert len(said) == 2
    assert "s3cret" not in "".join(said)
