"""Seeing that the control database changed."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.keys.registry import ensure_client
from app.keys.watch import SqliteWatch, WatchLost


def test_a_commit_is_reported_once(engine: Engine, tmp_path: Path) -> None:
    """Each commit is seen by the next call, and only by that."""
    watch = SqliteWatch(tmp_path / "control.db")
    assert not watch.changed()
    for client_id in ("acme", "demo"):
        ensure_client(engine, client_id)
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
