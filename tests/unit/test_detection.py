"""Detection: the thread, the worker process and the transactions around the detectors."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from detectors.base import DETECTOR_VERSION, NO_MODEL
from logsvc.detection import Detection, watched_units, work
from logsvc.errors import StoreUnavailable
from logsvc.query import Node, parse
from logsvc.records import Entry
from logsvc.settings import BudgetFor, DetectionSettings
from logsvc.state import Blob, State, open_state
from logsvc.store import Hit, Order, Page, Position, Span, WindowCount
from logsvc.tickets import Severity, Ticket, TicketState
from tests.support import oracle
from tests.support.records import make_entry
from tests.support.tickets import FakeClock
from tests.unit.detectors.traffic import MINUTE_US, NOW_US, Event, burst, normal

TASKS = ("task:billing.charge", "task:email.send")
TIMEOUT_S = 60


class MemoryStore:
    """The reading half of a store over a list of entries, by the oracle."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.is_away = False
        self.collects: set[bool] = set()  # while counts are taken

    def tenants(self) -> list[str]:
        self._enter()
        return sorted({entry.tenant for entry in self.entries})

    def search(
        self,
        tenant: str,
        query: Node,
        span: Span = oracle.ALWAYS,
        *,
        limit: int = 50,
        order: Order = Order.NEWEST_FIRST,
        **_: object,
    ) -> Page:
        self._enter()
        near = [e for e in self.entries if oracle.in_span(e.time_us, span)]
        found = sorted(oracle.hits(near, tenant, query, span), key=lambda e: (e.time_us, e.seq))
        if order is Order.NEWEST_FIRST:
            found.reverse()
        return Page(tuple(Hit(e.id, Position(e.time_us, e.seq), e.source) for e in found[:limit]), None)

    def window_counts(
        self, tenant: str, *, ingested: Span, span: Span = oracle.ALWAYS, **where: object
    ) -> list[WindowCount]:
        self.collects.add(gc.isenabled())
        self._enter()
        near = [e for e in self.entries if oracle.in_span(e.ingested_us, ingested) and oracle.in_span(e.time_us, span)]
        return oracle.window_counts(near, tenant, ingested=ingested, span=span, **where)

    def _enter(self) -> None:
        if self.is_away:
            raise StoreUnavailable("the store is away")


class Pipeline:
    """Everything is searchable, or nothing is, or what is older than a while."""

    def __init__(self) -> None:
        self.is_complete = True
        self.lag_us = 0

    def searchable_until(self, us: int, timeout_s: float) -> int:
        del timeout_s
        return us - self.lag_us if self.is_complete else 0


