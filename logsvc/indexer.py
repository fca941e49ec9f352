"""Indexer: brings records from the journal into the store, and knows how far they are searchable.

One thread reads the journal in order and appends to the store in large batches. About once a
second it has the store commit, and goes on appending while that becomes searchable; then it moves
its checkpoint and trims the journal. After a crash it starts again at the checkpoint; the store
skips what it has already.

What always holds:

- The checkpoint moves only when everything up to it is durable in the store or among the dead
  letters; it is written aside and renamed.
- The store's ``append``, ``flush``, ``erase`` and ``expire`` are called by this thread alone
  (``run_exclusive`` and ``every`` bring other callers' work here).
- A store that is away is tried again for ever, with jitter; nothing is skipped meanwhile, and
  ``status`` says why. A single record on which the store breaks becomes a dead letter, but only
  once the store took another: a store that takes nothing is itself at fault.
- ``searchable_seq`` never runs ahead of what readers find.

Not here: how records are stored (store/), who waits for completeness (detection.py).
"""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from loguru import logger

from logsvc import durable, faults
from logsvc.deadletters import DeadLetter, DeadLetters
from logsvc.errors import StoreUnavailable
from logsvc.journal import Journal
from logsvc.ledger import is_note
from logsvc.matching import Candidate, matches
from logsvc.query import MatchAll, Node
from logsvc.records import Entry
from logsvc.store import AppendResult, Refusal, Span, Store
from logsvc.timestamps import US_PER_S, Clock, system_clock

CHECKPOINT = "indexer.checkpoint"
"""Name of the checkpoint's file in a data directory."""

T = TypeVar("T")

_FIRST_RETRY_S = 0.25
_ISOLATE_S = 30.0
_SETTLE_POLL_S = 0.02
_MARK_INTERVAL_US = US_PER_S


class IndexerState(Enum):
    """What the indexer is doing."""

    RUNNING = "running"
    RETRYING = "retrying"  # the store, or the disk, does not take what it gets
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class IndexerStatus:
    """A moment's view, for metrics, ``doctor`` and ``/readyz``. Totals count since the start.

    Attributes:
        reason: Why it is retrying; empty otherwise.
        lag_records: Durable in the journal and not yet searchable.
        lag_s: Age of the oldest of those that was read; 0 without any.
        indexed_total: Stored, and durable there.
        duplicates_total: Sent twice; the first is stored.
        skipped_total: Read again after a crash or a failed commit; stored before.
        dead_total: Became dead letters.
        retries_total: Times that the store, or the disk, did not take what it got.
    """

    state: IndexerState
    reason: str
    searchable_seq: int
    lag_records: int
    lag_s: float
    indexed_total: int
    duplicates_total: int
    skipped_total: int
    dead_total: int
    retries_total: int


class Erased(NamedTuple):
    """How many records went from the store, and how many dead letters."""

    records: int
    dead_letters: int


class _Totals:
    __slots__ = ("dead", "duplicates", "indexed", "skipped")

    def __init__(self) -> None:
        self.indexed = self.duplicates = self.skipped = self.dead = 0

    def add(self, other: _Totals) -> None:
        self.indexed += other.indexed
        self.duplicates += other.duplicates
        self.skipped += other.skipped
        self.dead += other.dead


class _Scheduled:
    __slots__ = ("call", "due_us", "interval_us", "name")

    def __init__(self, name: str, call: Callable[[], object], interval_us: int, due_us: int) -> None:
        self.name = name
        self.call = call
        self.interval_us = interval_us
        self.due_us = due_us


