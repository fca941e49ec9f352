"""Keys have quotas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("records_per_second", "bytes_per_second", "burst_s"):
        op.add_column("api_keys", sa.Column(name, sa.BigInteger(), nullable=True))
