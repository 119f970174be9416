"""Runs migrations on the connection that app.keys.database.migrating has opened for them."""

from alembic import context
from sqlalchemy import Connection, text

from app.audit import models as audit_models
from app.keys.models import ApiKey
from app.protect import models as protect_models

# Waiting for a lock queues every later query of that table behind the migration, so give up early;
# a statement that takes longer than this is to be written in steps.
LOCK_TIMEOUT_MS = 4_000
STATEMENT_TIMEOUT_MS = 60_000
# Any number will do, as long as nothing else in the database locks by it.
MIGRATION_LOCK = 4_710_001


# Every table of the one metadata; which package it belongs to makes no difference here.
assert audit_models.AuditEvent.metadata is protect_models.Alert.metadata is ApiKey.metadata  # noqa: S101


def _run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # First the queue for the migration lock: waiting there holds nobody up.
        connection.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
    context.configure(
        connection=connection,
        target_metadata=ApiKey.metadata,
        # SQLite can only alter a table by building it anew.
        render_as_batch=connection.dialect.name == "sqlite",
        # One transaction around everything, on SQLite too: BEGIN IMMEDIATE was explicit.
        transactional_ddl=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


_run(context.config.attributes["connection"])