class WatchedState:
    """A state that says when something was committed, and can lose its database."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.events: list[tuple[str, Ticket]] = []
        self.cursor_us = 0
        self.failures = 0
        self.changed = threading.Condition()

    def checkpoint(self, tenant: str) -> int | None:
        return self._state.checkpoint(tenant)

    def checkpoints(self) -> dict[str, int]:
        return self._state.checkpoints()

    def blobs(self, tenant: str) -> dict[str, Blob]:
        return self._state.blobs(tenant)

    def get_ticket(self, tenant: str, id: str) -> Ticket | None:
        return self._state.get_ticket(tenant, id)

    def commit_tick(
        self,
        tenant: str,
        cursor_us: int,
        *,
        now_us: int,
        tickets: Iterable[Ticket] = (),
        events: Iterable[tuple[str, Ticket]] = (),
        blobs: Mapping[str, Blob | None] = {},
    ) -> None:
        events = list(events)
        if events and self.failures:
            self.failures -= 1
            raise StoreUnavailable("the database is away")
        self._state.commit_tick(tenant, cursor_us, now_us=now_us, tickets=tickets, events=events, blobs=blobs)
        with self.changed:
            self.events += events
            self.cursor_us = cursor_us
            self.changed.notify_all()

    def wait_for_event(self, type_: str) -> Ticket:
        with self.changed:
            assert self.changed.wait_for(lambda: any(t == type_ for t, _ in self.events), TIMEOUT_S), self.events
            return next(ticket for t, ticket in self.events if t == type_)

    def wait_for_cursor(self, us: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.cursor_us >= us, TIMEOUT_S), self.cursor_us


class Bench:
    """Detection over made-up records, and a clock that the test moves."""

    def __init__(self, path: Path, settings: DetectionSettings | None = None) -> None:
        self.settings = settings or DetectionSettings()
        self.state = WatchedState(open_state(f"sqlite:///{path / 'state.db'}"))
        self.store = MemoryStore()
        self.pipeline = Pipeline()
        self.clock = FakeClock(NOW_US)
        self.detection = self.make()

    def make(self) -> Detection:
        cut = dataclasses.replace(self.settings, window=timedelta(minutes=5), grace=timedelta(seconds=60))
        return Detection(self.store, self.pipeline, self.state, cut, clock=self.clock)  # type: ignore[arg-type]

    def restart(self) -> None:
        self.detection.close()
        self.detection = self.make()
        self.detection.open()

    def add(self, events: Sequence[Event], tenant: str = "default") -> None:
        entries: list[Entry] = []
        for event in events:
            name = event.unit.partition(":")[2]
            extra = {"error.type": "ValueError", "error.message": event.template} if event.level == "error" else {}
            entries.append(
                make_entry(
                    len(self.store.entries) + len(entries) + 1,
                    event.time_us,
                    f"{event.level} in {name}",
                    tenant=tenant,
                    ingested_us=event.ingested_us,
                    level=event.level,
                    service=name.partition(".")[0],
                    **{
                        "task.name": name,
                        "service.version": event.version,
                        "log.template.id": event.template or "v1:info",
                        "log.template.text": f"text of {event.template}",
                        **extra,
                    },
                )
            )
        self.store.entries += entries

    def go(self, us: int) -> None:
        """Move the clock and let detection see it."""
        self.clock.now_us = us
        self.detection.wake()

    def wait_for_lag(self, seconds: float) -> None:
        """Wait until all but the last ``seconds`` is judged."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.detection.metrics()["detection_cursor_lag_seconds"]() > seconds:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.detection.close()


def history(hours: float = 4, per_minute: float = 4) -> list[Event]:
    start = round(NOW_US - hours * 60 * MINUTE_US)
    return [
        event
        for unit in TASKS
        for event in normal(unit, start, NOW_US, seed=3, arrives_us=NOW_US + 1, per_minute=per_minute)
    ]


def test_a_burst_becomes_a_ticket_that_says_what_an_engineer_needs(bench: Bench) -> None:
    begin = NOW_US - 30 * MINUTE_US
    bench.add(history() + burst(TASKS[0], begin, n=40, arrives_us=NOW_US + 7_000_000, template="v1:broken"))
    bench.detection.open()
    bench.go(NOW_US + 10_000_000)
    ticket = bench.state.wait_for_event("anomaly.opened")
    assert (ticket.task, ticket.tasks, ticket.service) == ("billing.charge", ["billing.charge"], "billing")
    assert ticket.kind == "new_error"
    assert ticket.severity is Severity.HIGH
    assert ticket.state is TicketState.OPEN
    assert ticket.releases[0] == "2"
    assert 0.5 < ticket.score <= 1
    assert ticket.observed > 5 * ticket.expected
    new = ticket.fingerprints[0]
    assert (new.id, new.text, new.is_new) == ("v1:broken", "text of v1:broken", True)
    assert "billing.charge: " in ticket.title
    assert "since 11:30 UTC" in ticket.title
    assert "; new: ValueError: v1:broken; since" in ticket.title
    assert ticket.detector.version == DETECTOR_VERSION
    assert ticket.model.version == NO_MODEL
    assert 1 <= len(ticket.samples) <= 5
    assert ticket.samples[0]["log.template.id"] == "v1:broken"
    assert ticket.opened_at == "2026-11-22T12:00:10Z"
    assert len(ticket.series) == 60
    [alike] = [one for one in ticket.evidence if one.feature == "shared"]
    assert "failed runs have service.version 2" in alike.text
    assert alike.observed > 0.9
    assert alike.expected == 0
    found = bench.store.search("default", parse(ticket.query, NOW_US), limit=1000).hits
    assert len(found) >= 40
    assert bench.state.get_ticket("default", ticket.id) is not None


def test_a_ticket_names_the_model_that_was_there_when_it_opened(bench: Bench) -> None:
    bench.add(history(hours=20, per_minute=0.5))
    bench.add(burst(TASKS[0], NOW_US - 15 * MINUTE_US, n=40, arrives_us=NOW_US + 12_000_000))
    bench.detection.open()
    bench.go(NOW_US + 15_000_000)
    model = bench.state.wait_for_event("anomaly.opened").model
    assert model.name == "isolation-forest"
    assert model.version.startswith("2026-11-22.")


def test_no_garbage_is_looked_for_while_counts_are_held_and_again_afterwards(bench: Bench) -> None:
    bench.add(history(hours=1))
    bench.detection.open()
    bench.go(NOW_US + 10_000_000)
    bench.wait_for_lag(0)
    bench.restart()  # what was known is counted again
    bench.go(NOW_US + 20_000_000)
    bench.wait_for_lag(0)
    bench.detection.close()
    assert bench.store.collects == {False}
    assert gc.isenabled()


def test_how_far_it_is_behind_is_a_number_before_the_first_judgement(bench: Bench) -> None:
    behind_s = bench.detection.metrics()["detection_cursor_lag_seconds"]
    assert behind_s() == 0
    bench.state.commit_tick("default", NOW_US - 60_000_000, now_us=NOW_US)
    bench.pipeline.is_complete = False
    bench.detection.open()
    assert behind_s() == 60


def test_the_texts_of_hundreds_of_new_templates_take_a_few_searches(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"v1:{n}" for n in range(300)]
    often = [ids[0]] * 700  # fills the first search all by itself
    bench.add([Event(NOW_US + n, NOW_US + n, TASKS[0], "error", id) for n, id in enumerate(often + ids)])
    counts = bench.detection._counts("default", Span(NOW_US, NOW_US + MINUTE_US))
    asked: list[int] = []
    search = bench.store.search

    def counted(*args: Any, **kwargs: Any) -> Page:
        asked.append(kwargs["limit"])
        return search(*args, **kwargs)

    monkeypatch.setattr(bench.store, "search", counted)
    known = {ids[7]}
    texts = bench.detection._texts("default", counts, known)
    assert texts == {id: f"text of {id}" for id in ids if id != ids[7]}
    assert known == set(ids)
    assert asked.count(1) < 200, "those that the frequent one crowded out"
    assert len(asked) - asked.count(1) == 2


def test_normal_records_open_nothing(bench: Bench) -> None:
    bench.add(history())
    bench.detection.open()
    bench.go(NOW_US + 60 * MINUTE_US)
    bench.state.wait_for_cursor(NOW_US + 59 * MINUTE_US)
    assert bench.state.events == []
    watched = watched_units(bench.state.blobs("default"))
    assert [(one["task"], one["state"]) for one in watched] == [
        (unit.removeprefix("task:"), "watched") for unit in TASKS
    ]


def test_a_ticket_resolves_and_people_hear_of_it(bench: Bench) -> None:
    bench.add(history() + burst(TASKS[0], NOW_US - 10 * MINUTE_US, n=40, arrives_us=NOW_US + 1))
    bench.detection.open()
    bench.go(NOW_US + 10_000_000)
    bench.state.wait_for_event("anomaly.opened")
    bench.go(NOW_US + 60 * MINUTE_US)
    ticket = bench.state.wait_for_event("anomaly.resolved")
    assert ticket.state is TicketState.RESOLVED
    assert ticket.resolved_at is not None


