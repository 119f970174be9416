"""Tests of app.storage.sqlite.schema."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.sqlite import sqlite3
from app.storage.sqlite.schema import PRAGMAS, SCHEMA_VERSION, create_day, day_path, list_days
from loadtests.server import ROOT

TABLES = {
    *("clients", "series", "logs", "usage", "idempotency"),
    *("sealed", "blocks", "words", "hours"),
}

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
