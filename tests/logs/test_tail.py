"""Tails over a store: each gets what matches, once; who is too slow ends and can resume."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest

from app.errors import Overloaded, RateLimited, StorageUnavailable
from app.logs import tail as tail_module
from app.logs.place import STREAM_LOGS_MAX, Following, Place, Places
from app.logs.selection import Selection
from app.logs.tail import (
    CHUNK_BYTES,
    CLIENT_TAILS_MAX,
    QUEUE_BYTES_MAX,
    SLOW,
    STOPPING,
    TAILS_MAX,
    Tail,
    Tails,
)
from app.storage.memory import MemoryLogStore
from tests.storage.batches import append, record

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 20.0
ALL = Selection()


class Store(MemoryLogStore):
    """A memory that can fail, and counts how often it is read."""

    fails = False
    reads = 0

    async def follow(
        self, client_id: str, after: Place | None, limit: int = STREAM_LOGS_MAX
    ) -> Following:
        """Fail, if it should."""
        self.reads += 1
        await asyncio.sleep(0)
        if self.fails:
            raise StorageUnavailable("as told")
        return await super().follow(client_id, after, limit)


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, as the product does."""
    return "asyncio"


@pytest.fixture
def store() -> Store:
    """Give an empty store."""
    return Store()


@pytest.fixture
async def tails(store: Store) -> AsyncIterator[Tails]:
    """Give the tails of a process."""
    opened = Tails(store, Places(b"secret"))
    yield opened
    await opened.aclose()


async def send(store: Store, *messages: str, client_id: str = "acme") -> None:
    """Store logs, each in a commit of its own."""
    for message in messages:
        await append(store, client_id, record(message=message))


async def read(tail: Tail, count: int) -> list[str]:
    """Give the messages of the next `count` logs."""
    found: list[str] = []
    async with asyncio.timeout(WAIT_S_MAX):
        while len(found) < count:
            await tail.wait(1)
            while tail.pending:
                found += messages(tail.take())
    return found


async def joined(tail: Tail) -> None:
    """Wait until a tail has caught up."""
    await tail.wait(0.01)
    assert not tail.pending


def messages(events: bytes) -> list[str]:
    """Give the messages in events, in order."""
    return [json.loads(one)["message"] for one in re.findall(r"(?m)^data: (.*)$", events.decode())]


async def test_all_tails_get_all_logs_from_one_read(tails: Tails, store: Store) -> None:
    """Each tail of a client gets each new log once, and the store is read once for all."""
    opened = [await tails.open("acme", ALL, None) for _ in range(100)]
    for tail in opened:
        await joined(tail)
    store.reads = 0
    await send(store, "a", "b")
    await send(store, "not ours", client_id="other")
    assert [await read(tail, 2) for tail in opened] == [["a", "b"]] * 100
    assert store.reads < 10


async def test_each_tail_has_its_own_filters(tails: Tails, store: Store) -> None:
    """A tail gets what matches its own filters, and passes over the rest."""
    failed = await tails.open("acme", Selection(filters={"status": ("FAILED",)}), None)
    every = await tails.open("acme", ALL, None)
    for tail in (failed, every):
        await joined(tail)
    before = failed.last_id
    await append(store, "acme", record(message="fine"))
    assert await read(every, 1) == ["fine"]
    assert not failed.pending
    assert failed.last_id != before
    await append(store, "acme", record(message="bad", status="FAILED"))
    assert await read(failed, 1) == ["bad"]
    assert await read(every, 1) == ["bad"]


async def test_a_log_is_on_one_line(tails: Tails, store: Store) -> None:
    """Whatever is in a log, no reader sees more than one line of it, and all texts are whole."""
    tail = await tails.open("acme", ALL, None)
    text = "a\nb\rc\x0bd\x1ce\x85f\u2028g\u2029h é"
    await append(store, "acme", record(message=text, metadata={text: text}))
    while not tail.pending:
        await tail.wait(1)
    [data] = [line for line in tail.take().decode().splitlines() if not line.startswith("id: ")][:1]
    log = json.loads(data.removeprefix("data: "))
    assert (log["message"], log["metadata"]) == (text, {text: text})


async def test_a_tail_resumes_where_it_was(tails: Tails, store: Store) -> None:
    """From the id of any event on, the logs behind it come once, and then the new ones."""
    first = await tails.open("acme", ALL, None)
    await send(store, *map(str, range(30)))
    assert await read(first, 30) == [str(n) for n in range(30)]
    again = await tails.open("acme", ALL, None)
    await joined(again)
    place = again.place
    await send(store, *map(str, range(30, 40)))
    resumed = await tails.open("acme", ALL, place)
    reading = asyncio.create_task(read(resumed, 20))
    await send(store, *map(str, range(40, 50)))
    assert await reading == [str(n) for n in range(30, 50)]
    assert await read(again, 20) == [str(n) for n in range(30, 50)]


