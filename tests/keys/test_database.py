"""The control database: its file, its transactions, its migrations."""

import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, inspect, text
from sqlalchemy.exc import IntegrityError

from app.errors import StorageUnavailable
from app.keys import database
from app.keys.bootstrap import see_clients
from app.keys.database import (
    HEAD_REVISION,
    StartRefused,
    embedded_url,
    is_current,
    migrating,
    open_engine,
    reading,
    upgrade,
    writing,
)
from app.keys.models import ApiKey, Client
from app.protect.alert_list import AlertFilter, as_object, read_alerts
from app.sqlite import SQLITE_SAFE_WAL, sqlite3
from tests.keys.conftest import copy_database
from tests.support import BY, postgresql

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Give an empty database of each kind."""
    if request.param == "sqlite":
        engine = open_engine(embedded_url(tmp_path))
        yield engine
        engine.dispose()
        return
    with postgresql() as engine:
        yield engine


def test_migrations_go_up_and_down(fresh_engine: Engine) -> None:
    """Upgrading makes the tables, downgrading leaves none, and the way up is open again."""
    assert not is_current(fresh_engine)
    upgrade(fresh_engine)
    assert is_current(fresh_engine)
    upgrade(fresh_engine)
    with migrating(fresh_engine) as config:
        command.downgrade(config, "base")
    assert not is_current(fresh_engine)
    assert inspect(fresh_engine).get_table_names() == ["alembic_version"]
    upgrade(fresh_engine)
    assert is_current(fresh_engine)


def test_migrations_lead_to_the_models(fresh_engine: Engine) -> None:
    """After all migrations the tables are those of the models, constraint names included."""
    upgrade(fresh_engine)
    with fresh_engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, ApiKey.metadata) == []
    for table in ApiKey.metadata.tables.values():
        found = inspect(fresh_engine).get_foreign_keys(table.name)
        assert {key["name"] for key in found} == {
            constraint.name for constraint in table.foreign_key_constraints
        }


def test_rows_come_back_as_they_were_stored(fresh_engine: Engine) -> None:
    """Times return aware and in UTC, lists as lists, absent ones as SQL's NULL."""
    upgrade(fresh_engine)
    moment = datetime(2031, 1, 2, 3, 4, 5, 678000, timezone(timedelta(hours=5)))
    key = ApiKey(key_id="k", key_prefix="k***", client_id="acme", name="n", role="client")
    key.expires_at, key.scopes, key.bytes_per_minute = moment, ["logs:read"], 1 << 40
    with writing(fresh_engine) as session:
        session.add(Client(client_id="acme", name="Acme", extra={"a": [1, None]}))
        session.flush()
        session.add(key)
    with reading(fresh_engine) as session:
        found = session.get(ApiKey, key.id)
        client = session.get(Client, "acme")
        nulls = session.connection().execute(
            text("SELECT count(*) FROM api_keys WHERE allowed_datasets IS NULL")
        )
        assert nulls.scalar_one() == 1
    assert found is not None
    assert client is not None
    assert client.extra == {"a": [1, None]}
    assert found.expires_at == moment
    assert found.expires_at.tzinfo is UTC
    assert (found.scopes, found.bytes_per_minute) == (["logs:read"], 1 << 40)
    assert found.created_at.tzinfo is UTC


def test_a_key_needs_its_client(fresh_engine: Engine) -> None:
    """A key cannot point to a client that is not there, and the failure is not an outage."""
    upgrade(fresh_engine)
    with pytest.raises(IntegrityError), writing(fresh_engine) as session:
        session.add(ApiKey(key_id="k", key_prefix="k", client_id="no", name="n", role="client"))


