"""Create what protects keys and watches them: restrictions, signatures, audit, alerts."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"

_TABLES = (
    "nonces",
    "address_blocks",
    "alerts",
    "key_access",
    "denials",
    "audit_checkpoints",
    "audit_heads",
    "audit_events",
)


def _moment(name: str, *, nullable: bool = False) -> "sa.Column[datetime]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _text(name: str, length: int, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.String(length), nullable=nullable)


def _number(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _bytes(name: str) -> "sa.Column[bytes]":
    return sa.Column(name, sa.LargeBinary(), nullable=False)


def upgrade() -> None:
    """Add the columns and create the tables."""
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(
            sa.Column("restrictions_mode", sa.String(16), nullable=False, server_default="enforce")
        )
        keys.add_column(_text("signature_algorithm", 16, nullable=True))
        keys.add_column(sa.Column("signing_key", sa.Text()))
        keys.add_column(_moment("quarantined_at", nullable=True))
    with op.batch_alter_table("api_keys") as keys:
        keys.alter_column("restrictions_mode", server_default=None)
    if op.get_bind().dialect.name == "sqlite":
        _refuse_what_is_no_boolean()
    _create_audit()
    _create_evidence()


def _refuse_what_is_no_boolean() -> None:
    """Have SQLite refuse an `is_active` of 'false', in quotes: it would count as true."""
    for table in ("api_keys", "clients"):
        op.execute(f"UPDATE {table} SET is_active = 0 WHERE is_active NOT IN (0, 1)")
        with op.batch_alter_table(table) as altered:
            altered.create_check_constraint(f"ck_{table}_is_active", "is_active IN (0, 1)")


def _create_audit() -> None:
    op.create_table(
        "audit_events",
        _text("chain", 63),
        _number("seq"),
        _moment("at"),
        _text("action", 64),
        _text("actor", 255),
        _text("client_id", 63, nullable=True),
        _text("target", 255),
        _text("source_ip", 45),
        _text("user_agent", 255),
        _text("request_id", 64),
        sa.Column("detail", sa.Text(), nullable=False),
        _text("secret_id", 16),
        _bytes("seal"),
        sa.PrimaryKeyConstraint("chain", "seq", name="pk_audit_events"),
    )
    op.create_index("ix_audit_events_request_id", "audit_events", ["request_id"])
    op.create_index("ix_audit_events_at", "audit_events", ["at"])
    op.create_index("ix_audit_events_chain_at", "audit_events", ["chain", "at"])
    op.create_table(
        "audit_heads",
        _text("chain", 63),
        _number("seq"),
        _bytes("seal"),
        _text("secret_id", 16),
        _bytes("head_seal"),
        sa.PrimaryKeyConstraint("chain", name="pk_audit_heads"),
    )
    op.create_table(
        "audit_checkpoints",
        _text("chain", 63),
        _number("seq"),
        _moment("at"),
        _bytes("seal"),
        _bytes("public_key"),
        _bytes("signature"),
        sa.PrimaryKeyConstraint("chain", "seq", name="pk_audit_checkpoints"),
    )
    op.create_table(
        "denials",
        _text("request_id", 64),
        _moment("at"),
        sa.Column("status", sa.Integer(), nullable=False),
        _text("reason", 64),
        sa.Column("explanation", sa.Text(), nullable=False),
        _text("client_id", 63, nullable=True),
        _text("key_id", 64, nullable=True),
        _text("endpoint", 255),
        _text("source_ip", 45),
        _text("user_agent", 255),
        sa.PrimaryKeyConstraint("request_id", name="pk_denials"),
    )
    op.create_index("ix_denials_at", "denials", ["at"])


def _create_evidence() -> None:
    op.create_table(
        "key_access",
        _text("key_id", 64),
        _number("minute"),
        _text("endpoint", 255),
        _text("dataset", 63),
        _text("source_ip", 45),
        _text("user_agent", 255),
        _text("outcome", 16),
        _number("requests"),
        sa.PrimaryKeyConstraint(
            *("key_id", "minute", "endpoint", "dataset", "source_ip", "user_agent", "outcome"),
            name="pk_key_access",
        ),
    )
    op.create_index("ix_key_access_minute", "key_access", ["minute"])
    op.create_table(
        "alerts",
        sa.Column("alert_id", sa.Uuid(), nullable=False),
        _moment("at"),
        _moment("last_at"),
        _number("count"),
        _text("rule", 64),
        _text("severity", 16),
        _text("action", 32),
        _text("client_id", 63, nullable=True),
        _text("key_id", 64, nullable=True),
        _text("source_ip", 45),
        sa.Column("detail", sa.Text(), nullable=False),
        _text("told", 32),
        sa.PrimaryKeyConstraint("alert_id", name="pk_alerts"),
    )
    op.create_index("ix_alerts_at", "alerts", ["at"])
    op.create_table(
        "address_blocks",
        _text("address", 64),
        _moment("until"),
        sa.Column("alert_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("address", name="pk_address_blocks"),
    )
    op.create_table(
        "nonces",
        _text("key_id", 64),
        _text("nonce", 128),
        _moment("expires_at"),
        sa.PrimaryKeyConstraint("key_id", "nonce", name="pk_nonces"),
    )
    op.create_index("ix_nonces_expires_at", "nonces", ["expires_at"])


def downgrade() -> None:
    """Drop them."""
    for table in _TABLES:
        op.drop_table(table)
    if op.get_bind().dialect.name == "sqlite":
        for table in ("api_keys", "clients"):
            with op.batch_alter_table(table) as altered:
                altered.drop_constraint(f"ck_{table}_is_active", type_="check")
    with op.batch_alter_table("api_keys") as keys:
        for column in ("quarantined_at", "signing_key", "signature_algorithm", "restrictions_mode"):
            keys.drop_column(column)
