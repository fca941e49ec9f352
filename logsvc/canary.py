"""Canary: proof, again and again, that an error that arrives becomes an alert that is delivered.

A log service fails silently: while it indexes, judges or delivers nothing, there is simply no ticket.
So every hour a burst of errors is planted in a tenant of its own, over the same route as everybody's
records, and must become a delivered alert in time. If it does not, a ticket of the highest severity
about the service itself says how far it came; it resolves when the next one comes through. And since
a service that is gone opens no tickets, an address elsewhere is called while all is well, whose
silence is the alarm (a dead man's switch).

What always holds:

- Nothing of it shows in any other tenant; no key reaches its tenant; what it leaves is erased as soon
  as it came through.
- Each run is a task of its own, in a tenant without history, so that a plain rule opens its ticket:
  the first one on a new install does as well as the thousandth.
- Time within a run, and until the next, is measured by a clock that does not jump. What became of the
  last run outlives a restart; a run that a restart cuts off is no failure.
- The address of the switch is in no log: it may hold a secret.

Not here: what it goes through (everything else).
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import httpx
import msgspec
from loguru import logger

from logsvc import __version__, durable
from logsvc.errors import LogsvcError, StateUnavailable, StoreUnavailable
from logsvc.indexer import Indexer
from logsvc.names import SHADOW_TENANT
from logsvc.notifiers import Event
from logsvc.query import MatchAll, Term
from logsvc.settings import CanarySettings, DetectionSettings
from logsvc.state import State
from logsvc.store import Span, Store
from logsvc.tickets import Evidence, Severity, Ticket, TicketEvent, TicketState, about_service, next_state, ticket_id
from logsvc.timestamps import US_PER_S, Clock, format_us

FILE = "canary.json"
"""What became of the last run, in a data directory."""

CHANNEL = "canary"
"""The channel of the outbox on which its alerts are delivered, and nothing else is."""

RECORDS = 20
_FIRST_AFTER_S = 60.0  # a start has enough to do
_RETRY_S = 300.0
_POLL_S = 0.25
_SLACK_S = 60.0
_ERASE_S = 10.0
_END_S = 1.0


class Stage(IntEnum):
    """How far a run has come."""

    STARTED = 0
    INGESTED = 1
    SEARCHABLE = 2
    JUDGED = 3
    TICKET = 4
    DELIVERED = 5


_MISSED = {
    Stage.STARTED: "its records were not taken in",
    Stage.INGESTED: "its records were taken in, but are not searchable",
    Stage.SEARCHABLE: "its records are searchable, but were not judged",
    Stage.JUDGED: "its errors were judged, but opened no ticket",
    Stage.TICKET: "its ticket opened, but was not delivered",
}
"""By the last stage that was reached: what did not happen then."""


@dataclass(frozen=True, slots=True)
class Run:
    """One planted burst: its task, which nobody else has, and the time at which it was planted."""

    task: str
    planted_us: int


class Course(Protocol):
    """The way that a burst goes through the service. Every method may raise ``LogsvcError``, and is tried again."""

    def clear(self) -> None:
        """Erase what earlier runs have left."""
        ...

    def plant(self, task: str) -> Run:
        """Send a burst of errors; return once it is acknowledged."""
        ...

    def reached(self, run: Run) -> Stage:
        """Return how far it has come."""
        ...


class Memory(msgspec.Struct):
    """What outlives a restart. Times are microseconds since 1970."""

    ended_us: int | None = None
    succeeded_us: int | None = None
    failed_since_us: int | None = None  # while the last run failed
    stage: str | None = None  # that the last run reached
    ticket: str | None = None  # that is open about it


class Canary:
    """Runs from ``open`` to ``close``.

    Args:
        course: What runs go through.
        state: Where the ticket about the service itself is kept.
        path: File for ``Memory``.
        tenant: The operator's, who gets that ticket.
        settings: How often, and by when.
        clock: The time, for people.
        on_change: Called after a ticket has changed.
        monotonic: Seconds that never jump.
        pause: Waits so many seconds; returns whether it is closing.
    """

    def __init__(
        self,
        course: Course,
        state: State,
        path: Path,
        tenant: str,
        settings: CanarySettings,
        *,
        clock: Clock,
        on_change: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self._course = course
        self._state = state
        self._path = path
        self._tenant = tenant
        self._every_s = settings.every.total_seconds()
        self._deadline_s = settings.deadline.total_seconds()
        self._clock = clock
        self._on_change = on_change
        self._monotonic = monotonic
        self._closing = threading.Event()
        self._pause = pause or self._closing.wait
        self._memory = _read(path)
        self._succeeded_at = monotonic()
        self._stages_s: dict[str, float] = {}
        self._runs = {"delivered": 0, "failed": 0}
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)

    def open(self) -> None:
        """Start; the first run comes within a minute, unless the last one was not long ago."""
        self._thread.start()

    def close(self) -> None:
        """Stop, in the middle of a run if need be; idempotent."""
        self._closing.set()
        if self._thread.is_alive():
            # A run that waits for the store is left behind: nothing of it is missed.
            self._thread.join(_END_S)

    def why_not_well(self) -> str | None:
        """Return why the last run is no proof that all is well; None if it is."""
        if self._memory.failed_since_us is not None:
            return f"the canary has not come through since {format_us(self._memory.failed_since_us)}"
        if self._memory.succeeded_us is None:
            return "no canary has come through yet"
        # A thread that hangs says nothing, so whoever asks looks at the clock.
        if self._monotonic() - self._succeeded_at > self._every_s + self._deadline_s + _SLACK_S:
            return f"no canary since {format_us(self._memory.succeeded_us)}"
        return None

    def metrics(self) -> dict[str, Callable[[], float | Mapping[str, float]]]:
        """Return readers of the metrics of the canary, by name."""
        return {
            "logsvc_canary_up": lambda: float(self.why_not_well() is None),
            "logsvc_canary_last_success_timestamp_seconds": lambda: (self._memory.succeeded_us or 0) / US_PER_S,
            "logsvc_canary_runs_total": lambda: dict(self._runs),
            "logsvc_canary_stage_seconds": lambda: dict(self._stages_s),
        }

    def first_due_s(self) -> float:
        """Return how long the first run waits after a start, however the clock was set meanwhile."""
        first_s = min(_FIRST_AFTER_S, self._every_s)
        if self._memory.succeeded_us is None or self._memory.failed_since_us is not None:
            return first_s
        since_s = (self._clock() - self._memory.succeeded_us) / US_PER_S
        return min(max(self._every_s - since_s, first_s), self._every_s)

    def run_once(self) -> Stage | None:
        """Do one run and say what became of it; None if the service is closing meanwhile.

        Returns when it was delivered, or its time is up, and the ticket about it is kept.
        """
        began = self._monotonic()
        stages_s: dict[str, float] = {}
        task, run, stage, trouble, known = f"canary.{secrets.token_hex(4)}", None, Stage.STARTED, "", ""
        with contextlib.suppress(LogsvcError):
            self._course.clear()  # a store that is away fails the run soon enough
        while True:
            try:
                if run is None:
                    run = self._course.plant(task)
                    stage = Stage.INGESTED
                stage = max(stage, self._course.reached(run))
                trouble = ""
            except LogsvcError as exc:
                trouble = str(exc)
            except Exception as exc:  # noqa: BLE001 - whatever it is, the run did not come through
                trouble = f"{type(exc).__name__}: {exc}"
            for passed in Stage:
                if Stage.STARTED < passed <= stage:
                    stages_s.setdefault(passed.name.lower(), self._monotonic() - began)
            if stage is Stage.DELIVERED:
                break
            if trouble and trouble != known:
                logger.debug("canary: {}", trouble)
                known = trouble
            if self._monotonic() - began >= self._deadline_s:
                break
            if self._pause(_POLL_S):
                return None
        self._stages_s = stages_s
        self._conclude(stage, trouble)
        if stage is Stage.DELIVERED:
            with contextlib.suppress(LogsvcError):  # the next one clears as well
                self._course.clear()
        return stage

    def _run(self) -> None:
        if self._memory.succeeded_us is not None:
            # Of the time before the start only the clock on the wall knows, and it may be wrong.
            since_s = (self._clock() - self._memory.succeeded_us) / US_PER_S
            self._succeeded_at -= min(max(since_s, 0.0), self._every_s)
        wait_s = self.first_due_s()
        while not self._pause(wait_s):
            began = self._monotonic()
            try:
                stage = self.run_once()
            except StateUnavailable as exc:
                # Nothing can be kept, tickets least of all; the switch is not held any more.
                logger.error("canary: {}", exc)
                stage = Stage.STARTED
            except Exception:  # noqa: BLE001 - it must not fall silent for good
                logger.exception("canary: unexpected")
                stage = Stage.STARTED
            if stage is None:
                return
            took_s = self._monotonic() - began
            is_delivered = stage is Stage.DELIVERED
            wait_s = max(self._every_s - took_s, 0.0) if is_delivered else min(self._every_s, _RETRY_S)

    # -- what became of it --------------------------------------------------------------------

    def _conclude(self, stage: Stage, trouble: str) -> None:
        now_us = self._clock()
        memory = self._memory
        memory.ended_us, memory.stage = now_us, stage.name.lower()
        if stage is Stage.DELIVERED:
            self._runs["delivered"] += 1
            memory.succeeded_us, self._succeeded_at = now_us, self._monotonic()
            self._resolve(now_us)
            memory.failed_since_us = memory.ticket = None
        else:
            self._runs["failed"] += 1
            if memory.failed_since_us is None:
                memory.failed_since_us = now_us
            logger.error("canary: {}{}", _MISSED[stage], f" ({trouble})" if trouble else "")
            try:
                self._open_or_update(stage, trouble, now_us)
            finally:
                self._keep()
        self._keep()

    def _keep(self) -> None:
        try:
            durable.replace(self._path, msgspec.json.encode(self._memory))
        except OSError as exc:
            logger.warning("canary: cannot write {}: {}", self._path, exc)

    def _open_or_update(self, stage: Stage, trouble: str, now_us: int) -> None:
        assert self._memory.failed_since_us is not None
        ticket = self._ticket(self._memory.failed_since_us, stage, trouble, now_us)
        current = self._state.get_ticket(self._tenant, ticket.id)
        if current is None:
            self._state.keep_tickets(self._tenant, [("anomaly.opened", ticket)], now_us=now_us)
            self._memory.ticket = ticket.id
        elif current.title != ticket.title:
            ticket.state = next_state(current.state, TicketEvent.UPDATED)
            ticket.opened_at, ticket.resolved_at = current.opened_at, current.resolved_at
            self._state.keep_tickets(self._tenant, [("anomaly.updated", ticket)], now_us=now_us)
        self._on_change()

    def _resolve(self, now_us: int) -> None:
        if self._memory.ticket is None:
            return
        ticket = self._state.get_ticket(self._tenant, self._memory.ticket)
        if ticket is not None and ticket.state is not TicketState.RESOLVED:
            ticket.state = next_state(ticket.state, TicketEvent.RESOLVED)
            ticket.resolved_at = ticket.updated_at = format_us(now_us)
            self._state.keep_tickets(self._tenant, [("anomaly.resolved", ticket)], now_us=now_us)
            self._on_change()

    def _ticket(self, since_us: int, stage: Stage, trouble: str, now_us: int) -> Ticket:
        title = f"logsvc: errors do not become alerts: a planted burst did not come through; {_MISSED[stage]}"
        evidence = [Evidence("canary", "stages", float(stage), float(Stage.DELIVERED), 1.0, title)]
        if trouble:
            evidence.append(Evidence("canary", "stages", float(stage), float(Stage.DELIVERED), 1.0, trouble[:500]))
        return about_service(
            "canary",
            self._tenant,
            ticket_id(self._tenant, "canary", since_us),
            Severity.CRITICAL,
            title,
            evidence,
            since_us=since_us,
            now_us=now_us,
            observed=float(stage),
            expected=float(Stage.DELIVERED),
            unit="stages",
        )


def _read(path: Path) -> Memory:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Memory)
    except FileNotFoundError:
        return Memory()
    except (OSError, msgspec.MsgspecError) as exc:
        logger.warning("canary: cannot read {}: {}; it begins anew", path, exc)
        return Memory()


class CanaryNotifier:
    """The channel at whose end the canary itself listens; a ``Notifier``."""

    name = CHANNEL
    target = CHANNEL

    def __init__(self) -> None:
        self._tickets: set[str] = set()
        self._lock = threading.Lock()

    def deliver(self, event: Event) -> None:
        """Take note that an alert of a ticket arrived."""
        if event.type == "anomaly.opened":
            with self._lock:
                self._tickets.add(str(event.data["id"]))

    def has(self, ticket_id: str) -> bool:
        """Return whether the alert that a ticket opened has arrived."""
        with self._lock:
            return ticket_id in self._tickets

    def clear(self) -> None:
        """Forget what arrived."""
        with self._lock:
            self._tickets.clear()

    def close(self) -> None:
        """Nothing is held."""


class ServiceCourse:
    """The real course: in at the service's own port, out at the outbox.

    Args:
        url: Where the service listens, as it reaches itself.
        key: Key of the shadow tenant, which only this process knows.
        store: Where records must be found.
        indexer: Erases them.
        state: Where the shadow tenant's ticket must be.
        forget: Has detection forget a tenant.
        notifier: Where the alert must arrive.
        detection: Says when a burst must have been judged.
        clock: The time.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        store: Store,
        indexer: Indexer,
        state: State,
        forget: Callable[[str], None],
        notifier: CanaryNotifier,
        detection: DetectionSettings,
        clock: Clock,
    ) -> None:
        # It talks to its own socket: a certificate is for the name by which others know it.
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=15.0,
            trust_env=False,
            verify=False,  # noqa: S501
        )
        self._store = store
        self._indexer = indexer
        self._state = state
        self._forget = forget
        self._notifier = notifier
        self._judged_after_us = (detection.step + detection.grace) // timedelta(microseconds=1)
        self._clock = clock

    def clear(self) -> None:
        """Erase the shadow tenant: records, tickets, what detection knows."""
        self._notifier.clear()
        self._forget(SHADOW_TENANT)
        self._state.forget_tenant(SHADOW_TENANT)
        if SHADOW_TENANT in self._store.tenants():
            try:
                self._indexer.erase(SHADOW_TENANT, MatchAll(), Span(), _ERASE_S)
            except TimeoutError as exc:
                raise StoreUnavailable(str(exc)) from exc

    def plant(self, task: str) -> Run:
        """Send the burst over HTTP."""
        record = {
            "level": "error",
            "service": "logsvc-canary",
            "task": task,
            "message": "a planted error, to see that it becomes an alert",
        }
        body = msgspec.json.Encoder().encode_lines([record | {"event.id": f"{task}-{n}"} for n in range(RECORDS)])
        planted_us = self._clock()
        try:
            answer = self._http.post("/api/v1/ingest", content=body)
        except httpx.HTTPError as exc:
            raise LogsvcError(f"the service does not answer itself: {type(exc).__name__}: {exc}") from exc
        if answer.status_code != httpx.codes.ACCEPTED:
            raise LogsvcError(f"the service answered itself {answer.status_code}: {answer.text[:300]}")
        return Run(task, planted_us)

    def reached(self, run: Run) -> Stage:
        """Look from the end, so that what was erased or expired early on does not matter."""
        page = self._state.list_tickets(SHADOW_TENANT, task=run.task, limit=1)
        if page.tickets:
            return Stage.DELIVERED if self._notifier.has(page.tickets[0].id) else Stage.TICKET
        found = self._store.count(SHADOW_TENANT, Term("task.name", run.task))
        if found < RECORDS:
            return Stage.INGESTED
        judged_us = self._state.checkpoint(SHADOW_TENANT) or 0
        return Stage.JUDGED if judged_us >= run.planted_us + self._judged_after_us else Stage.SEARCHABLE

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._http.close()