def test_tickets_that_turn_out_to_be_one_are_merged_into_the_older(bench: Bench) -> None:
    def failing(unit: str, minute: int, error: str) -> list[Event]:
        begin = NOW_US + minute * MINUTE_US
        return [event._replace(ingested_us=event.time_us + 1) for event in burst(unit, begin, n=40, template=error)]

    bench.add(history())
    bench.add(failing(TASKS[0], 1, "gave up for good"))
    bench.add(failing(TASKS[1], 2, "cannot reach ledger-db.internal"))
    bench.add(failing(TASKS[0], 9, "lost ledger-db.internal"))  # only now it says what both are about
    bench.detection.open()
    bench.go(NOW_US + 20 * MINUTE_US)
    younger = bench.state.wait_for_event("anomaly.resolved")
    opened = [ticket for type_, ticket in bench.state.events if type_ == "anomaly.opened"]
    assert [ticket.tasks for ticket in opened] == [["billing.charge"], ["email.send"]]
    assert (younger.id, younger.merged_into) == (opened[1].id, opened[0].id)
    older = bench.state.get_ticket("default", opened[0].id)
    assert older is not None
    assert older.state is TicketState.OPEN
    assert older.tasks == ["billing.charge", "email.send"]
    assert older.merged_into is None


def test_a_failed_commit_is_done_again_and_nothing_is_told_twice(bench: Bench) -> None:
    bench.state.failures = 1
    bench.add(history() + burst(TASKS[0], NOW_US - 10 * MINUTE_US, n=40, arrives_us=NOW_US + 1))
    bench.detection.open()
    bench.go(NOW_US + 10_000_000)
    with bench.state.changed:
        assert bench.state.changed.wait_for(lambda: bench.state.events or _nudge(bench), TIMEOUT_S)
    bench.state.wait_for_event("anomaly.opened")
    assert [type_ for type_, _ in bench.state.events] == ["anomaly.opened"]


def _nudge(bench: Bench) -> bool:
    bench.detection.wake()
    return False


@pytest.mark.slow(seconds=20)
def test_a_restart_and_a_killed_worker_change_nothing(tmp_path: Path) -> None:
    told = []
    for is_disturbed in (False, True):
        folder = tmp_path / str(is_disturbed)
        folder.mkdir()
        bench = Bench(folder)
        begin = NOW_US + 3 * MINUTE_US
        for unit in TASKS:
            bench.add(normal(unit, NOW_US - 240 * MINUTE_US, NOW_US, seed=3, arrives_us=NOW_US + 1, per_minute=1))
            bench.add(normal(unit, NOW_US, NOW_US + 12 * MINUTE_US, seed=4, per_minute=4))
        bench.add(burst(TASKS[0], begin, n=40))
        bench.detection.open()
        for minute in range(1, 12, 2):
            bench.go(NOW_US + minute * MINUTE_US)
            bench.state.wait_for_cursor(NOW_US + minute * MINUTE_US)
            if is_disturbed and minute == 5:
                bench.restart()
            if is_disturbed and minute == 7:
                pid = bench.detection.worker_pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
        told.append([(type_, ticket) for type_, ticket in bench.state.events])
        bench.detection.close()
    assert told[0]
    assert told[0] == told[1]


def test_while_records_are_not_searchable_it_is_blind_and_says_so_once(bench: Bench) -> None:
    bench.add(history())
    bench.detection.open()
    bench.go(NOW_US + 10_000_000)
    bench.state.wait_for_cursor(NOW_US + 5_000_000)
    bench.pipeline.is_complete = False
    bench.go(NOW_US + 10 * MINUTE_US)
    ticket = bench.state.wait_for_event("anomaly.opened")
    assert (ticket.kind, ticket.task, ticket.severity) == ("self", None, Severity.HIGH)
    assert bench.detection.metrics()["detection_is_blind"]() == 1
    bench.pipeline.is_complete = True
    bench.go(NOW_US + 11 * MINUTE_US)
    resolved = bench.state.wait_for_event("anomaly.resolved")
    assert resolved.id == ticket.id
    assert [type_ for type_, _ in bench.state.events] == ["anomaly.opened", "anomaly.resolved"]


