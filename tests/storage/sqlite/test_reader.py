"""Tests of app.storage.sqlite.reader and the threads it runs in: bounds of time and number."""

import asyncio
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import Overloaded, StorageUnavailable
from app.logs.identity import ArrivalClock
from app.logs.query import PAGE_BYTES_MAX, LogQuery, UsageQuery
from app.sqlite import sqlite3
from app.storage.sqlite.day import DayFile
from app.storage.sqlite.reader import OPEN_FILES_MAX, SqliteReader
from app.storage.sqlite.schema import create_day, day_path
from app.storage.sqlite.store import READ_THREADS, READS_WAITING_MAX, SqliteLogStore
from tests.storage.batches import append, make_batch, read_all, record

pytestmark = pytest.mark.anyio

MakeStore = Callable[..., SqliteLogStore]

# Usage that has no end, and of which the query wants nothing.
ENDLESS = """
    CREATE VIEW usage AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)
    SELECT 1 AS client, x AS minute, '' AS key_id, '' AS dataset, 1 AS requests, 1 AS logs,
        1 AS bytes, 1 AS rejected, 1 AS denied FROM n"""
NOTHING = UsageQuery("acme", "key", start_minute=1 << 60)


@pytest.fixture
def endless(directory: Path) -> None:
    """Make a day whose usage cannot be read to its end."""
    create_day(day_path(directory, 20_000))
    connection = sqlite3.connect(day_path(directory, 20_000), isolation_level=None)
    connection.execute("INSERT INTO clients VALUES (1, 'acme')")
    connection.execute("DROP TABLE usage")
    connection.execute(ENDLESS)
    connection.close()


async def test_a_query_that_takes_too_long_is_ended(
    open_stores: MakeStore, endless: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A query fails in its time, waiting for others included, and then the threads are free."""
    store = open_stores(query_s_max=0.3)
    await store.open()
    started = time.monotonic()
    asked = [store.usage(NOTHING) for _ in range(3 * READ_THREADS)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert time.monotonic() - started < 3
    for result in results:
        assert isinstance(result, StorageUnavailable)
        assert result.reason == "the query took too long"
    await append(store, "acme", record())
    assert len(await read_all(store, LogQuery("acme"))) == 1


async def test_queries_that_wait_are_bounded(open_stores: MakeStore, endless: None) -> None:
    """Beyond so many in the queue a query is refused at once; the others are answered."""
    store = open_stores(query_s_max=0.5)
    await store.open()
    started = time.monotonic()
    more = 5
    allowed = READ_THREADS + READS_WAITING_MAX
    tasks = [asyncio.create_task(store.usage(NOTHING)) for _ in range(allowed + more)]
    await asyncio.sleep(0.1)
    refused = [task for task in tasks if task.done()]
    assert len(refused) == more
    assert all(isinstance(task.exception(), Overloaded) for task in refused)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, StorageUnavailable | Overloaded) for one in results)
    assert time.monotonic() - started < 3
    assert await read_all(store, LogQuery("acme")) == []


async def test_the_end_does_not_wait_for_queries(open_stores: MakeStore, endless: None) -> None:
    """On aclose running and waiting queries fail soon, and meanwhile the loop goes round."""
    store = open_stores(query_s_max=60)
    await store.open()
    tasks = [asyncio.create_task(store.usage(NOTHING)) for _ in range(3 * READ_THREADS)]
    await asyncio.sleep(0.2)
    assert not any(task.done() for task in tasks)
    started = time.monotonic()
    closing = asyncio.create_task(store.aclose())
    while not closing.done():
        before = time.monotonic()
        await asyncio.sleep(0.01)
        assert time.monotonic() - before < 0.5
    assert time.monotonic() - started < 4
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, StorageUnavailable) for one in results)
    with pytest.raises(StorageUnavailable):
        await store.page(LogQuery("acme"))


@pytest.mark.parametrize("member", ["message", "run_id", "workflow", "error", "metadata"])
def test_a_page_is_bounded_before_it_is_rendered(tmp_path: Path, member: str) -> None:
    """The store makes no more of a page than fits, whichever member makes its logs large."""
    value: object = "x" * 900_000
    value = {"text": value} if member in {"error", "metadata"} else value
    file = DayFile(day_path(tmp_path, 20_000), 20_000, lambda _: [])
    sent = [record(**{member: value}) for _ in range(25)]
    file.commit([make_batch(ArrivalClock(), "acme", sent, day=20_000)])
    file.close()
    reader = SqliteReader(tmp_path)
    tracemalloc.start()
    try:
        page = reader.page(LogQuery("acme", limit=1000), time.monotonic() + 60)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        reader.close()
    assert PAGE_BYTES_MAX - 1_000_000 < len(page.logs) < PAGE_BYTES_MAX
    assert page.last_id is not None
    assert peak < 4 * PAGE_BYTES_MAX


class CountingReader(SqliteReader):
    """Counts the connections it opens."""

    opened = 0

    def _open(self, day: int) -> "sqlite3.Connection":
        self.opened += 1
        return super()._open(day)


def test_more_days_than_may_be_open(tmp_path: Path) -> None:
    """A query over more files than may be open still finds most of them open."""
    beyond = 10
    for n in range(OPEN_FILES_MAX + beyond):
        create_day(day_path(tmp_path, 20_000 + n))
    reader = CountingReader(tmp_path)
    later = time.monotonic() + 60
    for _ in range(3):
        before = reader.opened
        assert reader.page(LogQuery("acme"), later).logs == ""
        assert reader.usage(UsageQuery(None, "key"), later) == []
    assert reader.opened - before <= 2 * (beyond + 1)
    reader.close()
