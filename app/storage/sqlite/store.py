"""The embedded log store: writes through the writer process, reads from the files themselves."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

from app.errors import StorageUnavailable
from app.logs.batch import Batch, Receipt, StoredOutcome
from app.logs.identity import ArrivalClock
from app.logs.query import LogQuery, Page, UsageQuery, UsageRow
from app.sqlite import sqlite3
from app.storage.sqlite.client import ANSWER_S_MAX, WriterClient
from app.storage.sqlite.reader import SqliteReader

READ_THREADS = 4

T = TypeVar("T")


class SqliteLogStore:
    """LogStore on day files in a directory of one machine."""

    def __init__(
        self, directory: Path, dedup_window_days: int, answer_s_max: float = ANSWER_S_MAX
    ) -> None:
        self.clock = ArrivalClock()
        self._writer = WriterClient(directory, dedup_window_days, self.clock, answer_s_max)
        self._reader = SqliteReader(directory)
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")

    async def open(self) -> None:
        """Connect to the writer process, which is started if it isn't there."""
        await self._writer.open()

    async def append(self, batch: Batch) -> Receipt:
        """See LogStore.append."""
        return await self._writer.append(batch)

    def claim(self, client_id: str, key: str) -> AbstractAsyncContextManager[StoredOutcome | None]:
        """See LogStore.claim."""
        return self._writer.claim(client_id, key)

    async def page(self, query: LogQuery) -> Page:
        """See LogStore.page."""
        return await self._read(lambda: self._reader.page(query))

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """See LogStore.usage."""
        return await self._read(lambda: self._reader.usage(query))

    async def ping(self) -> None:
        """See LogStore.ping."""
        await self._writer.ping()

    async def aclose(self) -> None:
        """See LogStore.aclose."""
        self._threads.shutdown()
        self._reader.close()
        await self._writer.aclose()

    async def _read(self, read: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, read)
        except (sqlite3.Error, OSError) as error:
            raise StorageUnavailable(repr(error)) from error
