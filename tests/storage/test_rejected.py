"""Every log store keeps rejected records with their batch, bounded, for their client alone."""

import json
from collections.abc import Iterator

import pytest

from app.errors import StorageUnavailable
from app.logs.batch import (
    DAY_LETTER_BYTES_MAX,
    DAY_LETTERS_LEFT,
    DAY_LETTERS_MAX,
    Batch,
    DeadLetter,
)
from app.logs.dead_letters import RejectedQuery
from app.logs.identity import SLOT_BITS, parse_id, received_us
from app.logs.query import LogQuery, UsageQuery
from app.logs.store import LogStore
from app.logs.timestamp import MAX_US, MIN_US, format_instant
from loadtests.records import Record
from tests.storage.batches import append, make_batch, read_all, record

pytestmark = pytest.mark.anyio

HOSTILE = "nul\x00, 'quote', \"two\", line\nbreak, \u00fc\u4fa1\U0001f680"


def rejecting(
    store: LogStore,
    client_id: str,
    *texts: str,
    day: int | None = None,
    dataset: str | None = None,
) -> Batch:
    """Give the batch of a request of which only these records were rejected."""
    batch = make_batch(store.clock, client_id, [record()] * len(texts), day=day)
    _, arrival = store.clock.take(len(texts))
    batch.dead_letters = [
        DeadLetter(arrival + (n << SLOT_BITS), n, "status", f"no {n}", dataset, text)
        for n, text in enumerate(texts)
    ]
    batch.rejected = len(texts)
    return batch


async def read_rejected(store: LogStore, query: RejectedQuery) -> list[Record]:
    """Follow the pages of rejected records to their end."""
    found: list[Record] = []
    while True:
        page = await store.rejected(query)
        found += json.loads(f"[{page.logs}]")
        if page.last_id is None:
            return found
        query = RejectedQuery(
            query.client_id,
            start=query.start,
            end=query.end,
            filters=query.filters,
            limit=query.limit,
            after=parse_id(page.last_id),
        )


def texts_of(found: list[Record]) -> Iterator[str]:
    """Give the texts of rejected records."""
    return (one["record"] for one in found)


async def test_a_rejected_record_is_kept_as_it_was_sent(store: LogStore) -> None:
    """It comes back with its place, its fault, its arrival and its key, beside the good ones."""
    batch = rejecting(store, "acme", HOSTILE)
    await store.append(batch)
    [found] = await read_rejected(store, RejectedQuery("acme"))
    assert found == {
        "received_at": format_instant(received_us(batch.day, batch.dead_letters[0].arrival)),
        "index": 0,
        "field": "status",
        "detail": "no 0",
        "record": HOSTILE,
        "key_id": "key-1",
    }
    assert len(await read_all(store, LogQuery("acme"))) == 1


async def test_a_fault_of_a_whole_record_names_no_field(store: LogStore) -> None:
    """Where the record as a whole is at fault, `field` is null."""
    batch = rejecting(store, "acme", "x")
    batch.dead_letters = [DeadLetter(batch.dead_letters[0].arrival, 0, None, "bad", None, "x")]
    await store.append(batch)
    assert [one["field"] for one in await read_rejected(store, RejectedQuery("acme"))] == [None]


async def test_rejected_records_are_their_clients_own(store: LogStore) -> None:
    """Nobody sees another client's, nor any of a client that has none."""
    await store.append(rejecting(store, "acme", "a"))
    await store.append(rejecting(store, "other", "b"))
    assert [*texts_of(await read_rejected(store, RejectedQuery("acme")))] == ["a"]
    assert await read_rejected(store, RejectedQuery("nobody")) == []


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_pages_of_rejected_records(store: LogStore, limit: int) -> None:
    """Page by page they come newest first, over all days, each once."""
    for day in (20_000, 20_001, 20_007):
        await store.append(rejecting(store, "acme", f"{day}a", f"{day}b", day=day))
    found = await read_rejected(store, RejectedQuery("acme", limit=limit))
    want = [f"{day}{letter}" for day in (20_007, 20_001, 20_000) for letter in "ba"]
    assert [*texts_of(found)] == want


