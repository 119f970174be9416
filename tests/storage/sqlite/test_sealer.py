"""Tests of app.storage.sqlite.sealer, as a process: its work, its life, its death."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from app.logs.query import LogQuery, Order, UsageQuery
from app.logs.search import parse_search
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_LOGS
from app.storage.sqlite.schema import day_path, list_days
from app.storage.sqlite.sealer import (
    LOOKING_PART_MAX,
    PAUSE_S,
    WriterGone,
    WriterLink,
    pause_s,
    seal_day,
)
from app.storage.sqlite.sealing import SEAL_LOGS, WAITING_LOGS, Client, build_seals
from app.storage.sqlite.store import SqliteLogStore
from tests.storage.batches import ORDERS, append, make_batch, read_all, record
from tests.storage.sqlite.conftest import RECOVERY_S_MAX, lost, names_in, recovered, writer_of

pytestmark = pytest.mark.anyio

MakeStore = Callable[..., SqliteLogStore]
SEALER = "app.storage.sqlite.sealer"
PAST_DAY = 20_000


def _sealers_of(directory: Path) -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if {str(directory.resolve()), SEALER} <= set(child.cmdline()):
                found.append(child)
    return found


async def _until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(RECOVERY_S_MAX):
        while not happened():  # noqa: ASYNC110  # of other processes there are no events
            await asyncio.sleep(0.01)


def _count(path: Path, table: str) -> int:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        db.close()


@pytest.fixture
def link(sqlite_store: SqliteLogStore, directory: Path) -> Iterator[WriterLink]:
    """Connect as a sealer, beside the one that comes and goes by itself."""
    opened = WriterLink(directory)
    yield opened
    opened.close()


async def _seal_all(link: WriterLink, directory: Path) -> None:
    for day in list_days(directory):
        await asyncio.to_thread(seal_day, directory, day, 1, link)


async def _fill(store: SqliteLogStore, count: int, name: str, day: int | None = None) -> None:
    """Append logs of random times, in batches."""
    random = Random(name)
    for at in range(0, count, 200):
        sent = [
            record(
                executed_at=1_780_272_000 + random.randrange(300),
                run_id=f"{name}-{n}",
                message=f"{name} of {n % 7}",
            )
            for n in range(at, min(count, at + 200))
        ]
        await append(store, "acme", *sent, day=day)


async def test_many_logs_are_sealed_by_themselves(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """Once so many logs of a client wait, the process that the writer has started seals them."""
    await _fill(sqlite_store, WAITING_LOGS, "many")
    await append(sqlite_store, "other", record())
    before = await read_all(sqlite_store, LogQuery("acme", limit=1000))
    [path] = list_days(directory).values()
    await _until(lambda: _count(path, "sealed") == WAITING_LOGS)
    assert _count(path, "logs") == 1
    assert await read_all(sqlite_store, LogQuery("acme", limit=1000)) == before


def test_work_is_not_paid_for_with_idleness() -> None:
    """However long it sealed, the sealer looks again soon; only looks in vain are made rare."""
    assert pause_s(600.0, has_worked=True) == PAUSE_S
    assert pause_s(0.001, has_worked=False) == PAUSE_S
    assert pause_s(0.5, has_worked=False) == 0.5 / LOOKING_PART_MAX


async def test_a_day_that_is_over_is_sealed_whole(open_stores: MakeStore, directory: Path) -> None:
    """Of a past day no log waits, however few a client has."""
    store = open_stores()
    await store.open()
    await append(store, "acme", record(), record(executed_at=1), day=PAST_DAY)
    await append(store, "other", record(), day=PAST_DAY)
    await append(store, "acme", record())
    await store.aclose()
    store = open_stores()  # at its start the sealer looks at the past
    await store.open()
    path = day_path(directory, PAST_DAY)
    await _until(lambda: _count(path, "logs") == 0)
    assert _count(path, "sealed") == 3
    assert len(await read_all(store, LogQuery("acme"))) == 3


async def test_the_sealer_ends_with_the_writer(open_stores: MakeStore, directory: Path) -> None:
    """It keeps no writer alive, and is gone with it."""
    store = open_stores()
    await store.open()
    await _until(lambda: _sealers_of(directory))
    [sealer], writer = _sealers_of(directory), writer_of(directory)
    await store.aclose()
    await _until(lambda: not psutil.pid_exists(writer.pid) and not psutil.pid_exists(sealer.pid))


async def test_the_day_is_folded_though_the_sealer_reads_it(
    open_stores: MakeStore, directory: Path
) -> None:
    """A clean end leaves one file a day also while there is much to be sealed."""
    store = open_stores()
    await store.open()
    await _fill(store, 8 * SEAL_LOGS, "much")
    [path] = list_days(directory).values()
    await _until(lambda: _count(path, "sealed"))
    assert _sealers_of(directory)
    await store.aclose()
    await _until(lambda: f"{path.name}-wal" not in names_in(directory))
    assert [name for name in names_in(directory) if ".db" in name] == [path.name]


async def test_a_dead_sealer_is_followed_by_another(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """Killed, it is started anew."""
    await _until(lambda: _sealers_of(directory))
    [sealer] = _sealers_of(directory)
    sealer.kill()
    await _until(lambda: [one for one in _sealers_of(directory) if one.pid != sealer.pid])
    await append(sqlite_store, "acme", record())


async def test_a_link_knows_when_the_writer_is_gone(
    sqlite_store: SqliteLogStore, directory: Path, link: WriterLink
) -> None:
    """While the writer lives time passes; its death ends whatever is waited for."""
    started = time.monotonic()
    link.wait(0.05)
    assert time.monotonic() - started >= 0.05
    writer_of(directory).kill()
    with pytest.raises(WriterGone):
        link.wait(RECOVERY_S_MAX)
    await lost(sqlite_store)
    await recovered(sqlite_store)


async def test_a_seal_of_a_day_is_on_disk(
    sqlite_store: SqliteLogStore, directory: Path, link: WriterLink
) -> None:
    """What the writer said it has done outlives its death, and so does what it refused."""
    await _fill(sqlite_store, 3 * BLOCK_LOGS, "done")
    before = await read_all(sqlite_store, LogQuery("acme", limit=1000))
    [(day, path)] = list_days(directory).items()
    db = sqlite3.connect(path)
    [seal], [again] = ([*build_seals(db, day, Client(1, "acme"))] for _ in range(2))
    db.close()
    assert link.seal(seal)
    assert not link.seal(again)
    writer_of(directory).kill()
    await lost(sqlite_store)
    await recovered(sqlite_store)
    assert _count(path, "sealed") == 3 * BLOCK_LOGS
    assert await read_all(sqlite_store, LogQuery("acme", limit=1000)) == before


QUESTIONS = (
    LogQuery("acme", limit=97),
    LogQuery("acme", limit=1000, order="asc"),
    LogQuery("acme", limit=61, search=parse_search("first -3")),
    LogQuery("acme", limit=53, search=parse_search('"first of 4"'), order="asc"),
)


async def _read_on(store: SqliteLogStore, query: LogQuery, writing: asyncio.Event) -> int:
    """Read all pages again and again; those logs that were there first are always on them."""
    wanted = len([n for n in range(2000) if query.search is None or _is_meant(query, n)])
    rounds = 0
    while writing.is_set() or not rounds:
        logs = await read_all(store, query)
        ids = [log["id"] for log in logs]
        assert ids == sorted(set(ids), reverse=query.order == "desc")
        assert sum(log["run_id"].startswith("first") for log in logs) == wanted
        rounds += 1
    return rounds


def _is_meant(query: LogQuery, number: int) -> bool:
    return (number % 7 != 3) if query.order == "desc" else (number % 7 == 4)


async def test_pages_hold_while_logs_are_written_and_sealed(
    open_stores: MakeStore, directory: Path
) -> None:
    """Readers of two workers miss no log and see none twice while all is written and sealed."""
    stores = [open_stores(), open_stores()]
    for store in stores:
        await store.open()
    await _fill(stores[0], 2000, "first")
    link = WriterLink(directory)
    writing = asyncio.Event()
    writing.set()
    readers = [
        asyncio.create_task(_read_on(stores[n % 2], query, writing))
        for n, query in enumerate(QUESTIONS)
    ]
    for n in range(8):
        await _fill(stores[n % 2], 400, f"more{n}")
        await _seal_all(link, directory)
    writing.clear()
    rounds = await asyncio.gather(*readers)
    link.close()
    assert all(rounds)
    [path] = list_days(directory).values()
    assert _count(path, "sealed") >= 2000


async def _send_on(store: SqliteLogStore, name: str, sent: set[str], stop: asyncio.Event) -> None:
    """Append batches until told to stop; note those that are known to be stored."""
    number = 0
    while not stop.is_set():
        runs = [f"{name}-{number}-{n}" for n in range(100)]
        batch = make_batch(store.clock, "acme", [record(run_id=run, id=run) for run in runs])
        number += 1
        with suppress(Exception):
            await store.append(batch)
            sent.update(runs)
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("victim", ["sealer", "writer"])
async def test_kill_9_while_logs_are_sealed(
    open_stores: MakeStore, directory: Path, victim: str
) -> None:
    """Whichever process dies in the midst of sealing, each stored log is there once."""
    random = Random(victim)
    store = open_stores()
    await store.open()
    sent: set[str] = set()
    stop = asyncio.Event()
    sender = asyncio.create_task(_send_on(store, victim, sent, stop))
    for _ in range(6):
        before = len(sent)
        await _until(lambda before=before: len(sent) > before + 500)  # type: ignore[misc]
        sealing = asyncio.create_task(asyncio.to_thread(_seal_until_dead, directory))
        await asyncio.sleep(random.random() * 0.05)
        if victim == "writer":
            writer_of(directory).kill()
            await lost(store)
        else:
            for sealer in _sealers_of(directory):
                with suppress(psutil.NoSuchProcess):
                    sealer.kill()
        await sealing
        await recovered(store)
    stop.set()
    await sender
    logs = await read_all(store, LogQuery("acme", limit=1000))
    runs = [log["run_id"] for log in logs]
    assert len(runs) == len(set(runs))
    assert sent <= set(runs)
    [usage] = await store.usage(UsageQuery("acme", "key"))
    assert usage.counts[1] == len(runs)
    for path in list_days(directory).values():
        assert _count(path, "sealed")
        db = sqlite3.connect(path)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        [(counted,)] = db.execute("SELECT sum(logs) FROM hours").fetchall()
        assert counted == _count(path, "sealed")
        db.close()


def _seal_until_dead(directory: Path) -> None:
    """Seal what there is, twice, unless the writer dies meanwhile."""
    with suppress(WriterGone, OSError):
        link = WriterLink(directory)
        try:
            for _ in range(2):
                for day in list_days(directory):
                    seal_day(directory, day, 1, link)
        finally:
            link.close()


@pytest.mark.parametrize("order", ORDERS)
async def test_sealed_and_waiting_logs_share_pages(
    sqlite_store: SqliteLogStore, directory: Path, link: WriterLink, order: Order
) -> None:
    """Logs of the same times, some sealed in many blocks and some not, come in their order."""
    for n in range(25):
        await _fill(sqlite_store, 20, f"part{n}")
        if n % 5 != 4:
            await _seal_all(link, directory)
    [path] = list_days(directory).values()
    assert _count(path, "blocks") >= 16
    for question in (None, parse_search("of 3")):
        query = LogQuery("acme", order=order, search=question, limit=1000)
        whole = await read_all(sqlite_store, query)
        ids = [log["id"] for log in whole]
        assert len(ids) == (500 if question is None else 75)
        assert ids == sorted(ids, reverse=order == "desc")
        for limit in (7, 64):
            paged = LogQuery("acme", order=order, search=question, limit=limit)
            assert json.dumps(await read_all(sqlite_store, paged)) == json.dumps(whole)
