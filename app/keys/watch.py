"""Learning that keys changed, whoever changed them and from where."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from app.keys.side_files import Identity, SideFiles, identity
from app.sqlite import sqlite3

# Only a rollback journal (see app/sqlite.py) makes a reader wait, for the moment of a commit. The
# caller is the event loop: past this it is better off reading rows, which reports what is wrong.
BUSY_TIMEOUT_MS = 250

log = logging.getLogger(__name__)


class WatchLost(Exception):
    """Whether keys changed cannot be known now."""


class DatabaseGone(WatchLost):
    """The file is not where it was, nor is another one in its place: nothing may be read."""


class ChangeWatch(Protocol):
    """Says whether the control database may have changed since it was last asked."""

    def changed(self) -> bool:
        """Report each change at least once, at the latest in the first call after its commit.

        Too often is allowed, too late never is. Raises WatchLost when it cannot know.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class SqliteWatch:
    """Watches a SQLite file by `PRAGMA data_version`, and that it still is the file of that name.

    The number differs between two readings on one connection exactly if another connection, of any
    process, committed in between (https://sqlite.org/pragma.html#pragma_data_version). So this
    connection is its own, and never writes.

    An open connection stays with its file when another file takes the name, as a restored backup
    does, and sees none of what is committed there. So each check compares the two as well. The
    open connection keeps the old file's inode number from being given to the new one.

    Reading the WAL index (`-shm`) itself would be cheaper and as exact, but would mean opening it:
    closing any descriptor of a file drops all locks that this process, hence SQLite, has on it
    (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
    """

    _version: int

    def __init__(self, path: Path, on_replaced: Callable[[], object] = lambda: None) -> None:
        """Open the file; `on_replaced` is to drop every other connection to the former one."""
        self._name = str(path.absolute())
        # mode=rw: never to create a missing file, and free to make the -shm file that a reader of
        # a WAL database needs.
        self._uri = f"{path.absolute().as_uri()}?mode=rw"
        self._on_replaced = on_replaced
        self._side_files = SideFiles(self._name)
        self._open()

    def changed(self) -> bool:
        """Compare the file and the database's version with the last ones seen."""
        try:
            file = self._file_at_name()
        except DatabaseGone:
            self._on_replaced()
            raise
        if file != self._file:
            self._follow()
            return True
        version = self._read(self._cursor)
        if version == self._version:
            return False
        self._version = version
        return True

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _follow(self) -> None:
        """Go over to the file that has taken the name."""
        former = self._connection
        try:
            # Half of a replacement: the new file with the old one's journal would be read as a
            # mixture of both. The former connection, still open, keeps these inodes recognisable.
            if self._side_files.are_left():
                raise DatabaseGone(
                    f"{self._name} was replaced, but the -wal and -shm files of the former one are "
                    "still there: remove them"
                )
            self._open()
            former.close()
        finally:
            # After the opening, so that none of them is to an older file than the watched one; and
            # if that failed, so that none is left. SQLite neither checkpoints nor removes the
            # journal of a file that has moved.
            self._on_replaced()
        log.warning("%s was replaced while it was open: reading the new file", self._name)

    def _open(self) -> None:
        file = self._file_at_name()
        connection = None
        try:
            connection = sqlite3.connect(
                self._uri, uri=True, isolation_level=None, check_same_thread=False
            )
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}").fetchall()
            # A table is read, for a file that is no database to be refused here.
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            cursor = connection.cursor()
            version = self._read(cursor)
            if self._file_at_name() != file:
                raise DatabaseGone(f"{self._name} is being replaced")
        except (sqlite3.Error, WatchLost) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, WatchLost):
                raise
            raise DatabaseGone(f"{self._name}: {error}") from error
        self._file = file
        self._connection = connection
        self._cursor = cursor
        self._version = version
        self._side_files.remember()

    def _file_at_name(self) -> Identity:
        found = identity(self._name)
        if found is None:
            raise DatabaseGone(f"{self._name} is not there, or cannot be looked at")
        return found

    @staticmethod
    def _read(cursor: Any) -> int:
        try:
            # fetchall, since a statement left unfinished would hold its old view of the file.
            ((version,),) = cursor.execute("PRAGMA data_version").fetchall()
        except (sqlite3.Error, ValueError) as error:
            raise WatchLost(str(error)) from error
        return int(version)
