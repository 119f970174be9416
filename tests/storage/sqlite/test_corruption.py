"""Tests of app.storage.sqlite.corruption: a damaged day is set aside, and the others serve on."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import StorageUnavailable
from app.logs.query import LogQuery
from app.sqlite import sqlite3
from app.storage.sqlite.corruption import CorruptDay, damage_named, set_aside
from app.storage.sqlite.schema import PAGE_BYTES, create_day, day_path
from app.storage.sqlite.store import SqliteLogStore
from loadtests.records import Record
from tests.storage.batches import append, make_batch, read_all, record
from tests.storage.conftest import SealedStore
from tests.storage.sqlite.conftest import RECOVERY_S_MAX, names_in

pytestmark = pytest.mark.anyio

MakeStore = Callable[..., SqliteLogStore]
PAST = 20_000


def damage(path: Path) -> None:
    """Overwrite a database behind its first page."""
    with path.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xa5" * (path.stat().st_size - PAGE_BYTES))


async def fill(directory: Path, make: MakeStore, day: int | None = None) -> None:
    """Store a log on a past day, and one today or on another day; leave the files at rest."""
    store = make()
    await store.open()
    await append(store, "acme", record(run_id="past"), day=PAST)
    await append(store, "acme", record(run_id="other"), day=day)
    await store.aclose()


async def read_in_the_end(store: SqliteLogStore) -> list[Record]:
    """Read all logs, as often as the store asks for."""
    async with asyncio.timeout(RECOVERY_S_MAX):
        while True:
            try:
                return await read_all(store, LogQuery("acme"))
            except StorageUnavailable:
                await asyncio.sleep(0.01)


def aside_of(directory: Path, day: int) -> list[str]:
    """Give the names of what was set aside of a day."""
    prefix = f"{day_path(directory, day).name}.corrupt-"
    return [name for name in names_in(directory) if name.startswith(prefix)]


@pytest.mark.parametrize("is_open", [False, True], ids=["before the start", "while open"])
@pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(b"x" * 50_000)])
async def test_a_damaged_day_costs_the_others_nothing(
    directory: Path, open_stores: MakeStore, harm: Callable[[Path], None], *, is_open: bool
) -> None:
    """A file that is damaged is kept under another name, and the rest is read and written."""
    await fill(directory, open_stores)
    store = open_stores()
    if not is_open:
        harm(day_path(directory, PAST))
    await store.open()
    if is_open:
        harm(day_path(directory, PAST))
    assert [log["run_id"] for log in await read_in_the_end(store)] == ["other"]
    assert len(aside_of(directory, PAST)) >= 1
    await append(store, "acme", record(run_id="more"))
    assert len(await read_all(store, LogQuery("acme"))) == 2


async def test_a_day_that_is_written_to(directory: Path, open_stores: MakeStore) -> None:
    """Of a damaged day the next logs go to a new file."""
    await fill(directory, open_stores, day=PAST + 1)
    damage(day_path(directory, PAST))
    store = open_stores()
    await store.open()
    async with asyncio.timeout(RECOVERY_S_MAX):
        while True:
            try:
                batch = make_batch(store.clock, "acme", [record(run_id="new", id="x")], day=PAST)
                await store.append(batch)
            except StorageUnavailable:
                await asyncio.sleep(0.01)
            else:
                break
    assert {log["run_id"] for log in await read_in_the_end(store)} == {"other", "new"}


async def test_a_damaged_block(directory: Path) -> None:
    """A block that is not what was packed is damage too, and never half a page."""
    store = SealedStore(directory)
    await store.open()
    for day in (PAST, PAST + 1):
        await append(store, "acme", record(run_id=str(day)), day=day)
    with sqlite3.connect(day_path(directory, PAST)) as db:
        [(packed,)] = db.execute("SELECT logs FROM blocks").fetchall()
        harmed = packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]
        db.execute("UPDATE blocks SET logs = ?", (harmed,))
    db.close()
    assert [log["run_id"] for log in await read_in_the_end(store)] == [str(PAST + 1)]
    assert len(aside_of(directory, PAST)) >= 1
    await store.aclose()


def test_only_the_file_that_was_damaged(tmp_path: Path) -> None:
    """What has been set aside or replaced meanwhile is left alone."""
    path = day_path(tmp_path, PAST)
    assert set_aside(tmp_path, PAST, 1) is None
    create_day(path)
    inode = path.stat().st_ino
    assert set_aside(tmp_path, PAST, inode + 1) is None
    aside = set_aside(tmp_path, PAST, inode)
    assert aside is not None
    assert aside.stat().st_ino == inode
    assert not path.exists()


def test_other_faults_are_no_damage() -> None:
    """A fault that passes, or is the question's own, sets no file aside."""
    for error in (sqlite3.OperationalError("database is locked"), sqlite3.DatabaseError("other")):
        with pytest.raises(sqlite3.DatabaseError) as caught, damage_named(PAST, 1):
            raise error
        assert not isinstance(caught.value, CorruptDay)
