"""A day file: the SQLite schema, its pragmas, and the statements that write it.

One file holds all that arrived on one UTC day, so that retention is an unlink, and a commit is
atomic: logs, usage, idempotency keys and record ids live or die together.

The logs are clustered by (client, time): a page is one run of neighbouring rows, no second index
is kept up on the write path, and one client's rows are nowhere near another's.
"""

import os
from collections.abc import Iterable
from datetime import date
from functools import lru_cache
from pathlib import Path

from app.sqlite import sqlite3

# Where the package `app` is. Processes start there, since `python -m` looks for a package in the
# working directory first, and what is called `app` in that of the server may be anything.
HOME = Path(__file__).resolve().parents[3]

PAGE_BYTES = 8192
# Of up to nine open files, most are only asked for ids.
CACHE_TO_ASK = "PRAGMA cache_size = -2048"
CACHE_TO_WRITE = "PRAGMA cache_size = -32768"
PRAGMAS = (
    f"PRAGMA page_size = {PAGE_BYTES}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # COMMIT returns after the fsync of the log of writes
    "PRAGMA wal_autocheckpoint = 2000",  # 16 MiB
    "PRAGMA journal_size_limit = 67108864",
    # An fsync on macOS leaves data in the drive's own cache. Does nothing elsewhere.
    "PRAGMA fullfsync = ON",
    "PRAGMA checkpoint_fullfsync = ON",
    CACHE_TO_ASK,
    "PRAGMA temp_store = MEMORY",
    # What is deleted from a page goes from it; pages that are free are seen to by erasing.py.
    "PRAGMA secure_delete = FAST",
)

_OF_HOUR = """client = OLD.client AND hour = OLD.hour
            AND (dataset, status) = (SELECT dataset, status FROM series WHERE id = OLD.series)"""

