"""Day files that are damaged: known for it, and set aside, so that all other days serve on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.sqlite import sqlite3
from app.storage.sqlite.schema import WRITES_SUFFIXES, day_path

# SQLite's result codes for a damaged file, and for one that never was a database.
_SQLITE_CORRUPT, _SQLITE_NOTADB = 11, 26


class CorruptDay(sqlite3.DatabaseError):
    """The file of a day is damaged; `inode` is that of the file that was read."""

    def __init__(self, day: int, inode: int, reason: str) -> None:
        super().__init__(f"the file of day {day} is damaged: {reason}")
        self.day = day
        self.inode = inode


@contextmanager
def damage_named(day: int, inode: int) -> Iterator[None]:
    """Raise CorruptDay in place of SQLite's own error about a damaged file."""
    try:
        yield
    except CorruptDay:
        raise  # of another file, which this one asked
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in {_SQLITE_CORRUPT, _SQLITE_NOTADB}:
            raise CorruptDay(day, inode, str(error)) from error
        raise


def set_aside(directory: Path, day: int, inode: int) -> Path | None:
    """Rename a damaged file, for people to look into; None if it is no longer that file."""
    path = day_path(directory, day)
    try:
        if path.stat().st_ino != inode:
            return None
    except FileNotFoundError:
        return None
    aside = path.with_name(f"{path.name}.corrupt-{int(time.time())}")
    # The log of writes first: without its file it means nothing, and beside a new one it would be
    # taken for that one's.
    for suffix in (*WRITES_SUFFIXES, ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside
