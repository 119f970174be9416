"""Give each reader of an alert a row of its own; they were in one text, `pending:webhook,mail`."""

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"

_CHANNELS = ("webhook", "mail")


def upgrade() -> None:
    """Create the table, fill it from the texts, and drop those.

    Of what has ended nobody knows by which channel. Mail that waits is for all of its readers.
    """
    op.create_table(
        "alert_deliveries",
        sa.Column("alert_id", sa.Uuid(), nullable=False),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("reader", sa.String(254), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.ForeignKeyConstraint(
            ["alert_id"],
            ["alerts.alert_id"],
            name="fk_alert_deliveries_alert_id_alerts",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("alert_id", "channel", "reader", name="pk_alert_deliveries"),
    )
    op.create_index("ix_alert_deliveries_state", "alert_deliveries", ["state"])
    into = "INSERT INTO alert_deliveries (alert_id, channel, reader, state) SELECT alert_id, "
    op.execute(f"{into} '', '', told FROM alerts WHERE told IN ('told', 'given_up')")
    for channel in _CHANNELS:
        op.execute(
            f"{into} '{channel}', '', 'pending' FROM alerts WHERE told LIKE 'pending:%{channel}%'"
        )
    with op.batch_alter_table("alerts") as alerts:
        alerts.drop_column("told")


def downgrade() -> None:
    """Write the texts anew, and drop the table."""
    with op.batch_alter_table("alerts") as alerts:
        alerts.add_column(sa.Column("told", sa.String(32), nullable=False, server_default="nobody"))
    with op.batch_alter_table("alerts") as alerts:
        alerts.alter_column("told", server_default=None)
    # The later ones outweigh those before them.
    for told, is_so in (
        ("told", "state = 'told'"),
        ("given_up", "state = 'given_up'"),
        *((f"pending:{one}", f"state = 'pending' AND channel = '{one}'") for one in _CHANNELS),
    ):
        op.execute(
            f"UPDATE alerts SET told = '{told}' WHERE alert_id IN "
            f"(SELECT alert_id FROM alert_deliveries WHERE {is_so})"
        )
    both = " INTERSECT ".join(
        f"SELECT alert_id FROM alert_deliveries WHERE state = 'pending' AND channel = '{one}'"
        for one in _CHANNELS
    )
    op.execute(f"UPDATE alerts SET told = 'pending:webhook,mail' WHERE alert_id IN ({both})")
    op.drop_table("alert_deliveries")
