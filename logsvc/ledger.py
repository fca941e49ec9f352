"""Ledger: which records were emitted, which arrived, and where the rest went.

It answers "did I lose logs: whose, where, since when, how many". Our shippers number the records of
a process epoch and end each batch with a statement (shippers/ledger.py says what is in it); whoever
sends otherwise is counted by key and protocol.

What always holds:

- What an accepted call adds is a note in the journal, made durable by the same fsync as its records.
  The ledger is kept in the state database now and then; after a crash the notes since are read
  again. So gaps and duplicates are exact over ``kill -9`` of either side, retries and restarts.
- Nothing is done per record: a call costs one note, a batch of a shipper one range.
- Bounded: ``MAX_EPOCHS`` shippers a tenant, ``MAX_HOLES`` holes each, time in steps of five
  minutes for a day and of an hour before that. What is forgotten stays in the sums.
- A number that is missing is first *waiting* (in a queue, a spool, on the way). It is *lost* when a
  grace has passed in which this service listened; should it still arrive, it is lost no more.
- While the state database cannot be written the journal is trimmed all the same; what a crash then
  forgets is that these records arrived, and the shippers' own count of acknowledgements makes it good.

Not here: how records become durable (journal.py), what a ticket may become (tickets.py).
"""

from __future__ import annotations

import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Protocol

import msgspec
from loguru import logger

from logsvc.errors import LogsvcError
from logsvc.journal import Batch
from logsvc.records import Entry
from logsvc.tickets import Evidence, Severity, Ticket, TicketEvent, TicketState, about_service, next_state, ticket_id
from logsvc.timestamps import US_PER_S, Clock, format_us, parse_timestamp
from shippers import redact

STATEMENT_PREFIX = b'{"shipper.ledger":'
OTHER = "other"
MAX_EPOCHS = 2_000
MAX_HOLES = 200
MAX_REASONS = 32
MAX_SHOWN_GAPS = 20

_STEP_US = 300 * US_PER_S
_HOUR_US = 3_600 * US_PER_S
_DAY_US = 24 * _HOUR_US
_OLDEST_STATEMENT_US = 7 * _DAY_US
_TICK_S = 5.0
_SLEPT_US = 60 * US_PER_S  # between two ticks
_FOLD_EVERY_US = 600 * US_PER_S
_QUIET_US = 1_800 * US_PER_S  # without new losses an incident is over
_READ_RECORDS = 20_000
_BACKLOG_STEP_US = US_PER_S
_REASON = re.compile(r"[a-z_]{1,40}\Z")
_NAME_CHARS = 256
_META = ("", "meta")

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


# ------------------------------------------------------------------------------------------ what is told


