"""A SQLite file by its name: which one it was when it was last opened, and whether it still is.

Whoever removes the file, or puts another in its place, does so under the open connections of a
running server. So each use looks first whether the file of the name still is the one that its
connection is to; what a new connection is made to instead, or whether, is a policy.
"""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError

from app.keys.side_files import Identity, SideFiles, identity


class Meeting(NamedTuple):
    """What stands under the name: None if nothing does. It is not the `former` file.

    `former` is None before the first connection; `side_files` are those of it.
    """

    path: Path
    found: Identity | None
    former: Identity | None
    side_files: SideFiles


# Says which file is to be connected to, or raises StorageUnavailable. It may make one.
Policy = Callable[[Meeting], Identity | None]


class NamedFile:
    """Has the connections of an engine be to the file of the name."""

    def __init__(self, path: Path, policy: Policy) -> None:
        self._path = path
        self._policy = policy
        self._side_files = SideFiles(path)
        self._file: Identity | None = None
        # Connections are opened by any thread, and what a policy does is not made for two.
        self._lock = Lock()

    def follow(self, engine: Engine) -> None:
        """Begin."""
        event.listen(engine, "do_connect", self._before_connect)
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "checkout", self._on_checkout)

    def _before_connect(self, _dialect: Any, record: Any, _args: Any, _options: Any) -> None:
        """Ask the policy if the file is absent, new or another."""
        with self._lock:
            found = identity(self._path)
            if found is None or found != self._file:
                found = self._policy(Meeting(self._path, found, self._file, self._side_files))
                # One that is absent for a moment is the former one still.
                self._file = found or self._file
        # Taken before the connection is: an older file under a newer name would never be noticed.
        record.info["file"] = found
        record.info["is_new"] = True

    def _on_connect(self, connection: Any, _record: Any) -> None:
        """Remember the files beside the one that is open."""
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # opens those beside it
        with self._lock:
            self._side_files.remember()

    def _on_checkout(self, _connection: Any, record: Any, _proxy: Any) -> None:
        """Have connections opened anew whose file has been replaced, those of a former pool too."""
        if record.info.pop("is_new", False):
            return  # it would be the pool's second try, and its last
        if record.info["file"] != identity(self._path):
            raise InvalidatePoolError