async def test_a_tail_that_is_behind_does_not_repeat_for_the_others(
    tails: Tails, store: Store
) -> None:
    """One that joins with a place behind the others' gets what it lacks, and they nothing twice."""
    first = await tails.open("acme", ALL, None)
    await joined(first)
    behind = first.place
    await send(store, "a", "b")
    assert await read(first, 2) == ["a", "b"]
    late = Tail(tails, "acme", ALL, behind)
    tails.join(late)
    late._joined = True  # noqa: SLF001  # as after a read that came before "a"
    assert await read(late, 2) == ["a", "b"]
    await send(store, "c")
    assert await read(first, 1) == ["c"]
    assert await read(late, 1) == ["c"]
    late.close()


async def test_a_slow_reader_ends_behind_what_is_queued(tails: Tails, store: Store) -> None:
    """What does not fit ends the stream; the last id leads to the first log that is missing."""
    slow = await tails.open("acme", ALL, None)
    quick = await tails.open("acme", ALL, None)
    for tail in (slow, quick):
        await joined(tail)
    text = "x" * (CHUNK_BYTES // 2)
    count = 2 * QUEUE_BYTES_MAX // len(text)
    sent = [f"{n} {text}" for n in range(count)]
    for message in sent:
        await send(store, message)
    assert await read(quick, count) == sent
    assert slow.reason == SLOW
    got = []
    while slow.pending:
        got += messages(slow.take())
    assert got == sent[: len(got)]
    assert 0 < len(got) < count
    assert sum(map(len, got)) <= QUEUE_BYTES_MAX
    resumed = await tails.open("acme", ALL, tails.places.open("acme", slow.last_id))
    assert await read(resumed, count - len(got)) == sent[len(got) :]
    assert quick.reason is None
    for tail in (slow, quick, resumed):
        tail.close()
    assert tails.queued_bytes == 0


async def test_an_end_drops_what_is_queued(tails: Tails, store: Store) -> None:
    """A revoked reader gets nothing more, and its last id is that of what it has."""
    tail = await tails.open("acme", ALL, None)
    await joined(tail)
    await send(store, "a")
    assert await read(tail, 1) == ["a"]
    await send(store, "b")
    async with asyncio.timeout(WAIT_S_MAX):
        while not tail.pending:
            await tail.wait(1)
    assert tails.queued_bytes > 0
    tail.end("key revoked")
    assert tails.queued_bytes == 0
    resumed = await tails.open("acme", ALL, tails.places.open("acme", tail.last_id))
    assert await read(resumed, 1) == ["b"]


async def test_a_store_that_fails_for_a_while(tails: Tails, store: Store) -> None:
    """Tails outlive a fault of the store, those that catch up and those that follow."""
    following = await tails.open("acme", ALL, None)
    await joined(following)
    catching_up = await tails.open("acme", ALL, following.place)
    store.fails = True
    await send(store, "a", "b")
    with pytest.raises(StorageUnavailable):
        await tails.open("acme", ALL, None)
    await catching_up.wait(0.01)
    store.fails = False
    assert await read(following, 2) == ["a", "b"]
    assert await read(catching_up, 2) == ["a", "b"]


async def test_limits_of_a_client_and_of_a_process(tails: Tails) -> None:
    """One client can't take all places; beyond its own it is told to wait, beyond all the rest."""
    place = Place(0)
    opened = [await tails.open("acme", ALL, place) for _ in range(CLIENT_TAILS_MAX)]
    with pytest.raises(RateLimited):
        await tails.open("acme", ALL, None)
    others = [f"client-{number}" for number in range(TAILS_MAX - CLIENT_TAILS_MAX)]
    opened += [await tails.open(client_id, ALL, place) for client_id in others]
    with pytest.raises(Overloaded):
        await tails.open("another", ALL, None)
    opened.pop(0).close()
    await tails.open("acme", ALL, None)


async def test_a_stop_ends_all(tails: Tails) -> None:
    """When the server stops, each stream ends with the reason, and none begins."""
    tail = await tails.open("acme", ALL, None)
    tails.stop()
    assert tail.reason == STOPPING
    with pytest.raises(Overloaded):
        await tails.open("acme", ALL, None)


async def test_nobody_reads_for_nobody(tails: Tails, store: Store) -> None:
    """With the last tail of a client the reading for it ends."""
    before = asyncio.all_tasks()
    opened = [await tails.open("acme", ALL, None) for _ in range(2)]
    for tail in opened:
        await joined(tail)
    for tail in opened:
        tail.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert tail_module.POLL_S < WAIT_S_MAX
