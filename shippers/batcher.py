"""Batcher: from the application's log call to the service, without the application waiting.

Three steps, each bounded::

    put()             application's thread: append to a deque; under a microsecond
    encoder thread    finish (record.py), compress, hand over; sleeps often, so that it never
                      holds the interpreter for long while the application wants it
    sender thread     send (transport.py), back off, spool (spool.py)

What always holds:

- ``put`` neither raises nor waits for disk or network. A full queue follows ``when_full``.
- A service that stays away or takes nothing is said on standard error, at most once a minute.
- What is lost is counted by reason, told to the service in a record with ``event.action``
  ``shipper.dropped`` and in the ledger (ledger.py), and said on standard error at most once a minute.
- Oldest first: while batches wait in the spool, newer ones queue behind them.
- A fork starts afresh: the child has an empty queue, its own threads, epoch and spool directory;
  the parent goes on. Nothing is sent twice.
- At the end of the program what exit handlers log is sent too, unless they were registered before this
  module was imported: exit handlers run newest first. Theirs goes to the spool.
- Whatever our own threads log is ignored, so a transport that logs cannot feed itself.
- Log calls in signal handlers and destructors are safe: ``put`` takes only re-entrant locks.

Not here: what a record looks like (record.py), how one attempt is made (transport.py).
"""

from __future__ import annotations

import atexit
import os
import random
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional, Union

from shippers import context
from shippers.ledger import Ledger
from shippers.record import Finished, Finisher, Item, Origin
from shippers.spool import Seal, Spool, SpoolError
from shippers.transport import ENCODINGS, Batch, Outcome, Transport, Verdict

own_threads: set[int] = set()
"""Identifiers of our threads; handlers ignore what they log."""

SMALL_CHARS = 1024  # small records are bounded by their number, larger ones by their size as well
_SLICE_S = 0.00025  # how long the encoder works before it lets the application run
_PAUSE_S = 0.00005
_LONG_SLICE_S = 0.005
_PRESSED_S = 2.0  # a queue more than half full for so long needs the interpreter more than politeness
_OUTBOX_MAX_BYTES = 8 * 1024 * 1024  # compressed batches between encoder and sender
_DROP_REPORT_INTERVAL_S = 10.0
_COMPLAINT_INTERVAL_S = 60.0
_TOLERATED_FAILURES = 3  # a service that restarts is no cause for complaint
_TOLERATED_FAILURE_S = 5.0
_ADOPT_INTERVAL_S = 60.0
_SPOOL_RETRY_S = 1.0
_START_RETRY_S = 1.0
_RETRY_AFTER_MAX_S = 600.0


