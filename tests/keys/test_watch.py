"""Seeing that the control database changed."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.keys.bootstrap import see_clients
from app.keys.watch import DatabaseGone, SqliteWatch, WatchLost
from app.sqlite import SQLITE_SAFE_WAL
from tests.keys.conftest import copy_database, replace_database
from tests.support import BY


def test_a_commit_is_reported_once(engine: Engine, tmp_path: Path) -> None:
    """Each commit is seen by the next call, and only by that."""
    watch = SqliteWatch(tmp_path / "control.db")
    assert not watch.changed()
    for client_id in ("acme", "demo"):
        see_clients(engine, [client_id], by=BY)
        assert watch.changed()
        assert not watch.changed()
    watch.close()


def test_a_watch_that_cannot_see_says_so(engine: Engine, tmp_path: Path) -> None:
    """A missing file and a closed connection are told, not taken for "no change"."""
    with pytest.raises(WatchLost):
        SqliteWatch(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()
    watch = SqliteWatch(tmp_path / "control.db")
    watch.close()
    with pytest.raises(WatchLost):
        watch.changed()


def test_commits_of_another_process_are_each_seen(engine: Engine, tmp_path: Path) -> None:
    """Through checkpoints and restarts of the WAL, no commit of a foreign process goes unseen."""
    code = (
        "import sys; from app.sqlite import sqlite3\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for i, line in enumerate(sys.stdin):\n"
        "    c.execute('PRAGMA user_version = %d' % (i + 1))\n"
        "    if i % 7 == 0: c.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()\n"
        "    print(flush=True)\n"
    )
    watch = SqliteWatch(tmp_path / "control.db")
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "control.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdin
        assert other.stdout
        for _ in range(200):
            other.stdin.write(b"\n")
            other.stdin.flush()
            assert other.stdout.readline()
            assert watch.changed()
        assert not watch.changed()
    watch.close()


def test_a_replaced_file_is_followed(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another file under the name is a change, told once; its commits are seen from then on."""
    path = tmp_path / "control.db"
    dropped: list[None] = []
    watch = SqliteWatch(path, lambda: dropped.append(None))
    copy_database(path, tmp_path / "backup.db")
    replace_database(tmp_path / "backup.db", path)
    assert watch.changed()
    assert len(dropped) == 1
    assert [record.message for record in caplog.records if "replaced" in record.message] == [
        f"{path} was replaced while it was open: reading the new file"
    ]
    assert not watch.changed()
    engine.dispose()
    see_clients(engine, ["acme"], by=BY)
    assert watch.changed()
    assert not watch.changed()
    watch.close()


def test_a_missing_file_is_waited_for(engine: Engine, tmp_path: Path) -> None:
    """While the file is away nothing is known and nothing made; back again, it is followed."""
    path = tmp_path / "control.db"
    watch = SqliteWatch(path)
    copy_database(path, tmp_path / "backup.db")
    for end in ("-wal", "-shm", ""):
        (tmp_path / f"control.db{end}").unlink(missing_ok=True)
    for _ in range(2):
        with pytest.raises(DatabaseGone):
            watch.changed()
    assert not path.exists()
    (tmp_path / "backup.db").rename(path)
    assert watch.changed()
    assert not watch.changed()
    watch.close()


@pytest.mark.skipif(not SQLITE_SAFE_WAL, reason="without a WAL there is nothing to leave behind")
def test_a_new_file_is_not_read_with_the_old_journal(engine: Engine, tmp_path: Path) -> None:
    """Between the replacement and the removal of the journal the new file is left alone."""
    path = tmp_path / "control.db"
    watch = SqliteWatch(path)
    copy_database(path, tmp_path / "backup.db")
    (tmp_path / "backup.db").replace(path)
    for end in ("-wal", "-shm"):
        with pytest.raises(DatabaseGone, match="remove them"):
            watch.changed()
        (tmp_path / f"control.db{end}").unlink()
    assert watch.changed()
    assert not watch.changed()
    watch.close()


def test_what_is_no_database_is_not_followed(engine: Engine, tmp_path: Path) -> None:
    """A file of something else under the name is an outage, until a database is there."""
    path = tmp_path / "control.db"
    watch = SqliteWatch(path)
    copy_database(path, tmp_path / "backup.db")
    (tmp_path / "text").write_bytes(b"not a database, but long enough to look at" * 100)
    replace_database(tmp_path / "text", path)
    with pytest.raises(DatabaseGone, match="not a database"):
        watch.changed()
    replace_database(tmp_path / "backup.db", path)
    assert watch.changed()
    watch.close()
