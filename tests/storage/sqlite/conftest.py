"""The writer process of a store under test, and the store itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from app.errors import StorageUnavailable
from app.storage.sqlite.store import SqliteLogStore

RECOVERY_S_MAX = 20.0
WRITER = "app.storage.sqlite.writer"


def writers_of(directory: Path) -> list[psutil.Process]:
    """Give the running writer processes of a directory, children of this one."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if {str(directory.resolve()), WRITER} <= set(child.cmdline()):
                found.append(child)
    return found


def writer_of(directory: Path) -> psutil.Process:
    """Give the one writer process of a directory."""
    [writer] = writers_of(directory)
    return writer


def wait_for_one_writer(directory: Path) -> None:
    """Wait until those writers that lost a race for the directory have left."""
    deadline = time.monotonic() + RECOVERY_S_MAX
    while len(writers_of(directory)) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def names_in(directory: Path) -> list[str]:
    """Give the names of a directory's files, in order."""
    return sorted(one.name for one in directory.iterdir())


async def lost(store: SqliteLogStore) -> None:
    """Wait until a store has seen that its writer is gone."""
    async with asyncio.timeout(RECOVERY_S_MAX):
        with suppress(StorageUnavailable):
            while True:
                await store.ping()


async def recovered(store: SqliteLogStore) -> None:
    """Wait until a store takes writes again, by itself."""
    async with asyncio.timeout(RECOVERY_S_MAX):
        while True:
            try:
                await store.ping()
            except StorageUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


async def close(store: SqliteLogStore) -> None:
    """Close a store, and see its writer end, if it is the one who started it."""
    await store.aclose()
    process = store._writer._process  # noqa: SLF001  # on a slow machine it outlives the loop
    if process is not None:
        with suppress(TimeoutError):  # it may stay for another store of the test
            await asyncio.wait_for(process.wait(), 3)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give the directory of the store's files."""
    path = tmp_path / "logs"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
async def sqlite_store(directory: Path) -> AsyncIterator[SqliteLogStore]:
    """Give an empty store, closed after the test."""
    store = SqliteLogStore(directory, dedup_window_days=7)
    await store.open()
    yield store
    await close(store)


@pytest.fixture
async def open_stores(directory: Path) -> AsyncIterator[Callable[..., SqliteLogStore]]:
    """Give a function that makes stores over one directory, all closed after the test."""
    made: list[SqliteLogStore] = []

    def make(**options: float) -> SqliteLogStore:
        made.append(SqliteLogStore(directory, 7, **options))
        return made[-1]

    yield make
    await asyncio.gather(*(close(store) for store in made))
