"""Stores to test: each backend opens any number of stores, the workers of one service."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.logs.batch import Batch, Receipt
from app.logs.store import LogStore
from app.sqlite import sqlite3
from app.storage.memory import Contents, MemoryLogStore
from app.storage.open import open_store
from app.storage.sqlite.schema import day_path
from app.storage.sqlite.sealer import WriterLink
from app.storage.sqlite.sealing import Client, build_seals
from app.storage.sqlite.store import SqliteLogStore


class MemoryBackend:
    """Stores over one memory."""

    def __init__(self, _path: Path) -> None:
        self._contents = Contents()

    async def open(self) -> LogStore:
        """Open one more."""
        return MemoryLogStore(self._contents)


class SqliteBackend:
    """Stores over one data directory."""

    def __init__(self, path: Path) -> None:
        self._data_dir = path

    async def open(self) -> LogStore:
        """Open one more."""
        return await open_store("", self._data_dir, dedup_window_days=7)


class SealedStore(SqliteLogStore):
    """Seals each log as soon as it is stored, long before the sealer would."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, dedup_window_days=7)
        self._one_at_a_time = asyncio.Lock()
        self._link: WriterLink | None = None

    async def append(self, batch: Batch) -> Receipt:
        """Store a batch, and return when it is in blocks."""
        receipt = await super().append(batch)
        async with self._one_at_a_time:
            await asyncio.to_thread(self._seal, batch.day, batch.client_id)
        return receipt

    def _seal(self, day: int, client_id: str) -> None:
        if self._link is None:
            self._link = WriterLink(self._directory)
        db = sqlite3.connect(day_path(self._directory, day))
        [(client,)] = db.execute("SELECT id FROM clients WHERE client_id = ?", (client_id,))
        for seal in build_seals(db, day, Client(client, client_id)):
            self._link.seal(seal)  # unless another store of the test has done it meanwhile
        db.close()

    async def aclose(self) -> None:
        """Hang up."""
        if self._link is not None:
            self._link.close()
        await super().aclose()


class SealedBackend(SqliteBackend):
    """Stores over one data directory in which all logs are sealed."""

    async def open(self) -> LogStore:
        """Open one more."""
        directory = self._data_dir / "logs"
        directory.mkdir(exist_ok=True)
        store = SealedStore(directory)
        await store.open()
        return store


Backend = SqliteBackend | MemoryBackend
BACKENDS = [SqliteBackend, SealedBackend, MemoryBackend]


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, as the product does."""
    return "asyncio"


@pytest.fixture(params=BACKENDS, ids=["sqlite", "sealed", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Give one backend without any store opened."""
    kind: Callable[[Path], Backend] = request.param
    return kind(tmp_path)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[LogStore]:
    """Give an empty store, closed after the test."""
    opened = await backend.open()
    yield opened
    await opened.aclose()


@pytest.fixture
async def stores(backend: Backend, store: LogStore) -> AsyncIterator[tuple[LogStore, LogStore]]:
    """Give two stores over one empty place, as two workers have them."""
    second = await backend.open()
    yield store, second
    await second.aclose()


@pytest.fixture
def hypothesis_clients() -> list[str]:
    """Name a client of its own for every example, so that one store serves them all."""
    return [f"client-{number}" for number in range(10_000)]
