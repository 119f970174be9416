"""Tests of app.storage.sqlite.schema."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.errors import StorageUnavailable
from app.logs.identity import ArrivalClock
from app.logs.query import LogQuery
from app.logs.search import parse_search
from app.sqlite import sqlite3
from app.storage.open import open_store
from app.storage.sqlite.reader import SqliteReader
from app.storage.sqlite.schema import PRAGMAS, SCHEMA_VERSION, create_day, day_path, list_days
from app.storage.sqlite.sealing import build_seals, find_full
from app.storage.sqlite.writer import DayFiles
from loadtests.server import ROOT
from tests.storage.batches import make_batch, record

TABLES = {
    *("clients", "series", "logs", "usage", "idempotency"),
    *("sealed", "blocks", "words", "hours", "rejected", "stale", "expired_ids"),
    *("tallies", "durations"),
}
# As it was before there were blocks.
VERSION_1 = (
    "PRAGMA page_size = 8192",
    "CREATE TABLE clients (id INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE)",
    """CREATE TABLE series (
        id INTEGER PRIMARY KEY, client INTEGER NOT NULL, dataset TEXT NOT NULL,
        environment TEXT NOT NULL, status TEXT NOT NULL, level TEXT, workflow TEXT)""",
    "CREATE INDEX series_of ON series (client, workflow, environment, status, level, dataset)",
    """CREATE TABLE logs (
        client INTEGER NOT NULL, us INTEGER NOT NULL, seq INTEGER NOT NULL,
        series INTEGER NOT NULL, run_id TEXT, duration_ms, external_id TEXT,
        message TEXT, error TEXT, metadata TEXT,
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
    "PRAGMA user_version = 1",
    "PRAGMA journal_mode = WAL",
)
# What it became when the first blocks were made.
VERSION_2 = (
    *VERSION_1,
    "ALTER TABLE logs ADD COLUMN commit_no INTEGER NOT NULL DEFAULT 0",
    """CREATE TABLE sealed (
        client INTEGER NOT NULL, us INTEGER NOT NULL, seq INTEGER NOT NULL,
        series INTEGER NOT NULL, duration_ms, run INTEGER, external_id TEXT,
        place INTEGER NOT NULL, PRIMARY KEY (client, us, seq)) WITHOUT ROWID""",
    """CREATE UNIQUE INDEX sealed_external_ids ON sealed (client, external_id)
        WHERE external_id IS NOT NULL""",
    "CREATE TABLE blocks (id INTEGER PRIMARY KEY, logs BLOB NOT NULL)",
    """CREATE TABLE words (
        id INTEGER PRIMARY KEY, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,
        last_commit_no INTEGER NOT NULL, words BLOB NOT NULL)""",
    """CREATE TABLE hours (
        client INTEGER NOT NULL, hour INTEGER NOT NULL, series INTEGER NOT NULL,
        logs INTEGER NOT NULL, durations INTEGER NOT NULL, duration_ms REAL NOT NULL,
        PRIMARY KEY (client, hour, series)) WITHOUT ROWID""",
    "PRAGMA user_version = 2",
)
# What it was before counts were tallied.
VERSION_3 = (
    *VERSION_2,
    "ALTER TABLE words ADD COLUMN first_commit_no INTEGER NOT NULL DEFAULT 0",
    """CREATE TABLE rejected (
        client INTEGER NOT NULL, seq INTEGER NOT NULL, size INTEGER NOT NULL, dataset TEXT,
        key_id TEXT NOT NULL, number INTEGER NOT NULL, field TEXT, detail TEXT NOT NULL,
        record TEXT NOT NULL, PRIMARY KEY (client, seq)) WITHOUT ROWID""",
    "CREATE TABLE stale (id INTEGER PRIMARY KEY, erasures INTEGER NOT NULL)",
    """CREATE TABLE expired_ids (
        client INTEGER NOT NULL, external_id TEXT NOT NULL, us INTEGER NOT NULL,
        seq INTEGER NOT NULL, PRIMARY KEY (client, external_id)) WITHOUT ROWID""",
    "PRAGMA user_version = 3",
)
_OF_HOUR = """client = OLD.client AND hour = OLD.hour
    AND (dataset, status) = (SELECT dataset, status FROM series WHERE id = OLD.series)"""
