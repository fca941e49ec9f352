"""State: what is not logs, in SQL: tickets, keys, detection's checkpoints and state, the outbox.

SQLite in the data directory by default, in WAL mode with every commit synced; the statements are
those that PostgreSQL understands too. Several processes may use one database at once: the service,
and commands such as ``logsvc keys create``.

What always holds:

- A tick of detection is one transaction (``commit_tick``): its cursor, its tickets, its detectors'
  state, and one outbox row per event and channel. After a crash all of it is there, or none.
- A tenant is a wall: whatever belongs to one is only reached by naming it.
- Every moment is handed in by the caller; nothing here reads a clock.
- ``open_state`` compares the schema first and raises rather than run on another one.

Not here: what a ticket may become (tickets.py), what a key looks like (keys.py), who delivers (outbox.py).
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import event as sa_event

from logsvc.errors import BadInput, NotFound, SettingsError, StateUnavailable
from logsvc.state import tables as t
from logsvc.state.schema import prepare
from logsvc.tickets import Severity, Ticket, TicketState
from logsvc.timestamps import format_us, parse_rfc3339

MAX_PAGE_TICKETS = 1_000
_BUSY_S = 10.0
_BUSY_PAUSE_S = 0.02
_IMPATIENT_S = 0.1
_WRITES = "write_wait_s"


class KeyRow(NamedTuple):
    """A key as it is stored: its hash, never itself."""

    id: str
    hash: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    created_us: int
    last_used_us: int | None = None
    expires_us: int | None = None
    revoked_us: int | None = None
    records_per_second: int | None = None
    bytes_per_second: int | None = None
    burst_s: int | None = None


class Blob(NamedTuple):
    """State of one detector: ``version`` says which code wrote ``value``."""

    version: str
    value: bytes


class TicketPage(NamedTuple):
    """Tickets, the newest first; ``next_cursor`` is None when nothing is left."""

    tickets: list[Ticket]
    next_cursor: str | None


class DeliveryState(StrEnum):
    """Where one event stands on one channel."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # given up; may be replayed


class Delivery(msgspec.Struct, frozen=True):
    """What became of one event of a ticket on one channel; shown on the ticket. Times are RFC 3339."""

    id: str  # of the event; the same on every channel and at every attempt
    channel: str
    event_type: str
    state: DeliveryState
    attempts: int
    created_at: str
    next_attempt_at: str | None = None
    delivered_at: str | None = None
    last_error: str | None = None


class OutboxRow(NamedTuple):
    """An event to deliver on a channel. ``body`` is its JSON; ``attempts`` counts those before."""

    seq: int
    id: str
    channel: str
    tenant: str
    ticket_id: str
    type: str
    body: bytes
    attempts: int


def open_state(url: str, *, channels: Sequence[str] = (), own_channels: Mapping[str, str] = {}) -> State:
    """Open the database at ``url``; make it if it is new, migrate it if it is older.

    Args:
        url: ``sqlite:////path`` or ``postgresql+psycopg://…``; SQLite's directory is made.
        channels: Notifiers for which ``commit_tick`` writes events to the outbox.
        own_channels: Tenants that are heard on this one channel alone, which is nobody else's.

    Raises:
        SchemaMismatch: If the schema is not this version's.
        StateUnavailable: If the database cannot be opened.
        SettingsError: If its driver is not installed.
    """
    try:
        engine = _sqlite(url) if sa.make_url(url).get_backend_name() == "sqlite" else sa.create_engine(url)
    except ModuleNotFoundError as exc:
        raise SettingsError(f"LOGSVC_DATABASE_URL needs the package {exc.name}; install logsvc[postgres]") from exc
    except sa.exc.ArgumentError as exc:
        raise SettingsError("LOGSVC_DATABASE_URL is no database address; expected sqlite:////path/to/state.db") from exc
    state = State(engine, channels, own_channels)
    try:
        with state._writing() as connection:
            prepare(connection)
    except BaseException:
        state.close()
        raise
    return state