# Times are us since 1970. `seq` holds the ns beyond, the us of arrival and the writer's slot
# (app/logs/identity.py). `error` and `metadata` are JSON texts. `commit_no` grows from group commit
# to group commit, as arrivals need not: who follows the logs goes by it.
CREATE_STATEMENTS: tuple[str, ...] = (
    "CREATE TABLE clients (id INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE)",
    """CREATE TABLE series (
        id INTEGER PRIMARY KEY, client INTEGER NOT NULL, dataset TEXT NOT NULL,
        environment TEXT NOT NULL, status TEXT NOT NULL, level TEXT, workflow TEXT)""",
    "CREATE INDEX series_of ON series (client, workflow, environment, status, level, dataset)",
    """CREATE TABLE logs (
        client INTEGER NOT NULL, us INTEGER NOT NULL, seq INTEGER NOT NULL,
        series INTEGER NOT NULL, run_id TEXT, duration_ms, external_id TEXT,
        message TEXT, error TEXT, metadata TEXT, commit_no INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (client, us, seq)) WITHOUT ROWID""",
    """CREATE UNIQUE INDEX external_ids ON logs (client, external_id)
        WHERE external_id IS NOT NULL""",
    """CREATE TABLE usage (
        client INTEGER NOT NULL, minute INTEGER NOT NULL, key_id TEXT NOT NULL,
        dataset TEXT NOT NULL, requests INTEGER NOT NULL, logs INTEGER NOT NULL,
        bytes INTEGER NOT NULL, rejected INTEGER NOT NULL, denied INTEGER NOT NULL,
        PRIMARY KEY (client, minute, key_id, dataset)) WITHOUT ROWID""",
    """CREATE TABLE idempotency (
        client INTEGER NOT NULL, key TEXT NOT NULL, created_us INTEGER NOT NULL,
        digest BLOB NOT NULL, outcome BLOB NOT NULL, duplicates INTEGER NOT NULL,
        duplicate_id TEXT, PRIMARY KEY (client, key)) WITHOUT ROWID""",
    # What is left of a log in `logs` once it is sealed. `run` is run_hash of its run_id, `place`
    # the number of its block with its own in it: block << BLOCK_BITS | line.
    """CREATE TABLE sealed (
        client INTEGER NOT NULL, us INTEGER NOT NULL, seq INTEGER NOT NULL,
        series INTEGER NOT NULL, duration_ms, run INTEGER, external_id TEXT,
        place INTEGER NOT NULL, PRIMARY KEY (client, us, seq)) WITHOUT ROWID""",
    """CREATE UNIQUE INDEX sealed_external_ids ON sealed (client, external_id)
        WHERE external_id IS NOT NULL""",
    # The blocks of a client are neighbours: id = client << 32 | number. The words stand apart,
    # since a search reads all of them and few of the logs.
    "CREATE TABLE blocks (id INTEGER PRIMARY KEY, logs BLOB NOT NULL)",
    """CREATE TABLE words (
        id INTEGER PRIMARY KEY, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,
        last_commit_no INTEGER NOT NULL, words BLOB NOT NULL,
        first_commit_no INTEGER NOT NULL DEFAULT 0)""",
    # Sealed logs summed by the hour of executed_at (since 1970) and series.
    """CREATE TABLE hours (
        client INTEGER NOT NULL, hour INTEGER NOT NULL, series INTEGER NOT NULL,
        logs INTEGER NOT NULL, durations INTEGER NOT NULL, duration_ms REAL NOT NULL,
        PRIMARY KEY (client, hour, series)) WITHOUT ROWID""",
    # Records that were refused, the text last: the others are counted without it.
    """CREATE TABLE rejected (
        client INTEGER NOT NULL, seq INTEGER NOT NULL, size INTEGER NOT NULL, dataset TEXT,
        key_id TEXT NOT NULL, number INTEGER NOT NULL, field TEXT, detail TEXT NOT NULL,
        record TEXT NOT NULL, PRIMARY KEY (client, seq)) WITHOUT ROWID""",
    # Work that erasures have left, and how many of them: see erasing.py.
    "CREATE TABLE stale (id INTEGER PRIMARY KEY, erasures INTEGER NOT NULL)",
    # The clients' own ids of logs that have expired, while they are looked for.
    """CREATE TABLE expired_ids (
        client INTEGER NOT NULL, external_id TEXT NOT NULL, us INTEGER NOT NULL,
        seq INTEGER NOT NULL, PRIMARY KEY (client, external_id)) WITHOUT ROWID""",
    # `hours` summed up by what is asked the most, a fiftieth of its rows. Counts alone: from a sum
    # of floats nothing can be taken away for sure.
    """CREATE TABLE tallies (
        client INTEGER NOT NULL, hour INTEGER NOT NULL, dataset TEXT NOT NULL,
        status TEXT NOT NULL, logs INTEGER NOT NULL,
        PRIMARY KEY (client, hour, dataset, status)) WITHOUT ROWID""",
    # By triggers, since sealing and erasing both change `hours`.
    """CREATE TRIGGER hours_added AFTER INSERT ON hours BEGIN
        INSERT INTO tallies SELECT NEW.client, NEW.hour, dataset, status, NEW.logs
            FROM series WHERE id = NEW.series
            ON CONFLICT DO UPDATE SET logs = logs + excluded.logs;
        END""",
    f"""CREATE TRIGGER hours_changed AFTER UPDATE OF logs ON hours BEGIN
        UPDATE tallies SET logs = logs + NEW.logs - OLD.logs WHERE {_OF_HOUR};
        END""",
    f"""CREATE TRIGGER hours_removed AFTER DELETE ON hours BEGIN
        UPDATE tallies SET logs = logs - OLD.logs WHERE {_OF_HOUR};
        DELETE FROM tallies WHERE {_OF_HOUR} AND logs = 0;
        END""",
    # The durations in blocks, packed as durations.py says. Apart from the words, whose pages they
    # would leave a quarter empty, and for every search to read.
    """CREATE TABLE durations (
        id INTEGER PRIMARY KEY, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,
        packed BLOB NOT NULL)""",
)
_FILL_TALLIES = """
    INSERT INTO tallies SELECT h.client, hour, dataset, status, sum(logs)
    FROM hours h CROSS JOIN series s ON s.id = h.series GROUP BY h.client, hour, dataset, status"""
SCHEMA_VERSION = 5
# What earlier versions lack. A block whose first commit is not known may hold any; of one without
# durations here, they are in `sealed`.
_UPGRADES = {
    1: (
        "ALTER TABLE logs ADD COLUMN commit_no INTEGER NOT NULL DEFAULT 0",
        *CREATE_STATEMENTS[-13:],
    ),
    2: (
        "ALTER TABLE words ADD COLUMN first_commit_no INTEGER NOT NULL DEFAULT 0",
        *CREATE_STATEMENTS[-8:],
        _FILL_TALLIES,
    ),
    3: (*CREATE_STATEMENTS[-5:], _FILL_TALLIES),
    4: CREATE_STATEMENTS[-1:],
}
CLIENT_SHIFT = 32

