"""Accounts whose names were erased."""

from __future__ import annotations

from alembic import op

revision = "models_0003"
down_revision = "models_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("accounts", "username", nullable=True)
    op.alter_column("accounts", "safe_name", nullable=True)