# What it was before durations were packed.
VERSION_4 = (
    *VERSION_3,
    """CREATE TABLE tallies (
        client INTEGER NOT NULL, hour INTEGER NOT NULL, dataset TEXT NOT NULL,
        status TEXT NOT NULL, logs INTEGER NOT NULL,
        PRIMARY KEY (client, hour, dataset, status)) WITHOUT ROWID""",
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
    "PRAGMA user_version = 4",
)
OLD_LOGS = (
    "INSERT INTO clients VALUES (1, 'acme')",
    "INSERT INTO series VALUES (1, 1, 'default', 'production', 'SUCCESS', NULL, 'sync')",
    """INSERT INTO logs (client, us, seq, series, run_id, external_id, message, metadata)
        SELECT 1, 1780272000000000 + value, value << 16, 1, 'r' || value, 'own-' || value,
            'old log ' || value, '{"n":' || value || '}'
        FROM json_each('[0,1,2,3,4,5,6,7,8,9]')""",
)

# Makes a day file where no file may grow beyond so many bytes, as on a disk that is full.
CREATE_WITHIN = """
import resource, sys
from pathlib import Path
from app.storage.sqlite.schema import create_day
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
create_day(Path(sys.argv[1]))
"""


def _tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        [(version,)] = connection.execute("PRAGMA user_version").fetchall()
    connection.close()
    assert version == SCHEMA_VERSION
    return {name for (name,) in found}


def test_days_are_files_named_after_them(tmp_path: Path) -> None:
    """A day's name is its date, and only such files are days."""
    for day in (0, 20_000, 20_001):
        create_day(day_path(tmp_path, day))
    assert day_path(tmp_path, 20_000).name == "2024-10-04.db"
    for other in ("notes.db", "2024-13-01.db", "2024-10-05.db-wal", "2024-10-06.new"):
        (tmp_path / other).touch()
    assert sorted(list_days(tmp_path)) == [0, 20_000, 20_001]
    assert _tables(list_days(tmp_path)[0]) == TABLES


@pytest.mark.parametrize("size", [0, 1, 8_192, 20_000, 40_000, 65_536, 73_728, 90_000, 150_000])
def test_a_day_file_appears_whole_or_not_at_all(tmp_path: Path, size: int) -> None:
    """Wherever the disk is full, there is no file of that name or a complete one."""
    path = day_path(tmp_path, 20_000)
    done = subprocess.run(
        [sys.executable, "-c", CREATE_WITHIN, str(path), str(size)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert (done.returncode == 0) == path.exists(), done.stderr.decode()
    if path.exists():
        assert _tables(path) == TABLES
    else:
        create_day(path)  # what the failed attempt left is no hindrance
        assert _tables(path) == TABLES
    assert not list(tmp_path.glob("*.new*"))


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, -1, 0, None])
def test_an_unknown_version_is_refused_and_left(tmp_path: Path, version: int | None) -> None:
    """A day file of a version that is not ours stops the start and the writer in one line each."""
    (tmp_path / "logs").mkdir()
    path = day_path(tmp_path / "logs", 20_000)
    path.touch()
    if version is not None:  # else it is empty
        create_day(path)
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
    stored = path.read_bytes()
    told = f"{path} is a day file of version {version or 0}"
    with pytest.raises(StorageUnavailable) as refused:
        asyncio.run(open_store("", tmp_path, 7))
    assert refused.value.reason.startswith(told)
    # Who gets past that, as a log of writes might that holds the version, meets the writer's own.
    writer = [sys.executable, "-m", "app.storage.sqlite.writer", str(path.parent), "7"]
    done = subprocess.run(writer, cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines() + done.stdout.splitlines()
    assert json.loads(line)["event"].startswith(f"the writer process ends: {told}")
    assert path.read_bytes() == stored
    assert list_days(path.parent) == {20_000: path}


def test_a_draft_of_a_dead_writer_is_no_hindrance(tmp_path: Path) -> None:
    """What a writer that was killed left half made is thrown away."""
    path = day_path(tmp_path, 20_000)
    for leftover in ("2024-10-04.new", "2024-10-04.new-wal", "2024-10-04.new-journal"):
        (tmp_path / leftover).write_bytes(b"half a file")
    create_day(path)
    assert _tables(path) == TABLES
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_commit_reaches_the_platter(tmp_path: Path) -> None:
    """Every commit is an fsync, on macOS one that the drive does not keep to itself."""
    create_day(day_path(tmp_path, 20_000))
    connection = sqlite3.connect(day_path(tmp_path, 20_000), isolation_level=None)
    for pragma in PRAGMAS:
        connection.execute(pragma)
    want = {"synchronous": 2, "fullfsync": 1, "checkpoint_fullfsync": 1}
    got = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in want}
    connection.close()
    assert got == want


