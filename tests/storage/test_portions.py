"""Exports of every backend: in portions comes what comes in pages, in the same order."""

import json
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from app.logs.identity import parse_id
from app.logs.query import PAGE_BYTES_MAX, PORTION_BYTES_MAX, LogQuery, Order, Portion
from app.logs.search import parse_search
from app.logs.store import LogStore
from loadtests.records import Record
from tests.storage.batches import (
    DAYS,
    INSTANTS,
    NOON,
    ORDERS,
    RECORD_BYTES_MAX,
    append,
    read_all,
    record,
)

pytestmark = pytest.mark.anyio


async def read_portions(store: LogStore, query: LogQuery) -> list[Portion]:
    """Follow the portions of an export to their end."""
    portions = []
    while True:
        portion = await store.portion(query)
        portions.append(portion)
        if portion.last_id is None:
            return portions
        assert portion.lines
        assert json.loads(portion.lines.splitlines()[-1])["id"] == portion.last_id
        query = replace(query, after=parse_id(portion.last_id))


def logs_of(portions: list[Portion]) -> list[Record]:
    """Give the logs, each of which is one line."""
    lines = b"".join(portion.lines for portion in portions)
    assert not lines or lines.endswith(b"\n")
    return [json.loads(line) for line in lines.split(b"\n")[:-1]]


@pytest.mark.parametrize("order", ORDERS)
async def test_portions_hold_what_pages_hold(store: LogStore, order: Order) -> None:
    """Of files side by side and of files that overlap, each log comes once, in the pages' order."""
    random = Random(7)
    steady = [record(executed_at=1_780_000_000 + n, status=f"S{n % 3}") for n in range(600)]
    for at in range(0, len(steady), 300):
        await append(store, "acme", *steady[at : at + 300], day=DAYS[at // 300])
    for day in DAYS:
        strays = [record(executed_at=random.choice(INSTANTS), message=f"{day}") for _ in range(9)]
        strays += [record(executed_at=1_780_000_000 + random.random() * 600) for _ in range(9)]
        await append(store, "acme", *strays, day=day)
    await append(store, "other", record())
    questions: list[dict[str, Any]] = [
        {},
        {"filters": {"status": ("S1", "SUCCESS")}},
        {"filters": {"run_id": ("nobody's",)}},
        {"search": parse_search(str(DAYS[1]))},
        {"start": (1_780_000_100_000_000, 0), "end": (1_780_000_500_000_000, 0)},
    ]
    for asked in questions:
        query = LogQuery("acme", order=order, limit=1000, **asked)
        assert logs_of(await read_portions(store, query)) == await read_all(store, query)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("days", [1, 3])
async def test_portions_are_bounded(store: LogStore, order: Order, days: int) -> None:
    """Large logs come some at a time, one larger than a portion alone, and none is lost."""
    sizes = [PORTION_BYTES_MAX // 3] * 8
    sizes[3] = RECORD_BYTES_MAX - 1000
    for number, size in enumerate(sizes):
        one = record(message=f"{number} " + "m" * size, executed_at=1_780_000_000 + number)
        await append(store, "acme", one, day=DAYS[number % days])
    portions = await read_portions(store, LogQuery("acme", order=order))
    logs = logs_of(portions)
    numbers = [int(log["message"].partition(" ")[0]) for log in logs]
    assert numbers == sorted(range(8), reverse=order == "desc")
    assert len(portions) > 1
    assert max(len(portion.lines) for portion in portions) <= PAGE_BYTES_MAX + 10_000


async def test_a_client_without_logs_has_one_empty_portion(store: LogStore) -> None:
    """There is nothing to export of a client that never sent a log, beside one that did."""
    await append(store, "other", record())
    assert await store.portion(LogQuery("acme")) == Portion(b"")


@pytest.mark.parametrize("order", ORDERS)
async def test_logs_that_arrive_meanwhile_push_out_none(store: LogStore, order: Order) -> None:
    """What was there at the start is in the export once, whatever comes between its portions."""
    big = "m" * (PORTION_BYTES_MAX // 4)
    first = [record(message=f"{n} {big}", executed_at=1_780_000_000 + n % 5) for n in range(12)]
    for one in first:
        await append(store, "acme", one)
    found: list[Record] = []
    query = LogQuery("acme", order=order)
    for number in range(100):
        portion = await store.portion(query)
        found += logs_of([portion])
        if portion.last_id is None:
            break
        query = replace(query, after=parse_id(portion.last_id))
        if number < 3:
            for instant in (NOON, 1_780_000_000, 1_780_000_002.5, 1_780_000_004):
                await append(store, "acme", record(message="late", executed_at=instant))
    ids = [log["id"] for log in found]
    assert len(set(ids)) == len(ids)
    kept = {log["message"] for log in found if log["message"] != "late"}
    assert kept == {one["message"] for one in first}
