"""Journal: accepted records on disk, in order, until the store has them.

A sender is acknowledged when its records cannot be lost any more; the store is too slow to wait
for, and may be away. So records go to an append-only file first. All appends that wait are written
together and share one fsync (group commit), by one thread.

What always holds:

- ``append`` returns after the fsync; what it returned for is read back exactly as it was, or its
  loss is counted in ``damage``, never silently.
- Sequence numbers rise strictly and are never used twice: not after a crash, not after everything
  was trimmed, not after a torn tail was cut. They may have gaps.
- A batch that cannot be written wholly leaves nothing behind.
- The directory never exceeds ``max_bytes``; memory holds at most ``max_waiting_records`` waiting
  and ``recent_records`` recent ones.
- While the reader gets on, it is never more than about ``max_lag_s`` behind: beyond that, half of what it
  reads is admitted, so that a backlog shrinks whatever is sent. A reader that stands still (the store is
  away) holds nobody back before the directory is full.
- Tenants that wait are served in turn (turns.py), and each may wait with as much as it leaves free. Behind
  a backlog each has its share of what is admitted, so that who sends less than that waits for nobody.
- A file in which an fsync failed is never written again: the kernel may have dropped its pages and
  the next fsync would lie.

Layout: segments ``SEQUENCE.log``, named by the first sequence number they may hold. A segment is a
header and frames; a frame is a header with its own checksum, so that damage in the payload costs
one frame, and a payload of up to 1,000 entries as MessagePack, compressed with zstd (which costs
as much CPU as writing the bytes that it saves). There is always one segment, and opening starts a
new one, so what a crash left is never appended to. ``spare`` becomes the next segment.

Not here: who reads and when to trim (indexer.py), masking (ingest.py; the journal only ever sees
masked records).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import math
import mmap
import os
import struct
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import zstandard
from loguru import logger

from logsvc import durable, faults
from logsvc.errors import BadInput, JournalFull, Overloaded
from logsvc.records import Entry
from logsvc.turns import Lines

T = TypeVar("T")

DIRECTORY = "journal"
"""Where it lies in a data directory."""

GIB = 1 << 30
MIB = 1 << 20

_SEGMENT_MAGIC = b"LOGSVCJ1"
_SEGMENT_HEADER = struct.Struct("<8sQQQI")  # magic, first seq, last seq before it, last ingested before it, crc
# Bytes above 0xF7 never occur in UTF-8, so the text of a record cannot pass for a frame.
_FRAME_MAGIC = b"\xf8\xff\xfe\xfd\xfc\xfb\xfa\xf9"
# magic, payload length, length before compression (0: not compressed), first seq, count, max ingested,
# crc of the payload, crc of the header
_FRAME_HEADER = struct.Struct("<8sIIQIQII")
_CRC_SIZE = 4

_FRAME_RECORDS = 1_000
_FRAME_BYTES = 4 * MIB
_GROUP_RECORDS = 20_000
_COMPRESS_FROM_BYTES = 1_024
_SPARE = "spare"
_SPARE_BYTES = 4_096
_READ_BYTES = 1 * MIB
_WAITING_BYTES = 128 * MIB
_RECENT_BYTES = 32 * MIB

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ROOM_POLL_S = 0.25  # nobody tells us that a disk has room again
_DUE_POLL_S = 0.05  # nor that a tenant behind a backlog is due
_MIN_BACKLOG_RECORDS = 50_000  # before the reader has shown how fast it is
_STANDS_STILL_AFTER_S = 15.0
_MAX_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that hold no valid frame.

    ``is_torn`` is the end of the last segment after a crash, which was cut: a write that was never
    acknowledged. Anything else may have been; ``records`` is how many are lost, None if unknown.
    """

    segment: str
    offset: int
    size_bytes: int
    records: int | None
    is_torn: bool


class Batch(NamedTuple):
    """Entries in rising ``seq``, and how far into the sequence they reach: continue after ``through_seq``."""

    entries: list[Entry]
    through_seq: int


class _NoRoom(Exception):
    """The bound or the disk is reached."""


class _Pending:
    """One ``append`` that waits: its entries, until when, and how to answer."""

    __slots__ = ("deadline", "entries", "future", "loop", "size_bytes")

    @property
    def tenant(self) -> str:
        return self.entries[0].tenant

    def __init__(
        self,
        entries: Sequence[Entry],
        size_bytes: int,
        deadline: float,
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[int] | concurrent.futures.Future[int],
    ) -> None:
        self.entries = entries
        self.size_bytes = size_bytes
        self.deadline = deadline
        self.loop = loop
        self.future = future


_Answer = tuple[_Pending, int | Exception]


class _Segment:
    """One file: what may lie in it and where its valid part ends."""

    __slots__ = ("first_seq", "last_seq", "path", "size_bytes")

    def __init__(self, path: Path, first_seq: int, last_seq: int, size_bytes: int) -> None:
        self.path = path
        self.first_seq = first_seq
        self.last_seq = last_seq
        self.size_bytes = size_bytes

    @property
    def is_empty(self) -> bool:
        return self.size_bytes <= _SEGMENT_HEADER.size


class _Frame(NamedTuple):
    offset: int
    end: int
    first_seq: int
    records: int
    ingested_us: int
    raw_length: int
    payload: memoryview | None  # None: damaged

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.records - 1


class _Gap(NamedTuple):
    """Bytes between two valid frames, or before the end, that are none."""

    offset: int
    end: int


class _Chunk(NamedTuple):
    """The entries of one frame, numbered without a gap, and the bytes of their sources."""

    entries: list[Entry]
    size_bytes: int


