"""Every log store shows a client's logs in the order in which they were stored, each once."""

import asyncio
import json
import random
import time

import pytest

from app.logs.place import STREAM_BYTES_MAX, Following, Place
from app.logs.store import LogStore
from loadtests.records import Record
from tests.storage.batches import append, make_batch, record

pytestmark = pytest.mark.anyio

TODAY = time.time_ns() // 10**9 // 86_400
WAIT_S_MAX = 20.0


def messages(following: Following) -> list[str]:
    """Give the messages of logs, in order."""
    return [json.loads(log)["message"] for _, _, log in following.logs]


async def now(store: LogStore, client_id: str = "acme") -> Place:
    """Give the place behind all that is stored."""
    following = await store.follow(client_id, None)
    assert not following.logs
    return following.place


async def follow_all(store: LogStore, place: Place, limit: int = 2000) -> tuple[list[str], Place]:
    """Read on until nothing more follows."""
    found: list[str] = []
    while True:
        following = await store.follow("acme", place, limit)
        assert len(following.logs) <= limit
        found += messages(following)
        place = following.place
        if not following.more:
            return found, place


async def test_what_was_stored_before_is_not_followed(store: LogStore) -> None:
    """Whoever begins now gets what comes, whatever its executed_at, and nothing of before."""
    await append(store, "acme", record(message="before"))
    place = await now(store)
    assert await follow_all(store, place) == ([], place)
    await append(store, "acme", record(message="late", executed_at="1999-01-01T00:00:00Z"))
    await append(store, "acme", record(message="new"))
    assert (await follow_all(store, place))[0] == ["late", "new"]


async def test_a_store_without_logs_is_followed_from_the_start(store: LogStore) -> None:
    """Of a client that has stored nothing yet, the very first log is shown."""
    place = await now(store)
    await append(store, "other", record(message="another's"))
    await append(store, "acme", record(message="first"))
    assert (await follow_all(store, place))[0] == ["first"]


async def test_nobody_follows_another_s_logs(stores: tuple[LogStore, LogStore]) -> None:
    """A place of one client, used for another, shows nothing but that client's own logs."""
    one, other = stores
    await append(one, "acme", record(message="a"))
    place = await now(one, "acme")
    await append(other, "other", record(message="b"))
    await append(other, "acme", record(message="c"))
    found = await one.follow("other", place)
    assert messages(found) == ["b"]


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_each_log_once_in_the_order_of_commits(
    stores: tuple[LogStore, LogStore], limit: int
) -> None:
    """Portion by portion all logs come, those of a commit together, whichever worker took them."""
    place = await now(stores[0])
    chance = random.Random(1)
    sent = []
    for number in range(12):
        batch: list[Record] = [
            record(
                message=f"{number}-{n}",
                executed_at=chance.randrange(10**9),
                metadata={"x": "y" * chance.randrange(300)},
            )
            for n in range(chance.randrange(1, 5))
        ]
        sent.append({str(one["message"]) for one in batch})
        await append(stores[number % 2], "acme", *batch)
    found, end = await follow_all(stores[1], place, limit)
    for commit in sent:
        assert set(found[: len(commit)]) == commit
        del found[: len(commit)]
    assert not found
    assert await follow_all(stores[0], end) == ([], end)


async def test_logs_of_two_days_around_midnight(store: LogStore) -> None:
    """A log that comes to its day's file after the first of the next day is not passed over."""
    await append(store, "acme", record(message="before"), day=TODAY)
    place = await now(store)
    sent = []
    for number, day in enumerate([0, 1, 0, 1, 1, 0, 2]):
        await append(store, "acme", record(message=str(number)), day=TODAY + day)
        following = await store.follow("acme", place)
        sent += messages(following)
        place = following.place
    assert sent == ["0", "1", "2", "3", "4", "5", "6"]
    assert await follow_all(store, place) == ([], place)


async def test_a_portion_ends_before_it_grows_large(store: LogStore) -> None:
    """Of large logs fewer come at a time, but one at least."""
    place = await now(store)
    size = STREAM_BYTES_MAX // 2
    for number in range(5):
        await append(store, "acme", record(message=f"{number}" + "x" * size))
    await append(store, "acme", record(message="5" + "x" * 2 * STREAM_BYTES_MAX))
    first = await store.follow("acme", place)
    assert [message[0] for message in messages(first)] == ["0"]
    assert first.more
    found, _ = await follow_all(store, place)
    assert [message[0] for message in found] == ["0", "1", "2", "3", "4", "5"]


async def test_a_commit_wakes_who_waits_for_it(stores: tuple[LogStore, LogStore]) -> None:
    """Each commit of a client is told to every store that waits for one, whoever makes it."""
    one, other = stores
    place = await now(one)
    for number in range(5):
        while True:
            news = one.next_commit("acme")
            following = await one.follow("acme", place)
            place = following.place
            if following.logs or number == 0:
                break
            async with asyncio.timeout(WAIT_S_MAX):
                await news
        if number:
            assert messages(following) == [str(number)]
        await append(other, "acme", record(message=str(number + 1)))


async def test_another_s_commit_wakes_nobody(store: LogStore) -> None:
    """Who waits for a client's logs is left alone by the logs of others."""
    await append(store, "acme", record())
    while True:
        news = store.next_commit("acme")
        await store.ping()  # behind it on the same way: what it was told of is told by now
        if not news.done():
            break
    await append(store, "other", record())
    await store.ping()
    assert not news.done()
    await store.append(make_batch(store.clock, "acme", [record()]))
    async with asyncio.timeout(WAIT_S_MAX):
        await news
