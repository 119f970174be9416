"""The embedded log store: writes through the writer process, reads from the files themselves."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog

from app.errors import Overloaded, StorageUnavailable
from app.logs.aggregation import Aggregation, Cell
from app.logs.batch import Batch, Receipt, StoredOutcome
from app.logs.dead_letters import RejectedQuery
from app.logs.erasure import Erased, Tally
from app.logs.identity import ArrivalClock, parse_id, received_us
from app.logs.place import STREAM_LOGS_MAX, Following, Place
from app.logs.query import LogQuery, Page, Portion, UsageQuery, UsageRow
from app.logs.retention import FOR_EVER, Expired, Policies
from app.logs.selection import Selection
from app.sqlite import sqlite3
from app.storage.sqlite.client import ANSWER_S_MAX, WriterClient
from app.storage.sqlite.corruption import CorruptDay
from app.storage.sqlite.erasing import ERASE_ROWS_MAX
from app.storage.sqlite.expiring import Search
from app.storage.sqlite.reader import SqliteReader
from app.storage.sqlite.sources import LOWEST, id_of
from app.storage.sqlite.wire import Key

READ_THREADS = 4
READS_WAITING_MAX = 64
# For those who follow the logs: hundreds at once, a millisecond each, and not behind queries.
FOLLOW_THREADS = 2
# From the asking to the answer: a filter that matches next to nothing reads everything, and who
# waits behind a few of those is better told so than left waiting.
QUERY_S_MAX = 10.0
# For the running queries to see that they should end; one that hangs in its disk is left behind.
CLOSE_S_MAX = 5.0
# To find the next logs to erase: a filter that matches next to nothing may read everything, and
# giving up would never end the job.
ERASE_READ_S_MAX = 300.0
# What arrives later than this after an erasure began is left: logs that keep coming must not keep
# it from its end. A moment later, since the clocks of workers run ahead of time in a burst.
ARRIVED_AHEAD_US_MAX = 10_000_000

Q = TypeVar("Q")
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
        self._window = dedup_window_days
        self._writer = WriterClient(directory, dedup_window_days, self.clock, answer_s_max)
        self._reader = SqliteReader(directory)
        self._query_s_max = query_s_max
        self._reading = 0
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")
        self._follow_threads = ThreadPoolExecutor(FOLLOW_THREADS, thread_name_prefix="follow")

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

    async def aggregate(self, query: Aggregation) -> list[list[Cell]]:
        """See LogStore.aggregate."""
        return await self._read(self._reader.table, query)

    async def portion(self, query: LogQuery) -> Portion:
        """See LogStore.portion."""
        return await self._read(self._reader.portion, query)

    async def follow(
        self, client_id: str, after: Place | None, limit: int = STREAM_LOGS_MAX
    ) -> Following:
        """See LogStore.follow."""
        asked = (client_id, after, limit)
        return await self._read_in(self._follow_threads, self._reader.following, asked)

    def next_commit(self, client_id: str) -> asyncio.Future[None]:
        """See LogStore.next_commit."""
        return self._writer.next_commit(client_id)

    async def rejected(self, query: RejectedQuery) -> Page:
        """See LogStore.rejected."""
        return await self._read(self._reader.rejected, query)

    async def erase(self, client_id: str, selection: Selection) -> Erased:
        """See LogStore.erase."""
        tally = Tally()
        arrived_until = time.time_ns() // 1000 + ARRIVED_AHEAD_US_MAX
        query = LogQuery(client_id, **selection.members(), order="asc")
        while True:
            portion = await self._read_in(
                self._threads, self._reader.portion, query, ERASE_READ_S_MAX
            )
            ids = [id_of(line) for line in portion.lines.split(b"\n")[:-1]]
            for at in range(0, len(ids), ERASE_ROWS_MAX):
                await self._erase(client_id, ids[at : at + ERASE_ROWS_MAX], arrived_until, tally)
            if portion.last_id is None:
                break
            query = replace(query, after=parse_id(portion.last_id))
        if selection == Selection():
            for day in self._reader.days():
                while (await self._writer.erase(day, client_id, None)).more:
                    pass
        return tally.total()

    async def _erase(
        self, client_id: str, ids: list[str], arrived_until: int, tally: Tally
    ) -> None:
        """Erase logs that have arrived by then, each from its day's file."""
        by_day: dict[int, dict[Key, str]] = {}
        for id_ in ids:
            place = parse_id(id_)
            if place is not None and received_us(place.day, place.seq) <= arrived_until:
                by_day.setdefault(place.day, {})[place.us, place.seq] = id_
        gone: list[str] = []
        for day, id_of_place in by_day.items():
            erased = await self._writer.erase(day, client_id, list(id_of_place))
            gone += [id_of_place[place] for place in erased.places]
        tally.add(sorted(gone))

    async def expire(self, policies: Policies, today: int) -> Expired:
        """See LogStore.expire."""
        total = Expired()
        for day in sorted(self._reader.days()):
            if any(policy.may_be_over(today - day) for policy in policies.values()):
                total += await self._expire_day(day, today - day, policies)
        return total

    async def _expire_day(self, day: int, age_days: int, policies: Policies) -> Expired:
        names, id_owners = await self._find(self._reader.contents, day)
        over = [
            (client_id, dataset)
            for client_id, dataset in names
            if policies.get(client_id, FOR_EVER).is_over(dataset, age_days)
        ]
        # A day more than the window: see DayFiles.around.
        keeps_ids = age_days <= self._window + 1
        if not keeps_ids and len(over) == len(names):
            while (await self._paced(self._writer.retire(day, names))).more:
                pass
            return Expired(days=1)
        datasets_of: dict[str, list[str | None]] = {}
        if not keeps_ids:
            datasets_of = {client_id: [] for client_id in id_owners}
        for client_id, dataset in over:
            datasets_of.setdefault(client_id, []).append(dataset)
        logs = 0
        for client_id, datasets in datasets_of.items():
            logs += await self._expire_logs(day, client_id, datasets, keeps_ids=keeps_ids)
        return Expired(logs=logs)

    async def _expire_logs(
        self, day: int, client_id: str, datasets: list[str | None], *, keeps_ids: bool
    ) -> int:
        """Delete a client's logs and rejected records of these datasets; return how many logs."""
        logs = 0
        after = LOWEST
        while True:
            search = Search(day, client_id, datasets, after)
            places = await self._find(self._reader.places, search)
            answer = await self._paced(
                self._writer.expire(day, client_id, datasets, places, keeps_ids=keeps_ids)
            )
            logs += len(answer.places)
            if len(places) < ERASE_ROWS_MAX and not answer.more:
                return logs
            after = places[-1] if places else after

    async def _find(self, read: Callable[[Q, float], T], query: Q) -> T:
        return await self._read_in(self._threads, read, query, ERASE_READ_S_MAX)

    async def _paced(self, asked: Awaitable[T]) -> T:
        """Leave the writer to others for as long as it took: nobody waits for what expires."""
        started = time.monotonic()
        answer = await asked
        await asyncio.sleep(time.monotonic() - started)
        return answer

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
            async with asyncio.timeout(CLOSE_S_MAX):
                for threads in (self._follow_threads, self._threads):
                    await asyncio.to_thread(threads.shutdown)
        except TimeoutError:
            log.warning("a query does not end")
        else:
            self._reader.close()
        await self._writer.aclose()

    async def _read(self, read: Callable[[Q, float], T], query: Q) -> T:
        if self._reading >= READ_THREADS + READS_WAITING_MAX:
            raise Overloaded
        self._reading += 1
        try:
            return await self._read_in(self._threads, read, query)
        finally:
            self._reading -= 1

    async def _read_in(
        self,
        threads: ThreadPoolExecutor,
        read: Callable[[Q, float], T],
        query: Q,
        query_s_max: float | None = None,
    ) -> T:
        if self._reader.stopped:
            raise StorageUnavailable("closed")
        deadline = time.monotonic() + (query_s_max or self._query_s_max)
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, read, query, deadline)
        except CorruptDay as damage:
            self._writer.set_aside(damage.day, damage.inode)
            raise StorageUnavailable(str(damage)) from damage
        except (sqlite3.Error, OSError) as error:
            raise StorageUnavailable(repr(error)) from error