class Statement(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a shipper says at the end of a batch; figures count since its epoch began.

    ``emitted`` records are those numbered so far, those ``queued`` and those ``dropped`` before they
    got a number; ``undelivered`` had one.
    """

    epoch: Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z_-]{1,64}$")]
    n: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    started: str
    at: str
    first: Annotated[int, msgspec.Meta(ge=1, le=2**53)]  # number of the batch's first record
    records: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    queued: _Count = 0
    acknowledged: _Count = 0
    spooled: _Count = 0
    dropped: dict[str, _Count] = {}
    undelivered: dict[str, _Count] = {}
    ended: bool = False
    replayable: bool = False
    service: str = ""
    host: str = ""
    pid: int = 0


class Note(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one accepted call adds to the ledger; ``refused`` by code."""

    key_id: str
    protocol: str
    accepted: int = 0
    flagged: int = 0
    refused: dict[str, int] = {}
    statement: Statement | None = None


class _Line(msgspec.Struct):
    statement: Statement = msgspec.field(name="shipper.ledger")


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_note = msgspec.json.Decoder(Note).decode
_encode = msgspec.json.Encoder().encode


def read_statement(line: bytes) -> Statement | None:
    """Return the statement that a line of a batch holds, its texts masked; None if it is none.

    >>> read_statement(b'{"message": "a record"}') is None
    True
    """
    if not line.startswith(STATEMENT_PREFIX):
        return None
    try:
        statement = _decode_line(line).statement
        for time in (statement.started, statement.at):
            parse_timestamp(time)
    except (msgspec.MsgspecError, LogsvcError, ValueError):
        return None  # then it is a record like any other, and nothing is lost
    statement.service = redact.mask(statement.service[:_NAME_CHARS])[0]
    statement.host = redact.mask(statement.host[:_NAME_CHARS])[0]
    statement.dropped = _reasons(statement.dropped)
    statement.undelivered = _reasons(statement.undelivered)
    return statement


def _reasons(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts by reasons that are words, and not too many."""
    known: Counter[str] = Counter()
    for reason, count in counts.items():
        is_known = _REASON.match(reason) and (reason in known or len(known) < MAX_REASONS - 1)
        known[reason if is_known else OTHER] += count
    return dict(known)


def note_entry(tenant: str, ingested_us: int, note: Note) -> Entry:
    """Return the journal's entry that carries a note: one without an id, which no store ever sees."""
    return Entry(tenant, "", 0, ingested_us, ingested_us, "note", None, False, _encode(note))


def is_note(entry: Entry) -> bool:
    """Tell whether an entry of the journal is a note, and no record."""
    return not entry.id


# ------------------------------------------------------------------------------------------ what is kept


class Hole(msgspec.Struct, array_like=True):
    """Numbers ``first`` to ``last`` that have not arrived.

    They were emitted between ``since_us`` and ``until_us``; ``seen_us`` is when a later one came.
    """

    first: int
    last: int
    since_us: int
    until_us: int
    seen_us: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1


class Epoch(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One run of one process that ships.

    Attributes:
        next: All numbers below it have arrived, except those in ``holes``.
        arrived: Distinct numbers that arrived.
        duplicated: Numbers that arrived again.
        credited: Numbers that this service acknowledged, though the ledger does not know them.
        at_us: When the newest statement was made, by the shipper's clock.
        heard_us: When one last arrived.
        known_lost: How many were lost when last looked, so that a restart calls none of them waiting again.
        told: What of its losses an earlier ticket has told.
    """

    epoch: str
    service: str
    host: str
    pid: int
    key_id: str
    started_us: int
    replayable: bool = False
    n: int = 0
    next: int = 1
    arrived: int = 0
    duplicated: int = 0
    credited: int = 0
    queued: int = 0
    acknowledged: int = 0
    spooled: int = 0
    dropped: dict[str, int] = {}
    undelivered: dict[str, int] = {}
    ended: bool = False
    holes: list[Hole] = []
    settled: int = 0  # in holes that are beyond the bound
    at_us: int = 0
    heard_us: int = 0
    known_lost: int = 0
    told: int = 0

    def take(self, statement: Statement, at_us: int, now_us: int) -> tuple[int, dict[str, int]]:
        """Take in a statement; return how many numbers are new, and what was dropped since the newest before."""
        first, end = statement.first, statement.first + statement.records
        new = 0
        before = self.next
        if first > self.next:
            self.holes.append(Hole(self.next, first - 1, self.at_us or self.started_us, at_us, now_us))
        if end > self.next:
            new += end - max(first, self.next)
            self.next = end
        self.next = max(self.next, first)
        if first < before and statement.records:
            new += self._fill(first, min(end, before) - 1)
        self.arrived += new
        self.duplicated += statement.records - new
        while len(self.holes) > MAX_HOLES:
            self.settled += self.holes.pop(0).size
        self.heard_us = max(self.heard_us, now_us)
        dropped: dict[str, int] = {}
        if statement.n >= self.n:
            for mine, theirs in ((self.dropped, statement.dropped), (self.undelivered, statement.undelivered)):
                for reason, count in theirs.items():
                    if count > mine.get(reason, 0):
                        dropped[reason] = dropped.get(reason, 0) + count - mine.get(reason, 0)
            self.n, self.at_us = statement.n, at_us
            self.queued, self.ended = statement.queued, statement.ended
            self.acknowledged, self.spooled = statement.acknowledged, statement.spooled
            self.dropped, self.undelivered = statement.dropped, statement.undelivered
            self.replayable = statement.replayable
            # What this service acknowledged has arrived, even if the ledger was lost or put back since.
            # Its own batch was not acknowledged yet when the statement was made.
            self.credited = max(self.credited, statement.acknowledged - (self.arrived - new))
        return new, dropped

    def _fill(self, first: int, last: int) -> int:
        filled = 0
        kept: list[Hole] = []
        for hole in self.holes:
            low, high = max(hole.first, first), min(hole.last, last)
            if low > high:
                kept.append(hole)
                continue
            filled += high - low + 1
            if hole.first < low:
                kept.append(msgspec.structs.replace(hole, last=low - 1))
            if high < hole.last:
                kept.append(msgspec.structs.replace(hole, first=high + 1))
        self.holes = kept
        return filled

    @property
    def emitted(self) -> int:
        """Records that log calls asked for, as far as was told."""
        return self.next - 1 + self.queued + sum(self.dropped.values())

    @property
    def explained(self) -> int:
        """Numbers that are in holes for a reason that is known."""
        return sum(self.undelivered.values()) + self.credited

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values()) + sum(self.undelivered.values())

    def is_silent(self, deadline_us: int) -> bool:
        return self.heard_us <= deadline_us

    def missing(self, deadline_us: int, is_within: Callable[[int, int], bool] = lambda _a, _b: True) -> tuple[int, int]:
        """Return how many records are waiting and how many are lost, with no reason known.

        Args:
            deadline_us: What was missing by then is lost.
            is_within: Tells whether what was emitted between two moments counts.
        """
        is_silent = self.is_silent(deadline_us)
        missing = self.queued
        if self.ended or (self.replayable and is_silent) or not is_within(self.at_us, self.at_us):
            missing = 0  # nothing waits any more, or it is read again
        overdue = missing if is_silent else 0
        if self.holes or self.settled:
            holes = [hole for hole in self.holes if is_within(hole.since_us, hole.until_us)]
            settled = self.settled if is_within(self.started_us, self.at_us) else 0
            late = sum(hole.size for hole in holes if hole.seen_us <= deadline_us) + settled
            missing += max(0, sum(hole.size for hole in holes) + settled - self.explained)
            overdue += max(0, late - self.explained)
        overdue = max(overdue, min(self.known_lost, missing))
        return missing - overdue, overdue


class Flow(msgspec.Struct, omit_defaults=True):
    """What came by one key and protocol in one step of time; ``duplicated`` is part of ``accepted``."""

    accepted: int = 0
    duplicated: int = 0
    flagged: int = 0
    numbered: int = 0
    lost: int = 0  # of shippers that were forgotten since
    refused: dict[str, int] = {}
    dropped: dict[str, int] = {}

    def add(self, other: Flow) -> None:
        self.accepted += other.accepted
        self.duplicated += other.duplicated
        self.flagged += other.flagged
        self.numbered += other.numbered
        self.lost += other.lost
        self.refused = _sum(self.refused, other.refused)
        self.dropped = _sum(self.dropped, other.dropped)


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return _reasons(Counter(one) + Counter(other)) if other else dict(one)


class _FlowKey(msgspec.Struct, array_like=True, frozen=True):
    start_us: int
    width_us: int
    key_id: str
    protocol: str


class _Span:
    """Sums of the flows in a range of time, and the shorter ranges in it: what a search asks for is added up already.

    Attributes:
        sums: Accepted, numbered (both without what came again), refused, dropped, lost.
        parts: Days, in them hours, in them the steps of flows; by start and width.
    """

    __slots__ = ("end_us", "parts", "start_us", "sums")

    def __init__(self, start_us: int = 0, width_us: int = 0) -> None:
        self.start_us = start_us
        self.end_us = start_us + width_us
        self.sums = [0, 0, 0, 0, 0]
        self.parts: dict[tuple[int, int], _Span] = {}

    def add(self, key: _FlowKey, flow: Flow, sign: int = 1) -> None:
        """Add a flow; with the sign -1 take it away."""
        figures = (
            flow.accepted - flow.duplicated,
            flow.numbered - flow.duplicated,  # only what is numbered is known to have come again
            sum(flow.refused.values()),
            sum(flow.dropped.values()),
            flow.lost,
        )
        span, path = self, []
        for width in (_DAY_US, _HOUR_US, key.width_us):
            name = (key.start_us // width * width, width)
            path.append((span, name))
            span = span.parts.setdefault(name, _Span(*name))
            span.sums = [mine + sign * figure for mine, figure in zip(span.sums, figures, strict=True)]
        for parent, name in reversed(path):
            if not parent.parts[name].parts and not any(parent.parts[name].sums):
                del parent.parts[name]

    def within(self, low_us: int, high_us: int) -> list[int]:
        """Return the sums of all flows that reach into a range."""
        total = [0, 0, 0, 0, 0]
        for part in self.parts.values():
            if part.start_us < high_us and part.end_us > low_us:
                is_whole = not part.parts or (low_us <= part.start_us and part.end_us <= high_us)
                sums = part.sums if is_whole else part.within(low_us, high_us)
                total = [one + other for one, other in zip(total, sums, strict=True)]
        return total


class _Incident(msgspec.Struct):
    """An open ticket about losses."""

    ticket: str
    since_us: int
    lost: int
    grew_us: int


class _Meta(msgspec.Struct):
    since_us: int
    floor: int
    taken: list[int]


class _Tenant:
    def __init__(self) -> None:
        self.epochs: dict[str, Epoch] = {}
        self.flows: dict[_FlowKey, Flow] = {}
        self.sums = _Span()
        self.incident: _Incident | None = None
        self.backlog: deque[list[int]] = deque()  # [last seq, records, first event.ingested]


class LedgerState(Protocol):
    """Where the ledger is kept; ``state.State`` is the real one."""

    def load_ledger(self) -> dict[tuple[str, str], bytes]: ...
    def keep_ledger(self, rows: Mapping[tuple[str, str], bytes | None]) -> None: ...
    def get_ticket(self, tenant: str, id: str) -> Ticket | None: ...
    def keep_tickets(self, tenant: str, tickets: Iterable[tuple[str, Ticket]], *, now_us: int) -> None: ...


class ReadsJournal(Protocol):
    """What the ledger asks of the journal."""

    @property
    def last_seq(self) -> int: ...
    @property
    def trouble(self) -> str | None: ...
    def read(self, after_seq: int, max_entries: int, /) -> Batch: ...


class DeadCount(Protocol):
    """Counts dead letters; ``deadletters.DeadLetters`` does."""

    def count_of(self, tenant: str, start_us: int, end_us: int) -> int: ...


# ------------------------------------------------------------------------------------------ what is answered


class Missing(msgspec.Struct):
    """Records that were emitted and cannot be found, by where they are.

    Attributes:
        waiting: In a shipper's queue or spool, or on the way.
        backlog: Accepted and not yet searchable.
        refused: Told to their senders, who may mend and send them again.
        dropped: Lost in a shipper, which said why.
        lost: Lost without a word: a number that never arrived.
        dead: Accepted, and the store will never take them; kept as dead letters.
    """

    waiting: int = 0
    backlog: int = 0
    refused: int = 0
    dropped: int = 0
    lost: int = 0
    dead: int = 0

    @property
    def total(self) -> int:
        return self.waiting + self.backlog + self.refused + self.dropped + self.lost + self.dead


class Completeness(msgspec.Struct):
    """How much of what is known to have been emitted in a range of time can be found.

    Attributes:
        share: ``searchable / emitted``, 0…1, rounded down, so that 1 means that nothing is missing;
            None if that is unknown: nothing was counted in the range, or part of it lies before ``counted_from``.
        emitted: Records known to have been emitted in the range, in steps of five minutes (an hour where
            older than a day): by the shipper's clock where it numbers its records, else by arrival.
        searchable: Those of them that a search can find.
        missing: The others.
        numbered_share: Share of the accepted records that carry a shipper's numbers; of the others
            nobody can know what never arrived. None if nothing was accepted.
        counted_from: Since when records are counted, RFC 3339.
    """

    share: float | None
    emitted: int
    searchable: int
    missing: Missing
    numbered_share: float | None
    counted_from: str


class Ledger:
    """See the module. Safe to use from several threads.

    Args:
        state: Where it is kept, and tickets with it.
        journal: Where notes are durable.
        clock: The time.
        grace_us: How long a number may be missing before it is lost.
        retention_us: How long sums are kept.
        dead_letters: Counts what the store refused for ever.
        searchable_seq: Up to which sequence number of the journal readers find everything.
        on_change: Called when there is something for people.
    """

    def __init__(
        self,
        state: LedgerState,
        journal: ReadsJournal,
        *,
        clock: Clock,
        grace_us: int,
        retention_us: int,
        dead_letters: DeadCount,
        searchable_seq: Callable[[], int] = lambda: 0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._state = state
        self._journal = journal
        self._clock = clock
        self._grace_us = grace_us
        self._retention_us = retention_us
        self._dead_letters = dead_letters
        self.searchable_seq = searchable_seq
        self.on_change = on_change
        self._lock = threading.RLock()
        self._keeping = threading.Lock()
        self._tenants: dict[str, _Tenant] = {}
        self._dirty: set[tuple[str, str]] = set()
        self._in_flight: dict[int, int] = {}  # call → last sequence number when it began
        self._taken: set[int] = set()
        self._listening_us = clock()
        self._folded_us = 0
        self._trouble = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._load()

    def open(self) -> None:
        """Begin to look for losses."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and keep what is known; idempotent."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self.keep()

    # -- taking notes -------------------------------------------------------------------------

    def begin(self, call: int) -> None:
        """Say that a call begins whose note may come."""
        with self._lock:
            self._in_flight[call] = self._journal.last_seq

    def take(self, tenant: str, note: Note, ingested_us: int, records: int, first_seq: int) -> None:
        """Take a note that is durable behind ``records``, the first of which has ``first_seq``; then ``end`` the call."""
        seq = first_seq + records
        try:
            with self._lock:
                self._take(tenant, seq, note, ingested_us)
                self._note_backlog(tenant, seq, note.accepted, ingested_us)
        except Exception:  # noqa: BLE001 - the records are durable, and their sender must be told so
            logger.exception("ledger: a note of {} records was not taken", note.accepted)

    def end(self, call: int) -> None:
        """Say that a call has ended; its note, if it became durable, is taken."""
        with self._lock:
            self._in_flight.pop(call, None)

    def _take(self, tenant: str, seq: int, note: Note, ingested_us: int) -> None:
        self._taken.add(seq)
        of = self._tenants.setdefault(tenant, _Tenant())
        statement = note.statement
        at_us = ingested_us
        flow = Flow(accepted=note.accepted, flagged=note.flagged, refused=_reasons(note.refused))
        if statement is not None:
            at_us = _clamped(statement.at, ingested_us)
            epoch = of.epochs.get(statement.epoch)
            if epoch is None:
                self._make_room(tenant, of)
                epoch = of.epochs[statement.epoch] = Epoch(
                    epoch=statement.epoch,
                    service=statement.service,
                    host=statement.host,
                    pid=statement.pid,
                    key_id=note.key_id,
                    started_us=_clamped(statement.started, ingested_us),
                )
            new, dropped = epoch.take(statement, at_us, ingested_us)
            self._dirty.add((tenant, f"epoch:{epoch.epoch}"))
            repeated = statement.records - new
            if repeated and repeated == statement.records:
                flow.refused = {}  # and was then already
            flow.duplicated = min(repeated, note.accepted)
            flow.numbered = note.accepted
            flow.dropped = dropped
        self._add_flow(tenant, of, at_us, note.key_id, note.protocol, flow)

    def _add_flow(self, tenant: str, of: _Tenant, at_us: int, key_id: str, protocol: str, flow: Flow) -> None:
        width = _STEP_US if at_us > self._clock() - _DAY_US else _HOUR_US
        key = _FlowKey(at_us // width * width, width, key_id, protocol)
        of.flows.setdefault(key, Flow()).add(flow)
        of.sums.add(key, flow)
        self._dirty.add((tenant, _row(key)))

    def _note_backlog(self, tenant: str, seq: int, records: int, ingested_us: int) -> None:
        backlog = self._tenants[tenant].backlog
        searchable = self.searchable_seq()
        while backlog and backlog[0][0] <= searchable:
            backlog.popleft()
        if not records:
            return
        if backlog and ingested_us - backlog[-1][2] < _BACKLOG_STEP_US:
            backlog[-1][0] = max(seq, backlog[-1][0])
            backlog[-1][1] += records
        else:
            backlog.append([seq, records, ingested_us])

    def _make_room(self, tenant: str, of: _Tenant) -> None:
        """Forget a shipper when there are too many; its losses stay in the sums.

        One that ended has nothing more to say; else it is the one not heard of for longest.
        """
        if len(of.epochs) < MAX_EPOCHS:
            return
        oldest = min(of.epochs.values(), key=lambda epoch: (not epoch.ended, epoch.heard_us))
        waiting, lost = oldest.missing(oldest.heard_us)
        if waiting + lost:
            self._add_flow(tenant, of, oldest.at_us, oldest.key_id, "native", Flow(lost=waiting + lost))
        del of.epochs[oldest.epoch]
        self._dirty.add((tenant, f"epoch:{oldest.epoch}"))

    # -- keeping ------------------------------------------------------------------------------

    def _load(self) -> None:
        rows = self._state.load_ledger()
        meta = rows.pop(_META, None)
        if meta is None:
            # Kept at once: a crash before anything else is kept must find where to begin.
            self._meta = _Meta(self._clock(), self._journal.last_seq, [])
            self._state.keep_ledger({_META: _encode(self._meta)})
        else:
            self._meta = msgspec.json.decode(meta, type=_Meta)
        for (tenant, key), value in rows.items():
            of = self._tenants.setdefault(tenant, _Tenant())
            kind, _, rest = key.partition(":")
            if kind == "epoch":
                of.epochs[rest] = msgspec.json.decode(value, type=Epoch)
            elif kind == "flow":
                flow_key = msgspec.json.decode(rest, type=_FlowKey)
                of.flows[flow_key] = msgspec.json.decode(value, type=Flow)
                of.sums.add(flow_key, of.flows[flow_key])
            elif kind == "incident":
                of.incident = msgspec.json.decode(value, type=_Incident)
        self._taken = set(self._meta.taken)
        after = min(self._meta.floor, self._journal.last_seq)
        while after < self._journal.last_seq:
            batch = self._journal.read(after, _READ_RECORDS)
            for entry in batch.entries:
                if is_note(entry) and entry.seq not in self._taken:
                    self._take_again(entry)
            after = batch.through_seq

    def _take_again(self, entry: Entry) -> None:
        try:
            note = _decode_note(entry.source)
        except msgspec.MsgspecError as exc:
            # No reason not to start: what it told is credited when its shipper speaks again.
            logger.error("ledger: the note at {} cannot be read: {}", entry.seq, exc)
            return
        self._take(entry.tenant, entry.seq, note, entry.ingested_us)
        self._note_backlog(entry.tenant, entry.seq, note.accepted, entry.ingested_us)

    def keep(self) -> int:
        """Keep what has changed; return up to which sequence number the journal need not be read again."""
        with self._keeping:
            with self._lock:
                floor = min(self._in_flight.values(), default=self._journal.last_seq)
                self._taken = {seq for seq in self._taken if seq > floor}
                if not self._dirty:
                    return floor
                dirty, self._dirty = self._dirty, set()
                meta = _Meta(self._meta.since_us, floor, sorted(self._taken))
                rows = {key: self._encoded(*key) for key in dirty}
                rows[_META] = _encode(meta)
            try:
                self._state.keep_ledger(rows)
            except LogsvcError as exc:
                with self._lock:
                    self._dirty |= dirty
                if str(exc) != self._trouble:
                    self._trouble = str(exc)
                    logger.error("ledger: cannot be kept, a crash now would forget what has arrived: {}", exc)
                # The journal goes on being trimmed: a full disk may need just that.
                return floor
            self._trouble = ""
            self._meta = meta
            return floor

    def _encoded(self, tenant: str, key: str) -> bytes | None:
        of = self._tenants.get(tenant)
        kind, _, rest = key.partition(":")
        value: Any = None
        if of is not None and kind == "epoch":
            value = of.epochs.get(rest)
        elif of is not None and kind == "flow":
            value = of.flows.get(msgspec.json.decode(rest, type=_FlowKey))
        elif of is not None and kind == "incident":
            value = of.incident
        return None if value is None else _encode(value)

    def _fold(self, now_us: int) -> None:
        """Join steps older than a day to hours, and forget what is older than records are kept."""
        if now_us - self._folded_us < _FOLD_EVERY_US:
            return
        self._folded_us = now_us
        for tenant, of in self._tenants.items():
            for key, flow in list(of.flows.items()):
                is_over = key.start_us + key.width_us < now_us - self._retention_us
                if not is_over and (key.width_us == _HOUR_US or key.start_us > now_us - _DAY_US):
                    continue
                del of.flows[key]
                of.sums.add(key, flow, -1)
                self._dirty.add((tenant, _row(key)))
                if not is_over:
                    self._add_flow(tenant, of, key.start_us, key.key_id, key.protocol, flow)
            for name, epoch in list(of.epochs.items()):
                if epoch.heard_us < now_us - self._retention_us:
                    del of.epochs[name]
                    self._dirty.add((tenant, f"epoch:{name}"))

    # -- answering ----------------------------------------------------------------------------

    @property
    def _deadline_us(self) -> int:
        """What was missing by then, while this service listened ever since, is lost."""
        if self._journal.trouble:
            self._listening_us = self._clock()
        deadline = self._clock() - self._grace_us
        return deadline if deadline > self._listening_us else 0

    @property
    def counted_us(self) -> int:
        """Since when records are counted."""
        return max(self._meta.since_us, self._clock() - self._retention_us)

    def completeness(self, tenant: str, start_us: int | None = None, end_us: int | None = None) -> Completeness:
        """Return how complete a search of a range of time is; see ``Completeness``."""
        now_us = self._clock()
        counted_us = self.counted_us
        low = counted_us if start_us is None else start_us
        high = now_us + _DAY_US if end_us is None else end_us

        def is_within(since_us: int, until_us: int) -> bool:
            return since_us < high and until_us >= low

        missing = Missing()
        accepted = numbered = 0
        with self._lock:
            of = self._tenants.get(tenant)
            if of is not None:
                accepted, numbered, missing.refused, missing.dropped, missing.lost = of.sums.within(low, high)
                deadline_us = self._deadline_us
                for epoch in of.epochs.values():
                    if epoch.holes or epoch.settled or (epoch.queued and low <= epoch.at_us < high):
                        waiting, lost = epoch.missing(deadline_us, is_within)
                        missing.waiting += waiting
                        missing.lost += lost
                searchable = self.searchable_seq()
                missing.backlog = sum(
                    records for seq, records, at_us in of.backlog if seq > searchable and is_within(at_us, at_us)
                )
        missing.backlog = min(missing.backlog, accepted)
        missing.dead = min(self._dead_letters.count_of(tenant, low, high), accepted - missing.backlog)
        found = accepted - missing.backlog - missing.dead
        emitted = found + missing.total
        is_known = emitted > 0 and low >= counted_us - _STEP_US
        return Completeness(
            share=_floor(found, emitted) if is_known else None,
            emitted=emitted,
            searchable=found,
            missing=missing,
            numbered_share=_floor(numbered, accepted) if accepted else None,
            counted_from=format_us(counted_us),
        )

    def loss(
        self,
        tenant: str,
        start_us: int,
        end_us: int,
        *,
        service: str | None = None,
        host: str | None = None,
        key_id: str | None = None,
    ) -> dict[str, object]:
        """Return where the records of a range went: each shipper heard of since ``start_us``, each client, the sums."""
        now_us = self._clock()
        with self._lock:
            of = self._tenants.get(tenant, _Tenant())
            deadline_us = self._deadline_us
            chosen = [
                epoch
                for epoch in of.epochs.values()
                if epoch.heard_us >= start_us
                and epoch.started_us < end_us
                and (service is None or epoch.service == service)
                and (host is None or epoch.host == host)
                and (key_id is None or epoch.key_id == key_id)
            ]
            chosen.sort(key=lambda epoch: (epoch.ended, -epoch.heard_us))
            shippers = [_shown(epoch, deadline_us, now_us - self._grace_us) for epoch in chosen]
            clients: dict[tuple[str, str], Flow] = {}
            for key, flow in of.flows.items():
                is_within = key.start_us < end_us and key.start_us + key.width_us > start_us
                if is_within and (key_id is None or key.key_id == key_id):
                    clients.setdefault((key.key_id, key.protocol), Flow()).add(flow)
        # Those who lost most first; else who still runs, and was heard of last.
        shippers.sort(key=lambda row: (-row["lost"] - sum(row["dropped"].values()), -row["waiting"]))
        return {
            "counted_from": format_us(self.counted_us),
            "shippers": shippers,
            "clients": [
                {"key_id": key, "protocol": protocol, **msgspec.to_builtins(flow, str_keys=True), **_filled(flow)}
                for (key, protocol), flow in sorted(clients.items(), key=lambda item: -item[1].accepted)
            ],
        }

    def metrics(self) -> dict[str, Callable[[], float]]:
        """Return readers of the ledger's metrics, by name."""
        return {
            "ledger_lost_records": lambda: float(self._sum_missing()[1]),
            "ledger_waiting_records": lambda: float(self._sum_missing()[0]),
        }

    def _sum_missing(self) -> tuple[int, int]:
        with self._lock:
            deadline_us = self._deadline_us
            sums = [epoch.missing(deadline_us) for of in self._tenants.values() for epoch in of.epochs.values()]
        return sum(waiting for waiting, _ in sums), sum(lost for _, lost in sums)

    # -- raising the alarm --------------------------------------------------------------------

    def _run(self) -> None:
        before_us = self._clock()
        while not self._closing.wait(_TICK_S):
            now_us = self._clock()
            if now_us - before_us > _SLEPT_US:
                # The machine slept, or its clock was set: nobody can have been heard meanwhile.
                with self._lock:
                    self._listening_us = now_us
            before_us = now_us
            try:
                self.tick()
            except LogsvcError as exc:
                logger.warning("ledger: {}", exc)
            except Exception:  # noqa: BLE001 - one odd entry must not end the alarm for good
                logger.exception("ledger: unexpected")

    def tick(self) -> None:
        """Look for losses, open, update or resolve the ticket about them, and keep what changed."""
        now_us = self._clock()
        with self._lock:
            self._fold(now_us)
            tenants = list(self._tenants)
        for tenant in tenants:
            self._judge(tenant, now_us)
        self.keep()

    def _judge(self, tenant: str, now_us: int) -> None:
        with self._lock:
            of = self._tenants[tenant]
            deadline_us = self._deadline_us
            grown: list[tuple[Epoch, int, int]] = []
            for epoch in of.epochs.values():
                lost = epoch.missing(deadline_us)[1]
                sums = (lost, min(epoch.told, lost + epoch.dropped_total))  # less when some arrived after all
                if sums != (epoch.known_lost, epoch.told):
                    epoch.known_lost, epoch.told = sums
                    self._dirty.add((tenant, f"epoch:{epoch.epoch}"))
                if (records := lost + epoch.dropped_total - epoch.told) > 0:
                    grown.append((epoch, records, min(lost, records)))
            total = sum(records for _, records, _ in grown)
            incident = of.incident and msgspec.structs.replace(of.incident)
            if incident is None:
                if not total:
                    return
                since_us = min(_lost_since(epoch) for epoch, _, _ in grown)
                incident, event = (
                    _Incident(ticket_id(tenant, "loss", now_us), since_us, total, now_us),
                    TicketEvent.OPENED,
                )
            elif total > incident.lost:
                incident.lost, incident.grew_us, event = total, now_us, TicketEvent.UPDATED
            elif total == 0 or now_us - incident.grew_us >= _QUIET_US:
                event = TicketEvent.RESOLVED
            elif total < incident.lost:
                incident.lost, event = total, TicketEvent.UPDATED
            else:
                return
            ticket = _ticket(tenant, incident, grown, now_us)
        before = self._state.get_ticket(tenant, ticket.id)
        if before is not None:
            ticket.opened_at, ticket.resolved_at = before.opened_at, before.resolved_at
            event = TicketEvent.UPDATED if event is TicketEvent.OPENED else event  # told before a crash
        ticket.state = next_state(before.state if before else None, event)
        if ticket.state is TicketState.RESOLVED and ticket.resolved_at is None:
            ticket.resolved_at = format_us(now_us)
        self._state.keep_tickets(tenant, [(f"anomaly.{event.value}", ticket)], now_us=now_us)
        with self._lock:
            of.incident = incident
            if event is TicketEvent.RESOLVED:
                of.incident = None
                for epoch, records, _ in grown:
                    epoch.told += records
                    self._dirty.add((tenant, f"epoch:{epoch.epoch}"))
            self._dirty.add((tenant, "incident:"))
        self.on_change()


# ------------------------------------------------------------------------------------------ words


def _clamped(time: str, ingested_us: int) -> int:
    """Return a shipper's moment in microseconds, unless its clock is far off."""
    at_us = parse_timestamp(time) // 1_000
    return at_us if ingested_us - _OLDEST_STATEMENT_US <= at_us <= ingested_us else ingested_us


def _row(key: _FlowKey) -> str:
    return f"flow:{_encode(key).decode()}"


def _floor(part: int, whole: int) -> float:
    return part * 1_000_000 // whole / 1_000_000


def _filled(flow: Flow) -> dict[str, object]:
    """Return the counts that ``omit_defaults`` leaves out."""
    return {name: getattr(flow, name) for name in flow.__struct_fields__}


def _lost_since(epoch: Epoch) -> int:
    return min((hole.since_us for hole in epoch.holes), default=epoch.at_us)


def _shown(epoch: Epoch, deadline_us: int, silent_us: int) -> dict[str, Any]:
    waiting, lost = epoch.missing(deadline_us)
    return {
        "epoch": epoch.epoch,
        "service": epoch.service,
        "host": epoch.host,
        "pid": epoch.pid,
        "key_id": epoch.key_id,
        "state": "ended" if epoch.ended else "silent" if epoch.is_silent(silent_us) else "live",
        "started_at": format_us(epoch.started_us),
        "heard_at": format_us(epoch.heard_us),
        "emitted": epoch.emitted,
        "queued": epoch.queued,
        "spooled": epoch.spooled,
        "sent": epoch.acknowledged,
        "accepted": epoch.arrived,
        "duplicated": epoch.duplicated,
        "dropped": _sum(epoch.dropped, epoch.undelivered),
        "waiting": waiting,
        "lost": lost,
        "gaps": [
            {"first": h.first, "last": h.last, "from": format_us(h.since_us), "to": format_us(h.until_us)}
            for h in epoch.holes[-MAX_SHOWN_GAPS:]
        ],
    }


def _who(epoch: Epoch) -> str:
    return f"{epoch.service or 'unknown service'} on {epoch.host or 'unknown host'}, pid {epoch.pid}"


def _ticket(tenant: str, incident: _Incident, grown: list[tuple[Epoch, int, int]], now_us: int) -> Ticket:
    grown = sorted(grown, key=lambda row: -row[1])
    total, lost = sum(row[1] for row in grown), sum(row[2] for row in grown)
    services = sorted({epoch.service for epoch, _, _ in grown if epoch.service})
    whose = ", ".join(services[:3]) + (f" and {len(services) - 3} more" if len(services) > 3 else "")
    time = format_us(incident.since_us)[11:16]
    if total:
        text = f"logsvc: {total:,} records of {whose or 'a shipper'} have not arrived; since {time} UTC"
    else:
        text = f"logsvc: all records that were missing since {time} UTC have arrived"
    evidence = []
    for epoch, records, unexplained in grown[:10]:
        parts = [f"{count:,} {reason}" for reason, count in _sum(epoch.dropped, epoch.undelivered).items()]
        if unexplained:
            parts.append(f"{unexplained:,} without a word (killed, or a gap in its numbers)")
        said = f"{_who(epoch)}: {', '.join(parts)}"
        evidence.append(Evidence("loss", "records", float(records), 0.0, 1.0, said))
    return about_service(
        "ledger",
        tenant,
        incident.ticket,
        Severity.HIGH if lost else Severity.MEDIUM,
        text,
        evidence,
        since_us=incident.since_us,
        now_us=now_us,
        observed=float(total),
        expected=0.0,
        unit="records",
        service=services[0] if services else "logsvc",
        query=" OR ".join(f"service.name:{_quoted(name)}" for name in services[:10]),
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
