"""Tests of app.storage.sqlite.client: what a worker does when its writer dies or stops."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import StorageUnavailable
from app.logs.batch import Batch, Idempotency
from app.logs.query import LogQuery, UsageQuery
from app.logs.store import ClaimHeld, LogStore
from app.storage.sqlite.client import BACKLOG_BYTES_MAX
from app.storage.sqlite.store import SqliteLogStore
from tests.storage.batches import append, make_batch, read_all, record
from tests.storage.sqlite.conftest import lost, recovered, writer_of

pytestmark = pytest.mark.anyio

MakeStore = Callable[..., SqliteLogStore]


def _once(store: LogStore, key: str) -> Batch:
    batch = make_batch(store.clock, "acme", [record()])
    batch.idempotency = Idempotency(key, b"digest", b"outcome")
    return batch


async def test_the_store_recovers_from_a_killed_writer(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """Each time the writer is killed another one takes over, and what had a receipt is there."""
    acknowledged = []
    for number in range(3):
        batches = [
            make_batch(sqlite_store.clock, "acme", [record(run_id=f"{number}-{n}")])
            for n in range(200)
        ]
        asked = [asyncio.ensure_future(sqlite_store.append(batch)) for batch in batches]
        await asked[0]
        writer_of(directory).kill()
        results = await asyncio.gather(*asked, return_exceptions=True)
        for n, result in enumerate(results):
            if isinstance(result, BaseException):
                assert isinstance(result, StorageUnavailable)
            else:
                acknowledged.append(f"{number}-{n}")
        await recovered(sqlite_store)
        logs = await read_all(sqlite_store, LogQuery("acme"))
        stored = [log["run_id"] for log in logs]
        assert len(stored) == len(set(stored))
        assert set(acknowledged) <= set(stored)
        [usage] = await sqlite_store.usage(UsageQuery("acme", "key"))
        assert usage.counts[1] == len(stored)


async def test_questions_fail_at_once_without_a_writer(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """What was asked of a writer that died fails, and so does what is asked before the next one."""
    writer = writer_of(directory)
    writer.suspend()
    pending = [
        asyncio.ensure_future(sqlite_store.append(make_batch(sqlite_store.clock, "a", [record()]))),
        asyncio.create_task(sqlite_store.ping()),
    ]
    await asyncio.sleep(0)
    writer.kill()
    results = await asyncio.gather(*pending, return_exceptions=True)
    assert [type(one) for one in results] == [StorageUnavailable] * 2
    with pytest.raises(StorageUnavailable):
        await sqlite_store.ping()
    await recovered(sqlite_store)


async def test_reads_go_on_without_a_writer(sqlite_store: SqliteLogStore, directory: Path) -> None:
    """Pages and usage are read from the files, whoever is dead or stopped."""
    await append(sqlite_store, "acme", record())
    writer = writer_of(directory)
    writer.suspend()
    assert len(await read_all(sqlite_store, LogQuery("acme"))) == 1
    writer.kill()
    await lost(sqlite_store)
    assert len(await read_all(sqlite_store, LogQuery("acme"))) == 1
    assert len(await sqlite_store.usage(UsageQuery("acme", "key"))) == 1
    await recovered(sqlite_store)


async def test_a_stopped_writer_fails_what_waits_too_long(
    open_stores: MakeStore, directory: Path
) -> None:
    """Questions to a writer that does not answer fail in time; it goes on when it can."""
    store = open_stores(answer_s_max=0.3)
    await store.open()
    await append(store, "acme", record(run_id="before"))
    writer = writer_of(directory)
    writer.suspend()
    late = make_batch(store.clock, "acme", [record(run_id="during")])
    async with asyncio.timeout(10):
        with pytest.raises(StorageUnavailable):
            await store.append(late)
        with pytest.raises(StorageUnavailable):
            async with store.claim("acme", "k"):
                pass
    writer.resume()
    await recovered(store)
    assert writer_of(directory).pid == writer.pid
    # What failed for want of an answer may be stored, but never twice, nor may it stay claimed.
    async with store.claim("acme", "k") as stored:
        assert stored is None
    await append(store, "acme", record(run_id="after"))
    runs = [log["run_id"] for log in await read_all(store, LogQuery("acme", order="asc"))]
    assert runs == ["before", "during", "after"]


async def test_what_waits_for_a_stopped_writer_is_bounded(
    open_stores: MakeStore, directory: Path
) -> None:
    """Senders that come back again and again do not fill the memory with what they sent."""
    store = open_stores(answer_s_max=60)
    await store.open()
    writer = writer_of(directory)
    writer.suspend()
    body = "m" * 4 * 1024**2
    waiting = []
    for _ in range(2 * BACKLOG_BYTES_MAX // len(body)):
        batch = make_batch(store.clock, "acme", [record(message=body[: 1024**2])] * 4)
        waiting.append(asyncio.ensure_future(store.append(batch)))
        await asyncio.sleep(0)  # the question is asked
        await asyncio.sleep(0)  # and sent
    refused = [one for one in waiting if one.done()]
    assert 0 < len(refused) < len(waiting)
    assert all(isinstance(one.exception(), StorageUnavailable) for one in refused)
    held = (len(waiting) - len(refused)) * len(body)
    assert held <= BACKLOG_BYTES_MAX + 2 * len(body)
    writer.resume()
    await asyncio.gather(*(one for one in waiting if one not in refused))
    assert len(await read_all(store, LogQuery("acme", limit=1000))) == 4 * held // len(body)


async def test_a_claim_of_a_dead_writer_is_not_honoured(
    open_stores: MakeStore, directory: Path
) -> None:
    """After a writer's death a key may be another's: who held it before cannot append with it."""
    one, two = open_stores(), open_stores()
    await one.open()
    await two.open()
    async with one.claim("acme", "k"):
        writer_of(directory).kill()
        await lost(one)
        await recovered(one)
        await recovered(two)
        async with two.claim("acme", "k") as stored:
            assert stored is None
            with pytest.raises(StorageUnavailable):
                await one.append(_once(one, "k"))
            await two.append(_once(two, "k"))
        with pytest.raises(StorageUnavailable):
            await one.append(_once(one, "k"))
    assert len(await read_all(one, LogQuery("acme"))) == 1


async def test_a_worker_tells_its_own_claims_apart_after_a_death(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """Two requests of one worker never hold one key, though the writer has forgotten the first."""
    async with sqlite_store.claim("acme", "k"):
        writer_of(directory).kill()
        await lost(sqlite_store)
        await recovered(sqlite_store)
        with pytest.raises(ClaimHeld):
            async with sqlite_store.claim("acme", "k"):
                pass
    async with sqlite_store.claim("acme", "k") as stored:
        assert stored is None
        await sqlite_store.append(_once(sqlite_store, "k"))


async def test_a_late_grant_takes_no_key_from_its_next_holder(
    open_stores: MakeStore, directory: Path
) -> None:
    """A claim that was granted too late is let go of, and the next one is not."""
    store, other = open_stores(answer_s_max=0.3), open_stores(answer_s_max=60)
    await store.open()
    await other.open()
    writer = writer_of(directory)
    writer.suspend()
    with pytest.raises(StorageUnavailable):
        async with store.claim("acme", "k"):
            pass
    second = store.claim("acme", "k")
    entering = asyncio.create_task(second.__aenter__())
    await asyncio.sleep(0)
    writer.resume()
    assert await entering is None
    await recovered(store)
    with pytest.raises(ClaimHeld):
        async with other.claim("acme", "k"):
            pass
    await store.append(_once(store, "k"))
    await second.__aexit__(None, None, None)
    assert len(await read_all(store, LogQuery("acme"))) == 1


@pytest.mark.parametrize("relative", [False, True])
async def test_a_data_directory_of_any_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    """A path too long for a Unix socket's name is no hindrance, from wherever the server runs."""
    deep = tmp_path.joinpath(*["a-long-name-of-a-directory"] * 6)
    deep.mkdir(parents=True)
    assert len(os.fsencode(deep)) > 108
    monkeypatch.chdir(tmp_path)
    store = SqliteLogStore(deep.relative_to(tmp_path) if relative else deep, 7)
    await store.open()
    await append(store, "acme", record())
    assert len(await read_all(store, LogQuery("acme"))) == 1
    await store.aclose()


async def test_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer starts from a directory that has another package of the service's name."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").touch()
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    store = SqliteLogStore(Path("logs"), 7)
    await store.open()
    await append(store, "acme", record())
    assert len(await read_all(store, LogQuery("acme"))) == 1
    await store.aclose()


async def test_no_writer_is_no_start(tmp_path: Path) -> None:
    """A store whose writer cannot run says so instead of waiting for ever."""
    store = SqliteLogStore(tmp_path / "not-there", 7, answer_s_max=0.5)
    with pytest.raises(StorageUnavailable):
        await store.open()
    await store.aclose()
