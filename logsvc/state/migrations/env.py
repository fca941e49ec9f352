"""Alembic's entry point: runs the steps on the connection that it was given (state/schema.py)."""

from __future__ import annotations

from alembic import context

from logsvc.state.tables import metadata

# The caller owns the connection and its transaction: either every step happens or none.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
)
context.run_migrations()