def _sqlite(url: str) -> sa.Engine:
    path = sa.make_url(url).database
    if not path or path == ":memory:":
        raise SettingsError(
            f"LOGSVC_DATABASE_URL is {url}; expected a file, such as sqlite:////var/lib/logsvc/state.db"
        )
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite's other files take over the mode of this one. Only a file that nobody else has open: closing any
        # descriptor of a database drops every lock that this process holds on it (sqlite.org/howtocorrupt.html, 2.2).
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise StateUnavailable(f"cannot open {path}: {exc.strerror}") from exc
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_S})

    @sa_event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: object) -> None:
        # The driver's own transactions begin late and end before DDL; ours are explicit.
        connection.isolation_level = None
        _write_ahead(connection)
        for pragma in ("synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa_event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that will write takes the lock at once: it waits for its turn instead of
        # failing half-way because another one wrote since its first read.
        wait_s = connection.get_execution_options().get(_WRITES)
        if wait_s is None:
            connection.exec_driver_sql("BEGIN")
        else:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(wait_s * 1_000)}")
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to WAL. While another connection does the same, SQLite says "locked" at once, whatever its timeout."""
    for is_last in [False] * round(_BUSY_S / _BUSY_PAUSE_S) + [True]:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as exc:
            if is_last or exc.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
        time.sleep(_BUSY_PAUSE_S)


class State:
    """The state database. Safe to use from several threads; made by ``open_state``."""

    def __init__(self, engine: sa.Engine, channels: Sequence[str] = (), own_channels: Mapping[str, str] = {}) -> None:
        self._own_channels = dict(own_channels)
        self._engine = engine
        self._write_engine = engine.execution_options(**{_WRITES: _BUSY_S})
        self._impatient_engine = engine.execution_options(**{_WRITES: _IMPATIENT_S})
        self._channels = tuple(channels)

    @property
    def is_shared(self) -> bool:
        """Whether several services may use it at once (PostgreSQL); SQLite's data directory has one."""
        return self._engine.dialect.name != "sqlite"

    def close(self) -> None:
        """Release every connection; idempotent."""
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self, *, is_impatient: bool = False) -> Iterator[sa.Connection]:
        engine = self._impatient_engine if is_impatient else self._write_engine
        with _translated(), engine.begin() as connection:
            yield connection

    # ------------------------------------------------------------------------------------------------- keys

    def add_key(self, row: KeyRow) -> None:
        """Keep a new key."""
        with self._writing() as db:
            db.execute(sa.insert(t.api_keys).values(**_key_values(row)))

    def add_first_key(self, row: KeyRow) -> bool:
        """Keep a key if there is none at all, revoked ones included; return whether it was kept."""
        with self._writing() as db:
            if db.execute(sa.select(t.api_keys.c.id).limit(1)).first() is not None:
                return False
            db.execute(sa.insert(t.api_keys).values(**_key_values(row)))
            return True

    def key_by_hash(self, hash: str) -> KeyRow | None:
        """Return the key with this hash, whatever its state, or None."""
        with self._reading() as db:
            row = db.execute(sa.select(t.api_keys).where(t.api_keys.c.hash == hash)).first()
        return None if row is None else _key(row)

    def list_keys(self, tenant: str | None = None) -> list[KeyRow]:
        """Return every key, or those of one tenant, the oldest first."""
        query = sa.select(t.api_keys).order_by(t.api_keys.c.created_us, t.api_keys.c.id)
        if tenant is not None:
            query = query.where(t.api_keys.c.tenant == tenant)
        with self._reading() as db:
            return [_key(row) for row in db.execute(query)]

    def revoke_key(self, id: str, now_us: int) -> None:
        """Make a key useless from now on; one that is revoked already keeps its time.

        Raises:
            NotFound: If there is no such key.
        """
        key = t.api_keys.c
        with self._writing() as db:
            changed = db.execute(
                sa.update(t.api_keys).where(key.id == id).values(revoked_us=sa.func.coalesce(key.revoked_us, now_us))
            )
            if changed.rowcount == 0:
                raise _no_key(id)

    def change_key(self, id: str, **values: int | None) -> KeyRow:
        """Change columns of a key, such as its quota, and return it.

        Raises:
            NotFound: If there is no such key.
        """
        key = t.api_keys.c
        with self._writing() as db:
            if values:
                db.execute(sa.update(t.api_keys).where(key.id == id).values(**values))
            row = db.execute(sa.select(t.api_keys).where(key.id == id)).first()
        if row is None:
            raise _no_key(id)
        return _key(row)

    def note_key_use(self, id: str, now_us: int) -> None:
        """Remember when a key was last used.

        Raises:
            StateUnavailable: Also if another one writes for longer than a moment: a request waits for this.
        """
        with self._writing(is_impatient=True) as db:
            db.execute(sa.update(t.api_keys).where(t.api_keys.c.id == id).values(last_used_us=now_us))

    # ---------------------------------------------------------------------------------------------- tickets

    def list_tickets(
        self,
        tenant: str,
        *,
        state: TicketState | None = None,
        severity: Severity | None = None,
        task: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> TicketPage:
        """Return a page of the tenant's tickets, the newest opened first.

        Args:
            tenant: Whose.
            state: Only these.
            severity: Only these.
            task: Only tickets that this task is one of.
            limit: At most this many, up to ``MAX_PAGE_TICKETS``.
            cursor: ``next_cursor`` of the page before.

        Raises:
            BadInput: If the cursor is none of ours.
        """
        ticket = t.tickets.c
        query = sa.select(ticket.opened_us, ticket.id, ticket.body).where(ticket.tenant == tenant)
        if state is not None:
            query = query.where(ticket.state == state.value)
        if severity is not None:
            query = query.where(ticket.severity == severity.value)
        if task is not None:
            named = t.ticket_tasks.c
            query = query.where(
                ticket.id.in_(sa.select(named.ticket_id).where(named.tenant == tenant, named.task == task))
            )
        if cursor is not None:
            opened_us, last_id = _decode_cursor(cursor)
            query = query.where(
                sa.or_(ticket.opened_us < opened_us, sa.and_(ticket.opened_us == opened_us, ticket.id < last_id))
            )
        limit = max(1, min(limit, MAX_PAGE_TICKETS))
        query = query.order_by(ticket.opened_us.desc(), ticket.id.desc()).limit(limit + 1)
        with self._reading() as db:
            rows = db.execute(query).all()
        last = rows[limit - 1] if len(rows) > limit else None
        return TicketPage(
            [_decode_ticket(row.body) for row in rows[:limit]],
            None if last is None else _encode_cursor(last.opened_us, last.id),
        )

    def get_ticket(self, tenant: str, id: str) -> Ticket | None:
        """Return one ticket, or None if this tenant has no such ticket."""
        ticket = t.tickets.c
        with self._reading() as db:
            body = db.execute(sa.select(ticket.body).where(ticket.tenant == tenant, ticket.id == id)).scalar()
        return None if body is None else _decode_ticket(body)

    def count_tickets(self, tenant: str | None = None) -> dict[TicketState, int]:
        """Return how many tickets are in each state, of one tenant or of all that share the channels."""
        query = sa.select(t.tickets.c.state, sa.func.count().label("size")).group_by(t.tickets.c.state)
        mine = t.tickets.c.tenant
        query = query.where(mine == tenant if tenant is not None else mine.not_in(list(self._own_channels)))
        with self._reading() as db:
            found = {TicketState(row.state): row.size for row in db.execute(query)}
        return {state: found.get(state, 0) for state in TicketState}

    # -------------------------------------------------------------------------------------------- detection

    def checkpoint(self, tenant: str) -> int | None:
        """Return up to which ``event.ingested`` (microseconds) the tenant has been judged; None if never."""
        with self._reading() as db:
            return db.execute(sa.select(t.checkpoints.c.cursor_us).where(t.checkpoints.c.tenant == tenant)).scalar()

    def checkpoints(self) -> dict[str, int]:
        """Return the checkpoint of every tenant that has one."""
        with self._reading() as db:
            return {row.tenant: row.cursor_us for row in db.execute(sa.select(t.checkpoints))}

    def blobs(self, tenant: str, keys: Iterable[str] | None = None) -> dict[str, Blob]:
        """Return what ``commit_tick`` last kept under each key, or under those asked for: the forest is large."""
        blob = t.detector_state.c
        with self._reading() as db:
            wanted = sa.select(blob.key, blob.version, blob.value).where(blob.tenant == tenant)
            rows = db.execute(wanted if keys is None else wanted.where(blob.key.in_(keys))).all()
        return {row.key: Blob(row.version, row.value) for row in rows}

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
        """Keep everything that one tick of detection decided, or nothing.

        Args:
            tenant: Whose.
            cursor_us: The tenant is judged up to here from now on.
            now_us: The time now; from then on the events are due.
            tickets: New and changed tickets, whole.
            events: Type (``anomaly.opened`` …) and ticket of each change people hear about, in
                order. Those of a ticket that is not notified go to no channel.
            blobs: Detectors' state by key; None removes the key, a key not named stays.

        Raises:
            ValueError: If the cursor would go back, or a ticket is another tenant's.
        """
        tickets, events = list(tickets), list(events)
        if any(ticket.tenant != tenant for ticket in [*tickets, *(ticket for _, ticket in events)]):
            raise ValueError(f"a tick of tenant {tenant!r} carries another tenant's ticket")
        with self._writing() as db:
            before = db.execute(sa.select(t.checkpoints.c.cursor_us).where(t.checkpoints.c.tenant == tenant)).scalar()
            if before is not None and before > cursor_us:
                raise ValueError(f"the checkpoint of {tenant!r} would go back from {before} to {cursor_us}")
            _put(db, t.checkpoints, {"tenant": tenant}, {"cursor_us": cursor_us})
            for ticket in tickets:
                _put_ticket(db, ticket)
            for key, blob in blobs.items():
                _put(db, t.detector_state, {"tenant": tenant, "key": key}, None if blob is None else blob._asdict())
            self._announce_all(db, events, now_us)

    def keep_tickets(self, tenant: str, tickets: Iterable[tuple[str, Ticket]], *, now_us: int) -> None:
        """Keep tickets that are not detection's, each with the type of the event that people hear.

        Raises:
            ValueError: If a ticket is another tenant's.
        """
        events = list(tickets)
        if any(ticket.tenant != tenant for _, ticket in events):
            raise ValueError(f"a ticket of another tenant is kept for {tenant!r}")
        with self._writing() as db:
            for _, ticket in events:
                _put_ticket(db, ticket)
            self._announce_all(db, events, now_us)

    def forget_tenant(self, tenant: str) -> None:
        """Remove what detection and outbox have of a tenant: tickets, events, checkpoint, memory."""
        with self._writing() as db:
            for table in (t.outbox, t.tickets, t.checkpoints, t.detector_state):
                db.execute(sa.delete(table).where(table.c.tenant == tenant))

    # ----------------------------------------------------------------------------------------------- ledger

    def load_ledger(self) -> dict[tuple[str, str], bytes]:
        """Return all of the ledger, by tenant and key."""
        with self._reading() as db:
            return {(row.tenant, row.key): row.value for row in db.execute(sa.select(t.ledger))}

    def keep_ledger(self, rows: Mapping[tuple[str, str], bytes | None]) -> None:
        """Keep what changed of the ledger, all of it or nothing; None removes a row."""
        row = t.ledger.c
        is_row = sa.and_(row.tenant == sa.bindparam("whose"), row.key == sa.bindparam("which"))
        kept = [
            {"tenant": tenant, "key": key, "value": value} for (tenant, key), value in rows.items() if value is not None
        ]
        with self._writing() as db:
            # All at once: thousands of shippers may have said something in a second.
            db.execute(sa.delete(t.ledger).where(is_row), [{"whose": tenant, "which": key} for tenant, key in rows])
            if kept:
                db.execute(sa.insert(t.ledger), kept)

    # ----------------------------------------------------------------------------------------------- outbox

    def _announce_all(self, db: sa.Connection, events: Iterable[tuple[str, Ticket]], now_us: int) -> None:
        disabled = {row.name: row.reason for row in db.execute(sa.select(t.channels))}
        for type_, ticket in events:
            if ticket.is_notified:
                self._announce(db, type_, ticket, now_us, disabled)

    def _channels_of(self, tenant: str) -> Sequence[str]:
        own = self._own_channels.get(tenant)
        return self._channels if own is None else (own,)

    def _announce(
        self, db: sa.Connection, type_: str, ticket: Ticket, now_us: int, disabled: Mapping[str, str]
    ) -> None:
        # The ticket's own time, so that a replay says the same.
        event = {"type": type_, "timestamp": ticket.updated_at, "id": new_event_id(now_us), "data": ticket}
        for channel in self._channels_of(ticket.tenant):
            _enqueue(db, event, channel, ticket.tenant, ticket.id, now_us, disabled.get(channel))

    def deliveries(self, tenant: str, ticket_id: str) -> list[Delivery]:
        """Return what became of every event of a ticket, the oldest first."""
        row = t.outbox.c
        query = sa.select(t.outbox).where(row.tenant == tenant, row.ticket_id == ticket_id).order_by(row.seq)
        with self._reading() as db:
            return [_delivery(found) for found in db.execute(query)]

    def claim(self, channel: str, *, now_us: int, lease_us: int) -> OutboxRow | None:
        """Take the oldest event that is due on a channel, for ``lease_us``; None if there is none.

        An event waits for the earlier ones of its ticket, so that "resolved" never overtakes "opened".
        """
        row = t.outbox.c
        query = (
            sa.select(t.outbox)
            .where(*_is_due(channel, now_us), row.claimed_until_us <= now_us)
            .order_by(row.seq)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self._reading() as db:
            if db.execute(query.with_only_columns(row.seq)).first() is None:
                return None  # idle is the rule; it takes no write lock
        with self._writing() as db:
            found = db.execute(query).first()
            if found is None:
                return None
            db.execute(sa.update(t.outbox).where(row.seq == found.seq).values(claimed_until_us=now_us + lease_us))
        return OutboxRow(*(getattr(found, name) for name in OutboxRow._fields))

    def has_due(self, channel: str, now_us: int) -> bool:
        """Return whether an event of a channel is due, claimed or not."""
        with self._reading() as db:
            return db.execute(sa.select(t.outbox.c.seq).where(*_is_due(channel, now_us)).limit(1)).first() is not None

    def mark_delivered(self, seq: int, now_us: int) -> None:
        """Note that a claimed event arrived."""
        with self._writing() as db:
            _settle(db, seq, state=DeliveryState.DELIVERED, delivered_us=now_us, last_error=None)

    def mark_retry(self, seq: int, error: str, next_attempt_us: int) -> None:
        """Note that a claimed event did not arrive and is due again later."""
        with self._writing() as db:
            _settle(db, seq, last_error=error, next_attempt_us=next_attempt_us)

    def mark_failed(self, seq: int, error: str, now_us: int) -> None:
        """Give a claimed event up, and say so on the other channels (``notification.failed``)."""
        with self._writing() as db:
            _settle(db, seq, state=DeliveryState.FAILED, last_error=error)
            found = db.execute(sa.select(t.outbox).where(t.outbox.c.seq == seq)).one()
            if found.type == NOTIFICATION_FAILED:
                return  # no cascades
            event = {
                "type": NOTIFICATION_FAILED,
                "timestamp": format_us(now_us),
                "id": new_event_id(now_us),
                "data": {
                    "tenant": found.tenant,
                    "ticket": found.ticket_id,
                    "channel": found.channel,
                    "event": {"id": found.id, "type": found.type},
                    "error": error,
                },
            }
            disabled = set(db.execute(sa.select(t.channels.c.name)).scalars())
            for channel in self._channels_of(found.tenant):
                if channel != found.channel and channel not in disabled:
                    _enqueue(db, event, channel, found.tenant, found.ticket_id, now_us, None)

    def release_claims(self) -> None:
        """Make every claimed event due again: whoever claimed it is gone. Only for a database that is not shared."""
        with self._writing() as db:
            db.execute(sa.update(t.outbox).where(t.outbox.c.claimed_until_us > 0).values(claimed_until_us=0))

    def replay(self, id: str, *, now_us: int, channel: str | None = None) -> int:
        """Make an event due again from its first attempt, on one channel or all; return on how many.

        Raises:
            NotFound: If there is no such event.
        """
        row = t.outbox.c
        change = sa.update(t.outbox).where(row.id == id)
        if channel is not None:
            change = change.where(row.channel == channel)
        with self._writing() as db:
            count = db.execute(
                change.values(
                    state=DeliveryState.PENDING,
                    attempts=0,
                    next_attempt_us=now_us,
                    claimed_until_us=0,
                    delivered_us=None,
                    last_error=None,
                )
            ).rowcount
        if not count:
            raise NotFound(f"there is no event {id[:100]!r} to deliver again; a ticket lists those of its own")
        return count

    def expire_outbox(self, before_us: int) -> int:
        """Forget events settled and made before ``before_us``; return how many rows."""
        row = t.outbox.c
        with self._writing() as db:
            return db.execute(
                sa.delete(t.outbox).where(row.state != DeliveryState.PENDING, row.created_us < before_us)
            ).rowcount

    def count_outbox(self) -> dict[tuple[str, DeliveryState], int]:
        """Return how many events there are by channel and state."""
        row = t.outbox.c
        with self._reading() as db:
            found = db.execute(
                sa.select(row.channel, row.state, sa.func.count().label("size")).group_by(row.channel, row.state)
            )
            return {(one.channel, DeliveryState(one.state)): one.size for one in found}

    def disable_channel(self, name: str, *, target: str, reason: str, now_us: int) -> None:
        """Stop delivering on a channel: its receiver said that it is gone. Pending events fail."""
        row = t.outbox.c
        with self._writing() as db:
            _put(db, t.channels, {"name": name}, {"target": target, "disabled_us": now_us, "reason": reason})
            db.execute(
                sa.update(t.outbox)
                .where(row.channel == name, row.state == DeliveryState.PENDING)
                .values(state=DeliveryState.FAILED, last_error=reason, claimed_until_us=0)
            )

    def enable_channel(self, name: str, *, unless_target: str | None = None) -> bool:
        """Deliver on a channel again; return whether it is enabled now.

        One that was disabled while it led to ``unless_target`` stays so.
        """
        with self._writing() as db:
            found = db.execute(sa.select(t.channels).where(t.channels.c.name == name)).first()
            if found is not None and found.target == unless_target:
                return False
            db.execute(sa.delete(t.channels).where(t.channels.c.name == name))
            return True


NOTIFICATION_FAILED = "notification.failed"
"""Event that tells the other channels that one gave an event up."""

_ULID_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_event_id(now_us: int) -> str:
    """Return ``msg_`` and a new ULID: time-ordered, unguessable.

    >>> new_event_id(1_700_000_000_000_000)[:14]
    'msg_01HF7YAT00'
    """
    number = (now_us // 1_000) << 80 | secrets.randbits(80)
    return "msg_" + "".join(_ULID_DIGITS[number >> shift & 31] for shift in range(125, -1, -5))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except (sa.exc.DatabaseError, sa.exc.InterfaceError) as exc:
        # Only what the driver says: the statement's parameters may hold tickets and hashes.
        raise StateUnavailable(f"the state database does not answer: {exc.orig}") from None


def _is_due(channel: str, now_us: int) -> list[sa.ColumnElement[bool]]:
    row, earlier = t.outbox.c, t.outbox.alias().c
    waits = sa.exists().where(
        earlier.channel == channel,
        earlier.state == DeliveryState.PENDING,
        earlier.tenant == row.tenant,
        earlier.ticket_id == row.ticket_id,
        earlier.seq < row.seq,
    )
    return [row.channel == channel, row.state == DeliveryState.PENDING, row.next_attempt_us <= now_us, ~waits]


def _settle(db: sa.Connection, seq: int, **values: object) -> None:
    row = t.outbox.c
    db.execute(
        sa.update(t.outbox).where(row.seq == seq).values(attempts=row.attempts + 1, claimed_until_us=0, **values)
    )


def _put(db: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any] | None) -> None:
    """Insert or replace the row with this key; remove it if ``values`` is None."""
    db.execute(sa.delete(table).where(*(table.c[name] == value for name, value in key.items())))
    if values is not None:
        db.execute(sa.insert(table).values(**key, **values))


def _put_ticket(db: sa.Connection, ticket: Ticket) -> None:
    values = {
        "state": ticket.state.value,
        "severity": ticket.severity.value,
        "kind": ticket.kind,
        "opened_us": parse_rfc3339(ticket.opened_at) // 1_000,
        "updated_us": parse_rfc3339(ticket.updated_at) // 1_000,
        "body": msgspec.json.encode(ticket),
    }
    _put(db, t.tickets, {"tenant": ticket.tenant, "id": ticket.id}, values)  # its ticket_tasks go with the old row
    tasks = {*ticket.tasks, *([ticket.task] if ticket.task is not None else [])}
    if tasks:
        db.execute(
            sa.insert(t.ticket_tasks),
            [{"tenant": ticket.tenant, "task": task, "ticket_id": ticket.id} for task in sorted(tasks)],
        )


def _decode_ticket(body: bytes) -> Ticket:
    return msgspec.json.decode(body, type=Ticket)


def _enqueue(
    db: sa.Connection,
    event: Mapping[str, object],
    channel: str,
    tenant: str,
    ticket_id: str,
    now_us: int,
    disabled: str | None,
) -> None:
    """Add one row to the outbox; on a disabled channel it has failed from the start, for all to see."""
    db.execute(
        sa.insert(t.outbox).values(
            id=event["id"],
            channel=channel,
            tenant=tenant,
            ticket_id=ticket_id,
            type=event["type"],
            body=msgspec.json.encode(event),
            created_us=now_us,
            state=DeliveryState.PENDING if disabled is None else DeliveryState.FAILED,
            attempts=0,
            next_attempt_us=now_us,
            claimed_until_us=0,
            last_error=disabled,
        )
    )


def _delivery(row: Any) -> Delivery:
    is_pending = row.state == DeliveryState.PENDING
    return Delivery(
        id=row.id,
        channel=row.channel,
        event_type=row.type,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        created_at=format_us(row.created_us),
        next_attempt_at=format_us(row.next_attempt_us) if is_pending else None,
        delivered_at=None if row.delivered_us is None else format_us(row.delivered_us),
        last_error=row.last_error,
    )


def _no_key(id: str) -> NotFound:
    return NotFound(f"there is no key {id[:100]!r}; `logsvc keys list` shows those there are")


def _key_values(row: KeyRow) -> dict[str, object]:
    return {**row._asdict(), "scopes": " ".join(row.scopes)}


def _key(row: Any) -> KeyRow:
    return KeyRow(**{**row._mapping, "scopes": tuple(row.scopes.split())})


def _encode_cursor(opened_us: int, id: str) -> str:
    return base64.urlsafe_b64encode(f"{opened_us}:{id}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[int, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        opened, _, ticket_id = text.partition(":")
        opened_us = int(opened)
    except (ValueError, binascii.Error):
        opened_us, ticket_id = 2**63, ""
    if abs(opened_us) >= 2**63:
        raise BadInput(f"cannot read the cursor {cursor[:100]!r}; expected next_cursor of the page before")
    return opened_us, ticket_id
