"""Reading day files: connections, deadlines, and one moment for all that a query reads.

Statements give their whole answer in one row, because a thread that steps through rows waits for
the interpreter lock at each of them while the event loop is busy. Connections are read-only.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.errors import StorageUnavailable
from app.logs.query import MINUTES, LogQuery, Page, UsageQuery, UsageRow
from app.sqlite import sqlite3
from app.storage.sqlite.pages import read_one, read_page
from app.storage.sqlite.schema import day_path, list_days

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

    def usage(self, query: UsageQuery, deadline: float) -> list[UsageRow]:
        """Sum usage by group over all days."""
        with self._until(deadline):
            return self._usage(query)

    def days(self) -> Sequence[int]:
        """Return the days that have a file."""
        return list(list_days(self._directory))

    def db(self, day: int) -> "sqlite3.Connection":
        """Return this thread's connection to a day file, which stands still until the query ends.

        A log that is sealed meanwhile moves from one table to another: read at two moments, it
        could be missing from both.
        """
        self._look()
        db = self._open_files().get(day) or self._open(day)
        if not db.in_transaction:
            db.execute("BEGIN")
        return db

    @contextmanager
    def _until(self, deadline: float) -> Iterator[None]:
        self._local.deadline = deadline
        try:
            self._look()
            yield
        except sqlite3.OperationalError:
            self._look()  # it was interrupted for what this raises, or is a fault of its own
            raise
        finally:
            for db in self._open_files().values():
                if db.in_transaction:
                    db.execute("ROLLBACK")  # there is nothing to commit

    def _look(self) -> None:
        if self.stopped:
            raise StorageUnavailable("closed")
        if time.monotonic() > self._local.deadline:
            raise StorageUnavailable("the query took too long")

    def _overdue(self) -> bool:
        return self.stopped or time.monotonic() > self._local.deadline

    def _usage(self, query: UsageQuery) -> list[UsageRow]:
        minutes = MINUTES.get(query.group_by)
        group = f"minute - minute % {minutes}" if minutes else _USAGE_COLUMN[query.group_by]
        where = ["1"]
        if query.client_id is not None:
            where.append("c.client_id = :client_id")
        if query.start_minute is not None:
            where.append("minute >= :start")
        if query.end_minute is not None:
            where.append("minute < :end")
        values = {
            "client_id": query.client_id,
            "start": query.start_minute,
            "end": query.end_minute,
        }
        sums: dict[tuple[str, Any], list[int]] = {}
        for day in self.days():
            rows = self.db(day).execute(
                f"""SELECT c.client_id, {group}, sum(requests), sum(logs), sum(bytes),
                sum(rejected), sum(denied)
                FROM usage u JOIN clients c ON c.id = u.client
                WHERE {" AND ".join(where)} GROUP BY 1, 2""",
                values,
            )
            for client_id, name, *counts in rows.fetchall():
                total = sums.setdefault((client_id, name), [0] * len(counts))
                total[:] = [a + b for a, b in zip(total, counts, strict=True)]
        return [UsageRow(*key, tuple(counts)) for key, counts in sorted(sums.items())]

    def _open_files(self) -> "dict[int, sqlite3.Connection]":
        open_files: dict[int, sqlite3.Connection] | None = getattr(self._local, "open", None)
        if open_files is None:
            open_files = self._local.open = {}
        return open_files

    def _open(self, day: int) -> "sqlite3.Connection":
        open_files = self._open_files()
        if len(open_files) >= OPEN_FILES_MAX:
            # Not the one used longest ago: a query that goes over more files than may be open would
            # then find none of them. The newest days are the most asked for.
            oldest = open_files.pop(min(open_files))
            self._all.remove(oldest)
            oldest.close()
        path = day_path(self._directory, day).absolute()
        db = sqlite3.connect(
            f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        open_files[day] = db
        self._all.append(db)
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        db.set_progress_handler(self._overdue, STEPS_BETWEEN_LOOKS)
        return db


_USAGE_COLUMN = {"key": "key_id", "dataset": "dataset"}