class Pace:
    """How far appends may go while the reader is behind. Not safe for several threads; ``now`` is monotonic.

    As long as the reader gets on, at most ``max_lag_s`` of its own work may wait for it. Beyond that, such as after an
    outage of the store, half of what it takes is shared among the tenants, so that the backlog shrinks and yet nobody
    waits for what another one has sent.
    """

    def __init__(self, max_lag_s: float) -> None:
        self.rate = 0.0  # records a second that the reader takes; 0 until it is known
        self._max_lag_s = max_lag_s
        self._last_seq = self._through_seq = 0  # when it was noted last
        self._noted_at: float | None = None
        self._shared_through = 0.0  # half of what the reader takes up to here was shared

    def note(self, last_seq: int, through_seq: int, now: float) -> None:
        """Take notice that of the numbers up to ``last_seq`` the reader has those up to ``through_seq``."""
        before = self._noted_at
        if before is not None and now <= before:
            return  # how fast it is shows with the next one
        moved, was_behind = through_seq - self._through_seq, through_seq <= self._last_seq
        # What nobody asked for is not saved up, and nobody waits because it took less than was thought.
        self._shared_through = min(max(self._shared_through, self._through_seq), through_seq)
        self._noted_at, self._through_seq, self._last_seq = now, through_seq, last_seq
        if before is None or now - before >= _STANDS_STILL_AFTER_S:
            return
        elapsed_s = now - before
        if not self.rate:
            self.rate = moved / elapsed_s
        elif was_behind or moved > self.rate * elapsed_s:  # else it may have waited for records, and is no slower
            # Averaged over as long as a backlog may take, so that a note moves the bound by about what was read since
            # the last one, however soon after that it comes.
            self.rate += (moved - self.rate * elapsed_s) / (elapsed_s + self._max_lag_s)

    def backlog(self, last_seq: int) -> int:
        """Return how many of the numbers up to ``last_seq`` wait for the reader."""
        return last_seq - self._through_seq

    def room(self, last_seq: int, now: float) -> int:
        """Return how many records may be appended after ``last_seq`` in one group, whoever sends them."""
        if not self.rate or self._noted_at is None or now - self._noted_at >= _STANDS_STILL_AFTER_S:
            return _GROUP_RECORDS
        return max(0, min(_GROUP_RECORDS, self._bound - self.backlog(last_seq)))

    def is_behind(self, last_seq: int, now: float) -> bool:
        """Return whether appends after ``last_seq`` wait for the reader; never for one that stands still."""
        return not self.room(last_seq, now)

    def due(self, last_seq: int, now: float) -> float:
        """Return how many records may be shared since the last call though the reader is behind; 0 if it is not."""
        if self._noted_at is None:
            return 0.0
        # A reader of large batches is noted seldom, and nobody waits that long.
        reached = self._through_seq + self.rate * (now - self._noted_at)
        shared, self._shared_through = self._shared_through, max(self._shared_through, reached)
        return max(0.0, reached - shared) / 2 if self.is_behind(last_seq, now) else 0.0

    def wait_s(self, last_seq: int, now: float) -> int:
        """Return when an append after ``last_seq`` has a good chance, in seconds, at least 1."""
        if not self.is_behind(last_seq, now):
            return 1
        excess = self.backlog(last_seq) - self._bound
        return max(1, min(_MAX_RETRY_AFTER_S, math.ceil(excess / max(self.rate / 2, 1.0))))

    @property
    def _bound(self) -> int:
        return max(_MIN_BACKLOG_RECORDS, round(self.rate * self._max_lag_s))


def next_group(waiting: Lines[T], room: int) -> list[T]:
    """Remove from those that wait the appends that are written together, and return them.

    Behind a backlog (no room) these are of tenants that have had no more than their share. One append may go beyond
    the room, since all of it is written or nothing; its tenant then owes that.
    """
    group: list[T] = []
    records = 0.0
    while waiting and (records < room or waiting.has_due):
        if group and records + waiting.next_cost() > _GROUP_RECORDS:
            break
        records += waiting.next_cost()
        group.append(waiting.pop())
    return group