@dataclass(frozen=True)
class Settings:
    """How a shipper behaves; every default is safe.

    Attributes:
        when_full: What a log call does when the queue is full: ``drop`` the new record and count it,
            or ``block`` until there is room, ``block_timeout_s`` at most. Either way the network
            is not waited for: the queue is full only while encoding cannot keep up, or while
            batches can neither be sent nor spooled.
        block_timeout_s: Longest wait of one log call with ``block``.
        is_replayable: Whether the records can be read again from where they came, as the agent can.
            Then a batch that cannot be kept is held until it can, and one left at the end is no loss.
        queue_max_records: Records that may wait to be encoded.
        queue_max_bytes: Characters of the larger among them (over 1 KiB).
        flush_interval_s: Longest time a record waits before it is on its way.
        batch_max_records: Records in a batch.
        batch_max_bytes: Bytes of a batch before compression.
        compression: gzip, zstd (needs the extra ``zstd``) or identity.
        spool_max_bytes: Bound on the spool of one process; beyond it the newest batch is dropped.
        spool_fsync: Whether spooled batches must survive a power cut.
        spool_key: Encrypts the spool (needs the extra ``encryption``): 64 hexadecimal digits; None means
            ``LOGSVC_SPOOL_KEY``, and without that no encryption.
        timeout_s: Longest wait for the service in one attempt.
        exit_timeout_s: How long the exit of the program may wait for the service; what is left
            then is spooled.
        backoff_first_s: First wait after a failure; doubled each time, with full jitter.
        backoff_max_s: Longest wait; also the wait after a wrong key or address.
    """

    when_full: str = "drop"
    block_timeout_s: float = 1.0
    is_replayable: bool = False
    queue_max_records: int = 50_000
    queue_max_bytes: int = 32 * 1024 * 1024
    flush_interval_s: float = 0.5
    batch_max_records: int = 1000
    batch_max_bytes: int = 1024 * 1024
    compression: str = "gzip"
    spool_max_bytes: int = 512 * 1024 * 1024
    spool_fsync: bool = True
    spool_key: Optional[str] = field(default=None, repr=False)
    timeout_s: float = 10.0
    exit_timeout_s: float = 3.0
    backoff_first_s: float = 0.5
    backoff_max_s: float = 60.0

    def __post_init__(self) -> None:
        if self.when_full not in ("drop", "block"):
            raise ValueError(f"when_full is {self.when_full!r}; expected 'drop' or 'block'")
        if self.compression not in ENCODINGS:
            raise ValueError(f"compression is {self.compression!r}; expected one of {', '.join(ENCODINGS)}")
        if self.compression == "zstd":
            try:
                import zstandard  # noqa: F401
            except ImportError as exc:
                raise ValueError("compression 'zstd' needs the extra: pip install 'logsvc-shippers[zstd]'") from exc
        for name in ("queue_max_records", "queue_max_bytes", "flush_interval_s", "batch_max_records", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected more than 0")


class Backoff:
    """How long to wait before the next attempt: exponential with full jitter, Retry-After honoured.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(self, first_s: float, max_s: float, rng: random.Random) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._rng = rng
        self.failures = 0

    def after(self, outcome: Outcome) -> float:
        """Return the seconds to wait after a failed attempt."""
        ceiling = min(self._max_s, self._first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        if outcome.retry_after_s is not None:
            # Not before the service asked, and not everybody at that very moment.
            return min(outcome.retry_after_s, _RETRY_AFTER_MAX_S) + self._rng.uniform(0.0, self._first_s)
        if outcome.verdict is Verdict.DENIED:
            return self._max_s * self._rng.uniform(0.5, 1.0)
        return self._rng.uniform(0.0, ceiling)

    def reset(self) -> None:
        """Forget earlier failures."""
        self.failures = 0


class Mark:
    """A place in the stream of records; ``passed`` once all before it is acknowledged, spooled or dropped."""

    def __init__(self) -> None:
        self._passed = threading.Event()

    @property
    def passed(self) -> bool:
        return self._passed.is_set()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it has passed; False after ``timeout_s``."""
        return self._passed.wait(timeout_s)

    def _pass(self) -> None:
        self._passed.set()


class _Wake:
    """Like an auto-clearing Event, but ``set`` may be called in a signal handler that interrupted ``set``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # set already

    def wait(self, timeout_s: float) -> bool:
        return self._lock.acquire(timeout=timeout_s)


class Batcher:
    """Takes records from the application and brings them to the service; see the module.

    Threads start with the first record, so that one made before a fork or in a program that
    logs nothing costs nothing.

    Args:
        transport: How to send; closed by ``close``.
        origin: Who is logging.
        spool_root: Directory for the spools of this program; None keeps all in memory.
        settings: How to behave.
        rng: Source of jitter.

    Attributes:
        queue: Records on their way; what a handler may do with it itself, ``put`` says.
        wake_at: From which length of ``queue`` on ``put`` must be called.
    """

    def __init__(
        self,
        transport: Transport,
        origin: Origin,
        *,
        spool_root: Path | None = None,
        settings: Settings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._transport = transport
        self._origin = origin
        self._spool_root = spool_root
        key = self.settings.spool_key or os.environ.get("LOGSVC_SPOOL_KEY")
        self._seal: Seal | None = None
        if key and spool_root is not None:
            from shippers.seal import AesSeal

            self._seal = AesSeal(key)
        self._rng = rng or random.Random()
        self._complaints: dict[str, float] = {}
        self._start_afresh()
        _live.add(self)

    # --- an epoch begins: at first, and again in a forked child --------------------------------

    def _start_afresh(self) -> None:
        """Set everything that belongs to one process epoch; in a forked child nothing is taken over."""
        self._lock = threading.RLock()
        self._spooling = threading.RLock()
        self._changed = threading.Condition()
        self._wake = _Wake()
        self.queue: deque[Union[Item, Finished, Mark]] = deque()
        # Queue length from which put() takes the slow path: -1 before the threads run and after they
        # end, _wake_length while the encoder sleeps, the bound while it works.
        self.wake_at = -1
        # A burst is taken in first and encoded after, unless it is a long one.
        self._wake_length = max(1, self.settings.queue_max_records // 4)
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._is_ended = False  # closed, and nobody looks at the queue any more
        self._start_retry_at = 0.0
        self._large_chars = 0
        self._finished_records = 0  # among what is queued, in so many items:
        self._finished_items = 0
        self._marks = 0
        self._finisher = Finisher(self._origin)
        self._spool: Spool | None = None
        if self._spool_root is not None:
            self._spool = Spool(
                self._spool_root,
                max_bytes=self.settings.spool_max_bytes,
                owner=f"{os.getpid()}-{self._origin.epoch}",
                fsync=self.settings.spool_fsync,
                seal=self._seal,
            )
        self._ledger = Ledger(self._origin, is_replayable=self.settings.is_replayable)
        self._drops: dict[str, int] = {}
        self._drops_reported: Mapping[str, int] = {}
        self._drops_reported_at = -_DROP_REPORT_INTERVAL_S
        # Guarded by _changed, as all that encoder, sender and close() share:
        self._outbox: deque[Union[Batch, Mark]] = deque()
        self._outbox_bytes = 0
        self._is_encoded = False
        self._is_abandoned = False
        self._close_deadline: float | None = None
        # The sender's own:
        self._backoff = Backoff(self.settings.backoff_first_s, self.settings.backoff_max_s, self._rng)
        self._failing_since = 0.0
        self._failure = ""
        self._retry_at = 0.0
        self._spool_retry_at = 0.0
        self._adopt_at = 0.0
        self._has_made_last_attempt = False
        self._corrupt_counted = 0
        self._sent = 0
        self._flush_failed_at = -1.0

    def _after_fork(self) -> None:
        if self._spool is not None:
            self._spool.forget()
        self._transport.forget()
        self._origin = replace(self._origin, epoch=os.urandom(8).hex())
        self._start_afresh()

    # --- the application's side -------------------------------------------------------------

    def put(self, item: Item) -> None:
        """Queue one record; never raises and never waits for disk or network."""
        try:
            # The common case, kept short: room, nobody to wake, and small.
            if (
                len(self.queue) < self.wake_at
                and type(item) is tuple
                and item[10] is None
                and item[12] is None
                and len(item[9]) <= SMALL_CHARS
            ):
                self.queue.append(item)
            else:
                self._put_slowly(item)
        except Exception as exc:
            self.count_failed(exc)

    def put_finished(self, lines: Finished) -> None:
        """Queue records that are finished already, by ``finisher``; otherwise like ``put``."""
        try:
            with self._lock:
                self._finished_records += len(lines)
                self._finished_items += 1
            self._put_slowly(lines)
        except Exception as exc:
            self.count_failed(exc)

    @property
    def finisher(self) -> Finisher:
        """What numbers the records of this epoch."""
        return self._finisher

    def count_failed(self, exc: Exception) -> None:
        """Count a record that could not even be queued, such as for want of stack; never raises."""
        try:
            self._count_drop("failed", 1, type(exc).__name__, is_numbered=False)
        except Exception:
            pass  # with no room left even for this

    @property
    def has_room(self) -> bool:
        """Whether the next ``put`` of a single producer neither drops nor blocks."""
        settings = self.settings
        waiting = len(self.queue) + self._finished_records
        return waiting < settings.queue_max_records and self._large_chars * 2 < settings.queue_max_bytes

    def mark(self) -> Mark:
        """Return a mark behind everything put so far, and set the threads going."""
        mark = Mark()
        with self._lock:
            if self._closed:
                if not self.queue:
                    mark._pass()
                return mark
            self._ensure_threads()
            self._marks += 1
            self.queue.append(mark)
        self._wake.set()
        return mark

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything put so far is acknowledged or safe in the spool.

        Args:
            timeout_s: Longest wait; None means ``exit_timeout_s``.

        Returns:
            False if some of it is still in memory after ``timeout_s``.
        """
        if threading.get_ident() in own_threads:
            return False
        timeout_s = self.settings.exit_timeout_s if timeout_s is None else timeout_s
        if (self._threads or self.queue) and not self.mark().wait(timeout_s):
            self._flush_failed_at = time.monotonic()
            return False
        return True

    def close(self, timeout_s: float | None = None) -> None:
        """Send what waits, for at most ``timeout_s``; spool the rest; end the threads.

        A record put afterwards goes to the spool at once, or is dropped and counted without one.
        """
        context.remove_reporter(self.put)  # reports of task runs leave through the next shipper, if any
        timeout_s = self.settings.exit_timeout_s if timeout_s is None else timeout_s
        if time.monotonic() - self._flush_failed_at < 1.0:
            timeout_s = 0.0  # logging.shutdown flushes, then closes; it has waited already
        with self._lock:
            if self._closed:
                return
            if self.queue:
                self._ensure_threads()
            self._closed = True
            self.wake_at = -1
            threads = [thread for thread in self._threads if thread.ident is not None]
        try:
            self._finish_threads(threads, timeout_s)
        finally:  # whoever presses Ctrl-C twice is impatient, and loses nothing
            self._save_the_rest()
        if self._backoff.failures and (self._spool is not None or self.settings.is_replayable):
            self._complain("away", self._failure)  # a short program ends before the third attempt

    def _finish_threads(self, threads: list[threading.Thread], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._close_deadline = deadline
            self._changed.notify_all()
        self._wake.set()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            with self._changed:
                self._is_abandoned = True  # the encoder need not wait for room any more
                self._changed.notify_all()
            threads[0].join(2.0)

    def stats(self) -> dict[str, int]:
        """Return how many records this process epoch has ``encoded``, ``sent``, ``rejected`` and more."""
        with self._lock:
            drops = {f"dropped_{reason}": count for reason, count in self._drops.items()}
        return {
            "queued": len(self.queue) + self._finished_records,
            "encoded": self._finisher.sequence,
            "sent": self._sent,
            "spooled_batches": len(self._spool) if self._spool else 0,
            "dropped": sum(drops.values()),
            **drops,
        }

    # --- putting slowly: waking, starting, large records, a full queue -----------------------

    def _put_slowly(self, item: Union[Item, Finished]) -> None:
        size = _weigh(item)
        queue = self.queue
        deadline: float | None = None
        while True:
            with self._lock:
                if not self._closed:
                    self._ensure_threads()
                elif self._is_ended:
                    self._put_ended(item)
                    return
                settings = self.settings
                if len(queue) < settings.queue_max_records and (
                    size <= SMALL_CHARS or not queue or self._large_chars + size <= settings.queue_max_bytes
                ):
                    if size > SMALL_CHARS:
                        self._large_chars += size
                    queue.append(item)
                    if len(queue) >= self.wake_at:
                        self._wake.set()
                    return
                self._wake.set()
                now = time.monotonic()
                if deadline is None:
                    deadline = now + settings.block_timeout_s
                if settings.when_full == "drop" or self._closed or now >= deadline:
                    count = 1
                    if isinstance(item, list):
                        count = len(item)
                        self._finished_records -= count
                        self._finished_items -= 1
                    self._count_drop("queue_full", count, is_numbered=False)
                    return
            time.sleep(0.002)

    def _put_ended(self, item: Union[Item, Finished]) -> None:
        """Take a record after the end: a destructor, or an exit handler that ran after ours."""
        with self._spooling:
            lines = item if isinstance(item, list) else [self._finisher.finish(item)]
            if self._spool is None:
                self._count_drop("closed", len(lines), is_numbered=False)
                return
            try:
                self._spool.append(self._batch(lines, is_ended=True))
                self._ledger.count_spooled(len(lines))
            except SpoolError as exc:
                self._count_drop(exc.reason, len(lines), str(exc))
            self._spool.close()

    def _ensure_threads(self) -> None:
        """Start the threads unless they run; where none can be started, records wait in the queue."""
        if self._threads and self._start_retry_at == 0.0:
            return
        if time.monotonic() < self._start_retry_at:
            return
        self._start_retry_at = 0.0
        if not self._threads:
            # Before any runs: a log call in a signal handler that interrupts the start, or in a Thread
            # class of the application's, must not start a second pair over the same connection.
            self._threads = [
                threading.Thread(target=self._run, args=(loop,), name=f"shippers-{name}", daemon=True)
                for name, loop in (("encoder", self._encode), ("sender", self._send))
            ]
            _close_with_multiprocessing(self)
        self.wake_at = self._wake_length
        interrupt: BaseException | None = None
        for thread in self._threads:
            if thread.ident is not None:
                continue
            try:
                thread.start()
            except RuntimeError as exc:
                # The machine has no thread to spare, or the interpreter is going down (Python 3.12 and later).
                self._start_retry_at = time.monotonic() + _START_RETRY_S
                self.wake_at = -1
                self._complain("start", f"no thread to send with, records wait in memory: {exc}")
                return
            except BaseException as exc:
                interrupt = exc  # a signal handler raised while start() waited for the thread, which runs
        if interrupt is not None:
            raise interrupt

    def _run(self, loop: Callable[[], None]) -> None:
        own_threads.add(threading.get_ident())
        try:
            while True:
                try:
                    loop()
                    return
                except Exception as exc:
                    # Never raised into the application, not even as "Exception in thread …"; out of memory passes.
                    self._complain("broken", f"a shipper's thread starts again after {exc!r}")
                    time.sleep(1.0)
        finally:
            own_threads.discard(threading.get_ident())

    # --- the encoder thread -----------------------------------------------------------------

    def _encode(self) -> None:
        settings = self.settings
        while True:
            if self._set_wake_at(self._wake_length) and len(self.queue) < self._wake_length:
                self._wake.wait(settings.flush_interval_s)
            is_last = not self._set_wake_at(settings.queue_max_records)
            self._drain(is_last)
            if is_last and not self.queue:
                with self._changed:
                    self._is_encoded = True
                    self._changed.notify_all()
                return

    def _set_wake_at(self, length: int) -> bool:
        """Set from which queue length ``put`` takes the slow path; False once closed."""
        with self._lock:
            if not self._closed:
                self.wake_at = length
            return not self._closed

    def _drain(self, is_last: bool) -> None:
        """Encode all that is queued; ``is_last``: and say that the process ends."""
        settings = self.settings
        queue = self.queue
        finish = self._finisher.finish
        clock = time.perf_counter
        lines: list[bytes] = []
        size = 0
        pressed_since: float | None = None
        slice_s = _SLICE_S
        slice_end = clock() + slice_s
        lines += self._drop_reports()
        while True:
            try:
                item = queue.popleft()
            except IndexError:
                break
            if isinstance(item, Mark):
                with self._lock:
                    self._marks -= 1
                self._hand_over(lines)
                lines, size = [], 0
                self._hand_over_mark(item)
                continue
            if type(item) is not tuple or item[10] is not None or item[12] is not None or len(item[9]) > SMALL_CHARS:
                weight = _weigh(item)
                if weight > SMALL_CHARS:
                    with self._lock:
                        self._large_chars -= weight
            if type(item) is list:
                lines += item
                size += sum(map(len, item))
                with self._lock:
                    self._finished_records -= len(item)
                    self._finished_items -= 1
            else:
                line = finish(item)  # type: ignore[arg-type]
                lines.append(line)
                size += len(line)
            if len(lines) >= settings.batch_max_records or size >= settings.batch_max_bytes:
                self._hand_over(lines)
                lines, size = [], 0
            now = clock()
            if now >= slice_end:
                if len(queue) * 2 > settings.queue_max_records:
                    pressed_since = pressed_since or now
                    slice_s = _LONG_SLICE_S if now - pressed_since > _PRESSED_S else _SLICE_S
                else:
                    pressed_since, slice_s = None, _SLICE_S
                is_waited_for = settings.when_full == "block" and pressed_since is not None
                if not self._closed and not is_waited_for:
                    # Without a real sleep the application's thread, which waits for the interpreter
                    # in 5 ms steps, would seldom get it: sleep(0) takes it back at once.
                    time.sleep(_PAUSE_S)
                slice_end = clock() + slice_s
        self._hand_over(lines, is_ended=is_last)

    def _hand_over(self, lines: list[bytes], *, is_ended: bool = False) -> None:
        if not lines and not (is_ended and self._ledger.has_news):
            return
        batch = self._batch(lines, is_ended=is_ended)
        with self._changed:
            while self._outbox_bytes >= _OUTBOX_MAX_BYTES and not self._is_abandoned:
                self._changed.wait(1.0)
            self._outbox.append(batch)
            self._outbox_bytes += len(batch.body)
            self._changed.notify_all()

    def _batch(self, lines: list[bytes], *, is_ended: bool) -> Batch:
        """Return a batch of ``lines`` with what the ledger says; all taken off the queue before must be in one."""
        queued = max(0, len(self.queue) - self._marks - self._finished_items + self._finished_records)
        statement = self._ledger.state(len(lines), queued=queued, is_ended=is_ended and not queued)
        return Batch.of(lines, self.settings.compression, statement)

    def _hand_over_mark(self, mark: Mark) -> None:
        with self._changed:
            self._outbox.append(mark)
            self._changed.notify_all()

    def _drop_reports(self) -> list[bytes]:
        """Return records that tell the service what was dropped, at most every few seconds."""
        now = time.monotonic()
        if self._drops == self._drops_reported:
            return []
        if now - self._drops_reported_at < _DROP_REPORT_INTERVAL_S and not self._closed:
            return []
        self._drops_reported_at = now
        with self._lock:
            drops = dict(self._drops)
        lines = []
        for reason, total in drops.items():
            count = total - self._drops_reported.get(reason, 0)
            if count:
                lines.append(self._finisher.finish(_drop_report(reason, count, total)))
        self._drops_reported = drops
        return lines

    # --- the sender thread ------------------------------------------------------------------

    def _send(self) -> None:
        """Send oldest first; spool while the service is away."""
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, self._idle_s())
                is_closing = self._close_deadline is not None
                if self._is_abandoned:
                    return  # close() saves the rest itself
            self._adopt()
            self._settle_waiting()
            may_send = self._may_send()
            if may_send:
                self._send_oldest()
            if is_closing and self._is_encoded and (not may_send or self._is_drained()):
                break
            if is_closing and not may_send:
                with self._changed:
                    self._changed.wait(0.02)  # the encoder is still at work
        self._transport.close()

    def _has_work(self) -> bool:
        if self._is_abandoned:
            return True
        if self._close_deadline is not None:
            return bool(self._outbox) or self._is_encoded
        if self._outbox:
            # A batch that can be neither sent nor spooled yet is no work.
            return time.monotonic() >= self._retry_at or (self._spool is not None and self._can_spool())
        return self._spooled_is_due()

    def _spooled_is_due(self) -> bool:
        return self._spool is not None and len(self._spool) > 0 and time.monotonic() >= self._retry_at

    def _can_spool(self) -> bool:
        return time.monotonic() >= self._spool_retry_at

    def _idle_s(self) -> float:
        """How long to sleep when nothing happens: until a retry is due, or the next look for orphans."""
        now = time.monotonic()
        due = now + _ADOPT_INTERVAL_S
        if self._spool is not None:
            due = min(due, self._adopt_at)
            if self._outbox:
                due = min(due, max(self._spool_retry_at, now))
        if self._outbox or (self._spool is not None and len(self._spool)):
            due = min(due, self._retry_at)
        return max(0.0, due - now)

    def _may_send(self) -> bool:
        now = time.monotonic()
        if self._close_deadline is not None:
            # At the end: one more attempt if nothing else can save what is in memory, none otherwise.
            if now >= self._close_deadline:
                return False
            if self._backoff.failures and (self._spool is not None or self._has_made_last_attempt):
                return False
            self._has_made_last_attempt = self._backoff.failures > 0
        elif now < self._retry_at:
            return False
        return bool(self._outbox) or (self._spool is not None and len(self._spool) > 0)

    def _is_drained(self) -> bool:
        return not self._outbox and (self._spool is None or not len(self._spool))

    def _settle_waiting(self) -> None:
        """Pass marks with nothing before them; spool the outbox if it cannot be sent at once."""
        while True:
            with self._changed:
                first = self._outbox[0] if self._outbox else None
                if isinstance(first, Mark):
                    self._outbox.popleft()
                    first._pass()
                    continue
            if first is None or self._spool is None:
                return
            is_behind = len(self._spool) > 0
            is_away = self._backoff.failures > 0 and (
                time.monotonic() < self._retry_at or self._close_deadline is not None
            )
            if not (is_behind or is_away) or not self._can_spool():
                return
            if not self._spool_batch(first):
                return
            self._take_from_outbox(first)

    def _spool_batch(self, batch: Batch) -> bool:
        """Spool one batch; True if it need not be kept in memory any longer."""
        assert self._spool is not None
        with self._spooling:
            try:
                self._spool.append(batch)
                self._ledger.count_spooled(batch.records)
            except SpoolError as exc:
                if exc.reason == "spool_full" and not self.settings.is_replayable:
                    self._count_drop(exc.reason, batch.records, str(exc))
                    return True
                # Disk full, directory gone: keep it in memory as long as there is room, and try again.
                self._complain("spool", str(exc))
                self._spool_retry_at = time.monotonic() + _SPOOL_RETRY_S
                return False
        return True

    def _send_oldest(self) -> None:
        if self._spool is not None and len(self._spool):
            with self._spooling:
                try:
                    spooled = self._spool.oldest()
                except SpoolError as exc:
                    self._retry_at = time.monotonic() + _SPOOL_RETRY_S
                    self._complain("spool", str(exc))
                    with self._changed:
                        self._changed.wait(0.02)  # close() tries on until its deadline
                    return
                self._count_corrupt()
            if spooled is not None:
                if self._attempt(spooled.batch, is_own=spooled.is_own):
                    with self._spooling:
                        self._spool.remove(spooled)
                return
        with self._changed:
            first = self._outbox[0] if self._outbox else None
        # It stays in the outbox meanwhile, so that close() finds it should this take too long.
        if isinstance(first, Batch) and self._attempt(first):
            self._take_from_outbox(first)

    def _take_from_outbox(self, batch: Batch) -> None:
        with self._changed:
            if self._outbox and self._outbox[0] is batch:
                self._outbox.popleft()
                self._outbox_bytes -= len(batch.body)
            self._changed.notify_all()

    def _attempt(self, batch: Batch, *, is_own: bool = True) -> bool:
        """Make one attempt; True if the batch is done with, for better or worse.

        ``is_own`` is False for what another process left: our ledger says nothing about its records.
        """
        told: list[Callable[[], None]] = []
        is_done = self._attempt_part(batch, told)
        if is_done and is_own:  # only now, since halves may be sent again
            for tell in told:
                tell()
        return is_done

    def _attempt_part(self, batch: Batch, told: list[Callable[[], None]]) -> bool:
        """Attempt a batch or a half of one; ``told`` gets what the ledger is to be told of it."""
        started = time.monotonic()
        try:
            outcome = self._transport.send(batch)
        except Exception as exc:
            outcome = Outcome(Verdict.RETRY, "transport_failed", detail=repr(exc))
        verdict = outcome.verdict
        if verdict is Verdict.TOO_LARGE and batch.records > 1:
            # Should the second half fail, both are sent again: the service knows the first by its ids.
            return all(self._attempt_part(half, told) for half in batch.halves())
        if verdict is Verdict.TOO_LARGE or verdict is Verdict.REFUSED:
            is_refused = verdict is Verdict.REFUSED
            reason, detail = ("refused", f"{outcome.reason}: ") if is_refused else ("too_large", "")
            self._count_drop(reason, batch.records, detail + outcome.detail, is_numbered=None)
            told.append(partial(self._ledger.count_undelivered, reason, batch.records))
        elif verdict is Verdict.ACCEPTED:
            self._sent += batch.records - outcome.rejected
            told.append(partial(self._ledger.count_acknowledged, batch.records))
            if outcome.rejected:
                # The service knows of these by itself: it has the numbers, and refused them.
                self._count_drop("rejected", outcome.rejected, outcome.detail, is_numbered=None)
        else:
            self._note_failure(outcome, started)
            return False
        self._backoff.reset()
        self._retry_at = 0.0
        return True

    def _note_failure(self, outcome: Outcome, started: float) -> None:
        now = time.monotonic()
        if not self._backoff.failures:
            self._failing_since = started
        self._retry_at = now + self._backoff.after(outcome)
        is_denied = outcome.verdict is Verdict.DENIED
        problem = "does not take our logs; check url and api_key" if is_denied else "is not available"
        detail = f": {outcome.detail}" if outcome.detail else ""
        place = "in memory" if self._spool is None else f"in {self._spool.root}"
        if self.settings.is_replayable:
            place = "where they came from"
        self._failure = f"{self._transport} {problem}; records wait {place} ({outcome.reason}{detail})"
        if (
            is_denied
            or self._backoff.failures >= _TOLERATED_FAILURES
            or now - self._failing_since >= _TOLERATED_FAILURE_S
        ):
            self._complain("away", self._failure)

    def _adopt(self) -> None:
        if self._spool is None or time.monotonic() < self._adopt_at:
            return
        self._adopt_at = time.monotonic() + _ADOPT_INTERVAL_S
        with self._spooling:
            self._spool.adopt()

    def _count_corrupt(self) -> None:
        assert self._spool is not None
        count = self._spool.corrupt_records - self._corrupt_counted
        if count:
            self._corrupt_counted += count
            # Perhaps another process's: the service sees by their numbers whose they were.
            self._count_drop("spool_corrupt", count, f"set aside in {self._spool.directory}", is_numbered=None)
        if self._spool.locked_batches:
            self._complain("locked", f"{self._spool.directory} holds batches that another spool_key opens; they wait")

    def _save_the_rest(self) -> None:
        """After the threads: spool what could not be sent, or count it as lost."""
        with self._lock:
            self._is_ended = True
        with self._changed:
            waiting = list(self._outbox)
            self._outbox.clear()
            self._outbox_bytes = 0
        lines = []
        while self.queue:
            item = self.queue.popleft()
            if isinstance(item, Mark):
                self._marks -= 1
                waiting.append(item)
            elif isinstance(item, list):
                lines += item
                self._finished_records -= len(item)
                self._finished_items -= 1
            else:
                lines.append(self._finisher.finish(item))
        if lines:
            waiting.append(self._batch(lines, is_ended=True))
        is_settled = True
        with self._spooling:
            for batch in waiting:
                if isinstance(batch, Mark):
                    if is_settled:
                        batch._pass()
                    continue
                try:
                    if self._spool is None:
                        raise SpoolError("exit", "the service was away and there is no spool")
                    self._spool.append(batch)
                    self._ledger.count_spooled(batch.records)
                except SpoolError as exc:
                    if self.settings.is_replayable:
                        is_settled = False  # it will be read again, so no mark behind it may pass
                    else:
                        self._count_drop(exc.reason, batch.records, str(exc))
            if self._spool is not None:
                self._spool.close()

    # --- counting and complaining -----------------------------------------------------------

    def _count_drop(self, reason: str, count: int, detail: str = "", *, is_numbered: bool | None = True) -> None:
        """Count what is lost; ``is_numbered``: whether it had numbers of our ledger, None if that is not to say it."""
        if not count:
            return  # a statement alone
        if is_numbered is not None:
            (self._ledger.count_undelivered if is_numbered else self._ledger.count_dropped)(reason, count)
        with self._lock:
            self._drops[reason] = self._drops.get(reason, 0) + count
        self._complain(f"drop {reason}", f"dropping records: {reason} ({count} now) {detail}".rstrip())

    def _complain(self, kind: str, message: str) -> None:
        """Say something on standard error, at most once a minute for each kind."""
        now = time.monotonic()
        if now - self._complaints.get(kind, -_COMPLAINT_INTERVAL_S) < _COMPLAINT_INTERVAL_S:
            return
        self._complaints[kind] = now
        try:
            sys.stderr.write(f"shippers: {message}\n")
        except Exception:
            pass


_live: weakref.WeakSet[Batcher] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    own_threads.clear()
    for batcher in list(_live):
        batcher._after_fork()


def _close_at_exit() -> None:
    for batcher in list(_live):
        batcher.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
# Here, not when the first record comes: exit handlers run newest first, and what the program's own log is to be sent.
atexit.register(_close_at_exit)


def _close_with_multiprocessing(batcher: Batcher) -> None:
    """Flush at the end of a child of multiprocessing, or of Celery's billiard, which runs no atexit handlers."""
    for package in ("multiprocessing", "billiard"):
        process: Any = sys.modules.get(f"{package}.process")
        util: Any = sys.modules.get(f"{package}.util")
        if process is not None and util is not None and process.current_process()._parent_pid is not None:
            util.Finalize(None, batcher.close, exitpriority=0)


def _weigh(item: Any) -> int:
    """Return roughly how many characters an item holds."""
    if type(item) is list:
        return sum(map(len, item))
    if type(item) is tuple:
        size = len(item[9])
        if item[10] is not None:
            size += len(item[10][1]) + len(item[10][2])
        return size + (_weigh_nested(item[12]) if item[12] else 0)
    return _weigh_nested(item)


def _weigh_nested(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _weigh_nested(item) for key, item in value.items())
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return sum(map(_weigh_nested, value))
    return 8


def _drop_report(reason: str, count: int, total: int) -> dict[str, Any]:
    now = datetime.now(timezone.utc)
    return {
        "@timestamp": f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond:06d}Z",
        "log.level": "warn",
        "log.logger": "shippers",
        "event.kind": "metric",
        "event.action": "shipper.dropped",
        "message": f"dropped {count} records: {reason}",
        # total counts since the start of the epoch, so that a lost report is made good by the next.
        "labels": {"reason": reason, "count": str(count), "total": str(total)},
    }
