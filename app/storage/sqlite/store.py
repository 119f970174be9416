"""The embedded log store: writes through the writer process, reads from the files themselves."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import structlog

from app.errors import Overloaded, StorageUnavailable
from app.logs.batch import Batch, Receipt, StoredOutcome
from app.logs.identity import ArrivalClock
from app.logs.query import LogQuery, Page, UsageQuery, UsageRow
from app.sqlite import sqlite3
from app.storage.sqlite.client import ANSWER_S_MAX, WriterClient
from app.storage.sqlite.reader import SqliteReader

READ_THREADS = 4
READS_WAITING_MAX = 64
# From the asking to the answer: a filter that matches next to nothing reads everything, and who
# waits behind a few of those is better told so than left waiting.
QUERY_S_MAX = 10.0
# For the running queries to see that they should end; one that hangs in its disk is left behind.
CLOSE_S_MAX = 5.0

Q = TypeVar("Q", LogQuery, UsageQuery)
T = TypeVar("T")
log = structlog.get_logger(__name__)


class SqliteLogStore:
    """LogStore on day files in a directory of one machine."""

    def __init__(
        self,
        directory: Path,
        dedup_window_days: int,
        answer_s_max: float = ANSWER_S_MAX,
        query_s_max: float = QUERY_S_MAX,
    ) -> None:
        self.clock = ArrivalClock()
        self._directory = directory
        self._writer = WriterClient(directory, dedup_window_days, self.clock, answer_s_max)
        self._reader = SqliteReader(directory)
        self._query_s_max = query_s_max
        self._reading = 0
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")

    async def open(self) -> None:
        """Connect to the writer process, which is started if it isn't there."""
        await self._writer.open()

    def append(self, batch: Batch) -> Awaitable[Receipt]:
        """See LogStore.append."""
        return self._writer.append(batch)

    def claim(self, client_id: str, key: str) -> AbstractAsyncContextManager[StoredOutcome | None]:
        """See LogStore.claim."""
        return self._writer.claim(client_id, key)

    async def page(self, query: LogQuery) -> Page:
        """See LogStore.page."""
        return await self._read(self._reader.page, query)

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """See LogStore.usage."""
        return await self._read(self._reader.usage, query)

    async def ping(self) -> None:
        """See LogStore.ping."""
        await self._writer.ping()

    async def aclose(self) -> None:
        """See LogStore.aclose."""
        self._reader.stop()
        try:
            await asyncio.wait_for(asyncio.to_thread(self._threads.shutdown), CLOSE_S_MAX)
        except TimeoutError:
            log.warning("a query does not end")
        else:
            self._reader.close()
        await self._writer.aclose()

    async def _read(self, read: Callable[[Q, float], T], query: Q) -> T:
        if self._reader.stopped:
            raise StorageUnavailable("closed")
        if self._reading >= READ_THREADS + READS_WAITING_MAX:
            raise Overloaded
        deadline = time.monotonic() + self._query_s_max
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, read, query, deadline
            )
        except (sqlite3.Error, OSError) as error:
            raise StorageUnavailable(repr(error)) from error
        finally:
            self._reading -= 1