class Journal:
    """See the module. Made by ``open``; ``append`` and ``append_sync`` are safe from any thread or loop.

    ``read`` and ``trim`` are for one reader at a time.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        segment_bytes: int,
        full_wait_s: float,
        max_lag_s: float,
        max_waiting_records: int,
        recent_records: int,
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        # Only whole segments are trimmed, so a small journal needs small ones.
        self._segment_bytes = min(segment_bytes, max(max_bytes // 8, 1))
        self._full_wait_s = full_wait_s
        self.on_fsync: Callable[[float], None] = lambda _seconds: None
        """Called by the writer with the seconds that each fsync of records took."""
        self._max_waiting_records = max_waiting_records
        self._max_recent_records = recent_records

        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._waiting: Lines[_Pending] = Lines()
        self._waiting_records = 0  # those in the writer's hands included
        self._waiting_bytes = 0
        self._records_of: Counter[str] = Counter()  # of the above, each tenant's
        self._bytes_of: Counter[str] = Counter()
        self._is_closing = False
        self._is_roll_wanted = False
        self._trouble: str | None = None
        self._refused_records = 0

        self._segments: list[_Segment] = []
        self._fd = -1  # of the last segment; -1 when it may not be written any more
        self._next_seq = 1
        self._last_seq = 0
        self._last_ingested_us = 0
        self._trimmed_through = 0
        self._pace = Pace(max_lag_s)

        self._recent: deque[_Chunk] = deque()
        self._recent_records = 0
        self._recent_bytes = 0
        self._listeners: list[Callable[[int], None]] = []

        self._read_lock = threading.Lock()
        self._cursor: _Cursor | None = None
        self._damage: dict[tuple[str, int], Damage] = {}

        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[Entry])
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()
        self._writer = threading.Thread(target=self._run, name="journal-writer", daemon=True)

    # -- opening and closing ------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        max_bytes: int = 8 * GIB,
        segment_bytes: int = 64 * MIB,
        full_wait_s: float = 5.0,
        max_lag_s: float = 30.0,
        max_waiting_records: int = 50_000,
        recent_records: int = 20_000,
    ) -> Journal:
        """Open the journal in ``directory`` (made if missing), cut a torn tail, and start writing.

        The caller holds the data directory's lock. What was found wrong is in ``damage`` and logged.

        Args:
            directory: Nothing else may lie in it.
            max_bytes: Bound of all segments together.
            segment_bytes: A new segment is begun beyond this.
            full_wait_s: How long an append waits for room before ``JournalFull``.
            max_lag_s: How far the reader may be behind, in seconds of its own work.
            max_waiting_records: Appends are refused while so many records wait for the writer.
            recent_records: How many of the newest records stay in memory for the reader.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.sync_directory(directory.parent)
        journal = cls(
            directory,
            max_bytes=max_bytes,
            segment_bytes=segment_bytes,
            full_wait_s=full_wait_s,
            max_lag_s=max_lag_s,
            max_waiting_records=max_waiting_records,
            recent_records=recent_records,
        )
        journal._recover(may_repair=True)
        journal._roll()
        journal._writer.start()
        return journal

    @classmethod
    def inspect(cls, directory: Path) -> Journal:
        """Open the journal in ``directory`` for reading only, changing nothing: a dead node's, say.

        Raises:
            BadInput: If there is no journal.
        """
        if not any(path.stem.isdigit() for path in directory.glob("*.log")):
            raise BadInput(
                f"{directory} holds no journal; expected files such as 00000000000000000001.log, "
                "which lie in the folder journal of a data directory"
            )
        journal = cls(
            directory,
            max_bytes=0,
            segment_bytes=0,
            full_wait_s=0,
            max_lag_s=0,
            max_waiting_records=0,
            recent_records=0,
        )
        journal._is_closing = True
        journal._recover(may_repair=False)
        return journal

    def close(self) -> None:
        """Write what waits, then refuse further appends; idempotent. Reading stays possible."""
        with self._lock:
            self._is_closing = True
            self._work.notify_all()
            self._room.notify_all()
        if self._writer.is_alive():
            self._writer.join()
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
        with self._read_lock:
            self._drop_cursor()

    # -- what is known ------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """Where the segments lie."""
        return self._directory

    @property
    def last_seq(self) -> int:
        """Highest sequence number that is durable; numbers up to here will not be given again."""
        return self._last_seq

    @property
    def last_ingested_us(self) -> int:
        """Highest ``ingested_us`` ever appended, trimmed or not; 0 before the first record."""
        return self._last_ingested_us

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        with self._lock:
            return self._size_bytes()

    @property
    def max_bytes(self) -> int:
        """Bound of ``size_bytes``."""
        return self._max_bytes

    @property
    def waiting_records(self) -> int:
        """Records handed to ``append`` that are not durable yet."""
        return self._waiting_records

    @property
    def refused_records(self) -> int:
        """Records refused since the start because there was no room or no durable disk."""
        return self._refused_records

    @property
    def is_pushing_back(self) -> bool:
        """Whether appends are held back because the reader is too far behind."""
        return self._pace.is_behind(self._last_seq, time.monotonic())

    @property
    def trouble(self) -> str | None:
        """Why the last write did not succeed; None once one has."""
        return self._trouble

    @property
    def damage(self) -> tuple[Damage, ...]:
        """What was found unreadable since the start, each once."""
        with self._lock:
            return tuple(self._damage.values())

    def on_durable(self, listener: Callable[[int], None]) -> None:
        """Call ``listener(last_seq)`` from the writer's thread after each commit; it must return at once."""
        self._listeners.append(listener)

    # -- appending ----------------------------------------------------------------------------

    async def append(self, entries: Sequence[Entry]) -> int:
        """Make ``entries`` durable and return the sequence number of the first; the rest follow on.

        The entries' own ``seq`` is ignored. Cancelling the call does not take the entries back: it
        ends, cancelled, when they are durable or refused, so that nobody takes them for settled before.

        Raises:
            JournalFull: If there was no room for ``full_wait_s``; nothing of it was written.
            Overloaded: If the disk failed, or the journal is closed.
        """
        if not entries:
            return self._next_seq
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._submit(entries, loop, future)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            future.exception()  # nobody else asks for it
            raise

    def append_sync(self, entries: Sequence[Entry]) -> int:
        """Do as ``append`` does, for a thread without an event loop."""
        if not entries:
            return self._next_seq
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._submit(entries, None, future)
        return future.result()

    def check_room(self, tenant: str) -> None:
        """Raise what ``append`` would for ever so few records of a tenant; cheap, before any work on them.

        Raises:
            JournalFull: If too many wait already.
        """
        with self._lock:
            self._check_room(tenant)

    def _check_room(self, tenant: str) -> None:
        # Whoever waits holds the records in memory all the same, so beyond the bound it must not wait.
        records, size_bytes = self._waiting_records, self._waiting_bytes
        if (
            records + self._records_of[tenant] >= self._max_waiting_records
            or size_bytes + self._bytes_of[tenant] >= _WAITING_BYTES
        ):
            raise JournalFull(
                f"{records} records wait for the journal already, {self._records_of[tenant]} of this tenant; expected "
                f"fewer than {self._max_waiting_records}, and of one tenant no more than it leaves free; send again later",
                self._pace.wait_s(self._last_seq + records, time.monotonic()),
                reason="journal_busy",
            )

    def _submit(
        self,
        entries: Sequence[Entry],
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[int] | concurrent.futures.Future[int],
    ) -> None:
        size_bytes = sum([len(entry.source) for entry in entries])
        pending = _Pending(entries, size_bytes, time.monotonic() + self._full_wait_s, loop, future)
        with self._lock:
            if self._is_closing:
                raise Overloaded("the journal is closed; the service is stopping", reason="stopping")
            try:
                self._check_room(pending.tenant)
            except JournalFull:
                self._refused_records += len(entries)
                raise
            self._waiting.push(pending.tenant, pending, len(entries))
            self._count_waiting(pending, 1)
            self._work.notify()

    def _count_waiting(self, pending: _Pending, sign: int) -> None:
        records, size_bytes, tenant = sign * len(pending.entries), sign * pending.size_bytes, pending.tenant
        self._waiting_records += records
        self._waiting_bytes += size_bytes
        self._records_of[tenant] += records
        self._bytes_of[tenant] += size_bytes
        if not self._records_of[tenant]:
            del self._records_of[tenant], self._bytes_of[tenant]

    # -- the writer's thread ------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            late: list[_Pending] = []
            with self._lock:
                while not self._waiting and not self._is_closing and not self._is_roll_wanted:
                    self._work.wait()
                if not self._waiting and not self._is_roll_wanted:
                    return
                now = time.monotonic()
                self._waiting.share(self._pace.due(self._last_seq, now))
                group = next_group(
                    self._waiting, _GROUP_RECORDS if self._is_closing else self._pace.room(self._last_seq, now)
                )
                if self.is_pushing_back and not self._is_closing:
                    late = self._drop_late(now)
                if not (group or late or self._is_roll_wanted):
                    self._work.wait(_DUE_POLL_S)
                is_roll_wanted, self._is_roll_wanted = self._is_roll_wanted, False
            if is_roll_wanted:
                try:
                    self._roll()
                except OSError as exc:
                    logger.warning("journal: cannot begin a new segment now: {}", exc)
            if late:
                backlog, rate = self._pace.backlog(self._last_seq), self._pace.rate
                retry_after_s = self._pace.wait_s(self._last_seq + self._waiting_records, now)
                why = f"{backlog} records wait for the store, which takes {rate:.0f} a second"
                self._refuse(late, why, retry_after_s, "backlog")
            self._commit(group)

    def _drop_late(self, now: float) -> list[_Pending]:
        return self._waiting.drop_heads(lambda pending: pending.deadline <= now or self._is_closing)

    def _refuse(self, late: Sequence[_Pending], why: str, retry_after_s: int, reason: str) -> None:
        full = JournalFull(
            f"{why}; nothing was kept, send again when the store has caught up", retry_after_s, reason=reason
        )
        self._settle([(pending, full) for pending in late])

    def _commit(self, group: list[_Pending]) -> None:
        """Write ``group`` and answer each of its appends, holding back while there is no room."""
        while group:
            try:
                answers = self._write(group)
            except _NoRoom as exc:
                group = self._hold(group, exc)
            except Exception as exc:  # noqa: BLE001 - whatever it is, the writer must live on to say so
                logger.error("journal: cannot make records durable: {}", exc)
                self._trouble = str(exc)
                refusal = Overloaded(
                    f"the journal cannot make records durable: {exc}; nothing was kept, send again",
                    reason="journal_failed",
                )
                self._settle([(pending, refusal) for pending in group])
                return
            else:
                if self._trouble is not None:
                    self._trouble = None
                    self._prepare_spare()
                self._settle(answers)
                faults.reach("journal.after_acknowledge")
                for listener in self._listeners:
                    listener(self._last_seq)
                return

    def _write(self, group: list[_Pending]) -> list[_Answer]:
        """Write and fsync all entries of ``group``, or leave nothing of it.

        Raises:
            _NoRoom: The bound or the disk is reached; the same call may succeed later.
            OSError: The disk failed; the segment is given up.
        """
        if self._fd < 0 or self._segments[-1].size_bytes >= self._segment_bytes:
            try:
                self._roll()
            except OSError as exc:
                if exc.errno in _NO_ROOM:
                    raise _NoRoom(f"no room on the disk for a new segment: {exc.strerror}") from exc
                raise
        segment = self._segments[-1]
        start = offset = segment.size_bytes
        others_bytes = self._size_bytes() - start
        faults.reach("journal.before_write")

        answers, chunks, seq = self._number(group)
        ingested_us = self._last_ingested_us
        try:
            for chunk in chunks:
                ingested_us = max(ingested_us, *[entry.ingested_us for entry in chunk.entries])
                frame = self._encode(chunk.entries, ingested_us)
                if others_bytes + offset + len(frame) + _SPARE_BYTES > self._max_bytes:
                    raise _NoRoom(f"the journal holds {others_bytes + start} of {self._max_bytes} bytes")
                if faults.is_armed and offset == start:
                    half = len(frame) // 2
                    durable.write_all(self._fd, frame[:half])
                    faults.reach("journal.half_written")
                    durable.write_all(self._fd, frame[half:])
                else:
                    durable.write_all(self._fd, frame)
                offset += len(frame)
        except _NoRoom:
            self._take_back(start)
            raise
        except OSError as exc:
            if exc.errno in _NO_ROOM:
                self._take_back(start)
                raise _NoRoom(f"no room on the disk for {segment.path.name}: {exc.strerror}") from exc
            self._next_seq = seq
            self._give_up(start)
            raise
        faults.reach("journal.after_write")
        try:
            began = time.monotonic()
            durable.sync(self._fd)
            self.on_fsync(time.monotonic() - began)
        except OSError as exc:
            # These numbers may be on the disk all the same, so they are not given again.
            self._next_seq = seq
            self._give_up(start)
            if exc.errno in _NO_ROOM:
                raise _NoRoom(f"no room on the disk for {segment.path.name}: {exc.strerror}") from exc
            raise
        faults.reach("journal.after_fsync")

        with self._lock:
            segment.size_bytes = offset
            segment.last_seq = seq - 1
            self._next_seq = seq
            self._last_seq = seq - 1
            self._last_ingested_us = ingested_us
            for chunk in chunks:
                self._recent.append(chunk)
                self._recent_records += len(chunk.entries)
                self._recent_bytes += chunk.size_bytes
            while self._recent_records > self._max_recent_records or self._recent_bytes > _RECENT_BYTES:
                self._forget_oldest()
        return answers

    def _number(self, group: list[_Pending]) -> tuple[list[_Answer], list[_Chunk], int]:
        """Return the answers due, the numbered entries by frames, and the next free number."""
        answers: list[_Answer] = []
        chunks: list[_Chunk] = []
        numbered: list[Entry] = []
        size_bytes = 0
        seq = self._next_seq
        for pending in group:
            answers.append((pending, seq))
            for entry in pending.entries:
                # The sender's object may be appended again, so it keeps its own number.
                numbered.append(
                    Entry(
                        entry.tenant,
                        entry.id,
                        seq,
                        entry.time_us,
                        entry.ingested_us,
                        entry.unit,
                        entry.duration_bucket,
                        entry.has_client_id,
                        entry.source,
                    )
                )
                size_bytes += len(entry.source)
                seq += 1
                if len(numbered) == _FRAME_RECORDS or size_bytes >= _FRAME_BYTES:
                    chunks.append(_Chunk(numbered, size_bytes))
                    numbered, size_bytes = [], 0
        if numbered:
            chunks.append(_Chunk(numbered, size_bytes))
        return answers, chunks, seq

    def _encode(self, entries: list[Entry], ingested_us: int) -> bytes:
        payload = self._encoder.encode(entries)
        raw_length = 0
        if len(payload) >= _COMPRESS_FROM_BYTES:
            raw_length, payload = len(payload), self._compressor.compress(payload)
        header = _FRAME_HEADER.pack(
            _FRAME_MAGIC, len(payload), raw_length, entries[0].seq, len(entries), ingested_us, zlib.crc32(payload), 0
        )[:-_CRC_SIZE]
        return header + zlib.crc32(header).to_bytes(_CRC_SIZE, "little") + payload

    def _decode(self, frame: _Frame) -> list[Entry]:
        payload = frame.payload if frame.payload is not None else memoryview(b"")
        if frame.raw_length:
            return self._decoder.decode(self._decompressor.decompress(payload, max_output_size=frame.raw_length))
        return self._decoder.decode(payload)

    def _take_back(self, size_bytes: int) -> None:
        """Cut the last segment back to ``size_bytes``."""
        try:
            os.ftruncate(self._fd, size_bytes)
            os.lseek(self._fd, size_bytes, os.SEEK_SET)
        except OSError as exc:
            logger.error("journal: cannot cut off a half-written group: {}", exc)
            self._give_up(size_bytes)

    def _give_up(self, size_bytes: int) -> None:
        """Never write the last segment again; what lies beyond ``size_bytes`` does not count."""
        if self._fd < 0:
            return
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as exc:
            logger.error("journal: {} keeps an invalid end: {}", self._segments[-1].path.name, exc)
        os.close(self._fd)
        self._fd = -1

    def _hold(self, group: list[_Pending], why: _NoRoom) -> list[_Pending]:
        """Wait for room, at most until the first append's time is up; return those that may still wait."""
        reason = str(why)
        if self._trouble is None:
            logger.warning("journal: no room: {}", reason)
        self._trouble = reason
        if not self._segments[-1].is_empty:
            # Only whole segments are trimmed: close the one in use, so that it can go too.
            size_bytes = self._size_bytes()
            try:
                self._roll()
            except OSError as exc:
                reason = f"{reason}; {exc}"
            if self._size_bytes() < size_bytes:
                return group
        with self._lock:
            left_s = min(pending.deadline for pending in group) - time.monotonic()
            if left_s > 0 and not self._is_closing:
                self._room.wait(min(left_s, _ROOM_POLL_S))
            now = time.monotonic()
            late = [p for p in group if p.deadline <= now or self._is_closing]
            late += self._drop_late(now)
        self._refuse(late, reason, 5, "journal_full")
        gone = {id(pending) for pending in late}
        return [pending for pending in group if id(pending) not in gone]

    def _settle(self, answers: Sequence[_Answer]) -> None:
        """Answer appends: threads at once, each event loop with one call."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
        with self._lock:
            for pending, answer in answers:
                self._count_waiting(pending, -1)
                if isinstance(answer, Exception):
                    self._refused_records += len(pending.entries)
        for pending, answer in answers:
            if pending.loop is not None:
                by_loop.setdefault(pending.loop, []).append((pending, answer))
            else:
                _resolve([(pending, answer)])
        for loop, group in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, group)
            except RuntimeError:
                pass  # the loop was closed: nobody waits any more

    # -- segments -----------------------------------------------------------------------------

    def _size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self._segments)

    def _roll(self) -> None:
        """Begin a new segment at ``_next_seq``; after this the earlier ones are never written again."""
        faults.reach("journal.before_roll")
        last = self._segments[-1] if self._segments else None
        if last is not None and self._fd >= 0 and last.is_empty and last.first_seq == self._next_seq:
            return
        last_seq = max([segment.last_seq for segment in self._segments if not segment.is_empty], default=0)
        header = _SEGMENT_HEADER.pack(_SEGMENT_MAGIC, self._next_seq, last_seq, self._last_ingested_us, 0)[:-_CRC_SIZE]
        header += zlib.crc32(header).to_bytes(_CRC_SIZE, "little")
        path = self._directory / f"{self._next_seq:020d}.log"
        # Written aside and renamed, so that a segment never lacks its header.
        spare = self._directory / _SPARE
        fd = os.open(spare, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            durable.write_all(fd, header)
            os.ftruncate(fd, len(header))
            durable.sync(fd)
            spare.rename(path)
            durable.sync_directory(self._directory)
        except OSError:
            os.close(fd)
            raise
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = fd
            self._segments = [s for s in self._segments if s.path != path]
            self._segments.append(_Segment(path, self._next_seq, self._next_seq - 1, len(header)))
            self._drop_trimmed()
        self._prepare_spare()
        faults.reach("journal.after_roll")

    def _prepare_spare(self) -> None:
        """Set room aside for the next segment's header.

        Only closed segments are trimmed, so on a full disk it must still be possible to begin one.
        """
        spare = self._directory / _SPARE
        try:
            if not spare.exists() or spare.stat().st_size < _SPARE_BYTES:
                spare.write_bytes(bytes(_SPARE_BYTES))
        except OSError as exc:
            logger.warning("journal: no room is left to begin a new segment: {}", exc)

    def trim(self, through_seq: int, read_seq: int | None = None) -> None:
        """Forget records up to ``through_seq``: remove each closed segment that holds no later one.

        Args:
            through_seq: Nobody needs records up to here any more.
            read_seq: How far the reader has come, where others need more than it does; None: just as far. A call that
                waits to be admitted holds back what may go, and must not thereby hold back who is admitted.
        """
        with self._lock:
            self._trimmed_through = max(self._trimmed_through, through_seq)
            self._pace.note(self._last_seq, through_seq if read_seq is None else read_seq, time.monotonic())
            self._drop_trimmed()
            self._room.notify_all()
            self._work.notify()

    def _drop_trimmed(self) -> bool:
        kept: list[_Segment] = []
        dropped = False
        for segment in self._segments[:-1]:
            if segment.is_empty or segment.last_seq <= self._trimmed_through:
                segment.path.unlink(missing_ok=True)
                dropped = True
                faults.reach("journal.after_trim")
            else:
                kept.append(segment)
        self._segments = [*kept, self._segments[-1]]
        return dropped

    def link(self, directory: Path) -> tuple[int, dict[str, int]]:
        """Link the segments into ``directory``, which copies nothing, and keep them there whatever is trimmed.

        Returns:
            The last sequence number that is durable in them, and of each file how many of its bytes count:
            the last one goes on growing.
        """
        with self._lock:
            sizes = {}
            for segment in self._segments:
                os.link(segment.path, directory / segment.path.name)
                sizes[segment.path.name] = segment.size_bytes
            return self._last_seq, sizes

    def roll(self) -> None:
        """Have the segment in use closed soon, so that ``trim`` can remove all it holds (after an erasure)."""
        with self._lock:
            self._is_roll_wanted = True
            self._work.notify()

    def advance_past(self, seq: int) -> None:
        """Give no number up to ``seq`` again, for example because a checkpoint says that it was used.

        For a journal that was lost while the store was not. Call it before the first append.
        """
        with self._lock:
            if seq < self._next_seq:
                return
            self._next_seq = seq + 1
            self._last_seq = seq
        self._roll()

    # -- opening after a crash ----------------------------------------------------------------

    def _recover(self, *, may_repair: bool) -> None:
        paths = sorted(path for path in self._directory.glob("*.log") if path.stem.isdigit())
        headers = [_read_segment_header(path) for path in paths]
        for index, (path, header) in enumerate(zip(paths, headers, strict=True)):
            first_seq = int(path.stem)
            segment = _Segment(path, first_seq, first_seq - 1, path.stat().st_size)
            self._segments.append(segment)
            if header is None:
                size_bytes = min(segment.size_bytes, _SEGMENT_HEADER.size)
                self._note(Damage(path.name, 0, size_bytes, None, is_torn=False))
            else:
                self._last_ingested_us = max(self._last_ingested_us, header.ingested_before_us)
            is_last = index == len(paths) - 1
            following = None if is_last else headers[index + 1]
            if following is not None:
                segment.last_seq = max(segment.last_seq, following.seq_before)
            else:
                self._next_seq = max(self._next_seq, self._walk(segment, is_last=is_last, may_repair=may_repair))
            self._next_seq = max(self._next_seq, first_seq, segment.last_seq + 1)
        self._last_seq = self._next_seq - 1

    def _walk(self, segment: _Segment, *, is_last: bool, may_repair: bool) -> int:
        """Find the end of a segment that no later header tells; return a number that it surely never gave."""
        gap: _Gap | None = None
        with _SegmentReader(segment.path, segment.size_bytes) as reader:
            while (found := reader.next()) is not None:
                if isinstance(found, _Gap):
                    gap = found
                    continue
                if gap is not None:
                    lost = found.first_seq - segment.last_seq - 1
                    self._note(Damage(segment.path.name, gap.offset, gap.end - gap.offset, lost, is_torn=False))
                    gap = None
                segment.last_seq = max(segment.last_seq, found.last_seq)
                self._last_ingested_us = max(self._last_ingested_us, found.ingested_us)
        next_seq = segment.last_seq + 1
        if gap is not None:
            size_bytes = gap.end - gap.offset
            self._note(Damage(segment.path.name, gap.offset, size_bytes, None, is_torn=is_last))
            segment.size_bytes = gap.offset
            # Some of it may have been indexed before the disk lost it. Whatever these bytes were,
            # they held fewer records than this.
            next_seq += (size_bytes // _FRAME_HEADER.size + 1) * _FRAME_RECORDS
        if may_repair:
            with open(segment.path, "r+b") as file:
                if gap is not None and is_last:
                    file.truncate(gap.offset)
                # A killed process leaves pages that can be read and are not yet durable.
                durable.sync(file.fileno())
        return next_seq

    def _note(self, damage: Damage) -> None:
        key = (damage.segment, damage.offset)
        with self._lock:
            if key in self._damage:
                return
            self._damage[key] = damage
        if damage.is_torn:
            logger.warning("journal: cut a torn tail of {} bytes off {}", damage.size_bytes, damage.segment)
        else:
            logger.error(
                "journal: {} bytes at {} of {} are damaged; records lost: {}",
                damage.size_bytes,
                damage.offset,
                damage.segment,
                "unknown" if damage.records is None else damage.records,
            )

    # -- reading ------------------------------------------------------------------------------

    def read(self, after_seq: int, max_entries: int = _GROUP_RECORDS, max_bytes: int = _RECENT_BYTES) -> Batch:
        """Return the next durable entries after ``after_seq``, from memory if they are still there.

        At most ``max_entries``, and about ``max_bytes`` of them. A batch without entries still
        tells how far the sequence is known to hold nothing.
        """
        with self._read_lock:
            with self._lock:
                while self._recent and self._recent[0].entries[-1].seq <= after_seq:
                    self._forget_oldest()
                if self._recent and self._recent[0].entries[0].seq <= after_seq + 1:
                    return _take(self._recent, after_seq, max_entries, max_bytes)
                last_seq = self._last_seq
            if after_seq >= last_seq:
                return Batch([], after_seq)
            return self._read_disk(after_seq, last_seq, max_entries, max_bytes)

    def _read_disk(self, after_seq: int, last_seq: int, max_entries: int, max_bytes: int) -> Batch:
        cursor = self._cursor
        if cursor is None or cursor.after_seq != after_seq:
            self._drop_cursor()
            cursor = self._cursor = _Cursor(after_seq)
        entries: list[Entry] = []
        size_bytes = 0
        while len(entries) < max_entries and size_bytes < max_bytes:
            if not cursor.decoded and not self._decode_next(cursor):
                break
            piece = cursor.decoded[: max_entries - len(entries)]
            cursor.decoded = cursor.decoded[len(piece) :]
            entries += piece
            size_bytes += sum([len(entry.source) for entry in piece])
        cursor.after_seq = entries[-1].seq if entries else last_seq
        return Batch(entries, cursor.after_seq)

    def _decode_next(self, cursor: _Cursor) -> bool:
        """Fill ``cursor.decoded`` from the next frame that holds something new; False at the end."""
        while True:
            with self._lock:
                if cursor.segment is None:
                    cursor.segment = self._segment_for(cursor)
                segment = cursor.segment
                if segment is None:
                    return False
                is_last = segment is self._segments[-1]
                end = segment.size_bytes
            if cursor.reader is None:
                cursor.reader = _SegmentReader(segment.path, end)
            cursor.reader.end = end
            found = cursor.reader.next(skip_through=cursor.after_seq)
            if isinstance(found, _Gap):
                cursor.gap = found
                continue
            # Frames that a failed fsync left behind were refused; their numbers lie beyond the segment's last.
            if found is None or (not is_last and found.first_seq > segment.last_seq):
                self._note_lost(cursor, segment, segment.last_seq + 1, end)
                if is_last:
                    return False
                cursor.leave_segment()
                continue
            self._note_lost(cursor, segment, found.first_seq, found.offset)
            cursor.expected_seq = found.last_seq + 1
            if found.last_seq <= cursor.after_seq:
                continue
            try:
                entries = self._decode(found)
            except (zstandard.ZstdError, msgspec.MsgspecError):
                size_bytes = found.end - found.offset
                self._note(Damage(segment.path.name, found.offset, size_bytes, found.records, is_torn=False))
                continue
            cursor.decoded = [entry for entry in entries if entry.seq > cursor.after_seq]
            return True

    def _segment_for(self, cursor: _Cursor) -> _Segment | None:
        """Return the segment to read next, None if the cursor has left the last one."""
        if cursor.left_seq is not None:
            segment = next((s for s in self._segments if s.first_seq > cursor.left_seq), None)
        else:
            before = [s for s in self._segments if s.first_seq <= cursor.after_seq + 1]
            segment = before[-1] if before else self._segments[0]
        if segment is not None:
            cursor.expected_seq = segment.first_seq
        return segment

    def _note_lost(self, cursor: _Cursor, segment: _Segment, reached_seq: int, offset: int) -> None:
        """Count what lies between what the cursor expected and what came."""
        lost = reached_seq - cursor.expected_seq
        gap, cursor.gap = cursor.gap, None
        if gap is not None:
            self._note(Damage(segment.path.name, gap.offset, gap.end - gap.offset, lost, is_torn=False))
        elif lost > 0:
            self._note(Damage(segment.path.name, offset, 0, lost, is_torn=False))
        cursor.expected_seq = max(cursor.expected_seq, reached_seq)

    def _drop_cursor(self) -> None:
        if self._cursor is not None:
            self._cursor.leave_segment()
            self._cursor = None

    def _forget_oldest(self) -> None:
        chunk = self._recent.popleft()
        self._recent_records -= len(chunk.entries)
        self._recent_bytes -= chunk.size_bytes


class _Cursor:
    """Where the reader stands on disk, kept so that the next read continues without a search."""

    __slots__ = ("after_seq", "decoded", "expected_seq", "gap", "left_seq", "reader", "segment")

    def __init__(self, after_seq: int) -> None:
        self.after_seq = after_seq
        self.expected_seq = 0  # number that the next frame should begin with
        self.decoded: list[Entry] = []  # read and not yet returned
        self.gap: _Gap | None = None
        self.segment: _Segment | None = None
        self.reader: _SegmentReader | None = None
        self.left_seq: int | None = None  # first number of the segment left last

    def leave_segment(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        if self.segment is not None:
            self.left_seq = self.segment.first_seq
            self.segment = None


class _SegmentReader:
    """Walks the frames of one file up to ``end``, over damage to the next valid frame."""

    def __init__(self, path: Path, end: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offset = _SEGMENT_HEADER.size
        self._buffer = memoryview(b"")
        self._buffer_offset = 0
        self.end = end

    def __enter__(self) -> _SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def next(self, skip_through: int = 0) -> _Frame | _Gap | None:
        """Return the next valid frame, or the gap before it; None at the end.

        A frame that ends at or before the number ``skip_through`` comes without its payload.
        """
        gap_offset: int | None = None
        while self._offset < self.end:
            offset = self._offset
            frame = self._frame(offset, skip_through)
            if frame is not None and gap_offset is not None and frame.payload is not None:
                return _Gap(gap_offset, offset)
            if frame is not None and frame.payload is not None:
                self._offset = frame.end
                return frame
            if gap_offset is None:
                gap_offset = offset
            self._offset = frame.end if frame is not None else self._find_frame(offset + 1)
        return None if gap_offset is None else _Gap(gap_offset, self.end)

    def _frame(self, offset: int, skip_through: int) -> _Frame | None:
        """Return the frame at ``offset``, with payload None if that is damaged; None if there is no frame."""
        header = _parse_frame_header(self._bytes(offset, _FRAME_HEADER.size))
        if header is None:
            return None
        length, raw_length, first_seq, count, ingested_us, payload_crc = header
        end = offset + _FRAME_HEADER.size + length
        if end > self.end:
            return None
        payload: memoryview | None = memoryview(b"")
        if first_seq + count - 1 > skip_through:
            payload = self._bytes(offset + _FRAME_HEADER.size, length)
            if len(payload) != length or zlib.crc32(payload) != payload_crc:
                payload = None
        return _Frame(offset, end, first_seq, count, ingested_us, raw_length, payload)

    def _bytes(self, offset: int, size: int) -> memoryview:
        """Return ``size`` bytes at ``offset``, fewer at the end.

        Never reads beyond ``end``: what lies there may yet be taken back and written anew.
        """
        start = offset - self._buffer_offset
        if not 0 <= start <= start + size <= len(self._buffer):
            wanted = min(max(size, _READ_BYTES), self.end - offset)
            self._buffer = memoryview(os.pread(self._fd, wanted, offset))
            self._buffer_offset = offset
            start = 0
        return self._buffer[start : start + size]

    def _find_frame(self, start: int) -> int:
        """Return where the next valid frame header begins at or after ``start``, else ``end``."""
        if start >= self.end:
            return self.end
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as data:
            while (start := data.find(_FRAME_MAGIC, start, self.end)) >= 0:
                if _parse_frame_header(data[start : start + _FRAME_HEADER.size]) is not None:
                    return start
                start += 1
        return self.end


class _SegmentHeader(NamedTuple):
    seq_before: int
    ingested_before_us: int


def _read_segment_header(path: Path) -> _SegmentHeader | None:
    """Return what the header says about everything before the segment; None if it is damaged."""
    with open(path, "rb") as file:
        data = file.read(_SEGMENT_HEADER.size)
    if len(data) < _SEGMENT_HEADER.size:
        return None
    magic, first_seq, seq_before, ingested_before_us, crc = _SEGMENT_HEADER.unpack(data)
    if magic != _SEGMENT_MAGIC or crc != zlib.crc32(data[:-_CRC_SIZE]) or first_seq != int(path.stem):
        return None
    return _SegmentHeader(seq_before, ingested_before_us)


def _parse_frame_header(data: bytes | memoryview) -> tuple[int, int, int, int, int, int] | None:
    if len(data) < _FRAME_HEADER.size:
        return None
    magic, length, raw_length, first_seq, count, ingested_us, payload_crc, crc = _FRAME_HEADER.unpack(data)
    if magic != _FRAME_MAGIC or crc != zlib.crc32(data[:-_CRC_SIZE]):
        return None
    return length, raw_length, first_seq, count, ingested_us, payload_crc


def _take(chunks: deque[_Chunk], after_seq: int, max_entries: int, max_bytes: int) -> Batch:
    entries: list[Entry] = []
    size_bytes = 0
    for chunk in chunks:
        start = max(0, after_seq + 1 - chunk.entries[0].seq)
        entries += chunk.entries[start : start + max_entries - len(entries)]
        size_bytes += chunk.size_bytes
        if len(entries) >= max_entries or size_bytes >= max_bytes:
            break
    return Batch(entries, entries[-1].seq)


def _resolve(answers: Sequence[_Answer]) -> None:
    for pending, answer in answers:
        if pending.future.done():
            continue  # its loop was shut down in between
        if isinstance(answer, Exception):
            pending.future.set_exception(answer)
        else:
            pending.future.set_result(answer)
