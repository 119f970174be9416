"""activity.db under open connections: removed, replaced, broken."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.activity.database import open_activity
from app.activity.uses import Sighting, read_uses, record
from app.errors import StorageUnavailable
from app.keys.database import embedded_url, open_engine
from tests.support import DEADLINE_S, eventually

NOON = datetime(2031, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name the file."""
    return tmp_path / "activity.db"


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Engine]]:
    """Open it as two workers do."""
    control = open_engine(embedded_url(tmp_path))
    engines = [open_activity(control), open_activity(control)]
    yield engines
    for engine in (*engines, control):
        engine.dispose()


def use(engine: Engine, key: str = "k") -> None:
    """Record a use of a key."""
    record(engine, [Sighting(key, "192.0.2.1", "curl", 1, NOON, NOON)])


def _is_used(engine: Engine, key: str) -> bool:
    """Record a use of a key; False if that has to be done again."""
    with suppress(StorageUnavailable):
        use(engine, key)
        return True
    return False


def requests(engine: Engine) -> dict[str, int]:
    """Read how often each key was used."""
    found = read_uses(engine, ["k", "old", "new", "restored"])
    return {key_id: one.requests for key_id, one in found.items()}


def number(file: Path) -> int | None:
    """Tell one file of the name from the next; None while there is none."""
    return file.stat().st_ino if file.exists() else None


def is_sound(engine: Engine) -> bool:
    """Say whether SQLite finds no fault with the file."""
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok")


def remove(file: Path) -> None:
    """Remove the file, and leave its journal."""
    file.unlink()


def remove_all(file: Path) -> None:
    """Remove the file with all that is beside it."""
    for one in file.parent.glob("activity.db*"):
        one.unlink()


@pytest.mark.parametrize("removing", [remove, remove_all])
def test_a_removed_file_is_made_anew(
    workers: list[Engine], file: Path, removing: Callable[[Path], None]
) -> None:
    """The next use makes a new file, its owner's alone, and every worker goes over to it."""
    one, other = workers
    for engine in workers:
        use(engine, "old")
    assert requests(one) == requests(other) == {"old": 2}
    removing(file)
    use(one, "new")
    assert file.stat().st_mode & 0o777 == 0o600
    assert requests(one) == requests(other) == {"new": 1}
    use(other, "new")
    assert requests(one) == requests(other) == {"new": 2}
    assert is_sound(one)
    assert is_sound(other)


def test_a_file_in_its_place(workers: list[Engine], file: Path, tmp_path: Path) -> None:
    """What took the name is read and written, and nothing of the former one's journal with it."""
    backup = tmp_path / "backup"
    backup.mkdir()
    control = open_engine(embedded_url(backup))
    engine = open_activity(control)
    use(engine, "restored")
    for opened in (engine, control):
        opened.dispose()
    for engine in workers:
        use(engine, "old")
    (backup / "activity.db").replace(file)
    for engine in workers:
        use(engine, "new")
        assert requests(engine)["restored"] == 1
        assert is_sound(engine)
    assert requests(workers[0]) == requests(workers[1]) == {"restored": 1, "new": 2}


def test_a_broken_file(workers: list[Engine], file: Path) -> None:
    """What is no database fails each use, and no longer once it has been removed."""
    file.write_bytes(b"not a database" * 1000)
    for engine in workers:
        with pytest.raises(StorageUnavailable):
            use(engine)
    file.unlink()
    for engine in workers:
        use(engine)
    assert requests(workers[0]) == {"k": 2}


def test_a_file_of_another_version(workers: list[Engine], file: Path) -> None:
    """A file that a newer version has made is left alone, and each use says why it fails."""
    use(workers[0])
    with workers[0].connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(StorageUnavailable) as raised:
        use(workers[1])
    assert "another version" in raised.value.reason
    assert file.exists()


def test_removed_while_everybody_writes(workers: list[Engine], file: Path) -> None:
    """Again and again removed under many writers: they write on, to one sound file."""
    faults: list[BaseException] = []
    stop = threading.Event()

    def write(engine: Engine) -> None:
        try:
            while not stop.is_set():
                # At the very moment a use may fail; whoever writes then keeps it for the next time.
                with suppress(StorageUnavailable):
                    use(engine)
        except BaseException as error:  # noqa: BLE001  # told to the test
            faults.append(error)

    threads = [threading.Thread(target=write, args=(engine,)) for engine in workers * 2]
    use(workers[0])
    for thread in threads:
        thread.start()
    former: set[int | None] = {None}
    with ExitStack() as kept:
        for _ in range(5):
            kept.enter_context(file.open())  # so that no other file gets its number
            former.add(number(file))
            file.unlink()
            eventually(lambda: number(file), lambda found: bool(faults) or found not in former)
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not faults
    # The last removal may still be noticed by this one, which then keeps its use for the next time.
    eventually(lambda: _is_used(workers[0], "new"), bool)
    assert requests(workers[0]) == requests(workers[1])
    assert is_sound(workers[1])