def test_a_fresh_day_is_one_file(tmp_path: Path) -> None:
    """All of a new day is in the file, not in a log of writes that a rename would leave behind."""
    path = day_path(tmp_path, 20_000)
    create_day(path)
    # A full disk between the two is not seen when SQLite folds such a log in on closing. The
    # header says which journal the last writer used (fileformat2, 1.3.3): 1 is none beside it.
    assert path.read_bytes()[18:20] == b"\x01\x01"


def _schema(path: Path) -> dict[str, dict[str, tuple[object, ...]]]:
    """Give the columns of every table and index, whatever their order."""
    with sqlite3.connect(path) as connection:
        names = connection.execute("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")
        found = {}
        for (name,) in names.fetchall():
            columns = connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
            found[name] = {column[1]: column[2:] for column in columns}
    connection.close()
    return found


def _messages(directory: Path, query: LogQuery) -> list[str]:
    reader = SqliteReader(directory)
    page = reader.page(query, time.monotonic() + 60)
    reader.close()
    return [log["message"] for log in json.loads(f"[{page.logs}]")]


VERSIONS = [VERSION_1, VERSION_2, VERSION_3, VERSION_4]


@pytest.mark.parametrize("version", VERSIONS, ids=["1", "2", "3", "4"])
def test_a_file_of_an_earlier_version_is_upgraded(tmp_path: Path, version: tuple[str, ...]) -> None:
    """At the writer's start it gets what it lacks; its logs are read, sealed and known again."""
    day = 20_000
    path = day_path(tmp_path, day)
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in (*version, *OLD_LOGS):
        connection.execute(statement)
    connection.close()
    files = DayFiles(tmp_path, dedup_window_days=7)
    create_day(day_path(tmp_path, day + 1))
    assert _tables(path) == TABLES
    assert _schema(path) == _schema(day_path(tmp_path, day + 1))
    old = [f"old log {n}" for n in range(10)]
    assert _messages(tmp_path, LogQuery("acme", order="asc")) == old
    sent = [record(id="own-3"), record(id="new", message="new log", executed_at=1_790_000_000)]
    [receipt] = files.get(day).commit([make_batch(ArrivalClock(), "acme", sent, day=day)])
    assert receipt.duplicates == 1
    connection = sqlite3.connect(path, isolation_level=None)
    [client] = find_full(connection, 11)
    assert all(map(files.get(day).seal, build_seals(connection, day, client)))
    connection.close()
    files.drop()
    files = DayFiles(tmp_path, dedup_window_days=7)  # it is left as it is from now on
    assert _messages(tmp_path, LogQuery("acme", order="asc")) == [*old, "new log"]
    query = LogQuery("acme", search=parse_search("7"), metadata={"n": ("7",)})
    assert _messages(tmp_path, query) == ["old log 7"]
    files.drop()


@pytest.mark.parametrize("version", [VERSION_2, VERSION_3], ids=["2", "3"])
def test_sums_of_an_earlier_version_are_tallied(tmp_path: Path, version: tuple[str, ...]) -> None:
    """What was summed up by the hour before there were tallies is in them after the upgrade."""
    path = day_path(tmp_path, 20_000)
    connection = sqlite3.connect(path, isolation_level=None)
    series = "(?, 1, 'default', 'production', ?, NULL, ?)"
    for statement in version:
        connection.execute(statement)
    for number, (status, workflow) in enumerate((("OK", "a"), ("OK", "b"), ("FAILED", "a"))):
        connection.execute(f"INSERT INTO series VALUES {series}", (number, status, workflow))
        connection.execute("INSERT INTO hours VALUES (1, 7, ?, ?, 0, 0.0)", (number, number + 1))
    connection.close()
    DayFiles(tmp_path, dedup_window_days=7).drop()
    with sqlite3.connect(path) as connection:
        tallies = connection.execute("SELECT * FROM tallies ORDER BY status").fetchall()
    connection.close()
    assert tallies == [(1, 7, "default", "FAILED", 3), (1, 7, "default", "OK", 3)]