def test_who_was_told_goes_over_to_rows_and_back(fresh_engine: Engine) -> None:
    """What one text said of an alert in former versions is what its rows say, and the reverse."""
    texts = [
        "nobody",
        "told",
        "given_up",
        "pending:mail",
        "pending:webhook",
        "pending:webhook,mail",
    ]
    upgrade(fresh_engine)
    with migrating(fresh_engine) as config:
        command.downgrade(config, "0003")
    insert = """INSERT INTO alerts (alert_id, at, last_at, count, rule, severity, action, source_ip,
        detail, told) VALUES (:id, '2030-01-01', '2030-01-01', 1, 'r', 's', 'a', '', '{}', :told)"""
    with writing(fresh_engine) as session:
        for number, one in enumerate(texts):
            session.connection().execute(text(insert), {"id": UUID(int=number).hex, "told": one})
    upgrade(fresh_engine)
    shown = [as_object(one) for one in read_alerts(fresh_engine, AlertFilter())]
    assert [one["told"] for one in reversed(shown)] == texts
    with migrating(fresh_engine) as config:
        command.downgrade(config, "0003")
    with reading(fresh_engine) as session:
        rows = session.connection().execute(text("SELECT told FROM alerts ORDER BY alert_id"))
        assert rows.scalars().all() == texts


def test_a_quoted_false_is_refused(engine: Engine) -> None:
    """An edit by hand that SQLite would store as a text, which counts as true, switches nothing on.

    What is in the database of an older version so, is off once it has been brought up to date.
    """
    with migrating(engine) as config:
        command.downgrade(config, "0002")
    with writing(engine) as session:
        # Without the columns of later versions, so by hand.
        session.connection().exec_driver_sql(
            """INSERT INTO clients (client_id, name, is_active, metadata, created_at, updated_at)
            VALUES ('acme', 'Acme', 'false', '{}', '2030-01-01', '2030-01-01')"""
        )
    upgrade(engine)
    with writing(engine) as session:
        client = session.get(Client, "acme")
        assert client is not None
        assert not client.is_active
        session.add(
            ApiKey(key_id="k", key_prefix="k***", client_id="acme", name="n", role="client")
        )
    for table in ("clients", "api_keys"):
        with pytest.raises(IntegrityError, match="CHECK"), writing(engine) as session:
            session.connection().exec_driver_sql(f"UPDATE {table} SET is_active = 'false'")


def test_a_time_without_zone_is_refused(engine: Engine) -> None:
    """What could mean any moment is not stored."""
    naive = datetime(2030, 1, 1)  # noqa: DTZ001 (that is the point)
    with pytest.raises(Exception, match="without a zone"), writing(engine) as session:
        session.add(Client(client_id="a", name="a", created_at=naive))


def test_the_head_revision_is_the_last_migration(engine: Engine) -> None:
    """The constant that spares a start from importing Alembic names Alembic's own head."""
    with migrating(engine) as config:
        assert ScriptDirectory.from_config(config).get_current_head() == HEAD_REVISION


def test_a_newer_database_is_refused_in_one_line(engine: Engine) -> None:
    """A database of a version that is not known here stops the start, unharmed."""
    with engine.execution_options().begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert not is_current(engine)
    with pytest.raises(StartRefused, match="another version"):
        upgrade(engine)


