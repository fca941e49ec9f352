"""App: the composition root. The only place that names a backend; everything else gets its parts.

Order of opening: lock, state, store (its mapping compared), journal, indexer, ingest, detection,
outbox, HTTP. Closing is the reverse: stop taking requests, let the journal drain into the store,
then release.

What always holds: a schema or mapping that differs stops the start, named. An Elasticsearch that
is away at the start does not: records are taken into the journal meanwhile, nothing is indexed
before the mapping has been compared, and a difference found then stops the service.

Not here: what any part does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from loguru import logger

from logsvc import durable, replay, terminal
from logsvc import journal as journals
from logsvc.api import create_api
from logsvc.api.connections import HttpProtocol
from logsvc.api.services import Services
from logsvc.backup import INDEX, ServerSnapshots, Snapshotter, held, refuse_half_restored, take_snapshot
from logsvc.canary import CHANNEL, Canary, CanaryNotifier, DeadMansSwitch, ServiceCourse
from logsvc.canary import FILE as CANARY_FILE
from logsvc.crew import Crew
from logsvc.deadletters import DIRECTORY as DEAD_LETTERS
from logsvc.deadletters import DeadLetters
from logsvc.detection import Detection
from logsvc.errors import Conflict, DataDirectoryLocked, LogsvcError, SchemaMismatch, SettingsError, StoreUnavailable
from logsvc.indexer import CHECKPOINT, Indexer, Pipeline
from logsvc.ingest import Ingest
from logsvc.journal import Journal
from logsvc.keys import Keys, Scope
from logsvc.ledger import Ledger
from logsvc.lock import DataDirectoryLock, held_alone, make_data_dir
from logsvc.names import SHADOW_TENANT
from logsvc.notifiers import make_notifiers
from logsvc.outbox import Outbox
from logsvc.settings import Settings
from logsvc.state import DeliveryState, State, open_state
from logsvc.store import Store, StoreHealth
from logsvc.telemetry import RequestMetrics, Telemetry, configure_log
from logsvc.tickets import TicketState
from logsvc.timestamps import US_PER_S, MonotonicClock, system_clock

if TYPE_CHECKING:
    from fastapi import FastAPI

STORE_CHECK_EVERY_S = 2.0
CLOSING_S = 1.0  # of the time to end in, for files and connections
RETENTION_EVERY = timedelta(minutes=10)
SNAPSHOTS_TIDIED_EVERY = timedelta(minutes=1)
SNAPSHOT_WAIT_S = 300.0
WAY_OUT = "`logsvc reindex` brings it up to date"
REINDEXED = "index.reindexed"
ERASURES = "erasures.jsonl"
USER_KEY = "user-hash-key"


def open_store(settings: Settings) -> Store:
    """Return the store that the settings name."""
    if settings.store.is_embedded:
        from logsvc.store.embedded import EmbeddedStore

        return EmbeddedStore(settings.data_dir / INDEX)
    from logsvc.store.elastic import ElasticStore

    return ElasticStore(
        settings.store.url,
        prefix=settings.store.prefix,
        retention=settings.retention.records,
        no_reindexer=lambda: _alone_in(settings.data_dir),
    )


def reindex(settings: Settings, on_progress: Callable[[str, int, int], None]) -> int:
    """Bring the store's indices to this version; return how many were not.

    The embedded index takes its place only when no service runs: beside one it is prepared, all but what comes later.

    Args:
        settings: Which store.
        on_progress: Gets what is being brought up to date, how many of its records are done, and how many it has.
    """
    if settings.store.is_embedded:
        return _reindex_embedded(settings.data_dir, on_progress)
    from logsvc.store.elastic import ElasticStore, Reindexer

    make_data_dir(settings.data_dir)
    with _alone_in(settings.data_dir), closing(ElasticStore(settings.store.url, prefix=settings.store.prefix)) as store:
        return Reindexer(store).run(on_progress)


def _reindex_embedded(data_dir: Path, on_progress: Callable[[str, int, int], None]) -> int:
    """Write the index anew beside the one in use; without a service, put it in its place then."""
    from logsvc.store import embedded

    root, target = data_dir / INDEX, data_dir / REINDEXED
    if not data_dir.is_dir():
        raise SettingsError(f"{data_dir} holds no index; expected the folder that LOGSVC_DATA_DIR names")
    with ExitStack() as stack:
        try:
            stack.enter_context(DataDirectoryLock.acquire(data_dir, "logsvc reindex"))
            source = root
        except DataDirectoryLocked:
            links = take_snapshot(data_dir, "reindex", lambda: embedded.EmbeddedStore(root), SNAPSHOT_WAIT_S).path
            stack.enter_context(held(Path(links)))
            source = Path(links) / INDEX
        if source == root:
            refuse_half_restored(data_dir)
            embedded.finish_taking_place(root)
        if not source.is_dir():
            raise SettingsError(f"{data_dir} holds no index; expected the folder that LOGSVC_DATA_DIR names")
        stack.enter_context(_alone_in(target))
        rebuilt = embedded.rebuild(source, target, on_progress)
        if source == root:
            embedded.take_place(target, root)
    return rebuilt


@contextmanager
def _alone_in(target: Path) -> Iterator[None]:
    """Hold the folder, made if missing, against a second command that would write the same files."""
    target.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with held_alone(fd, Conflict(f"another reindex is under way in {target}; wait until it has ended")):
        yield


def open_snapshots(settings: Settings) -> ServerSnapshots | None:
    """Return what keeps the records in snapshots on their server; None if the settings name no repository for them."""
    if settings.store.is_embedded or not settings.store.repository:
        return None
    from logsvc.store.elastic import ElasticStore, Snapshots

    return Snapshots(ElasticStore(settings.store.url, prefix=settings.store.prefix), settings.store.repository)


def run(settings: Settings) -> int:
    """Serve until told to stop; return the exit code."""
    configure_log(settings.log)
    try:
        return Service(settings).run()
    except LogsvcError as exc:
        logger.critical("the service does not start: {}", exc)
        raise


class Service:
    """One running service; see the module."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._server: uvicorn.Server | None = None
        self._failure: LogsvcError | None = None
        self._stopping = threading.Event()
        self._stop_by = 0.0

    def run(self) -> int:
        """Open everything, serve, close everything.

        Raises:
            LogsvcError: If something stops the start.
        """
        settings = self._settings
        with self._stack:
            _raise_descriptor_limit()
            self._stack.enter_context(DataDirectoryLock.acquire(settings.data_dir))
            refuse_half_restored(settings.data_dir)
            # Bound before anything is opened: a port in use must not cost a recovery.
            listener = self._listen()
            self._settings = settings.listening_on(listener.getsockname()[1])
            api = self._open()
            security = self._settings.security
            config = uvicorn.Config(
                api,
                http=HttpProtocol,
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=True,
                # Half for the requests under way, the rest for what follows.
                timeout_graceful_shutdown=math.ceil(self._settings.server.stop_timeout.total_seconds() / 2),
                ssl_certfile=security.tls_cert,
                ssl_keyfile=security.tls_key,
            )
            self._server = _Server(config, self._begin_stop)
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(self._serve(listener))
        if self._failure is not None:
            raise self._failure
        return 0

    async def _serve(self, listener: socket.socket) -> None:
        assert self._server is not None
        await self._server.serve(sockets=[listener])

    def stop(self, failure: LogsvcError | None = None) -> None:
        """End the service in order; ``failure`` says why if it is no wish of the operator's."""
        self._failure = failure
        if self._server is not None:
            self._server.should_exit = True

    def _begin_stop(self) -> None:
        if self._stopping.is_set():
            return
        self._stop_by = time.monotonic() + self._settings.server.stop_timeout.total_seconds()
        self._stopping.set()

    def _left_s(self) -> float:
        """Return how many seconds are left to end in, at least half a one."""
        self._begin_stop()  # where the start itself has failed
        return max(0.5, self._stop_by - time.monotonic() - CLOSING_S)

    # -- opening ------------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        server = self._settings.server
        try:
            info = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            # Said to be TCP: asyncio turns Nagle's delay off only for sockets that say so.
            listener = socket.socket(info[0], socket.SOCK_STREAM, socket.IPPROTO_TCP)
            self._stack.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(info[4])
        except OSError as exc:
            raise SettingsError(
                f"cannot listen on {server.host} port {server.port}: {exc.strerror or exc}; "
                "stop what listens there, or set LOGSVC_PORT (0 takes a free one)"
            ) from exc
        return listener

    def _open(self) -> FastAPI:
        settings, stack = self._settings, self._stack
        telemetry = Telemetry()
        notifiers = make_notifiers(settings.notify, system_clock)
        state = open_state(
            settings.state.url,
            channels=[notifier.name for notifier in notifiers],
            own_channels={SHADOW_TENANT: CHANNEL},
        )
        stack.callback(state.close)
        keys = Keys(state, system_clock, settings.quota.default)
        store = open_store(settings)
        stack.callback(store.close)
        is_checked = self._check_store(store)

        journal = Journal.open(
            settings.data_dir / journals.DIRECTORY,
            max_bytes=settings.journal.max_bytes,
            max_lag_s=settings.journal.max_lag.total_seconds(),
        )
        stack.callback(journal.close)
        if is_checked:
            _go_on_after(store, journal)
        journal.on_fsync = lambda seconds: telemetry.observe("journal_fsync_seconds", seconds)
        dead_letters = DeadLetters.open(settings.data_dir / DEAD_LETTERS)
        stack.callback(dead_letters.close)
        ledger = Ledger(
            state,
            journal,
            clock=system_clock,
            grace_us=settings.loss.grace // timedelta(microseconds=1),
            retention_us=settings.retention.records // timedelta(microseconds=1),
            dead_letters=dead_letters,
        )
        stack.callback(ledger.close)
        indexer = Indexer.open(
            journal,
            store,
            dead_letters,
            settings.data_dir / CHECKPOINT,
            # Bulk requests are smaller than this anyway; between two appends it is looked whether a commit is due.
            batch_records=20_000 if settings.store.is_embedded else 5_000,
            before_trim=ledger.keep,
        )
        stack.callback(lambda: indexer.close(self._left_s()))
        ledger.searchable_seq = lambda: indexer.searchable_seq

        clock = MonotonicClock(system_clock, journal.last_ingested_us)
        crew = Crew(_user_key(settings.data_dir), _processes(settings.server.ingest_processes))
        stack.callback(crew.close)
        ingest = Ingest(journal, clock=clock, run=crew.run, normaliser=crew, ledger=ledger)
        replayer = replay.Replayer(settings.data_dir / replay.DIRECTORY, journal, dead_letters, clock)
        replayer.start()
        stack.callback(replayer.close)
        snapshotter = Snapshotter(
            settings.data_dir, store, journal, lambda call: indexer.run_exclusive(call, SNAPSHOT_WAIT_S)
        )
        snapshotter.start()
        stack.callback(snapshotter.close)
        telemetry.watch("clock_behind_seconds", lambda: clock.behind_us / US_PER_S)
        pipeline = Pipeline([ingest, replayer], journal, indexer)
        canary_notifier = CanaryNotifier()
        outbox = Outbox(
            state,
            [*notifiers, canary_notifier],
            clock=system_clock,
            public_url=settings.server.public_url or "",
            on_attempt=lambda channel, outcome: telemetry.count("outbox_deliveries_total", channel, outcome),
        )
        outbox.open()
        stack.callback(lambda: outbox.close(self._left_s() / 2))
        ledger.on_change = outbox.wake
        ledger.open()
        detection = Detection(store, pipeline, state, settings.detection, clock=system_clock, on_change=outbox.wake)
        detection.open()
        stack.callback(detection.close)
        stack.callback(self._begin_stop)
        if not is_checked:
            self._start(lambda: self._keep_checking(store), "store-check")
        services = Services(
            ingest=ingest,
            journal=journal,
            indexer=indexer,
            store=store,
            state=state,
            keys=keys,
            detection=detection,
            ledger=ledger,
            telemetry=telemetry,
            clock=system_clock,
            public_url=settings.server.public_url or "",
            tenant=settings.tenant,
            acks_from_store=settings.server.ack == "store",
            stopping=self._stopping,
            erasures=settings.data_dir / ERASURES,
        )
        expiry = _Expiry(store, settings.retention.records)
        indexer.every(RETENTION_EVERY, expiry, "retention")
        indexer.every(SNAPSHOTS_TIDIED_EVERY, snapshotter.tidy, "forgotten snapshots")
        self._watch(services, expiry)
        self._prove(services, outbox, canary_notifier)

        @asynccontextmanager
        async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
            gaps = asyncio.create_task(self._measure_gaps(telemetry))
            show = _show_key if sys.stderr.isatty() else None
            if keys.create_first(settings.data_dir, settings.tenant, show) and show is None:
                logger.info("made the first admin key; it is in {}", settings.data_dir / "first-admin-key")
            logger.info("logsvc serves at {}, records in {}", services.public_url, store.health().name)
            # A full collection stops every thread for a tenth of a second, to find that all modules are still in use.
            gc.collect()
            gc.freeze()
            yield
            gc.unfreeze()
            gaps.cancel()

        api = create_api(services, lifespan)
        api.add_middleware(RequestMetrics, telemetry=telemetry)
        return api

    def _prove(self, services: Services, outbox: Outbox, notifier: CanaryNotifier) -> None:
        """Start what proves that errors become alerts, and what tells others so."""
        settings, stack, detection = self._settings, self._stack, services.detection
        canary: Canary | None = None
        if settings.canary.every:
            course = ServiceCourse(
                settings.own_url,
                services.keys.lend(SHADOW_TENANT, Scope.INGEST),
                store=services.store,
                indexer=services.indexer,
                state=services.state,
                forget=detection.forget,
                notifier=notifier,
                detection=settings.detection,
                clock=system_clock,
            )
            stack.callback(course.close)
            canary = Canary(
                course,
                services.state,
                settings.data_dir / CANARY_FILE,
                settings.tenant,
                settings.canary,
                clock=system_clock,
                on_change=outbox.wake,
            )
            for name, read in canary.metrics().items():
                services.telemetry.watch(name, read)
            stack.callback(canary.close)
            canary.open()
        if settings.canary.switch_url is None:
            return

        def why_not_well() -> list[str]:
            reasons = services.why_not_ready()
            if detection.is_blind:
                reasons.append("detection is blind")
            if canary is not None and (reason := canary.why_not_well()) is not None:
                reasons.append(reason)
            return reasons

        switch = DeadMansSwitch(
            settings.canary.switch_url,
            settings.canary.switch_every,
            why_not_well,
            on_call=lambda outcome: services.telemetry.count("logsvc_dead_mans_switch_calls_total", outcome),
        )
        stack.callback(switch.close)
        switch.open()

    def _check_store(self, store: Store) -> bool:
        """Compare the store's mapping; return whether it answered."""
        try:
            differences = store.check_schema()
        except StoreUnavailable as exc:
            logger.warning("the store does not answer; records wait in the journal: {}", exc)
            return False
        if differences:
            raise SchemaMismatch("the store's mapping", [*differences, WAY_OUT])
        return True

    def _keep_checking(self, store: Store) -> None:
        while not self._stopping.wait(STORE_CHECK_EVERY_S):
            try:
                if self._check_store(store):
                    logger.info("the store answers, and its mapping is as expected")
                    return
            except SchemaMismatch as exc:
                logger.critical("{}", exc)
                self.stop(exc)
                return

    @staticmethod
    def _start(target: Callable[[], None], name: str) -> None:
        threading.Thread(target=target, name=name, daemon=True).start()

    # -- watching -----------------------------------------------------------------------------

    @staticmethod
    def _watch(services: Services, expiry: _Expiry) -> None:
        telemetry, ingest, journal = services.telemetry, services.ingest, services.journal
        indexer, state, store, detection = services.indexer, services.state, services.store, services.detection
        counters = ingest.counters
        health = _Cached(store.health, 5.0)
        telemetry.watch(
            "ingest_records_total",
            lambda: {"accepted": counters.accepted, "refused": float(sum(counters.refused.values()))},
        )
        telemetry.watch("ingest_refused_records_total", lambda: dict(counters.refused))
        telemetry.watch("ingest_dropped_records_total", lambda: dict(counters.dropped))
        telemetry.watch("ingest_flagged_records_total", lambda: {"conflict": counters.flagged})
        telemetry.watch("ingest_duplicates_total", lambda: indexer.status().duplicates_total)
        telemetry.watch("ingest_masked_values_total", lambda: counters.redactions)
        telemetry.watch("journal_size_bytes", lambda: journal.size_bytes)
        telemetry.watch("journal_max_bytes", lambda: journal.max_bytes)
        telemetry.watch("journal_is_pushing_back", lambda: float(journal.is_pushing_back))
        telemetry.watch("journal_records_total", lambda: counters.accepted)
        telemetry.watch("indexer_records_total", lambda: _indexed(indexer))
        telemetry.watch("indexer_lag_records", lambda: indexer.status().lag_records)
        telemetry.watch("indexer_lag_seconds", lambda: indexer.status().lag_s)
        telemetry.watch("dead_letters_total", lambda: indexer.status().dead_total)
        telemetry.watch("store_up", lambda: float(health().is_reachable))
        telemetry.watch("store_size_bytes", lambda: health().size_bytes or 0)
        telemetry.watch("expired_days_total", lambda: expiry.days)
        for name, read in {**detection.metrics(), **services.ledger.metrics()}.items():
            telemetry.watch(name, read)
        telemetry.watch("tickets_open", lambda: float(_open_tickets(state)))
        telemetry.watch("outbox_pending", lambda: _outbox(state, DeliveryState.PENDING))
        telemetry.watch("outbox_failed", lambda: _outbox(state, DeliveryState.FAILED))

    async def _measure_gaps(self, telemetry: Telemetry) -> None:
        """Measure for how long the event loop did not turn, and say so when it was long."""
        every_s = 0.01
        longest = _Longest()
        telemetry.watch("event_loop_longest_gap_seconds", longest.take)
        while True:
            started = time.perf_counter()
            await asyncio.sleep(every_s)
            longest.note(max(0.0, time.perf_counter() - started - every_s))