async def test_bounds_are_of_the_arrival(store: LogStore) -> None:
    """`start` and `end` choose by the moment of arrival, half open, to the microsecond."""
    batch = rejecting(store, "acme", "a", "b", "c", day=20_000)
    await store.append(batch)
    us = received_us(20_000, batch.dead_letters[1].arrival)
    for query, want in (
        (RejectedQuery("acme", start=(us, 0)), ["c", "b"]),
        (RejectedQuery("acme", start=(us, 1)), ["c"]),
        (RejectedQuery("acme", end=(us, 0)), ["a"]),
        (RejectedQuery("acme", end=(us, 1)), ["b", "a"]),
        (RejectedQuery("acme", start=(us, 0), end=(us, 0)), []),
    ):
        assert [*texts_of(await read_rejected(store, query))] == want


async def test_bounds_of_any_time(store: LogStore) -> None:
    """Years before or after it a bound leaves all of a day, or nothing."""
    await store.append(rejecting(store, "acme", "a record"))
    edges = [(MIN_US, 0), (0, 0), (4_000_000_000_000_000, 0), (MAX_US, 999)]
    for number, start in enumerate(edges):
        for end in edges:
            found = await read_rejected(store, RejectedQuery("acme", start=start, end=end))
            assert len(found) == (number < 2 and end > edges[1])


async def test_datasets_of_rejected_records(store: LogStore) -> None:
    """Narrowed to datasets, only those show that are known to belong to one of them."""
    for dataset in ("orders", "default", None):
        await store.append(rejecting(store, "acme", f"of {dataset}", dataset=dataset))
    query = RejectedQuery("acme", filters={"dataset": ("orders", "missing")})
    assert [*texts_of(await read_rejected(store, query))] == ["of orders"]
    assert len(await read_rejected(store, RejectedQuery("acme"))) == 3


async def test_of_too_many_the_newest_are_kept(store: LogStore) -> None:
    """Beyond the bound of a client and day the oldest go; those of other days and clients stay."""
    await store.append(rejecting(store, "acme", "yesterday", day=20_000))
    await store.append(rejecting(store, "other", "else", day=20_001))
    for first in range(0, DAY_LETTERS_MAX, 200):
        texts = [str(n) for n in range(first, first + 200)]
        await store.append(rejecting(store, "acme", *texts, day=20_001))
    assert len(await read_rejected(store, RejectedQuery("acme"))) == DAY_LETTERS_MAX + 1
    await store.append(rejecting(store, "acme", "last", day=20_001))
    found = [*texts_of(await read_rejected(store, RejectedQuery("acme", limit=1000)))]
    assert len(found) == DAY_LETTERS_LEFT + 1
    assert found[0] == "last"
    assert found[1] == str(DAY_LETTERS_MAX - 1)
    assert found[-1] == "yesterday"
    assert [*texts_of(await read_rejected(store, RejectedQuery("other")))] == ["else"]


async def test_their_texts_are_bounded_together(store: LogStore) -> None:
    """However few they are, the texts of a client and day stay within the bound."""
    for n in range(9):
        await store.append(rejecting(store, "acme", *[f"{n}" * 60_000] * 10, day=20_000))
    found = await read_rejected(store, RejectedQuery("acme"))
    assert sum(map(len, texts_of(found))) <= DAY_LETTER_BYTES_MAX
    assert found[0]["record"] == "8" * 60_000
    assert len(found) >= 40


async def test_a_batch_that_fails_keeps_none(store: LogStore) -> None:
    """Rejected records are stored with their batch, or not at all."""
    batch = rejecting(store, "acme", "a", "b")
    first = batch.rows[0]
    batch.rows[1] = (*first[:2], *batch.rows[1][2:])
    with pytest.raises(StorageUnavailable):
        await store.append(batch)
    assert await read_rejected(store, RejectedQuery("acme")) == []
    assert await store.usage(UsageQuery("acme", "key")) == []
    await append(store, "acme", record())
