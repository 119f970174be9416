"""Stores to test: each backend opens any number of stores, the workers of one service."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.logs.store import LogStore
from app.storage.memory import Contents, MemoryLogStore
from app.storage.open import open_store


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


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, as the product does."""
    return "asyncio"


@pytest.fixture(params=[SqliteBackend, MemoryBackend], ids=["sqlite", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteBackend | MemoryBackend:
    """Give one backend without any store opened."""
    kind: Callable[[Path], SqliteBackend | MemoryBackend] = request.param
    return kind(tmp_path)


@pytest.fixture
async def store(backend: SqliteBackend | MemoryBackend) -> AsyncIterator[LogStore]:
    """Give an empty store, closed after the test."""
    opened = await backend.open()
    yield opened
    await opened.aclose()


@pytest.fixture
async def stores(
    backend: SqliteBackend | MemoryBackend, store: LogStore
) -> AsyncIterator[tuple[LogStore, LogStore]]:
    """Give two stores over one empty place, as two workers have them."""
    second = await backend.open()
    yield store, second
    await second.aclose()