def test_two_processes_may_upgrade_at_once(tmp_path: Path) -> None:
    """Of several starters one migrates, the others find it done, none fails."""
    code = (
        "import sys; from pathlib import Path; from app.keys.database import *; "
        "e = open_engine(embedded_url(Path(sys.argv[1]))); upgrade(e); assert is_current(e)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [(process.communicate()[1], process.returncode) for process in started] == [(b"", 0)] * 4


def test_a_failed_migration_leaves_nothing(tmp_path: Path) -> None:
    """The schema changes in one transaction: it is the old one or the new one."""
    engine = open_engine(embedded_url(tmp_path))

    def fail_late() -> None:
        with migrating(engine) as config:
            command.upgrade(config, "head")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_late()
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Neither the database nor its journals can be read by other users."""
    engine = open_engine(embedded_url(tmp_path / "new"))
    upgrade(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1 FROM clients").all()
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    engine.dispose()


def test_connections_are_set_up_for_safety(engine: Engine) -> None:
    """Every connection syncs fully, checks foreign keys, and the journal suits the SQLite."""
    with engine.connect() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert values == ["wal" if SQLITE_SAFE_WAL else "delete", 2, 1, 5000]


def test_an_unsafe_sqlite_does_without_wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several writers could corrupt a WAL, the rollback journal is used, and works."""
    open_engine(embedded_url(tmp_path)).dispose()
    monkeypatch.setattr(database, "SQLITE_SAFE_WAL", False)
    engine = open_engine(embedded_url(tmp_path))
    upgrade(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
    engine.dispose()


def test_a_writer_holds_the_lock_from_the_start(engine: Engine, tmp_path: Path) -> None:
    """Read, then write, in two threads at once: no update is lost and none is refused."""
    with writing(engine) as session:
        session.add(Client(client_id="acme", name="0"))

    def count_up() -> None:
        for _ in range(25):
            with writing(engine) as session:
                client = session.get_one(Client, "acme")
                client.name = str(int(client.name) + 1)
                session.add(client)

    threads = [threading.Thread(target=count_up) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(engine) as session:
        assert session.get_one(Client, "acme").name == "50"


def test_what_raises_is_rolled_back(engine: Engine) -> None:
    """A block that fails leaves nothing behind."""

    def fail_late() -> None:
        with writing(engine) as session:
            session.add(Client(client_id="acme", name="Acme"))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_late()
    with reading(engine) as session:
        assert session.get(Client, "acme") is None


def test_a_broken_file_is_unavailable(tmp_path: Path) -> None:
    """What is no database, or cannot be opened, is an outage with a reason."""
    (tmp_path / "control.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(StorageUnavailable) as raised:
        open_engine(embedded_url(tmp_path))
    assert "not a database" in raised.value.reason
    with pytest.raises(StorageUnavailable):
        open_engine("sqlite:///:memory:")


def test_a_locked_database_is_unavailable(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot get the write lock in time is told of an outage, not of a bug."""
    engine.dispose()
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 10)
    with closing(sqlite3.connect(tmp_path / "control.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable), writing(engine) as session:
            session.add(Client(client_id="acme", name="Acme"))


def test_a_new_migration_is_drafted_from_the_models(tmp_path: Path) -> None:
    """`python -m migrations` writes the next revision, empty while nothing differs."""
    for directory in ("app", "migrations"):
        shutil.copytree(ROOT / directory, tmp_path / directory)
    subprocess.run(
        [sys.executable, "-m", "migrations", "add nothing"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (draft,) = (tmp_path / "migrations/versions").glob("0005_*.py")
    written = draft.read_text()
    assert "down_revision: str | None = '0004'" in written
    assert written.count("    pass\n") == 2


@pytest.mark.skipif(not SQLITE_SAFE_WAL, reason="without a WAL there is nothing to leave behind")
def test_a_new_file_is_not_spoilt_by_the_old_journal(engine: Engine, tmp_path: Path) -> None:
    """While the former file's journal is beside it, a restored one is neither read nor written."""
    path = tmp_path / "control.db"
    see_clients(engine, ["kept"], by=BY)
    copy_database(path, tmp_path / "backup.db")
    see_clients(engine, ["later"], by=BY)
    restored = (tmp_path / "backup.db").read_bytes()
    (tmp_path / "backup.db").replace(path)
    for end in ("-wal", "-shm"):
        with pytest.raises(StorageUnavailable) as refused, reading(engine) as session:
            session.get(Client, "later")
        assert "was replaced" in refused.value.reason
        with pytest.raises(StorageUnavailable):
            see_clients(engine, ["lost"], by=BY)
        assert path.read_bytes() == restored
        (tmp_path / f"control.db{end}").unlink()
    with reading(engine) as session:
        assert session.get(Client, "kept") is not None
        assert session.get(Client, "later") is None


def test_a_fault_while_a_connection_is_opened(engine: Engine) -> None:
    """What SQLite says while a connection is opened is a fault of storage, as any later one."""

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    engine.dispose()
    event.listen(engine, "connect", fail)
    with pytest.raises(StorageUnavailable) as failed, reading(engine) as session:
        session.execute(text("SELECT 1"))
    assert failed.value.reason == "disk I/O error"