class DeadMansSwitch:
    """Calls an address while all is well; whoever is behind it raises the alarm when the calls stop.

    Args:
        url: The address; it may hold a secret.
        every: How often.
        why_not_well: Returns what is wrong; nothing if all is well.
        on_call: Called with the outcome: called, failed, withheld.
        timeout_s: How long a call may take.
    """

    def __init__(
        self,
        url: str,
        every: timedelta,
        why_not_well: Callable[[], Sequence[str]],
        *,
        on_call: Callable[[str], None] = lambda _outcome: None,
        timeout_s: float = 10.0,
    ) -> None:
        self._url = httpx.URL(url)
        self._every_s = every.total_seconds()
        self._why_not_well = why_not_well
        self._on_call = on_call
        self._client = httpx.Client(timeout=timeout_s, follow_redirects=False, trust_env=False)
        self._said = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dead-mans-switch", daemon=True)

    def open(self) -> None:
        """Start calling."""
        self._thread.start()

    def close(self) -> None:
        """Stop; idempotent. A call that hangs is left behind."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)
        if not self._thread.is_alive():
            self._client.close()

    def call(self) -> str:
        """Call once if all is well; return what became of it: called, failed or withheld."""
        try:
            reasons = list(self._why_not_well())
        except Exception as exc:  # noqa: BLE001 - what cannot be asked is not well
            reasons = [f"{type(exc).__name__}: {exc}"]
        if reasons:
            outcome, what = "withheld", "not called: " + "; ".join(reasons)
        else:
            outcome, what = self._get()
        self._on_call(outcome)
        if what != self._said:
            (logger.warning if what else logger.info)("dead man's switch: {}", what or "called again")
            self._said = what
        return outcome

    def _get(self) -> tuple[str, str]:
        host = self._url.host
        try:
            # Streamed: the status is all that matters, and an endless reply is not read.
            with self._client.stream("GET", self._url, headers={"User-Agent": f"logsvc/{__version__}"}) as answer:
                status = answer.status_code
        except httpx.HTTPError as exc:
            return "failed", f"{host} did not answer: {type(exc).__name__}"
        return ("called", "") if 200 <= status < 300 else ("failed", f"{host} answered {status}")

    def _run(self) -> None:
        while not self._closing.is_set():
            self.call()
            self._closing.wait(self._every_s)