def _processes(asked: int | None) -> int:
    """Return how many processes normalise: a core is left to the index for each."""
    return min(4, (os.cpu_count() or 1) // 2) if asked is None else asked


class _Server(uvicorn.Server):
    """A server that ends its streams before it waits for its connections, and leaves signals with it at that.

    Uvicorn waits until every answer is complete, and a tail's never is; and it raises the signal
    again afterwards, which would end the process before the journal and the store are closed.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)


class _Longest:
    """The longest of what was noted since it was last taken."""

    def __init__(self) -> None:
        self._value = 0.0

    def note(self, value: float) -> None:
        self._value = max(self._value, value)

    def take(self) -> float:
        value, self._value = self._value, 0.0
        return value


class _Cached:
    """The store's health, asked at most once in ``keep_s``: a scrape reads several numbers of one answer."""

    def __init__(self, read: Callable[[], StoreHealth], keep_s: float) -> None:
        self._read, self._keep_s = read, keep_s
        self._value: StoreHealth | None = None
        self._until = 0.0

    def __call__(self) -> StoreHealth:
        if self._value is None or time.monotonic() > self._until:
            self._value = self._read()
            self._until = time.monotonic() + self._keep_s
        return self._value


class _Expiry:
    """Drops days past their retention; called by the indexer, which owns the store's writing."""

    def __init__(self, store: Store, retention: timedelta) -> None:
        self._store = store
        self._retention_us = retention // timedelta(microseconds=1)
        self.days = 0

    def __call__(self) -> None:
        dropped = self._store.expire(system_clock() - self._retention_us)
        if dropped:
            logger.info("dropped {} days of records past their retention", dropped)
        self.days += dropped


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as one may: each connection is one, and the usual 1,024 are soon held by idle ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS has a lower bound than it says
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65_536), hard)
        )


