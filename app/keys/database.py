"""The control database: opened, brought up to date, written in transactions that cannot collide."""

import logging
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, Select, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session

from app.errors import StorageUnavailable
from app.keys.named_file import Meeting, NamedFile
from app.keys.side_files import Identity
from app.sqlite import SQLITE_SAFE_WAL, sqlite3

if TYPE_CHECKING:
    from alembic.config import Config

# Known here, so that a normal start need not import Alembic (0.2 s, 15 MB) to see that all is well.
HEAD_REVISION = "0004"
MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"

# Control transactions take milliseconds; who waits longer meets a fault, not a queue.
BUSY_TIMEOUT_MS = 5_000
JOURNAL_SWITCH_TIMEOUT_S = 10.0
# Migrations rebuild tables: a second starter waits for the first one's to end.
MIGRATION_BUSY_TIMEOUT_MS = 60_000

log = logging.getLogger(__name__)

_WRITES = "central_logger_writes"
# Rows that are read at a time where all of them may be too much to hold.
STREAMED_ROWS = 20


class StartRefused(Exception):
    """The control plane cannot be opened; the text is one line for the operator."""


def open_engine(url: str) -> Engine:
    """Open the control database; a new SQLite file is readable by its owner alone.

    Raises StorageUnavailable if it cannot be opened. It may still need `upgrade`.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        if parsed.drivername == "postgresql":
            # The scheme as everyone writes it; SQLAlchemy would take it for psycopg 2.
            parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(parsed, hide_parameters=True)
    path = sqlite_path(parsed)
    try:
        _prepare_file(path)
    except (OSError, sqlite3.Error) as error:
        raise StorageUnavailable(f"{path}: {error}") from error
    engine = sqlite_engine(path)
    NamedFile(path, _unmixed).follow(engine)
    return engine


def _unmixed(met: Meeting) -> Identity | None:
    """Keep connections from the control database while files of a former one are beside it.

    The watch (watch.py) sees it too, but only on the event loop's turns; whatever opened the file
    in between would spoil it: a mixture of both would be read.
    """
    if met.former is not None and met.side_files.are_left():
        raise StorageUnavailable(f"{met.path} was replaced, its former -wal or -shm was not")
    return met.found


def sqlite_engine(path: Path) -> Engine:
    """Give the engine of a SQLite file, which must be there when a connection is made."""
    # A fault that nobody foresaw is logged with its statement, and there values are verifiers.
    engine = create_engine(f"sqlite:///{path}", module=sqlite3, hide_parameters=True)
    uri = f"{path.absolute().as_uri()}?mode=rw"

    @event.listens_for(engine, "do_connect")
    def open_existing(
        _dialect: Any, _record: Any, args: list[Any], options: dict[str, Any]
    ) -> None:
        # Never to make an empty database in place of one that was moved away.
        args[0] = uri
        options["uri"] = True

    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def sqlite_path(url: URL) -> Path:
    """Give the file of a SQLite URL; a database in memory could not be shared by processes."""
    if not url.database or url.database == ":memory:":
        raise StorageUnavailable("the control database must be a file")
    return Path(url.database)


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Give a session on one consistent view; StorageUnavailable if the database fails."""
    with translated_faults(), Session(engine, expire_on_commit=False) as session:
        yield session


def streamed(session: Session, selected: Select[Any]) -> Generator[Any, None, None]:
    """Give what is selected, some rows at a time; who stops before the end reads no more."""
    rows = session.scalars(selected.execution_options(yield_per=STREAMED_ROWS))
    try:
        yield from rows
    finally:
        rows.close()


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Give a session whose transaction commits at the end of the block, or not at all.

    StorageUnavailable if the database fails; what the block raises rolls back.
    """
    # SQLite takes the write lock at BEGIN: a transaction that reads first and asks for the lock
    # later is refused at once, busy timeout or not, when another writer came in between.
    writer = engine.execution_options(**{_WRITES: True})
    with (
        translated_faults(),
        Session(writer, expire_on_commit=False) as session,
        session.begin(),
    ):
        yield session


@contextmanager
def translated_faults() -> Iterator[None]:
    """Turn the database's failures into StorageUnavailable, and leave the caller's own mistakes."""
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError):
        raise
    except DBAPIError as error:
        raise StorageUnavailable(str(error.orig)) from error
    except PoolTimeout as error:
        raise StorageUnavailable("no free connection") from error
    except sqlite3.Error as error:
        # As it is only where a connection is opened, to a file that is removed at the time, say.
        raise StorageUnavailable(str(error)) from error


def is_current(engine: Engine) -> bool:
    """Say whether the schema is this version's own."""
    with translated_faults(), engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return False
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    return found == [HEAD_REVISION]


