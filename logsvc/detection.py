"""Detection: drives detectors over what is searchable, tick by tick, and turns what they find into tickets.

The only module that imports ``detectors``. A thread takes the counts of each tick of
``event.ingested`` from the store once everything before it is searchable; a spawned process does
the mathematics, off the ingest path and off the event loop; incidents become tickets here.

What always holds:

- Cursor, tickets, what people hear and the detectors' memory are one transaction. After a crash,
  of this process or the worker, the counts before the cursor are read again and everything goes on
  as if nothing had happened: tickets are a function of the set of (record, ``event.ingested``).
- A tick is never judged before it is complete. While that takes too long the state is blind: one
  ticket about the service itself, which alone depends on when things happened here, and nothing
  about silence. The same holds for the time in which the service did not run.
- Any failure discards the tenant's session; it is rebuilt from the store and the state, with pauses.

Not here: what is odd (detectors/), what people are told (outbox.py), a ticket's states (tickets.py).
"""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict

import msgspec
from loguru import logger

# What brings numpy, SciPy and scikit-learn is imported where it is used, since the service's own process does without,
# and so is what brings SQLAlchemy: the worker does without that.
from detectors import evaluate as evaluation
from detectors.base import (
    DETECTOR_NAME,
    DETECTOR_VERSION,
    HORIZON_US,
    NO_MODEL,
    TICK_US,
    Count,
    Grid,
    Judgement,
    Pin,
    score_of,
)
from detectors.explain import error_line, names, sentence, shared, title
from detectors.incidents import Change, ChangeKind, Facts, Incident, Incidents
from detectors.runs import CUT as ODD_RUN_CUT
from detectors.runs import odd_runs
from detectors.templates import MAX_TEXTS, Merging
from logsvc.errors import BadInput, LogsvcError, NotFound, QueryTooExpensive, StoreUnavailable
from logsvc.names import SHADOW_TENANT
from logsvc.query import And, Exists, Node, Not, Or, Range, Term, parse
from logsvc.records import flatten
from logsvc.settings import DetectionSettings
from logsvc.store import Dimension, Order, Span, Store
from logsvc.tickets import (
    Evidence,
    Fingerprint,
    Point,
    Severity,
    Ticket,
    TicketEvent,
    TicketState,
    Version,
    Window,
    about_service,
    next_state,
    severity_of,
    ticket_id,
)
from logsvc.timestamps import Clock, format_us, parse_timestamp, system_clock

if TYPE_CHECKING:
    from logsvc.backtest import History
    from logsvc.state import Blob

_DIMENSIONS = frozenset(
    {
        Dimension.LEVEL,
        Dimension.TEMPLATE,
        Dimension.DURATION,
        Dimension.CUSTOMER_ERROR,
        Dimension.HOST_ERROR,
        Dimension.VERSION_ERROR,
    }
)
_MINUTE_US, _HOUR_US, _DAY_US = 60_000_000, 3_600_000_000, 86_400_000_000
_BLIND_AFTER_US = 60_000_000  # without any progress
_LATE_AFTER_US = 300_000_000  # with progress: a backlog, such as days of history at once, is no fault yet
_WAIT_S = 2.0
_MAX_PAUSE_S = 30.0
_SAMPLES = 5
_FINGERPRINTS = 5
_TEXTS_AT_ONCE = 200
_COMPARED = 500
"""Records that failed, and others, that are looked through for what the failed have in common."""
_SHARED, _SHARED_CUT = "shared", 6.0
_ODD_RUNS, _MOST_RUNS = "odd_runs", 20
_PAST_RECORDS = 1_000
_RELEASE_SHARE = 0.2
_HANDED_OVER = 4_000
"""Counts at once: while they are packed nothing else of this process runs, the event loop least of all."""
_WORKER_TIMEOUT_S = 120.0
_CLOSE_S = 2.0
_SELF = "service"
_MEMORY_VERSION = "1"


class Searchable(Protocol):
    """Says when records are complete."""

    def searchable_until(self, us: int, timeout_s: float) -> int:
        """Return T: every record with ``event.ingested`` below T is found; wait a while for T to reach ``us``."""
        ...


class DetectionState(Protocol):
    """Where cursor, tickets and memory are kept; ``state.State`` is the real one."""

    def checkpoint(self, tenant: str) -> int | None: ...
    def checkpoints(self) -> dict[str, int]: ...
    def blobs(self, tenant: str) -> dict[str, Blob]: ...
    def get_ticket(self, tenant: str, id: str) -> Ticket | None: ...
    def commit_tick(
        self,
        tenant: str,
        cursor_us: int,
        *,
        now_us: int,
        tickets: Iterable[Ticket] = (),
        events: Iterable[tuple[str, Ticket]] = (),
        blobs: Mapping[str, Blob | None] = {},
    ) -> None: ...


class UnitName(TypedDict):
    """What is watched: a task, or what a service does without one; the other is None."""

    task: str | None
    service: str | None


class PinnedUnit(UnitName):
    """What the slow growth of a unit's errors is measured against: ``errors`` ``per`` record, or per minute.

    ``accepted_since`` is the moment from which on a person called all of it normal, if one did.
    """

    pinned_at: str
    errors: float
    per: str
    accepted_since: str | None


class _Asked:
    """What a person wants of detection."""

    def __init__(self, tenant: str, unit: str) -> None:
        self.tenant = tenant
        self.unit = unit
        self.answer: Future[PinnedUnit] = Future()


class WorkerGone(LogsvcError):
    """The process that judges ended or does not answer; a new one takes over."""