# Where the header of an SQLite file has its user_version (fileformat2, 1.3), and how it begins.
_HEADER_BYTES, _VERSION_AT = 64, 60
_MAGIC = b"SQLite format 3\0"

COLUMNS = (
    "client",
    "us",
    "seq",
    "series",
    "run_id",
    "duration_ms",
    "external_id",
    "message",
    "error",
    "metadata",
    "commit_no",
)

SUFFIX = ".db"
WRITES_SUFFIXES = ("-wal", "-shm")
_EPOCH = date(1970, 1, 1).toordinal()


class UnknownVersion(Exception):
    """A day file of a version that is not this program's, which leaves it as it is."""

    def __init__(self, path: Path, version: int) -> None:
        newer = ", which a newer release of the service has made" if version > 0 else ""
        super().__init__(
            f"{path} is a day file of version {version}{newer};"
            f" this release knows versions 1 to {SCHEMA_VERSION}"
        )


@lru_cache(maxsize=512)
def insert_sql(rows: int) -> str:
    """Return one INSERT of `rows` logs: one statement costs a third of as many single ones."""
    one = f"({','.join('?' * len(COLUMNS))})"
    return f"INSERT INTO logs ({','.join(COLUMNS)}) VALUES {','.join([one] * rows)}"


def day_path(directory: Path, day: int) -> Path:
    """Return the file of a day since 1970: `2026-11-21.db`."""
    return directory / f"{date.fromordinal(_EPOCH + day).isoformat()}{SUFFIX}"


def list_days(directory: Path) -> dict[int, Path]:
    """Return the day files there are, by day."""
    days = {}
    for path in directory.glob(f"????-??-??{SUFFIX}"):
        try:
            days[date.fromisoformat(path.stem).toordinal() - _EPOCH] = path
        except ValueError:
            continue  # not ours
    return days


def create_day(path: Path) -> None:
    """Make an empty day file that appears whole under its name, or not at all."""
    create_whole(path, (*CREATE_STATEMENTS, f"PRAGMA user_version = {SCHEMA_VERSION}"))


def create_whole(path: Path, statements: Iterable[str]) -> None:
    """Make a file by statements that appears with all of them done, or not at all."""
    draft = path.with_suffix(".new")
    for leftover in path.parent.glob(f"{draft.name}*"):
        leftover.unlink()
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        # With a rollback journal a COMMIT that returns is in the file itself. A log of writes
        # would be folded in by close(), which does not say that the disk was full.
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        # Sealing frees what the logs took before, some of it at the end of the file.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("BEGIN")
        for statement in (*statements, "COMMIT"):
            connection.execute(statement)
    finally:
        connection.close()
    remove_writes(path)
    draft.rename(path)
    sync_directory(path.parent)  # else the name may not outlive a power cut that the logs do


def remove_day(path: Path) -> None:
    """Unlink a day file that is closed, and what belongs to it."""
    path.unlink()
    remove_writes(path)
    sync_directory(path.parent)


def remove_writes(path: Path) -> None:
    """Unlink the log of writes of a file that is gone: a new one would take it for its own."""
    for suffix in WRITES_SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def remove_orphans(directory: Path) -> None:
    """Unlink logs of writes whose file is gone, as the death of a writer may leave them."""
    for suffix in WRITES_SUFFIXES:
        for path in directory.glob(f"*{SUFFIX}{suffix}"):
            if not path.with_name(path.name.removesuffix(suffix)).exists():
                path.unlink()


def sync_directory(directory: Path) -> None:
    """Have names that were made or removed outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_version(path: Path) -> None:
    """Raise UnknownVersion for a day file that `upgrade_day` would not take; damage is not its.

    By the header alone: SQLite would open files that another process may still be writing.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if header and not (len(header) == _HEADER_BYTES and header.startswith(_MAGIC)):
        return
    _check(path, int.from_bytes(header[_VERSION_AT:], signed=True))


def _check(path: Path, version: int) -> None:
    if not 1 <= version <= SCHEMA_VERSION:
        raise UnknownVersion(path, version)


def upgrade_day(path: Path) -> None:
    """Bring a file of an earlier version up to date.

    Raises UnknownVersion, and sqlite3.Error if it can't be.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            return
        _check(path, version)
        connection.execute("BEGIN IMMEDIATE")
        for statement in (*_UPGRADES[version], f"PRAGMA user_version = {SCHEMA_VERSION}", "COMMIT"):
            connection.execute(statement)
    finally:
        connection.close()
