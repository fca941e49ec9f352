"""Schema: brings a state database to this version, or says exactly how it differs.

An empty database is made; one of an earlier version is migrated, all steps in one transaction; one
of a later version is refused. Whatever the version it claims, its tables, columns, types, keys and
indexes are then compared with ``tables.py``, so that a column dropped by hand is named at start and
not met at three in the morning.

Not here: what the tables mean (``tables.py``), the steps (``migrations/``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from logsvc.errors import SchemaMismatch
from logsvc.state.tables import metadata

_WHAT = "the state database"
_VERSION_TABLE = "alembic_version"


def prepare(connection: sa.Connection) -> None:
    """Make or migrate the schema inside the caller's transaction, then compare it.

    The caller holds the database's write lock, so of two processes that start at once the second
    finds the work done.

    Raises:
        SchemaMismatch: If a later version wrote the database, or a table, column or index differs.
    """
    config = Config()
    # configparser reads % as its own.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = [script.revision for script in scripts.walk_revisions()]
    current = MigrationContext.configure(connection).get_current_revision()
    tables = set(sa.inspect(connection).get_table_names())
    if current is None and tables & set(metadata.tables):
        raise SchemaMismatch(
            _WHAT, [f"table {_VERSION_TABLE}: it is missing or empty, while {', '.join(sorted(tables))} exist"]
        )
    if current is not None and current not in known:
        raise SchemaMismatch(
            _WHAT,
            [
                f"table {_VERSION_TABLE}: revision {current} is unknown here, where {known[0]} is the newest; a later "
                "version of logsvc wrote it, so start that version or restore a backup"
            ],
        )
    if current != known[0]:
        command.upgrade(config, "head")
    if differences := compare(connection):
        raise SchemaMismatch(_WHAT, differences)


def compare(connection: sa.Connection) -> list[str]:
    """Return how the database differs from ``tables.py``, each table and column named; [] if it is equal."""
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    differences: list[str] = []
    for entry in compare_metadata(context, metadata):
        # Changes of one column come as a list of tuples, everything else as a tuple.
        differences += [_describe(change) for change in (entry if isinstance(entry, list) else [entry])]
    inspector = sa.inspect(connection)
    present = set(inspector.get_table_names())
    for table in metadata.sorted_tables:
        # Alembic does not compare primary keys.
        expected = [column.name for column in table.primary_key]
        if (
            table.name in present
            and (found := inspector.get_pk_constraint(table.name)["constrained_columns"]) != expected
        ):
            differences.append(f"table {table.name}: its primary key is {found}, expected {expected}")
    return differences


def _describe(change: tuple[Any, ...]) -> str:
    kind, *rest = change
    match kind:
        case "add_table":
            return f"table {rest[0].name} is missing"
        case "remove_table":
            return f"table {rest[0].name} is not expected"
        case "add_column":
            return f"table {rest[1]}: column {rest[2].name} is missing"
        case "remove_column":
            return f"table {rest[1]}: column {rest[2].name} is not expected"
        case "modify_type" | "modify_nullable":
            _, table, column, _, found, expected = rest
            if kind == "modify_type":
                return f"table {table}: column {column} has type {found!r}, expected {expected!r}"
            return f"table {table}: column {column} {'allows' if found else 'refuses'} NULL"
        case _:
            # add_index, remove_constraint and the like carry the thing itself.
            action, _, thing = kind.partition("_")
            item = rest[0]
            columns = ", ".join(column.name for column in item.columns)
            missing = "is missing" if action == "add" else "is not expected"
            return f"table {item.table.name}: {thing} {item.name} ({columns}) {missing}"