@contextmanager
def _without_collection() -> Iterator[None]:
    """Look for no garbage meanwhile: through all the counts of hours it takes a tenth of a second, and nothing else runs."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Detection:
    """Judges every tenant's windows from ``open`` to ``close``.

    Args:
        store: Where counts and samples are read.
        pipeline: Says when a tick is complete.
        state: Where everything that must outlive the process is kept.
        settings: Window and grace.
        clock: The time, for ticks.
        on_change: Called after a commit that has something for people.
    """

    def __init__(
        self,
        store: Store,
        pipeline: Searchable,
        state: DetectionState,
        settings: DetectionSettings,
        *,
        clock: Clock = system_clock,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._state = state
        self._clock = clock
        self._on_change = on_change
        self._settings = settings
        self._grid = Grid(_us(settings.window), _us(settings.grace))
        self._worker = _Worker()
        self._sessions: dict[str, _Session] = {}
        self._forgotten: set[str] = set()
        self._asked: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="detection", daemon=True)
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._opened_us = self._begun_us = clock()
        self._done_us: int | None = None
        self._complete_us = 0  # all before it was searchable
        self._progress_us = 0  # when that last moved
        self._is_blind = False
        self._has_seen = False
        self._tick_s = 0.0
        self._windows = 0

    def open(self) -> None:
        """Start judging."""
        self._opened_us = self._complete_us = self._progress_us = self._clock()
        # Until the first turn it is behind by as much as when it ended.
        self._begun_us = min(self._state.checkpoints().values(), default=self._opened_us)
        self._thread.start()

    def close(self) -> None:
        """Stop after the tick at hand, or in the middle of a long one; idempotent."""
        self._closing.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_CLOSE_S)
            # Nothing of a tick is kept before all of it is, so a worker may be ended within one.
            self._worker.kill()
            self._thread.join(timeout=_WORKER_TIMEOUT_S)
        self._worker.close()

    def wake(self) -> None:
        """Look at the clock now rather than at the next tick."""
        self._woken.set()

    def accept(self, tenant: str, unit: str, timeout_s: float = 30.0) -> PinnedUnit:
        """Take all that a unit (``task:NAME`` or ``service:NAME``) did in the last day for normal; kept on return.

        Raises:
            NotFound: If the unit is not watched.
            StoreUnavailable: If detection does not come to it in time; it may yet do so.
        """
        asked = _Asked(tenant, unit)
        self._asked.put(asked)
        self.wake()
        try:
            return asked.answer.result(timeout_s)
        except TimeoutError:
            raise StoreUnavailable("detection is busy or behind; `logsvc tasks` shows whether it was done") from None

    def forget(self, tenant: str) -> None:
        """Begin anew with a tenant at the next turn, as if it had just come; its state is the caller's to remove."""
        self._forgotten.add(tenant)

    @property
    def is_blind(self) -> bool:
        """Return whether windows cannot be judged because records are missing."""
        return self._is_blind

    @property
    def worker_pid(self) -> int | None:
        """Return the id of the process that judges, None if it does not run."""
        return self._worker.pid

    def metrics(self) -> dict[str, Callable[[], float]]:
        """Return readers of the metrics of detection, by name."""
        return {
            "detection_cursor_lag_seconds": self._lag_s,
            "detection_is_blind": lambda: float(self._is_blind),
            "detection_windows_total": lambda: float(self._windows),
            "detection_tick_seconds": lambda: self._tick_s,
        }

    def _lag_s(self) -> float:
        since_us = self._begun_us if self._done_us is None else self._done_us
        return max(0.0, (self._clock() - since_us) / 1e6)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = 0.0
        while not self._closing.is_set():
            try:
                self._turn()
                pause_s = 0.0
            except (LogsvcError, OSError) as exc:
                if self._closing.is_set():
                    return
                pause_s = min(max(1.0, 2 * pause_s), _MAX_PAUSE_S)
                logger.warning("detection: {}: {}; trying again in {:.0f} s", type(exc).__name__, exc, pause_s)
                self._sessions.clear()
            except Exception:  # noqa: BLE001 - one tenant's trouble must not end detection for good
                pause_s = min(max(1.0, 2 * pause_s), _MAX_PAUSE_S)
                logger.exception("detection: unexpected; trying again in {:.0f} s", pause_s)
                self._sessions.clear()
            if self._closing.is_set():
                return
            left_s = (TICK_US - self._clock() % TICK_US) / 1e6
            self._woken.wait(max(pause_s, min(left_s, TICK_US / 1e6)))
            self._woken.clear()

    def _turn(self) -> None:
        """Judge every tenant through the last tick before which all is searchable."""
        while self._forgotten:
            self._sessions.pop(self._forgotten.pop(), None)
        while self._done_us is not None and not self._asked.empty():
            self._answer(self._asked.get())
        now_us = self._clock()
        now_tick = now_us // TICK_US * TICK_US
        if self._done_us is not None and now_tick <= self._done_us:
            return
        target = min(now_tick, self._pipeline.searchable_until(now_tick, _WAIT_S) // TICK_US * TICK_US)
        if self._closing.is_set():
            return
        if target > self._complete_us:
            self._complete_us, self._progress_us = target, now_us
        if target <= (self._done_us or 0):
            self._note_blind()
            return
        try:
            # Those that are up to date first: another's days of history must not delay their windows.
            known = {*self._store.tenants(), *self._state.checkpoints()}
            tenants = sorted(known, key=lambda tenant: (tenant not in self._sessions, tenant))
            for tenant in tenants:
                self._catch_up(tenant, target)
        except StoreUnavailable:
            self._note_blind()
            raise
        self._done_us = target
        if now_us - target < _BLIND_AFTER_US:
            self._note_sight(tenants, target)
        elif now_us - target >= _LATE_AFTER_US:
            self._note_blind()

    def _answer(self, asked: _Asked) -> None:
        session = self._sessions.get(asked.tenant)
        try:
            held, memory = self._worker.accept(asked.tenant, asked.unit, session.cursor_us) if session else (None, {})
            if session is None or held is None:
                raise NotFound(f"{asked.unit.partition(':')[2]!r} is not watched; `logsvc tasks` lists what is")
            blobs: dict[str, Blob | None] = {key: _blob(value) for key, value in memory.items()}
            self._state.commit_tick(asked.tenant, session.cursor_us, now_us=self._clock(), blobs=blobs)
            asked.answer.set_result(_pinned(asked.unit, held, self._grid.step_us))
        except NotFound as exc:
            asked.answer.set_exception(exc)
        except BaseException as exc:
            asked.answer.set_exception(StoreUnavailable(f"detection failed, try again: {exc}"))
            raise

    def _catch_up(self, tenant: str, target_us: int) -> None:
        session = self._sessions.get(tenant)
        if session is None:
            session = self._sessions[tenant] = self._session(tenant, target_us)
        try:
            for cutoff_us in self._ticks(session, target_us):
                begun = time.perf_counter()
                self._tick(session, cutoff_us)
                self._tick_s = time.perf_counter() - begun
                if self._closing.is_set():
                    return
        except BaseException:
            # What the worker or the incidents took in may be ahead of what was kept.
            self._sessions.pop(tenant, None)
            raise

    def _ticks(self, session: _Session, target_us: int) -> Iterable[int]:
        """Yield the ticks after the cursor that have records or something due, rising."""
        cursor = session.cursor_us
        # Look far ahead first: a night without records costs a few queries, not thousands.
        reach = target_us - cursor
        while cursor < target_us:
            reach = min(reach, target_us - cursor)
            while reach > TICK_US and self._has_records(session.tenant, cursor, cursor + reach):
                reach = max(reach // 2 // TICK_US * TICK_US, TICK_US)
            session.is_empty = reach > TICK_US
            end = cursor + reach
            for cutoff in range(cursor + TICK_US, end + 1, TICK_US):
                if cutoff == end or not session.is_idle(cutoff):
                    yield cutoff
            cursor = end
            reach *= 2

    def _has_records(self, tenant: str, low_us: int, high_us: int) -> bool:
        page = self._store.search(
            tenant, Range("event.ingested", low_us, high_us, includes_high=False), limit=1, timeout_s=30
        )
        return bool(page.hits)

    @_without_collection()
    def _tick(self, session: _Session, cutoff_us: int) -> None:
        counts = [] if session.is_empty else self._counts(session.tenant, Span(cutoff_us - TICK_US, cutoff_us))
        if not counts and session.is_idle(cutoff_us) and cutoff_us - session.kept_us < 12 * TICK_US:
            session.cursor_us = cutoff_us  # nothing to keep: after a crash it is skipped again
            return
        texts = self._texts(session.tenant, counts, session.known)
        self._set_budgets(session.tenant, counts, cutoff_us, session.units)
        judgements, memory, model, judged = self._worker.advance(session.tenant, counts, cutoff_us, texts)
        self._windows += judged
        session.model = model
        changes = session.incidents.apply(judgements, cutoff_us, lambda j: self._describe(session.tenant, j, cutoff_us))
        tickets, events = self._tickets(session, changes, cutoff_us)
        blobs: dict[str, Blob | None] = {key: _blob(value) for key, value in memory.items()}
        if judgements or changes:
            blobs["incidents"] = _blob(session.incidents.encode())
        self._state.commit_tick(
            session.tenant, cutoff_us, now_us=self._clock(), tickets=tickets, events=events, blobs=blobs
        )
        session.cursor_us = session.kept_us = cutoff_us
        if events:
            self._on_change()

    # Sessions --------------------------------------------------------------------------------------------------------

    def _session(self, tenant: str, target_us: int) -> _Session:
        """Rebuild what detection knew of a tenant at its cursor."""
        cursor = self._state.checkpoint(tenant) or self._first_tick(tenant, target_us)
        blobs = self._state.blobs(tenant)
        memory = {key: blob.value for key, blob in blobs.items() if blob.version == _MEMORY_VERSION}
        incidents = Incidents(self._grid, tenant, memory.pop("incidents", None))
        self._worker.start(tenant, self._grid, memory, self._settings.budget(tenant, "", None))
        units: set[str] = set()
        known = Merging.ids(memory["templates"]) if "templates" in memory else set()
        floor = cursor // _DAY_US * _DAY_US - HORIZON_US
        for day in range(floor, cursor + 2 * _DAY_US, _DAY_US):
            self._restore(tenant, cursor, Span(day, day + _DAY_US), known, units)
        down = (cursor, self._opened_us)
        if down[1] - down[0] > _BLIND_AFTER_US and blobs:
            self._worker.blind(tenant, *down)
        logger.info("detection: watches tenant {} from {}", tenant, format_us(cursor))
        return _Session(tenant, cursor, self._grid, incidents, known, units)

    @_without_collection()
    def _restore(self, tenant: str, cursor_us: int, span: Span, known: set[str], units: set[str]) -> None:
        counts = self._counts(tenant, Span(None, cursor_us), span)
        self._worker.restore(tenant, counts, cursor_us, self._texts(tenant, counts, known))
        self._set_budgets(tenant, counts, cursor_us, units)

    def _set_budgets(self, tenant: str, counts: Iterable[Count], cutoff_us: int, units: set[str]) -> None:
        """Tell the worker the budgets of units that are new to ``units``, where some have their own."""
        if not self._settings.false_tickets_for:
            return
        fresh = sorted({count.unit for count in counts} - units)
        units.update(fresh)
        budgets = {}
        for unit in fresh:
            service = None
            if self._settings.has_services:
                known = Range("event.ingested", None, cutoff_us, includes_high=False)
                found = self._records(tenant, And((_unit_node(unit), known)), Span(), 1)
                service = _text(found[0], "service.name") if found else None
            budgets[unit] = self._settings.budget(tenant, unit, service)
        if budgets:
            self._worker.budgets(tenant, budgets)

    def _first_tick(self, tenant: str, target_us: int) -> int:
        """Return the tick before the tenant's first record; older than the horizon does not matter."""
        low, high = (target_us - HORIZON_US) // TICK_US, target_us // TICK_US
        if self._has_records(tenant, 0, low * TICK_US):
            return low * TICK_US
        while low < high:
            middle = (low + high + 1) // 2
            if self._has_records(tenant, 0, middle * TICK_US):
                high = middle - 1
            else:
                low = middle
        return low * TICK_US

    def _counts(self, tenant: str, ingested: Span, span: Span = Span()) -> list[Count]:
        found = self._store.window_counts(
            tenant, ingested=ingested, span=span, step_us=self._grid.step_us, dimensions=_DIMENSIONS
        )
        return [Count(c.unit, c.step_us, c.dimension.value, c.key, c.count) for c in found]

    def _texts(self, tenant: str, counts: Iterable[Count], known: set[str]) -> dict[str, str]:
        """Return the texts of fingerprints that are not ``known`` yet, and add them there; so far as there is room."""
        new = {c.key for c in counts if c.dimension == Dimension.TEMPLATE.value} - known
        ids = sorted(new)[: max(MAX_TEXTS - len(known), 0)]
        texts: dict[str, str] = {}

        def find(ids: Sequence[str], limit: int) -> None:
            terms = tuple(Term("log.template.id", id) for id in ids)
            for record in self._records(tenant, Or(terms) if len(terms) > 1 else terms[0], Span(), limit):
                if (id := _text(record, "log.template.id")) is not None:
                    texts.setdefault(id, _text(record, "log.template.text") or id)

        # A release brings hundreds at once, mostly of a record or two each: few searches find nearly all.
        for start in range(0, len(ids), _TEXTS_AT_ONCE):
            part = ids[start : start + _TEXTS_AT_ONCE]
            find(part, 2 * len(part))
            for id in part:
                if id not in texts:
                    find([id], 1)
                    texts.setdefault(id, id)
        known.update(texts)
        return texts

    # Blind -----------------------------------------------------------------------------------------------------------

    def _note_blind(self) -> None:
        """Say once, after a while, that nothing can be judged, or only long after it happened."""
        now_us = self._clock()
        is_stuck = now_us - self._progress_us >= _BLIND_AFTER_US + self._grid.grace_us
        is_late = now_us - self._complete_us >= _LATE_AFTER_US + self._grid.grace_us
        if self._is_blind or not (is_stuck or is_late):
            return
        self._is_blind = True
        logger.error("detection is blind: records accepted since {} are not searchable", format_us(self._complete_us))
        checkpoints = self._state.checkpoints()
        for tenant in sorted(checkpoints.keys() - {SHADOW_TENANT})[:1]:
            ticket = self._self_ticket(tenant, self._complete_us, now_us)
            if self._state.get_ticket(tenant, ticket.id) is None:
                self._keep_self(tenant, checkpoints[tenant], ticket, "anomaly.opened")

    def _note_sight(self, tenants: Sequence[str], target_us: int) -> None:
        """Everything is complete again: resolve what was said about the service itself."""
        if not self._is_blind and self._has_seen:
            return
        self._is_blind, self._has_seen = False, True
        for tenant in tenants:
            cursor = self._state.checkpoint(tenant)
            kept = self._state.blobs(tenant).get(_SELF)
            if cursor is None or kept is None:
                continue
            ticket = self._state.get_ticket(tenant, kept.value.decode())
            if ticket is not None and ticket.state is not TicketState.RESOLVED:
                ticket.state = next_state(ticket.state, TicketEvent.RESOLVED)
                ticket.resolved_at = ticket.updated_at = format_us(target_us)
                self._keep_self(tenant, cursor, ticket, "anomaly.resolved")

    def _keep_self(self, tenant: str, cursor_us: int, ticket: Ticket, event: str) -> None:
        blob = _blob(ticket.id.encode()) if event == "anomaly.opened" else None
        self._state.commit_tick(
            tenant, cursor_us, now_us=self._clock(), tickets=[ticket], events=[(event, ticket)], blobs={_SELF: blob}
        )
        self._on_change()

    def _self_ticket(self, tenant: str, since_us: int, now_us: int) -> Ticket:
        seconds = (now_us - since_us) / 1e6
        text = f"logsvc: records accepted since {_clock_time(since_us)} are not searchable; nothing is judged meanwhile"
        return about_service(
            "completeness",
            tenant,
            ticket_id(tenant, "self", since_us),
            Severity.HIGH,
            text,
            [Evidence("blind", "s", seconds, 0.0, 1.0, text)],
            since_us=since_us,
            now_us=now_us,
            observed=seconds,
            expected=0.0,
            unit="s",
        )

    # Tickets ---------------------------------------------------------------------------------------------------------

    def _describe(self, tenant: str, judgement: Judgement, cutoff_us: int) -> Facts:
        """Look up what counts cannot tell: texts, service, names; from what the tick could see, and nothing later."""
        unit = _unit_node(judgement.unit)
        known = Range("event.ingested", None, cutoff_us, includes_high=False)
        span = Span(judgement.start_us, judgement.window_end_us)

        def first(template: str) -> Mapping[str, object] | None:
            found = self._records(tenant, And((unit, known, Term("log.template.id", template))), span, 1)
            return found[0] if found else None

        def service() -> str | None:
            # A silent unit has nothing in its window: its last record before tells its service.
            before = Span(None, judgement.window_end_us)
            found = self._records(tenant, And((unit, known)), before, 1, Order.NEWEST_FIRST)
            return _text(found[0], "service.name") if found else None

        return _facts(judgement, first, service)

    def _records(
        self, tenant: str, node: Node, span: Span, limit: int, order: Order = Order.OLDEST_FIRST
    ) -> list[dict[str, object]]:
        try:
            page = self._store.search(tenant, node, span, limit=limit, order=order)
        except QueryTooExpensive:
            return []
        return [flatten(hit.source) for hit in page.hits]

    def _tickets(
        self, session: _Session, changes: Sequence[Change], cutoff_us: int
    ) -> tuple[list[Ticket], list[tuple[str, Ticket]]]:
        tickets: dict[str, Ticket] = {}
        events: list[tuple[str, Ticket]] = []
        for change in changes:
            id = change.incident.id
            current = tickets.get(id) or self._state.get_ticket(session.tenant, id)
            if current is None and change.kind is ChangeKind.MERGED:
                continue  # erased meanwhile
            event = TicketEvent.RESOLVED if change.kind is ChangeKind.MERGED else TicketEvent(change.kind.value)
            if current is not None and event is TicketEvent.OPENED:
                event = TicketEvent.UPDATED  # told before a crash
            elif current is None and event is not TicketEvent.OPENED:
                event = TicketEvent.OPENED  # erased meanwhile
            ticket = self._ticket(session, change.incident, current, cutoff_us)
            ticket.state = next_state(current.state if current else None, event)
            if ticket.state is TicketState.RESOLVED and ticket.resolved_at is None and current is not None:
                ticket.resolved_at = current.resolved_at  # by a person
            type_ = "anomaly.opened" if event is TicketEvent.REOPENED else f"anomaly.{event.value}"
            if current is not None and ticket.is_notified and not current.is_notified:
                type_ = "anomaly.opened"
            tickets[id] = ticket
            events.append((type_, ticket))
        return list(tickets.values()), events

    def _ticket(self, session: _Session, incident: Incident, current: Ticket | None, cutoff_us: int) -> Ticket:
        units = sorted(incident.members, key=lambda unit: (incident.members[unit].start_us, unit))
        tasks = [unit.partition(":")[2] for unit in units if unit.startswith("task:")]
        root = incident.members[incident.root]
        records = sum(member.records for member in incident.members.values())
        errors = sum(member.errors for member in incident.members.values())
        templates = incident.odd_templates()[:_FINGERPRINTS]
        releases = _failing_releases(incident)
        first = incident.findings[0] if incident.findings else None
        query = _query(incident, units, self._grid)
        is_over = incident.resolved_us is not None
        samples = current.samples if current and is_over else self._samples(session.tenant, query, incident, cutoff_us)
        if current and is_over:
            alike = [one for one in current.evidence if one.feature in {_SHARED, _ODD_RUNS}]
        else:
            alike = self._shared(session.tenant, incident, units, cutoff_us)
        lines = {str(s["log.template.id"]): error_line(s) for s in reversed(samples) if "log.template.id" in s}
        told = incident.texts | {id: line for id, line in lines.items() if line}
        head = title(incident.root, incident.findings, templates, told)
        others = f" (and {len(units) - 1} more)" if len(units) > 1 else ""
        failing = 1.0 if incident.kind == "silence" else errors / records if records else 0.0
        return Ticket(
            id=incident.id,
            tenant=session.tenant,
            state=TicketState.OPEN,
            severity=severity_of(incident.kind, incident.strength, failing, len(tasks)),
            score=round(score_of(incident.strength), 4),
            kind=incident.kind,
            title=head.replace(":", f"{others}:", 1)
            + f"; since {_clock_time(incident.start_us)}"
            + (f"; release {', '.join(releases)}" if releases else ""),
            task=tasks[0] if tasks else None,
            tasks=tasks,
            service=root.service,
            releases=releases,
            window=Window(format_us(incident.start_us), format_us(incident.end_us)),
            observed=round(first.observed, 3) if first else 0.0,
            expected=round(first.expected, 3) if first else 0.0,
            unit=first.unit if first else "records",
            evidence=[
                Evidence(
                    f.feature,
                    f.unit,
                    round(f.observed, 3),
                    round(f.expected, 3),
                    round(score_of(f.strength), 4),
                    sentence(f),
                )
                for f in incident.findings
            ]
            + alike,
            fingerprints=[
                Fingerprint(t.id, incident.texts.get(t.id, t.id), t.n, t.is_new, format_us(t.first_us))
                for t in templates
            ],
            samples=samples,
            query=query,
            detector=Version(DETECTOR_NAME, DETECTOR_VERSION),
            model=Version("isolation-forest", session.model),
            series=[Point(format_us(at), observed, expected) for at, observed, expected in incident.series],
            opened_at=format_us(incident.opened_us),
            updated_at=format_us(incident.updated_us),
            resolved_at=None if incident.resolved_us is None else format_us(incident.resolved_us),
            is_notified=incident.is_notified,
            windows=incident.windows,
            merged_into=incident.merged_into,
        )

    def _shared(self, tenant: str, incident: Incident, units: Sequence[str], cutoff_us: int) -> list[Evidence]:
        """Return what the failed runs have in common and the good ones do not."""
        if not any(member.errors for member in incident.members.values()):
            return []
        nodes = tuple(_unit_node(unit) for unit in units)
        known = Range("event.ingested", None, cutoff_us, includes_high=False)
        where = And((nodes[0] if len(nodes) == 1 else Or(nodes), known))
        is_error = parse("log.level:>=error", cutoff_us)
        span = Span(incident.start_us, incident.end_us)
        failed, good = (
            self._records(tenant, And((where, node)), span, _COMPARED) for node in (is_error, Not(is_error))
        )
        alike = [
            Evidence(
                _SHARED,
                "share",
                round(one.failed, 3),
                round(one.good, 3),
                round(score_of(one.surprise / _SHARED_CUT), 4),
                one.sentence(),
            )
            for one in shared(failed, good)
        ]
        return alike + self._odd_runs(tenant, incident, known, failed)

    def _odd_runs(
        self, tenant: str, incident: Incident, known: Node, failed: Sequence[Mapping[str, object]]
    ) -> list[Evidence]:
        """Return whether the root's failed runs did what its runs before did not, whatever they logged."""
        if not incident.root.startswith("task:"):
            return []
        task = incident.root.partition(":")[2]
        runs = {str(one["task.id"]) for one in failed if one.get("task.name") == task and "task.id" in one}
        if not runs:
            return []
        node = And((_unit_node(incident.root), known))
        some = Or(tuple(Term("task.id", id) for id in sorted(runs)[:_MOST_RUNS])) if len(runs) > 1 else None
        whole = And((node, some or Term("task.id", min(runs))))
        before = Span(incident.start_us - _DAY_US, incident.start_us)
        past = self._records(tenant, And((node, Exists("task.id"))), before, _PAST_RECORDS, Order.NEWEST_FIRST)[::-1]
        found = odd_runs(past, self._records(tenant, whole, Span(), _PAST_RECORDS))
        if found is None:
            return []
        share = found.odd / found.runs
        strength = -math.log10(max(found.usual, 1e-9)) / ODD_RUN_CUT
        return [
            Evidence(
                _ODD_RUNS,
                "share",
                round(share, 3),
                round(found.usual, 3),
                round(score_of(strength), 4),
                found.sentence(),
            )
        ]

    def _samples(self, tenant: str, query: str, incident: Incident, cutoff_us: int) -> list[dict[str, object]]:
        """Return a few records that show it, one of each template that stood out before any second one."""
        known = Range("event.ingested", None, cutoff_us, includes_high=False)
        node = And((parse(query, cutoff_us), known))
        span = Span(incident.start_us, incident.end_us)
        samples: list[dict[str, object]] = []
        for template in incident.odd_templates()[:_SAMPLES]:
            samples += self._records(tenant, And((node, Term("log.template.id", template.id))), span, 1)
        ids = {sample["event.id"] for sample in samples}
        for record in self._records(tenant, node, span, _SAMPLES):
            if len(samples) < _SAMPLES and record["event.id"] not in ids:
                samples.append(record)
        return samples[:_SAMPLES]


def _facts(
    judgement: Judgement, first: Callable[[str], Mapping[str, object] | None], service_of: Callable[[], str | None]
) -> Facts:
    """Return what a judgement's records say, ``first`` being the oldest of a template in its window."""
    texts: dict[str, str] = {}
    found: set[str] = set()
    service: str | None = None
    for template in judgement.templates[:_FINGERPRINTS]:
        record = first(template.id)
        if record is None:
            continue
        service = service or _text(record, "service.name")
        texts[template.id] = _text(record, "log.template.text") or _text(record, "message") or template.id
        found |= names(record, is_common=template.is_common)
    return Facts(service or service_of(), texts, frozenset(found))


class _Session:
    """One tenant being judged: its cursor, its open incidents, and how far the state has been kept."""

    def __init__(
        self, tenant: str, cursor_us: int, grid: Grid, incidents: Incidents, known: set[str], units: set[str]
    ) -> None:
        self.tenant = tenant
        self.cursor_us = self.kept_us = cursor_us
        self.incidents = incidents
        self.known = known  # fingerprints whose texts the worker has
        self.units = units  # whose budgets it has
        self.model = NO_MODEL
        self.is_empty = False
        self._grid = grid

    def is_idle(self, cutoff_us: int) -> bool:
        """Return whether nothing is due at this tick."""
        due = self._grid.due_through
        return due(cutoff_us) == due(cutoff_us - TICK_US) and not self.incidents.is_over_due(cutoff_us)


# The worker ----------------------------------------------------------------------------------------------------------


class _Worker:
    """The process that judges, started on first use and again after it ended."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def start(self, tenant: str, grid: Grid, memory: Mapping[str, bytes], budget: float) -> None:
        """Begin anew with a tenant, whose units have this budget unless ``budgets`` says otherwise."""
        if self._process is None or not self._process.is_alive():
            self.close()
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            self._process = context.Process(target=work, args=(theirs,), name="detection-worker", daemon=True)
            self._process.start()
            theirs.close()
            self._pipe = ours
        self._ask("start", tenant, grid, dict(memory), budget)

    def restore(self, tenant: str, counts: list[Count], cutoff_us: int, texts: Mapping[str, str]) -> None:
        """Hand over counts from before the cursor; in as many parts as there are."""
        for first in range(0, max(len(counts), 1), _HANDED_OVER):
            part = [tuple(c) for c in counts[first : first + _HANDED_OVER]]
            self._ask("restore", tenant, part, cutoff_us, texts if not first else {})

    def budgets(self, tenant: str, units: Mapping[str, float]) -> None:
        """Set the budgets of units, in false tickets a task and day."""
        self._ask("budgets", tenant, units)

    def blind(self, tenant: str, start_us: int, end_us: int) -> None:
        """Say that nothing could arrive meanwhile."""
        self._ask("blind", tenant, start_us, end_us)

    def accept(self, tenant: str, unit: str, cutoff_us: int) -> tuple[Pin | None, dict[str, bytes]]:
        """Take a unit's last day for normal; return its new pin, None if it is not known, and what must be kept."""
        answer: tuple[Pin | None, dict[str, bytes]] = self._ask("accept", tenant, unit, cutoff_us)
        return answer

    def advance(
        self, tenant: str, counts: list[Count], cutoff_us: int, texts: Mapping[str, str]
    ) -> tuple[list[Judgement], dict[str, bytes], str, int]:
        """Judge a tick; return odd windows, what must be kept, the model's version, and how many were judged."""
        for first in range(0, len(counts), _HANDED_OVER):
            self._ask("take", tenant, [tuple(c) for c in counts[first : first + _HANDED_OVER]])
        answer: tuple[list[Judgement], dict[str, bytes], str, int] = self._ask("advance", tenant, cutoff_us, texts)
        return answer

    def _ask(self, *request: object) -> Any:
        if self._pipe is None:
            raise WorkerGone("the process that judges is not running")
        try:
            self._pipe.send(request)
            if not self._pipe.poll(_WORKER_TIMEOUT_S):
                raise WorkerGone(f"the process that judges gave no answer within {_WORKER_TIMEOUT_S:.0f} s")
            ok, answer = self._pipe.recv()
        except (EOFError, OSError) as exc:
            self.close()
            raise WorkerGone("the process that judges ended; a new one takes over") from exc
        except WorkerGone:
            self.close()
            raise
        if not ok:
            raise WorkerGone(f"the process that judges failed: {answer}")
        return answer

    @property
    def pid(self) -> int | None:
        """Return the process's id, None if it does not run."""
        return self._process.pid if self._process is not None else None

    def kill(self) -> None:
        """End the process at once, whoever waits for its answer; ``close`` is still due."""
        process = self._process
        if process is not None:
            with suppress(ValueError, AttributeError):  # closed meanwhile
                process.kill()

    def close(self) -> None:
        """End the process; it also ends by itself when this one does."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.join(timeout=2)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process.close()
            self._process = None


def work(pipe: Connection) -> None:
    """Judge for the process at the other end of ``pipe``, until it is gone."""
    # An interrupt in the terminal reaches the whole group; the service decides when this ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from detectors.calibrate import Budgets
    from detectors.engine import Judge

    judges: dict[str, Judge] = {}
    taken: dict[str, list[Count]] = {}  # for the next tick
    while True:
        try:
            command, tenant, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        answer: object = None
        is_done = True
        cutoff_us = None
        try:
            match command:
                case "start":
                    grid, memory, budget = arguments
                    taken.pop(tenant, None)
                    judges[tenant] = Judge(grid, memory, Budgets(budget))
                case "take":
                    taken.setdefault(tenant, []).extend(map(Count._make, arguments[0]))
                case "restore":
                    counts, before_us, texts = arguments
                    judges[tenant].restore(map(Count._make, counts), before_us, texts)
                    gc.freeze()  # what is remembered of thousands of tasks is not looked through for garbage
                case "budgets":
                    judges[tenant].budgets.add(*arguments)
                case "blind":
                    judges[tenant].blind(*arguments)
                case "accept":
                    unit, before_us = arguments
                    answer = judges[tenant].accept(unit, before_us), judges[tenant].memory()
                case "advance":
                    cutoff_us, texts = arguments
                    judge = judges[tenant]
                    before = judge.judged
                    judgements = judge.advance(taken.pop(tenant, ()), cutoff_us, texts)
                    answer = judgements, judge.memory(), judge.model_version, judge.judged - before
        except Exception as exc:  # noqa: BLE001 - told to the other end, which starts over
            judges.pop(tenant, None)
            is_done, answer = False, f"{type(exc).__name__}: {exc}"
        try:
            pipe.send((is_done, answer))
        except OSError:
            return  # whoever asked was killed meanwhile
        if is_done and cutoff_us is not None:
            # After the answer, so that no window waits for the daily fit.
            judges[tenant].prepare()


# Learning ------------------------------------------------------------------------------------------------------------


class WatchedUnit(UnitName):
    """Whether a unit is ``learning`` or ``watched``, since when.

    ``pinned`` is what slow growth is measured against, None in the first days.
    """

    state: str
    since: str
    pinned: PinnedUnit | None


def watched_units(blobs: Mapping[str, Blob]) -> list[WatchedUnit]:
    """Return the units of what detection last kept of a tenant; those being learned first, then by name."""
    kept = blobs.get("learning")
    if kept is None or kept.version != _MEMORY_VERSION:
        return []
    pins: dict[str, PinnedUnit] = {}
    if (held := blobs.get("pins")) is not None and held.version == _MEMORY_VERSION:
        of = msgspec.json.decode(held.value)
        pins = {unit: _pinned(unit, Pin(*pin), of["step_us"]) for unit, pin in of["units"].items()}
    found: list[WatchedUnit] = []
    for unit, (is_learning, since_us) in msgspec.json.decode(kept.value).items():
        found.append(
            {
                **_unit_name(unit),
                "state": "learning" if is_learning else "watched",
                "since": format_us(since_us),
                "pinned": pins.get(unit),
            }
        )
    return sorted(found, key=lambda one: (one["state"], one["task"] or "", one["service"] or ""))


def _blob(value: bytes) -> Blob:
    from logsvc.state import Blob

    return Blob(_MEMORY_VERSION, value)


def _unit_name(unit: str) -> UnitName:
    kind, _, name = unit.partition(":")
    return {"task": name if kind == "task" else None, "service": name if kind == "service" else None}


def _pinned(unit: str, pin: Pin, step_us: int) -> PinnedUnit:
    return {
        **_unit_name(unit),
        "pinned_at": format_us(pin.at * step_us),
        "errors": float(f"{pin.rate * (_MINUTE_US / step_us if pin.by_time else 1):.3g}"),
        "per": "minute" if pin.by_time else "record",
        "accepted_since": format_us(pin.accepted * step_us) if pin.accepted else None,
    }


# Backtest ------------------------------------------------------------------------------------------------------------


class Flag(msgspec.Struct):
    """One odd window, as ``logsvc backtest`` writes it; times are RFC 3339. ``ticket`` is the one it belongs to.

    ``detected_at`` is the end of the window plus the grace, and never before the last record that was used.
    """

    task: str
    start: str
    end: str
    detected_at: str
    score: float
    kind: str
    ticket: str


class Opened(msgspec.Struct):
    """A ticket that would have been opened."""

    id: str
    opened_at: str
    resolved_at: str | None
    kind: str
    score: float
    tasks: list[str]
    title: str
    merged_into: str | None  # the ticket that went on in its place
    start: str  # of the first odd record's step
    end: str
    is_notified: bool
    evidence: list[str]  # sentences, the strongest first
    templates: list[tuple[int, bool, str]]  # records, whether never seen before, text
    releases: list[str]
    series: list[tuple[str, float, float]]  # start of a step, observed, expected


def new_history(tenant: str, settings: DetectionSettings) -> History:
    """Return an empty history that counts as detection needs it."""
    from logsvc.backtest import History

    return History(tenant, step_us=Grid(_us(settings.window), _us(settings.grace)).step_us, tick_us=TICK_US)


class Replayed(NamedTuple):
    """What a history would have brought: odd windows and tickets, the oldest first, and units still being learned."""

    flags: list[Flag]
    tickets: list[Opened]
    learning: list[str]


def backtest(history: History, settings: DetectionSettings) -> Replayed:
    """Judge a history as the service would have, tick by tick."""
    from detectors.calibrate import Budgets
    from detectors.engine import Engine

    grid = Grid(_us(settings.window), _us(settings.grace))
    flags: list[Flag] = []
    lines: dict[str, str] = {}
    last: dict[str, Incident] = {}
    known: set[str] = set()  # fingerprints whose texts the engine has
    cutoff_us = 0

    def describe(judgement: Judgement) -> Facts:
        def first(template: str) -> Mapping[str, object] | None:
            record = history.first(judgement.unit, template, judgement.start_us, judgement.window_end_us, cutoff_us)
            if record is not None and (line := error_line(record)):
                lines.setdefault(template, line)
            return record

        return _facts(judgement, first, lambda: history.service(judgement.unit))

    own = {unit: settings.budget(history.tenant, unit, history.service(unit)) for unit in history.units}
    budgets = Budgets(settings.budget(history.tenant, "", None), own)
    engine = Engine(grid, history.tenant, describe, budgets=budgets)

    def advance(counts: Sequence[Count]) -> None:
        ids = {c.key for c in counts if c.dimension == Dimension.TEMPLATE.value} - known
        known.update(ids)
        for change in engine.advance(counts, cutoff_us, {id: history.texts[id] or id for id in ids}):
            last[change.incident.id] = change.incident
        for judgement in engine.judgements:
            incident = engine.incidents.of(judgement) if judgement.is_raised else None
            if incident is not None:
                flags.append(
                    Flag(
                        task=judgement.unit.partition(":")[2],
                        start=format_us(judgement.start_us),
                        end=format_us(judgement.end_us),
                        detected_at=format_us(max(judgement.window_end_us + grid.grace_us, cutoff_us)),
                        score=round(score_of(judgement.strength), 4),
                        kind=judgement.kind,
                        ticket=incident.id,
                    )
                )

    def idle(until_us: int) -> None:
        nonlocal cutoff_us
        # By then all is forgotten: a record from the next century is no reason to wait for it.
        until_us = min(until_us, cutoff_us + HORIZON_US + 2 * _DAY_US)
        while cutoff_us + TICK_US < until_us:
            cutoff_us += TICK_US
            if not engine.is_idle(cutoff_us):
                advance(())

    for _, hour in itertools.groupby(history.ticks(), lambda tick: -(-tick[0] // _HOUR_US)):
        ticks = [(tick_us, list(map(Count._make, counts))) for tick_us, counts in hour]
        if cutoff_us:
            # Through the end of the hour before, which no expected hour may reach into.
            idle((ticks[0][0] - 1) // _HOUR_US * _HOUR_US + 1)
        for (tick_us, _), counts in zip(ticks, engine.expect(ticks), strict=True):
            if cutoff_us:
                idle(tick_us)
            cutoff_us = tick_us
            advance(counts)
    # What came last is judged once its grace is over; what comes after the end nobody knows.
    idle(cutoff_us + grid.grace_us + grid.step_us + TICK_US)
    for flag in flags:
        while (into := last[flag.ticket].merged_into) is not None:
            flag.ticket = into
    ordered = sorted(last.values(), key=lambda incident: (incident.opened_us, incident.id))
    learning = [unit.partition(":")[2] for unit in engine.judge.learning]
    return Replayed(flags, [_opened(incident, lines) for incident in ordered], learning)


def _opened(incident: Incident, lines: Mapping[str, str]) -> Opened:
    texts = {**incident.texts, **lines}
    templates = incident.odd_templates()
    return Opened(
        id=incident.id,
        opened_at=format_us(incident.opened_us),
        resolved_at=None if incident.resolved_us is None else format_us(incident.resolved_us),
        kind=incident.kind,
        score=round(score_of(incident.strength), 4),
        tasks=[unit.partition(":")[2] for unit in incident.members],
        title=title(incident.root, incident.findings, templates, texts),
        merged_into=incident.merged_into,
        start=format_us(incident.start_us),
        end=format_us(incident.end_us),
        is_notified=incident.is_notified,
        evidence=[sentence(finding) for finding in incident.findings],
        templates=[(t.n, t.is_new, texts.get(t.id, t.id)) for t in templates[:_FINGERPRINTS]],
        releases=_failing_releases(incident),
        series=[(format_us(at), observed, expected) for at, observed, expected in incident.series],
    )


def _failing_releases(incident: Incident) -> list[str]:
    """Return the releases of most failures, three at most."""
    most = sorted(incident.versions.items(), key=lambda item: (-item[1], item[0]))
    return [version for version, n in most[:3] if n >= _RELEASE_SHARE * most[0][1]]


# Evaluation ----------------------------------------------------------------------------------------------------------


def simulate(
    preset: str, seed: int, messages: str, without: Iterable[str] = ()
) -> tuple[Iterable[dict[str, Any]], dict[str, Any]]:
    """Return made-up records, by arrival, and the truth about the incidents in them.

    ``without`` are kinds of incidents that are left out.

    Raises:
        BadInput: If there is no such preset, pool of messages or kind.
    """
    from detectors import simulate as simulation

    asked: list[tuple[str, str, Mapping[str, object]]] = [
        ("preset", preset, simulation.PRESETS),
        ("pool of messages", messages, simulation.POOLS),
        *(("kind of incident", kind, simulation.INCIDENTS) for kind in without),
    ]
    for what, name, known in asked:
        if name not in known:
            raise BadInput(f"no {what} {name!r}; expected one of {', '.join(known)}")
    chosen = simulation.PRESETS[preset]
    for kind in without:
        chosen = chosen.without(kind)
    made = simulation.Simulation(chosen, seed, pool=messages)
    return made.records(), made.truth | {"preset": preset}


def evaluate(
    truth: Mapping[str, Any], flags: Iterable[Mapping[str, Any]], *, with_forest: bool = True
) -> evaluation.Measures:
    """Return how well flags, as ``backtest`` writes them, match the truth; on request without the forest's.

    Raises:
        BadInput: If a field is missing or a time cannot be read.
    """
    try:
        read = [
            evaluation.Flag(
                task=str(flag["task"]),
                start=_seconds(flag["start"]),
                end=_seconds(flag["end"]),
                detected=_seconds(flag["detected_at"] if flag.get("detected_at") is not None else flag["end"]),
                score=float(flag.get("score", 1.0)),
                kind=str(flag.get("kind", "")),
                ticket=flag.get("ticket"),
            )
            for flag in flags
        ]
        return evaluation.measure(truth, read if with_forest else evaluation.without_forest(read))
    except (KeyError, TypeError, AttributeError) as exc:
        raise BadInput(f"neither truth nor flags of the expected form: {type(exc).__name__} {exc}") from exc


def _seconds(time: object) -> float:
    return parse_timestamp(time) / 1e9


# Words ---------------------------------------------------------------------------------------------------------------


def _us(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)


def _text(record: Mapping[str, object], name: str) -> str | None:
    value = record.get(name)
    return value if isinstance(value, str) else None


def _clock_time(us: int) -> str:
    return format_us(us)[11:16] + " UTC"


def _unit_node(unit: str) -> Node:
    kind, _, name = unit.partition(":")
    if kind == "task":
        return Term("task.name", name)
    return And((Term("service.name", name), Not(Exists("task.name"))))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _query(incident: Incident, units: Sequence[str], grid: Grid) -> str:
    """Return the query that finds the odd records; for silence, what came before and did not come."""
    parts = []
    for unit in units:
        kind, _, name = unit.partition(":")
        if kind == "task":
            parts.append(f"task.name:{_quoted(name)}")
        else:
            parts.append(f"(service.name:{_quoted(name)} AND NOT task.name:*)")
    who = parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"
    what = {
        "error_burst": " AND log.level:>=error",
        "new_error": " AND log.level:>=error",
        "joint": " AND log.level:>=warn",
        "level_mix": " AND log.level:>=warn",
        "latency": " AND event.duration:*",
    }.get(incident.kind, "")
    if any(finding.feature == "unfinished" for finding in incident.findings[:1]):
        what = ""
    start = incident.start_us - (2 * grid.window_us if incident.kind == "silence" else 0)
    return f"{who}{what} AND @timestamp:[{_quoted(format_us(start))} TO {_quoted(format_us(incident.end_us))}]"
