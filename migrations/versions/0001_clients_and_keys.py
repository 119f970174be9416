"""Create clients and their keys."""

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "clients",
        sa.Column("client_id", sa.String(63), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("contact_email", sa.String(254)),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("retention_days", sa.Integer()),
        sa.Column("dataset_retention_days", sa.JSON()),
        sa.Column("requests_per_minute", sa.BigInteger()),
        sa.Column("logs_per_minute", sa.BigInteger()),
        sa.Column("bytes_per_minute", sa.BigInteger()),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("client_id", name="pk_clients"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("key_prefix", sa.String(255), nullable=False),
        sa.Column("client_id", sa.String(63)),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("scopes", sa.JSON()),
        sa.Column("allowed_datasets", sa.JSON()),
        sa.Column("requests_per_minute", sa.BigInteger()),
        sa.Column("logs_per_minute", sa.BigInteger()),
        sa.Column("bytes_per_minute", sa.BigInteger()),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("allowed_cidrs", sa.JSON()),
        sa.Column("allowed_countries", sa.JSON()),
        sa.Column("allowed_hours", sa.JSON()),
        sa.Column("require_signature", sa.Boolean(), nullable=False),
        sa.Column("verifier", sa.String(255)),
        sa.Column("lookup_tag", sa.String(32)),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(255)),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("grace_until", sa.DateTime(timezone=True)),
        sa.Column("rotated_to", sa.Uuid()),
        sa.Column("rotated_from", sa.Uuid()),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("key_id", name="uq_api_keys_key_id"),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.client_id"], name="fk_api_keys_client_id_clients"
        ),
        sa.ForeignKeyConstraint(
            ["rotated_to"], ["api_keys.id"], name="fk_api_keys_rotated_to_api_keys"
        ),
        sa.ForeignKeyConstraint(
            ["rotated_from"], ["api_keys.id"], name="fk_api_keys_rotated_from_api_keys"
        ),
    )
    op.create_index("ix_api_keys_client_id", "api_keys", ["client_id"])
    op.create_index("ix_api_keys_lookup_tag", "api_keys", ["lookup_tag"])


def downgrade() -> None:
    """Drop both tables."""
    op.drop_table("api_keys")
    op.drop_table("clients")
