"""Reading day files: connections, deadlines, and one moment for all that a query reads.

Statements give their whole answer in one row, because a thread that steps through rows waits for
the interpreter lock at each of them while the event loop is busy. Connections are read-only.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.errors import StorageUnavailable
from app.logs.aggregation import Aggregation, Cell
from app.logs.dead_letters import RejectedQuery
from app.logs.place import Following, Place
from app.logs.query import LogQuery, Page, Portion, UsageQuery, UsageRow
from app.sqlite import sqlite3
from app.storage.sqlite.aggregates import read_table
from app.storage.sqlite.block import DamagedBlock
from app.storage.sqlite.corruption import CorruptDay, damage_named
from app.storage.sqlite.expiring import Contents, Search, find_places, read_contents
from app.storage.sqlite.exporting import read_portion
from app.storage.sqlite.lasting import LASTING_NAME
from app.storage.sqlite.letters import read_rejected
from app.storage.sqlite.pages import read_one, read_page
from app.storage.sqlite.render import SIZE
from app.storage.sqlite.schema import CLIENT_SHIFT, CREATE_STATEMENTS, day_path, list_days
from app.storage.sqlite.sources import add_functions
from app.storage.sqlite.stream import read_following, read_now
from app.storage.sqlite.usage import UsageSums
from app.storage.sqlite.wire import Key

OPEN_FILES_MAX = 64
BUSY_MS = 2000
# How often a statement looks at the clock, in steps of SQLite's machine: some milliseconds. Each
# look waits for the interpreter lock, so that an ordinary page should get by without one.
STEPS_BETWEEN_LOOKS = 50_000


class SqliteReader:
    """Answers queries from the day files of a directory. Thread-safe.

    Every query has a `deadline` on the monotonic clock, in seconds, and raises StorageUnavailable
    beyond it, or sqlite3.Error.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._suspects: set[int] = set()  # inodes of files that seemed damaged
        self.stopped = False

    def stop(self) -> None:
        """End the running queries soon, and every later one at once."""
        self.stopped = True

    def close(self) -> None:
        """Close every thread's connections; no query may be running."""
        while self._all:
            self._all.pop().close()

    def page(self, query: LogQuery, deadline: float) -> Page:
        """Return a page, newest first or oldest first."""
        with self._until(deadline):
            if query.log_id is not None:
                return read_one(self, query, query.log_id)
            return read_page(self, query)

    def table(self, query: Aggregation, deadline: float) -> list[list[Cell]]:
        """Return the rows of a table of counts and measures."""
        with self._until(deadline):
            return read_table(self, query)

    def portion(self, query: LogQuery, deadline: float) -> Portion:
        """Return the next logs of an export."""
        with self._until(deadline):
            return read_portion(self, query)

    def following(self, asked: tuple[str, Place | None, int], deadline: float) -> Following:
        """Return a client's next logs after a place; without one, the place where it is now."""
        client_id, after, limit = asked
        with self._until(deadline):
            if after is None:
                return Following(read_now(self, client_id), [])
            return read_following(self, client_id, after, limit)

    def rejected(self, query: RejectedQuery, deadline: float) -> Page:
        """Return a page of rejected records, newest first."""
        with self._until(deadline):
            return read_rejected(self, query)

    def usage(self, query: UsageQuery, deadline: float) -> list[UsageRow]:
        """Sum usage by group over all days."""
        with self._until(deadline):
            return self._usage(query)

    def contents(self, day: int, deadline: float) -> Contents:
        """Tell whose logs the file of a day may hold."""
        with self._until(deadline):
            return read_contents(self.db(day))

    def places(self, search: Search, deadline: float) -> list[Key]:
        """Return the places of some of a client's logs in the file of a day."""
        with self._until(deadline):
            return find_places(self.db(search.day), search)

    def stored_bytes(self, deadline: float) -> dict[str, int]:
        """Return what the logs of each client take: blocks, their words, and waiting texts."""
        sums: dict[str, int] = {}
        with self._until(deadline):
            for day in self.days():
                for client_id, count in self.db(day).execute(_STORED_BYTES).fetchall():
                    sums[client_id] = sums.get(client_id, 0) + count
        return sums

    def days(self) -> Sequence[int]:
        """Return the days that have a file; let go of files that are gone."""
        days = list_days(self._directory)
        for day in [one for one in self._open_files() if one not in days or self._is_gone(one)]:
            self._close(day)
        return list(days)

    def db(self, day: int) -> "sqlite3.Connection":
        """Return this thread's connection to a day file, which stands still until the query ends.

        A log that is sealed meanwhile moves from one table to another: read at two moments, it
        could be missing from both. A file that is gone since it was listed, with all of its logs
        expired, is as an empty one.
        """
        self._look()
        self._local.day = day
        db = self._open_files().get(day) or self._open(day)
        if not db.in_transaction:
            db.execute("BEGIN")
        return db

    @contextmanager
    def _until(self, deadline: float) -> Iterator[None]:
        self._local.deadline = deadline
        self._local.day = None
        try:
            self._look()
            with self._damage_named():
                yield
        except sqlite3.OperationalError:
            self._look()  # it was interrupted for what this raises, or is a fault of its own
            raise
        except CorruptDay as damage:
            self._close(damage.day)
            # Seen by a second connection too, it is the file, and still the same one.
            if damage.inode not in self._suspects:
                self._suspects.add(damage.inode)
                raise StorageUnavailable(str(damage)) from damage
            raise
        finally:
            for db in self._open_files().values():
                if db.in_transaction:
                    db.execute("ROLLBACK")  # there is nothing to commit

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, DamagedBlock) as error:
            day = self._local.day  # the file that was asked last
            if day is None:
                raise
            inode = self._local.inodes[day]
            if isinstance(error, DamagedBlock):
                raise CorruptDay(day, inode, str(error)) from error
            with damage_named(day, inode):
                raise

    def _look(self) -> None:
        if self.stopped:
            raise StorageUnavailable("closed")
        if time.monotonic() > self._local.deadline:
            raise StorageUnavailable("the query took too long")

    def _overdue(self) -> bool:
        return self.stopped or time.monotonic() > self._local.deadline

    def _usage(self, query: UsageQuery) -> list[UsageRow]:
        sums = UsageSums(query)
        read = []
        for day in self.days():
            sums.add_day(self.db(day))
            if not self._is_gone(day):
                read.append(day)
        # Last: what was unlinked before it could be read is there by now.
        lasting = (self._directory / LASTING_NAME).absolute()
        if lasting.exists():
            self._local.day = None
            db = self._connect(lasting)
            try:
                sums.add_lasting(db, read)
            finally:
                db.close()
        return sums.rows()

    def _open_files(self) -> "dict[int, sqlite3.Connection]":
        open_files: dict[int, sqlite3.Connection] | None = getattr(self._local, "open", None)
        if open_files is None:
            open_files = self._local.open = {}
            self._local.inodes = {}
        return open_files

    def _close(self, day: int) -> None:
        db = self._open_files().pop(day, None)
        if db is not None:
            self._all.remove(db)
            db.close()

    def _open(self, day: int) -> "sqlite3.Connection":
        open_files = self._open_files()
        if len(open_files) >= OPEN_FILES_MAX:
            # Not the one used longest ago: a query that goes over more files than may be open would
            # then find none of them. The newest days are the most asked for.
            self._close(min(open_files))
        path = day_path(self._directory, day).absolute()
        try:
            self._local.inodes[day] = path.stat().st_ino
            db = self._connect(path)
        except (FileNotFoundError, sqlite3.OperationalError):
            if path.exists():
                raise
            self._local.inodes[day] = _GONE
            db = _empty_day()
        open_files[day] = db
        self._all.append(db)
        return db

    def _is_gone(self, day: int) -> bool:
        return bool(self._local.inodes[day] == _GONE)

    def _connect(self, path: Path) -> "sqlite3.Connection":
        db = sqlite3.connect(
            f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            add_functions(db)
            db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            db.set_progress_handler(self._overdue, STEPS_BETWEEN_LOOKS)
            db.execute("PRAGMA schema_version").fetchone()  # opens the log of writes too
        except BaseException:
            db.close()
            raise
        return db


# In the place of an inode.
_GONE = 0


def _empty_day() -> "sqlite3.Connection":
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    add_functions(db)
    for statement in CREATE_STATEMENTS:
        db.execute(statement)
    return db


_OF_CLIENT = f"c.id << {CLIENT_SHIFT} AND (c.id + 1 << {CLIENT_SHIFT}) - 1"
_STORED_BYTES = f"""
    SELECT client_id,
        (SELECT coalesce(sum({SIZE}), 0) FROM logs WHERE client = c.id)
        + (SELECT coalesce(sum(length(logs)), 0) FROM blocks WHERE id BETWEEN {_OF_CLIENT})
        + (SELECT coalesce(sum(length(words)), 0) FROM words WHERE id BETWEEN {_OF_CLIENT})
        + (SELECT coalesce(sum(length(packed)), 0) FROM durations WHERE id BETWEEN {_OF_CLIENT})
    FROM clients c"""
