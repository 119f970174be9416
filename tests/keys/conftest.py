"""What works on a control database of this test's own."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.keys.configured import ConfiguredKeys
from app.keys.keyring import Keyring
from app.keys.principal import Limits
from app.keys.verifier import Peppers
from app.keys.watch import WatchLost
from app.sqlite import sqlite3

SECRET = "the first secret of this test suite"
OLD_SECRET = "the second secret of this test suite"
DEFAULTS = Limits(600, 12_000, 1_000_000)

KeyringFactory = Callable[..., Keyring]


class FakeWatch:
    """A watch that tells what the test told it."""

    def __init__(self) -> None:
        self.pending = False
        self.lost = False
        self.asked = 0

    def changed(self) -> bool:
        """Report a pending change once."""
        self.asked += 1
        if self.lost:
            raise WatchLost("as the test wants")
        pending, self.pending = self.pending, False
        return pending

    def close(self) -> None:
        """Hold nothing."""


def copy_database(path: Path, copy: Path) -> None:
    """Make a backup of an open database."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def replace_database(new: Path, path: Path) -> None:
    """Restore a backup under whoever has the database open."""
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    new.replace(path)


@pytest.fixture
def peppers() -> Peppers:
    """Give the peppers of one secret."""
    return Peppers([SECRET])


@pytest.fixture
def make_keyring(engine: Engine, peppers: Peppers) -> Iterator[KeyringFactory]:
    """Make keyrings on the database, closed at the end."""
    made: list[Keyring] = []

    def make(**overrides: object) -> Keyring:
        parts: dict[str, object] = {
            "peppers": peppers,
            "defaults": DEFAULTS,
            "configured": ConfiguredKeys(peppers, {}),
        }
        made.append(Keyring(engine, **{**parts, **overrides}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for keyring in made:
        keyring.close()
