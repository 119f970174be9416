"""Connections are to the file of the name, as the policy of its owner says."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from app.errors import StorageUnavailable
from app.keys.database import sqlite_engine
from app.keys.named_file import Meeting, NamedFile
from app.keys.side_files import Identity, identity
from app.sqlite import sqlite3


class Policy:
    """Lets every file be connected to, or none, and keeps what it was asked."""

    def __init__(self) -> None:
        self.met: list[Meeting] = []
        self.refuses = False

    def __call__(self, met: Meeting) -> Identity | None:
        """Answer."""
        self.met.append(met)
        if self.refuses:
            raise StorageUnavailable("not this one")
        return met.found


def _make(path: Path, text: str) -> None:
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE t (text)")
        made.execute("INSERT INTO t VALUES (?)", (text,))
        made.commit()


def _read(engine: Engine) -> str:
    with engine.connect() as connection:
        return str(connection.exec_driver_sql("SELECT text FROM t").scalar())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a file."""
    _make(tmp_path / "a.db", "first")
    return tmp_path / "a.db"


@pytest.fixture
def policy() -> Policy:
    """Make a policy."""
    return Policy()


@pytest.fixture
def engine(path: Path, policy: Policy) -> Iterator[Engine]:
    """Open the file."""
    engine = sqlite_engine(path)
    NamedFile(path, policy).follow(engine)
    yield engine
    engine.dispose()


def test_another_file_is_gone_over_to_if_the_policy_lets(
    engine: Engine, policy: Policy, path: Path
) -> None:
    """It is asked of each new file once, and of what it refuses each time."""
    first = identity(path)
    assert [_read(engine) for _ in range(2)] == ["first"] * 2
    assert [(one.found, one.former) for one in policy.met] == [(first, None)]
    path.rename(path.with_name("away"))
    _make(path, "second")
    policy.refuses = True
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            _read(engine)
    policy.refuses = False
    assert [_read(engine) for _ in range(2)] == ["second"] * 2
    assert [(one.found, one.former) for one in policy.met[1:]] == [(identity(path), first)] * 3


def test_a_file_that_was_away_is_no_other(engine: Engine, policy: Policy, path: Path) -> None:
    """One that comes back is the one it was, for which the policy is not asked."""
    _read(engine)
    path.rename(path.with_name("away"))
    with pytest.raises(OperationalError), engine.connect():
        pass
    path.with_name("away").rename(path)
    assert _read(engine) == "first"
    assert [one.found for one in policy.met[1:]] == [None] * (len(policy.met) - 1)