def _go_on_after(store: Store, journal: Journal) -> None:
    """See to it that no number is given twice when the journal was lost, or an older copy put back.

    A store skips numbers that it has, taking them for a replay, and a tail begins where the journal ends.
    """
    stored = store.last_seq()
    if stored > journal.last_seq:
        logger.warning(
            "the store has record {}, the journal ends at {}: it was lost or is an older copy; "
            "records that were only in it are gone, new ones go on from there",
            stored,
            journal.last_seq,
        )
        journal.advance_past(stored)


def _indexed(indexer: Indexer) -> dict[str, float]:
    status = indexer.status()
    return {
        "appended": status.indexed_total,
        "duplicate": status.duplicates_total,
        "skipped": status.skipped_total,
        "refused": status.dead_total,
    }


def _open_tickets(state: State) -> int:
    counts = state.count_tickets()
    return counts[TicketState.OPEN] + counts[TicketState.ACKNOWLEDGED]


def _outbox(state: State, wanted: DeliveryState) -> dict[str, float]:
    return {channel: count for (channel, found), count in state.count_outbox().items() if found is wanted}


def _user_key(data_dir: Path) -> bytes:
    """Return the key under which users are hashed; made once per data directory."""
    path = data_dir / USER_KEY
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    durable.replace(path, secrets.token_bytes(32))
    os.chmod(path, 0o600)
    return path.read_bytes()


def _show_key(key: str) -> None:
    """Put the first admin key before the eyes of whoever sits at the terminal; it goes into no log."""
    terminal.console(is_error=True).print(
        f"\n[bold]First admin key[/] (shown once): [green]{key}[/]\n  export LOGSVC_API_KEY={key}\n"
    )
