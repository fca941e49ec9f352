"""Replay: records put into the journal a second time: dead letters, and a dead node's journal.

The journal belongs to one process, so a command asks the service to replay (errands.py); when no
service runs, the command takes the data directory's lock and does the work itself.

What always holds:

- A replayed record keeps its ``@timestamp``, ``event.id`` and stored id, so one that the store has
  already is a duplicate there, counted and left: replaying twice does no harm.
- It gets a new ``event.ingested`` and sequence number, because detection's cursor has passed the
  old ones: it is a late record, and its windows are judged again.
- What was replayed is in the journal before a dead letter is marked or a request answered. A crash
  between them replays once more.

Not here: what a dead letter is (deadletters.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from logsvc import faults
from logsvc import journal as journals
from logsvc.deadletters import DIRECTORY as DEAD_LETTERS
from logsvc.deadletters import DeadLetter, DeadLetters, find, letters
from logsvc.errands import Errands, ask
from logsvc.errors import BadInput, DataDirectoryLocked, NotFound, Overloaded
from logsvc.journal import Journal
from logsvc.ledger import is_note
from logsvc.lock import DataDirectoryLock
from logsvc.records import Entry
from logsvc.timestamps import Clock, MonotonicClock, format_us, system_clock

DIRECTORY = "replay"
"""Where requests and answers lie in a data directory."""

_BATCH_RECORDS = 1_000
_POLL_S = 0.5


class ReplayRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to replay: dead letters by id, all of them, or the journal in a directory."""

    dead_letters: tuple[str, ...] = ()
    all_dead_letters: bool = False
    journal: str | None = None


class ReplayReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of it.

    Attributes:
        replayed: Records put into the journal.
        unreadable: Records whose JSON could not be read, left where they are.
        lost: Records that damage to the foreign journal has cost; None if nobody can tell how many.
    """

    replayed: int = 0
    unreadable: int = 0
    lost: int | None = 0


class Replayer:
    """Carries out replays, within the service or in its absence.

    ``settled_before_us`` lets the pipeline wait for a replay in flight as it waits for an accept.

    Args:
        directory: Where requests lie (``DATA_DIR/replay``).
        journal: Where records go.
        dead_letters: Where dead letters come from.
        clock: The very clock that ingest stamps with.
        waits_for_room: Whether a full journal is waited for; without an indexer it stays full.
    """

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        dead_letters: DeadLetters,
        clock: Clock,
        *,
        waits_for_room: bool = True,
    ) -> None:
        self._journal = journal
        self._dead_letters = dead_letters
        self._clock = clock
        self._waits_for_room = waits_for_room
        self._lock = threading.Lock()
        self._in_flight_us: int | None = None
        self._errands = Errands(directory, ReplayRequest, self.run)

    def start(self) -> None:
        """Begin to look for requests."""
        self._errands.start()

    def close(self) -> None:
        """Finish the batch in hand and stop; a request not yet answered is taken up at the next start."""
        self._errands.close()

    def settled_before_us(self) -> int:
        """Return T: everything replayed with ``event.ingested`` before T is in the journal."""
        with self._lock:
            return self._clock() if self._in_flight_us is None else self._in_flight_us

    def run(self, request: ReplayRequest) -> ReplayReport:
        """Carry out ``request`` now."""
        if request.journal is not None:
            return self._replay_journal(Path(request.journal))
        chosen: Iterable[DeadLetter] = letters(self._dead_letters.directory)
        if not request.all_dead_letters:
            chosen = [find(self._dead_letters.directory, id) for id in request.dead_letters]
        return self._replay_letters(chosen)

    def _replay_letters(self, chosen: Iterable[DeadLetter]) -> ReplayReport:
        replayed = unreadable = 0
        remaining = iter(chosen)
        while part := list(islice(remaining, _BATCH_RECORDS)):
            readable = [letter for letter in part if letter.is_readable]
            self._append([letter.to_entry() for letter in readable])
            faults.reach("replay.after_append")
            self._dead_letters.mark_replayed([letter.id for letter in readable])
            replayed += len(readable)
            unreadable += len(part) - len(readable)
        return ReplayReport(replayed, unreadable)

    def _replay_journal(self, directory: Path) -> ReplayReport:
        if directory.resolve() == self._journal.directory.resolve():
            raise BadInput(f"{directory} is this service's own journal; expected that of a dead node")
        foreign = Journal.inspect(directory)
        replayed = unreadable = after_seq = 0
        while after_seq < foreign.last_seq:
            batch = foreign.read(after_seq, _BATCH_RECORDS)
            # The ledger's notes stay behind: what the dead node acknowledged, its shippers say themselves.
            appended, bad = self._append([entry for entry in batch.entries if not is_note(entry)])
            replayed += appended
            unreadable += bad
            after_seq = batch.through_seq
        lost = [damage.records for damage in foreign.damage]
        foreign.close()
        known = [records for records in lost if records is not None]
        return ReplayReport(replayed, unreadable, sum(known) if len(known) == len(lost) else None)

    def _append(self, entries: Sequence[Entry]) -> tuple[int, int]:
        """Stamp and append; return how many went in and how many cannot be read. Waits for room."""
        if not entries:
            return 0, 0
        while True:
            with self._lock:
                stamp_us = self._in_flight_us = self._clock()
            try:
                stamped = [entry for entry in (_restamped(entry, stamp_us) for entry in entries) if entry is not None]
                self._journal.append_sync(stamped)
            except Overloaded:
                if not self._waits_for_room or self._errands.closing.wait(_POLL_S):
                    raise
            else:
                return len(stamped), len(entries) - len(stamped)
            finally:
                with self._lock:
                    self._in_flight_us = None


def replay(
    data_dir: Path,
    request: ReplayRequest,
    *,
    wait_s: float = 60.0,
    open_journal: Callable[[Path], Journal] = Journal.open,
) -> ReplayReport:
    """Carry out ``request`` on ``data_dir``, through the service if one runs there, else here.

    Args:
        data_dir: The service's data directory.
        request: What to replay.
        wait_s: How long to wait for the service's answer; it goes on without us.
        open_journal: How to open the journal if no service runs.

    Raises:
        NotFound: If a dead letter is not there.
        StoreUnavailable: If the service does not answer in time.
        LogsvcError: If it cannot be done; the message says why.
    """
    if not data_dir.is_dir():
        raise NotFound(f"{data_dir} is no data directory of a service; expected the folder that LOGSVC_DATA_DIR names")
    for id in request.dead_letters:
        find(data_dir / DEAD_LETTERS, id)
    try:
        lock = DataDirectoryLock.acquire(data_dir, "logsvc replay")
    except DataDirectoryLocked as exc:
        return ask(data_dir / DIRECTORY, request, ReplayReport, wait_s=wait_s, holder=exc.holder)
    with lock:
        journal = open_journal(data_dir / journals.DIRECTORY)
        dead_letters = DeadLetters.open(data_dir / DEAD_LETTERS)
        clock = MonotonicClock(system_clock, journal.last_ingested_us)
        replayer = Replayer(data_dir / DIRECTORY, journal, dead_letters, clock, waits_for_room=False)
        try:
            return replayer.run(request)
        finally:
            dead_letters.close()
            journal.close()


def _restamped(entry: Entry, ingested_us: int) -> Entry | None:
    """Return ``entry`` with a new ``event.ingested``, in its source too; None if that cannot be read."""
    try:
        record = msgspec.json.decode(entry.source, type=dict[str, object])
    except msgspec.MsgspecError:
        return None
    record["event.ingested"] = format_us(ingested_us)
    if "ingest.late_ms" in record:
        record["ingest.late_ms"] = (ingested_us - entry.time_us) // 1_000
    return Entry(
        entry.tenant,
        entry.id,
        0,
        entry.time_us,
        ingested_us,
        entry.unit,
        entry.duration_bucket,
        entry.has_client_id,
        msgspec.json.encode(record),
    )