def test_behind_a_backlog_what_is_complete_is_judged_and_only_a_long_one_is_blind(bench: Bench) -> None:
    bench.add(history())
    bench.detection.open()
    bench.go(NOW_US + 10_000_000)
    bench.state.wait_for_cursor(NOW_US + 5_000_000)
    for minute in range(1, 11):
        bench.pipeline.lag_us = minute * 30_000_000
        bench.go(NOW_US + minute * MINUTE_US)
        bench.wait_for_lag(minute * 30)
    assert bench.state.events == []
    for minute in range(11, 15):
        bench.pipeline.lag_us = minute * 30_000_000
        bench.go(NOW_US + minute * MINUTE_US)
        bench.wait_for_lag(minute * 30)
    assert bench.state.wait_for_event("anomaly.opened").kind == "self"
    bench.pipeline.lag_us = 0
    bench.go(NOW_US + 20 * MINUTE_US)
    assert bench.state.wait_for_event("anomaly.resolved").kind == "self"


def test_tenants_are_judged_apart(bench: Bench) -> None:
    bench.add(history())
    bench.add(history() + burst(TASKS[0], NOW_US - 10 * MINUTE_US, n=40, arrives_us=NOW_US + 1), tenant="other")
    bench.detection.open()
    bench.go(NOW_US + 10_000_000)
    assert bench.state.wait_for_event("anomaly.opened").tenant == "other"
    assert {ticket.tenant for _, ticket in bench.state.events} == {"other"}


@pytest.mark.slow(seconds=20)
def test_a_service_has_a_budget_of_its_own_also_after_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path, DetectionSettings(false_tickets_for=(BudgetFor("service", "billing", 0.0001),)))
    begin = NOW_US + MINUTE_US
    bench.add(history(per_minute=10))
    for unit, n in zip(TASKS, (7, 8), strict=True):
        bench.add(normal(unit, NOW_US, NOW_US + 10 * MINUTE_US, seed=4, per_minute=10))
        bench.add(burst(unit, begin, n=n, minutes=4, template=f"{unit}-known-1"))
    bench.detection.open()
    bench.go(NOW_US + MINUTE_US)
    bench.state.wait_for_cursor(NOW_US + MINUTE_US)
    bench.restart()
    bench.go(NOW_US + 10 * MINUTE_US)
    assert bench.state.wait_for_event("anomaly.opened").task == "email.send"
    bench.state.wait_for_cursor(NOW_US + 10 * MINUTE_US)
    assert {ticket.task for _, ticket in bench.state.events} == {"email.send"}
    bench.detection.close()


def test_a_worker_whose_asker_was_killed_meanwhile_ends_without_a_word() -> None:
    asker, worker = Pipe()
    asker.send(("blind", "nobody"))
    asker.close()
    work(worker)


def test_the_worker_ends_with_its_parent(bench: Bench) -> None:
    bench.add(history(hours=0.1))
    bench.detection.open()
    bench.go(NOW_US + 10_000_000)
    bench.state.wait_for_cursor(NOW_US + 5_000_000)
    pid = bench.detection.worker_pid
    assert pid is not None
    bench.detection.close()
    deadline = time.monotonic() + TIMEOUT_S
    while _runs(pid) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_neither_the_service_nor_its_worker_holds_the_modules_that_only_the_other_needs() -> None:
    code = "import sys, logsvc.{}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    for module, foreign in (
        ("app", {"numpy", "scipy", "sklearn"}),
        ("detection", {"sqlalchemy", "fastapi", "tantivy"}),
    ):
        done = subprocess.run([sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) & foreign == set()
