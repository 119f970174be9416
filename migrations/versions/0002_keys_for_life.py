"""Create what the life of a key leaves behind: claims, receipts, uses, workers."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"


def _moment(name: str, *, nullable: bool = False) -> "sa.Column[datetime]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    """Create the tables, and the one row of `generation`."""
    op.create_table(
        "created_once",
        sa.Column("owner", sa.String(63), nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=False),
        _moment("created_at"),
        sa.PrimaryKeyConstraint("owner", "idempotency_key", name="pk_created_once"),
        sa.ForeignKeyConstraint(
            ["api_key_id"], ["api_keys.id"], name="fk_created_once_api_key_id_api_keys"
        ),
    )
    op.create_table(
        "claims",
        sa.Column("claim_id", sa.String(32), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=False),
        sa.Column("sealed", sa.LargeBinary()),
        _moment("expires_at"),
        _moment("claimed_at", nullable=True),
        _moment("created_at"),
        sa.PrimaryKeyConstraint("claim_id", name="pk_claims"),
        sa.ForeignKeyConstraint(
            ["api_key_id"], ["api_keys.id"], name="fk_claims_api_key_id_api_keys"
        ),
    )
    generation = op.create_table(
        "generation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_generation"),
    )
    op.bulk_insert(generation, [{"id": 1, "value": 0}])
    op.create_table(
        "key_uses",
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        _moment("first_used_at"),
        _moment("last_used_at"),
        sa.Column("last_source_ip", sa.String(45), nullable=False),
        sa.Column("last_user_agent", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_key_uses"),
    )
    op.create_table(
        "key_sources",
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("source_ip", sa.String(45), nullable=False),
        sa.Column("user_agent", sa.String(255), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        _moment("first_seen_at"),
        _moment("last_seen_at"),
        sa.PrimaryKeyConstraint("key_id", "source_ip", "user_agent", name="pk_key_sources"),
    )
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        _moment("seen_at"),
        sa.PrimaryKeyConstraint("worker_id", name="pk_workers"),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("workers", "key_sources", "key_uses", "generation", "claims", "created_once"):
        op.drop_table(table)
