"""Learning that keys changed, whoever changed them and from where."""

from pathlib import Path
from typing import Protocol

from app.sqlite import sqlite3

# Only a rollback journal (see app/sqlite.py) makes a reader wait, for the moment of a commit. The
# caller is the event loop: past this it is better off reading rows, which reports what is wrong.
BUSY_TIMEOUT_MS = 250


class WatchLost(Exception):
    """Whether keys changed cannot be known now."""


class ChangeWatch(Protocol):
    """Says whether the control database may have changed since it was last asked."""

    def changed(self) -> bool:
        """Report each change at least once, at the latest in the first call after its commit.

        Too often is allowed, too late never is. Raises WatchLost when it cannot know.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class SqliteWatch:
    """Watches a SQLite file by `PRAGMA data_version`.

    The number differs between two readings on one connection exactly if another connection, of any
    process, committed in between (https://sqlite.org/pragma.html#pragma_data_version). So this
    connection is its own, and never writes.
    """

    def __init__(self, path: Path) -> None:
        try:
            # mode=rw: never to create a missing file, and free to make the -shm file that a
            # reader of a WAL database needs.
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}").fetchall()
        except sqlite3.Error as error:
            raise WatchLost(f"{path}: {error}") from error
        self._version = self._read()

    def changed(self) -> bool:
        """Compare the database's version with the last one read."""
        version = self._read()
        if version == self._version:
            return False
        self._version = version
        return True

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _read(self) -> int:
        try:
            # fetchall, since a statement left unfinished would hold its old view of the file.
            ((version,),) = self._connection.execute("PRAGMA data_version").fetchall()
        except (sqlite3.Error, ValueError) as error:
            raise WatchLost(str(error)) from error
        return int(version)
