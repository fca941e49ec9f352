"""Tables: what the state database looks like in this version.

The migrations lead here, and at every start the database is compared with it. Only types that
SQLite and PostgreSQL both have: text, integers of 64 bits, bytes. Moments are microseconds since
1970 in UTC (columns ``*_us``), so that they sort and compare alike everywhere.

Not here: what is read and written (``__init__.py``), how an older database gets here (``migrations/``).
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),  # words separated by spaces
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("last_used_us", sa.BigInteger),
    sa.Column("expires_us", sa.BigInteger),
    sa.Column("revoked_us", sa.BigInteger),
    # What it may send; NULL is the service's default, a rate of 0 is unlimited.
    sa.Column("records_per_second", sa.BigInteger),
    sa.Column("bytes_per_second", sa.BigInteger),
    sa.Column("burst_s", sa.BigInteger),
)

tickets = sa.Table(
    "tickets",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("opened_us", sa.BigInteger, nullable=False),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # the whole ticket as JSON; the columns above only find it
    sa.Index(None, "tenant", "opened_us", "id"),
    sa.Index(None, "tenant", "state"),
)

ticket_tasks = sa.Table(
    "ticket_tasks",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("task", sa.Text, primary_key=True),
    sa.Column("ticket_id", sa.Text, primary_key=True),
    sa.ForeignKeyConstraint(["tenant", "ticket_id"], ["tickets.tenant", "tickets.id"], ondelete="CASCADE"),
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("cursor_us", sa.BigInteger, nullable=False),
)

detector_state = sa.Table(
    "detector_state",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

outbox = sa.Table(
    "outbox",
    metadata,
    # SQLite makes rowids only of a column that says INTEGER.
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False),  # one per event; every channel's row of the event has it
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("ticket_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # the event as JSON, as the ticket was then
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_attempt_us", sa.BigInteger, nullable=False),
    sa.Column("claimed_until_us", sa.BigInteger, nullable=False),
    sa.Column("delivered_us", sa.BigInteger),
    sa.Column("last_error", sa.Text),
    sa.UniqueConstraint("id", "channel"),
    sa.Index(None, "channel", "state", "next_attempt_us"),
    sa.Index(None, "tenant", "ticket_id"),
    sqlite_autoincrement=True,
)

# The loss ledger: a shipper's epoch, a step of sums, an open incident, each as JSON; ledger.py says which.
ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

channels = sa.Table(
    "channels",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("target", sa.Text, nullable=False),  # where it led when it was disabled; a new target enables it
    sa.Column("disabled_us", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