class Indexer:
    """See the module. Made by ``open``, which starts the thread."""

    def __init__(
        self,
        journal: Journal,
        store: Store,
        dead_letters: DeadLetters,
        checkpoint: Path,
        *,
        clock: Clock,
        batch_records: int,
        flush_interval_s: float,
        linger_s: float,
        max_retry_s: float,
        rng: random.Random,
        before_trim: Callable[[], int] | None,
    ) -> None:
        self._journal = journal
        self._store = store
        self._dead_letters = dead_letters
        self._checkpoint = checkpoint
        self._clock = clock
        self._batch_records = batch_records
        self._flush_interval_s = flush_interval_s
        self._linger_s = linger_s
        self._max_retry_s = max_retry_s
        self._rng = rng
        self._before_trim = before_trim

        # How far each step is; none is ever ahead of the one above it.
        self._appended_seq = 0
        self._flushed_seq = 0
        self._searchable_seq = 0
        self._checkpoint_seq = 0
        self._flush_due = 0.0  # monotonic; counts while something is appended and not flushed
        self._refreshing: Future[None] | None = None  # makes all searchable that was flushed before it began
        # event.ingested of the oldest record that is not yet flushed, and of the oldest flushed and not yet searchable.
        self._oldest_appended_us: int | None = None
        self._oldest_flushed_us: int | None = None
        self._totals = _Totals()
        self._unflushed = _Totals()
        self._failures = 0  # in a row
        self._is_rewound = False  # something failed, and nothing was flushed since
        self._is_suspicious = False  # the store broke, perhaps on a record
        self._retries = 0
        self._reason = ""

        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._scheduled: list[_Scheduled] = []
        self._is_closing = False
        self._is_abandoned = False
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    @classmethod
    def open(
        cls,
        journal: Journal,
        store: Store,
        dead_letters: DeadLetters,
        checkpoint: Path,
        *,
        clock: Clock = system_clock,
        batch_records: int = 20_000,
        flush_interval_s: float = 1.0,
        linger_s: float = 0.05,
        max_retry_s: float = 30.0,
        rng: random.Random | None = None,
        before_trim: Callable[[], int] | None = None,
    ) -> Indexer:
        """Start indexing where the checkpoint says. Call it before the journal's first append.

        Args:
            journal: Read and trimmed by this indexer alone.
            store: Its writing methods are this indexer's alone.
            dead_letters: Takes what the store refuses.
            checkpoint: The file that says how far the store has it; made when missing.
            clock: For lag and schedules.
            batch_records: At most so many entries an append.
            flush_interval_s: A record waits about this long for its commit.
            linger_s: After a pause, how long to let records gather before the first append.
            max_retry_s: Longest pause between two tries.
            rng: Source of the jitter.
            before_trim: Returns up to which sequence number nobody else needs the journal.
        """
        indexer = cls(
            journal,
            store,
            dead_letters,
            checkpoint,
            clock=clock,
            batch_records=batch_records,
            flush_interval_s=flush_interval_s,
            linger_s=linger_s,
            max_retry_s=max_retry_s,
            rng=rng or random.Random(),
            before_trim=before_trim,
        )
        seq = read_checkpoint(checkpoint)
        if seq > journal.last_seq:
            logger.warning(
                "indexer: the checkpoint stands at {}, the journal ends at {}: it was lost or is an older copy",
                seq,
                journal.last_seq,
            )
            journal.advance_past(seq)
        indexer._appended_seq = indexer._flushed_seq = indexer._searchable_seq = indexer._checkpoint_seq = seq
        journal.on_durable(indexer._wake)
        indexer._thread.start()
        return indexer

    def close(self, timeout_s: float = 30.0) -> bool:
        """Index what the journal holds, then stop; idempotent.

        Returns:
            Whether everything got in. What did not stays in the journal for the next start.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            self._is_abandoned = True
            self._changed.notify_all()
        self._thread.join(1.0)
        return not self._thread.is_alive() and self._searchable_seq >= self._journal.last_seq

    # -- what others ask ----------------------------------------------------------------------

    @property
    def searchable_seq(self) -> int:
        """Every record up to this sequence number is found by readers, or is a dead letter."""
        return self._searchable_seq

    def wait_searchable(self, seq: int, timeout_s: float) -> bool:
        """Wait until ``searchable_seq`` reaches ``seq``; False if it does not in time, or never will."""
        with self._changed:
            self._changed.wait_for(lambda: self._searchable_seq >= seq or self._is_stopped, timeout_s)
            return self._searchable_seq >= seq

    def status(self) -> IndexerStatus:
        """Describe the indexer now; never waits for the store."""
        with self._changed:
            lag_records = max(0, self._journal.last_seq - self._searchable_seq)
            oldest_us = self._oldest_appended_us if self._oldest_flushed_us is None else self._oldest_flushed_us
            state = IndexerState.RUNNING
            if self._is_stopped:
                state = IndexerState.STOPPED
            elif self._reason:
                state = IndexerState.RETRYING
            return IndexerStatus(
                state=state,
                reason=self._reason,
                searchable_seq=self._searchable_seq,
                lag_records=lag_records,
                lag_s=max(0.0, (self._clock() - oldest_us) / US_PER_S) if oldest_us is not None else 0.0,
                indexed_total=self._totals.indexed,
                duplicates_total=self._totals.duplicates,
                skipped_total=self._totals.skipped,
                dead_total=self._totals.dead,
                retries_total=self._retries,
            )

    def run_exclusive(self, call: Callable[[], T], timeout_s: float) -> T:
        """Run ``call`` in this thread between two batches, after a commit, and return what it returns.

        Raises:
            TimeoutError: If it has not ended in time; if it has not begun either, it never will.
            StoreUnavailable: If the commit before it fails, or the indexer has stopped.
        """
        if threading.current_thread() is self._thread:
            return call()
        future: Future[T] = Future()
        with self._changed:
            if self._is_stopped:
                raise StoreUnavailable("the indexer has stopped; the service is ending")
            self._calls.append((call, future))
            self._changed.notify_all()
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def every(self, interval: timedelta, call: Callable[[], object], name: str) -> None:
        """Run ``call`` in this thread now and then once per ``interval``; a failure is logged, the next one due."""
        interval_us = interval // timedelta(microseconds=1)
        with self._changed:
            self._scheduled.append(_Scheduled(name, call, interval_us, self._clock()))
            self._changed.notify_all()

    def erase(self, tenant: str, query: Node, span: Span, timeout_s: float) -> Erased:
        """Erase every hit that was accepted before the call, from the store, the journal and the dead letters.

        Raises:
            TimeoutError: If the store is too far behind.
            StoreUnavailable: If it is away.
        """
        deadline = time.monotonic() + timeout_s
        if not self.wait_searchable(self._journal.last_seq, timeout_s):
            raise TimeoutError(f"the store did not catch up within {timeout_s} s; nothing was erased, try again later")

        def is_gone(letter: DeadLetter) -> bool:
            time_us = int(letter.entry["time_us"] or 0)
            is_within = (span.start_us is None or time_us >= span.start_us) and (
                span.end_us is None or time_us < span.end_us
            )
            # Whose JSON cannot be read, nobody can tell: it goes if everything does.
            is_hit = query == MatchAll() or (letter.is_readable and matches(query, Candidate(letter.source)))
            return letter.tenant == tenant and is_within and is_hit

        def erase() -> Erased:
            return Erased(self._store.erase(tenant, query, span), self._dead_letters.erase(is_gone))

        erased = self.run_exclusive(erase, max(0.0, deadline - time.monotonic()))
        # The journal keeps what it has in whole segments; a closed one goes with the next trim.
        self._journal.roll()
        return erased

    # -- the thread ---------------------------------------------------------------------------

    def _wake(self, _news: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while not self._is_abandoned:
                try:
                    if not self._step():
                        return
                except Exception as exc:  # noqa: BLE001 - whatever it is, it is shown and tried again
                    self._back_off(exc)
        finally:
            with self._changed:
                self._is_stopped = True
                calls = list(self._calls)
                self._calls.clear()
                self._changed.notify_all()
            for _, future in calls:
                if future.set_running_or_notify_cancel():
                    future.set_exception(StoreUnavailable("the indexer has stopped; the service is ending"))

    def _step(self) -> bool:
        """Do one round: others' calls, a batch, a commit if due. False when all is done and it is closing."""
        is_closing = self._is_closing  # read first: what was appended before it was set is seen below
        self._run_calls()
        try:
            self._append_next()
            if self._is_flushable and time.monotonic() >= self._flush_due:
                self._flush()
        finally:
            # What fails has no hold over what was flushed before it.
            self._settle()
        is_drained = self._appended_seq >= self._journal.last_seq
        if is_drained and is_closing:
            self._commit()
            return False
        if is_drained:
            self._wait()
        return True

    def _append_next(self) -> None:
        batch = self._journal.read(self._appended_seq, self._batch_records)
        if batch.through_seq > self._appended_seq:
            if not self._has_unflushed:
                self._flush_due = time.monotonic() + self._flush_interval_s
                if batch.entries:
                    self._oldest_appended_us = batch.entries[0].ingested_us
            if entries := [entry for entry in batch.entries if not is_note(entry)]:
                self._append(entries)
            self._appended_seq = batch.through_seq

    @property
    def _has_unflushed(self) -> bool:
        return self._appended_seq > self._flushed_seq

    @property
    def _is_flushable(self) -> bool:
        # Flushing earlier would have nothing made searchable any sooner.
        return self._has_unflushed and (self._refreshing is None or self._refreshing.done())

    def _recovered(self) -> None:
        if self._reason:
            logger.info("indexer: goes on after {} tries", self._failures)
            with self._changed:
                self._reason = ""
        self._failures = 0
        self._is_suspicious = False

    def _append(self, entries: Sequence[Entry]) -> None:
        faults.reach("indexer.before_append")
        try:
            if self._is_suspicious:
                self._isolate(entries)
            else:
                self._take(self._store.append(entries))
        except Exception as exc:
            self._rewind(exc)
            raise
        faults.reach("indexer.after_append")

    def _isolate(self, entries: Sequence[Entry]) -> None:
        """Append ``entries`` in ever smaller parts, so that those on which the store breaks stand alone."""
        suspects: list[tuple[Entry, Exception]] = []
        deadline = time.monotonic() + _ISOLATE_S

        def append(part: Sequence[Entry]) -> None:
            nonlocal suspects
            try:
                result = self._store.append(part) + self._store.flush()
            except StoreUnavailable:
                raise
            except Exception as exc:
                if self._is_abandoned or time.monotonic() > deadline:
                    raise
                if len(part) == 1:
                    suspects.append((part[0], exc))
                else:
                    append(part[: len(part) // 2])
                    append(part[len(part) // 2 :])
            else:
                self._take(result)
                # It takes others, so those that it did not take are themselves at fault.
                self._bury([Refusal(entry, f"{type(exc).__name__}: {exc}") for entry, exc in suspects])
                suspects = []
                self._appended_seq = part[-1].seq

        append(entries)
        if suspects:
            raise suspects[0][1]

    def _take(self, result: AppendResult) -> None:
        self._unflushed.indexed += result.appended
        self._unflushed.duplicates += result.duplicates
        self._unflushed.skipped += result.skipped
        self._bury(result.refused)

    def _bury(self, refusals: Sequence[Refusal]) -> None:
        if refusals:
            self._totals.dead += self._dead_letters.add(refusals)
            logger.warning("indexer: {} records became dead letters; the first: {}", len(refusals), refusals[0].reason)

    def _commit(self) -> None:
        """Return when all that was appended is durable and searchable, and the checkpoint says so."""
        self._settle(is_waiting=True)
        if self._has_unflushed:
            self._flush()
        while self._checkpoint_seq < self._flushed_seq:
            self._settle(is_waiting=True)

    def _flush(self) -> None:
        """Return when all that was appended is durable; it becomes searchable while more is appended."""
        seq = self._appended_seq
        try:
            self._take(self._store.flush())
        except Exception as exc:
            self._rewind(exc)
            raise
        faults.reach("indexer.after_flush")
        self._totals.add(self._unflushed)
        self._unflushed = _Totals()
        if self._oldest_flushed_us is None:
            self._oldest_flushed_us = self._oldest_appended_us
        self._oldest_appended_us = None
        self._flushed_seq = seq
        self._is_rewound = False

    def _settle(self, *, is_waiting: bool = False) -> None:
        """Have all that was flushed become searchable, and move the checkpoint to what has.

        Args:
            is_waiting: For what is becoming searchable now.
        """
        refreshing = self._refreshing
        if refreshing is not None and (is_waiting or refreshing.done()):
            self._refreshing = None  # begun again if it failed
            refreshing.result()
        if self._refreshing is None and self._flushed_seq > self._searchable_seq:
            self._refreshing = _in_background(partial(self._refresh, self._flushed_seq))
            self._refreshing.add_done_callback(self._wake)
        if self._searchable_seq > self._checkpoint_seq:
            self._move_checkpoint(self._searchable_seq)

    def _refresh(self, seq: int) -> None:
        self._store.refresh()
        with self._changed:
            self._searchable_seq = seq
            self._oldest_flushed_us = None
            self._changed.notify_all()

    def _move_checkpoint(self, seq: int) -> None:
        try:
            _write_checkpoint(self._checkpoint, seq)
        except OSError:
            # All of it is in the store, whatever the checkpoint says; trimming may make the room that it needs.
            self._trim(seq)
            raise
        self._checkpoint_seq = seq
        faults.reach("indexer.after_checkpoint")
        self._trim(seq)
        if not self._is_rewound:
            self._recovered()

    def _rewind(self, exc: Exception) -> None:
        """Append all since the last good flush again: nobody knows what a store kept that failed since."""
        self._appended_seq = self._flushed_seq
        self._unflushed = _Totals()
        self._is_rewound = True
        # Once may be chance. Twice is the store or one of the records: then find out which.
        self._is_suspicious = not isinstance(exc, StoreUnavailable)

    def _trim(self, seq: int) -> None:
        self._journal.trim(seq if self._before_trim is None else min(seq, self._before_trim()), seq)

    def _run_calls(self) -> None:
        now_us = self._clock()
        with self._changed:
            calls = list(self._calls)
            self._calls.clear()
            due = [scheduled for scheduled in self._scheduled if scheduled.due_us <= now_us]
        for call, future in calls:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                self._commit()
                future.set_result(call())
            except Exception as exc:  # noqa: BLE001 - it is the caller's
                future.set_exception(exc)
        for scheduled in due:
            scheduled.due_us = now_us + scheduled.interval_us
            try:
                self._commit()
                scheduled.call()
            except Exception as exc:  # noqa: BLE001 - the next one is due all the same
                logger.error(
                    "indexer: {} failed, tried again in {} s: {}",
                    scheduled.name,
                    scheduled.interval_us // US_PER_S,
                    exc,
                )

    def _wait(self) -> None:
        """Wait for work, and then a little longer, so that it comes in batches."""
        with self._changed:
            timeouts = [(s.due_us - self._clock()) / US_PER_S for s in self._scheduled]
            if self._is_flushable:
                timeouts.append(self._flush_due - time.monotonic())
            timeout_s = max(0.0, min(timeouts)) if timeouts else None
            has_news = self._changed.wait_for(lambda: self._has_news(1), timeout_s)
            if has_news and self._linger_s:
                self._changed.wait_for(lambda: self._has_news(self._batch_records), self._linger_s)

    def _has_news(self, records: int) -> bool:
        is_enough = self._journal.last_seq >= self._appended_seq + records
        is_due = any(scheduled.due_us <= self._clock() for scheduled in self._scheduled)
        is_refreshed = self._refreshing is not None and self._refreshing.done()
        return bool(is_enough or is_due or is_refreshed or self._calls or self._is_closing)

    def _back_off(self, exc: Exception) -> None:
        """Show why it does not go on, and wait before the next try; others' calls are served meanwhile."""
        reason = str(exc) if isinstance(exc, StoreUnavailable) else f"{type(exc).__name__}: {exc}"
        pause_s = min(self._max_retry_s, _FIRST_RETRY_S * 2 ** min(self._failures, 16))
        pause_s *= 0.5 + self._rng.random() / 2
        if reason != self._reason:
            logger.warning("indexer: {}; tried again until it works", reason)
        self._failures += 1
        with self._changed:
            self._retries += 1
            self._reason = reason
            self._changed.notify_all()
        until = time.monotonic() + pause_s
        was_closing = self._is_closing
        while (left_s := until - time.monotonic()) > 0:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._calls or self._is_abandoned or (self._is_closing and not was_closing), left_s
                )
                if self._is_abandoned or (self._is_closing and not was_closing):
                    return
            if self._calls:
                self._run_calls()


class Settles(Protocol):
    """Something that stamps ``event.ingested`` and puts records into the journal."""

    def settled_before_us(self) -> int:
        """Return T: each of its records stamped before T is in the journal, or was refused. Never falls."""
        ...


class Pipeline:
    """Completeness: up to which moment every accepted record is searchable. For one thread.

    The journal's order is not that of ``event.ingested``, so from time to time a mark is set: all
    records stamped before a moment are in the journal up to a sequence number. Once the indexer has
    passed that number, everything before that moment is found, however long the backlog behind it.

    Args:
        sources: All that stamp records: ingest, and the replay of earlier ones.
        journal: Where they put them.
        indexer: What makes them searchable.
    """

    def __init__(self, sources: Sequence[Settles], journal: Journal, indexer: Indexer) -> None:
        self._sources = tuple(sources)
        self._journal = journal
        self._indexer = indexer
        self._marks: deque[tuple[int, int]] = deque()  # (event.ingested, sequence number), both rising
        self._until_us = 0

    def searchable_until(self, us: int, timeout_s: float) -> int:
        """Return T: every record with ``event.ingested`` below T is found by readers. T never falls.

        Waits until T is at least ``us``, ``timeout_s`` at most.
        """
        deadline = time.monotonic() + timeout_s
        # An accept in flight ends with its fsync, within milliseconds; it tells nobody, so look again.
        pause = threading.Event()
        while True:
            self._mark(us)
            while self._marks and self._marks[0][1] <= self._indexer.searchable_seq:
                self._until_us, _ = self._marks.popleft()
            left_s = deadline - time.monotonic()
            if self._until_us >= us or left_s <= 0:
                return self._until_us
            if self._marks and self._marks[-1][0] >= us:
                self._indexer.wait_searchable(self._marks[0][1], left_s)
                if self._indexer.status().state is IndexerState.STOPPED:
                    return self._until_us
            else:
                pause.wait(min(left_s, _SETTLE_POLL_S))

    def _mark(self, us: int) -> None:
        settled_us = min(source.settled_before_us() for source in self._sources)
        last_us = self._marks[-1][0] if self._marks else self._until_us
        # One a second is enough, and what is asked for.
        if settled_us >= last_us + _MARK_INTERVAL_US or settled_us >= us > last_us:
            # The number is read only now: what settled is in the journal up to here.
            self._marks.append((settled_us, self._journal.last_seq))


def _in_background(call: Callable[[], None]) -> Future[None]:
    """Begin ``call`` in a thread that keeps no process from ending."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            call()
        except BaseException as exc:  # noqa: BLE001 - it is raised to whoever asks for the result
            future.set_exception(exc)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="indexer-refresh", daemon=True).start()
    return future


def read_checkpoint(path: Path) -> int:
    """Return the sequence number in the checkpoint; 0 without one, or if it is damaged (all is indexed again)."""
    try:
        data = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        seq = data["seq"]
        if data["crc32"] != zlib.crc32(str(seq).encode()):
            raise ValueError("the checksum is wrong")
    except FileNotFoundError:
        return 0
    except (msgspec.MsgspecError, KeyError, ValueError) as exc:
        logger.error("indexer: cannot read {}: {}; the whole journal is indexed again", path, exc)
        return 0
    return seq


def _write_checkpoint(path: Path, seq: int) -> None:
    data = msgspec.json.encode({"seq": seq, "crc32": zlib.crc32(str(seq).encode())})
    aside = durable.write_aside(path, data)
    faults.reach("indexer.checkpoint_written")
    aside.replace(path)
    durable.sync_directory(path.parent)
