"""activity.db, where uses of keys are written: opened, and made anew where it has gone.

Every write to control.db tells every worker to forget the keys it has verified, so what is written
all the time stands in a second file of the same schema. It is evidence about keys: no log and no
start waits for it. So it is opened by its first use, which raises StorageUnavailable if that fails,
and the next use tries again.

Whoever removes the file, or puts another in its place, does so under the open connections of a
running server, which would go on writing to a file without a name. So each use looks first whether
the file of the name still is the one that its connection is to.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError

from app.errors import StorageUnavailable
from app.keys.database import StartRefused, is_current, open_engine, sqlite_engine, upgrade
from app.keys.side_files import Identity, SideFiles, identity

log = logging.getLogger(__name__)


def open_activity(control: Engine) -> Engine:
    """Open where uses of keys are written, beside the control database.

    Any other database than SQLite tells workers of changes by name, and has both.
    """
    if control.dialect.name != "sqlite":
        return control
    path = Path(control.url.database or "").with_name("activity.db")
    file = _ActivityFile(path)
    engine = sqlite_engine(path)
    event.listen(engine, "do_connect", file.before_connect)
    event.listen(engine, "connect", file.on_connect)
    event.listen(engine, "checkout", file.on_checkout)
    return engine


class _ActivityFile:
    """The file of the name, and which one it was when it was last made sure of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._side_files = SideFiles(path)
        # Connections are opened by any thread, and Alembic is not made for two.
        self._lock = Lock()
        self._file: Identity | None = None

    def before_connect(self, _dialect: Any, record: Any, _args: Any, _options: Any) -> None:
        """See to it that there is a file to connect to; raise StorageUnavailable."""
        with self._lock:
            found = identity(self._path)
            if found is None or found != self._file:
                if self._file is not None:
                    log.warning("%s was removed or replaced: going over to the new one", self._path)
                found = self._file = self._make_sure()
        # Taken before the connection is: an older file under a newer name would never be noticed.
        record.info["file"] = found
        record.info["is_new"] = True

    def on_connect(self, connection: Any, _record: Any) -> None:
        """Set the connection up, and remember the files beside the one it is to."""
        # In a write-ahead log, NORMAL can lose the last writes in a power cut and corrupts nothing.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # opens those beside it
        with self._lock:
            self._side_files.remember()

    def on_checkout(self, _connection: Any, record: Any, _proxy: Any) -> None:
        """Have the pool open all its connections anew if theirs is not the file of the name."""
        if record.info.pop("is_new", False):
            return  # it would be the pool's second try, and its last
        if record.info["file"] != identity(self._path):
            raise InvalidatePoolError

    def _make_sure(self) -> Identity | None:
        """Make the file if it is absent, and bring its schema up to date; say which one it is."""
        try:
            with _alone_in(self._path.parent):
                self._remove_leftovers()
                engine = open_engine(f"sqlite:///{self._path}")
                try:
                    if not is_current(engine):
                        upgrade(engine)
                finally:
                    engine.dispose()
                return identity(self._path)
        except (OSError, StartRefused) as error:
            raise StorageUnavailable(f"{self._path}: {error}") from error

    def _remove_leftovers(self) -> None:
        """Remove the journal of a file that has gone: with a new file it would be read as its own.

        Beside a file that is there only what was beside the former one.
        """
        is_absent = identity(self._path) is None
        for path in self._side_files.paths:
            if self._side_files.is_left(path) or (is_absent and identity(path) is not None):
                Path(path).unlink()


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep all others out who make the file anew: one would remove the other's journal."""
    held = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