def control_file(data_dir: Path) -> Path:
    """Give the file of the control database of embedded storage."""
    return data_dir / "control.db"


def embedded_url(data_dir: Path) -> str:
    """Give its URL."""
    return f"sqlite:///{control_file(data_dir)}"


def open_current(database_url: str, data_dir: Path) -> Engine:
    """Open the control database with its schema up to date; without a URL it is embedded.

    Raises StorageUnavailable, and StartRefused where it is not ours to migrate.
    """
    not_ours = "DATABASE_URL: the database is not up to date; run `central-logger migrate`"
    if database_url and _is_missing(make_url(database_url)):
        raise StartRefused(not_ours)  # rather than have it made, and left empty
    engine = open_engine(database_url or embedded_url(data_dir))
    if not is_current(engine):
        if database_url:
            engine.dispose()
            raise StartRefused(not_ours)
        upgrade(engine)
        # A relative DATA_DIR in an unexpected directory should not go unseen.
        log.info("prepared %s", engine.url.database)
    return engine


def _is_missing(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and not sqlite_path(url).exists()


def upgrade(engine: Engine) -> None:
    """Bring the schema up to date; of two that start together one migrates, the other waits.

    Raises StartRefused if the database was made by a newer version.
    """
    from alembic import command  # noqa: PLC0415 (see HEAD_REVISION)
    from alembic.util import CommandError  # noqa: PLC0415

    try:
        with migrating(engine) as config:
            command.upgrade(config, "head")
    except CommandError as error:
        raise StartRefused(
            f"the control database was made by another version of central-logger: {error}"
        ) from error


@contextmanager
def migrating(engine: Engine) -> Iterator["Config"]:
    """Give Alembic's configuration bound to one transaction, committed at the end."""
    from alembic.config import Config  # noqa: PLC0415 (see HEAD_REVISION)

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with translated_faults(), engine.connect() as plain:
        # A rebuilt table is dropped while others refer to it. The pragma is a no-op inside a
        # transaction, so it goes to the driver before SQLAlchemy begins one.
        sqlite = plain.dialect.name == "sqlite"
        raw: Any = plain.connection.dbapi_connection
        if sqlite:
            raw.execute("PRAGMA foreign_keys = OFF")
            raw.execute(f"PRAGMA busy_timeout = {MIGRATION_BUSY_TIMEOUT_MS}")
        try:
            connection = plain.execution_options(**{_WRITES: True})
            with connection.begin():
                config.attributes["connection"] = connection
                yield config
                if sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise StartRefused("a migration would leave rows that refer to nothing")
        finally:
            if sqlite:
                _on_connect(raw)


def _prepare_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite would create it by the umask; its journals copy the mode of the file.
    # O_EXCL: to open and close a file that SQLite has open here would drop its locks on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    wanted = "wal" if SQLITE_SAFE_WAL else "delete"
    connection = sqlite3.connect(path, isolation_level=None)
    deadline = time.monotonic() + JOURNAL_SWITCH_TIMEOUT_S
    try:
        while connection.execute("PRAGMA journal_mode").fetchone() != (wanted,):
            # The switch needs the file alone and does not wait for it, whatever busy_timeout says.
            try:
                connection.execute(f"PRAGMA journal_mode = {wanted}").fetchall()
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    finally:
        connection.close()


def _on_connect(connection: Any, _record: Any = None) -> None:
    # With isolation_level None the driver begins nothing by itself; `_on_begin` does. The driver's
    # own rules begin late (no view across reads) and never IMMEDIATE.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
