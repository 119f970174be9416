"""What every log store must do: one suite for all of them."""

import asyncio
import json
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import StorageUnavailable
from app.logs.batch import Batch, Idempotency, Receipt, StoredOutcome
from app.logs.identity import format_id, parse_id, received_us
from app.logs.query import (
    PAGE_BYTES_MAX,
    USAGE_GROUPS,
    LogQuery,
    Order,
    UsageQuery,
    UsageRow,
)
from app.logs.store import ClaimHeld, LogStore
from app.logs.timestamp import MAX_US, MIN_US, format_instant, parse_instant
from loadtests.records import Record, expected, same
from tests.storage.batches import (
    DAYS,
    INSTANTS,
    NOON,
    ORDERS,
    append,
    assert_same_logs,
    make_batch,
    read_all,
    read_page,
    record,
    sent_part,
)
from tests.storage.conftest import MemoryBackend, SqliteBackend

pytestmark = pytest.mark.anyio

Backend = MemoryBackend | SqliteBackend
Stores = tuple[LogStore, LogStore]

HOSTILE = (
    "it's",
    'a "quoted" one',
    "100%",
    "_",
    "back\\slash",
    "nul\x00inside",
    "nul\x00other",
    "line\nbreak",
    "\u00fc\u4fa1\U0001f680",
    "'; DROP TABLE logs; --",
    '"}],"x":[{"',
    "null",
    "",
    " ",
)


# --- append and receipt --------------------------------------------------------------------------


async def test_what_was_appended_is_read_back(store: LogStore) -> None:
    """A log comes back equal, under the id and the arrival that its append gave it."""
    sent = record(
        workflow="sync",
        run_id="r-1",
        level="INFO",
        message="done",
        duration_ms=12,
        error={"code": 429},
        dataset="orders",
        id="own-1",
        metadata={"a": [1, None, {"b": 2.5}]},
        surprise={"kept": True},
    )
    batch = make_batch(store.clock, "acme", [sent])
    assert await store.append(batch) == Receipt()
    [log] = await read_all(store, LogQuery("acme"))
    us, seq, *_ = batch.rows[0]
    assert log["id"] == format_id(us, batch.day, seq)
    assert log["client_id"] == "acme"
    assert log["received_at"] == format_instant(received_us(batch.day, seq))
    assert sent_part(log) == expected(sent)


async def test_an_empty_batch_only_counts(store: LogStore) -> None:
    """A batch without rows stores no log, and its usage all the same."""
    batch = make_batch(store.clock, "acme", [])
    batch.rejected, batch.denied = 3, 4
    assert await store.append(batch) == Receipt()
    assert await read_all(store, LogQuery("acme")) == []
    [usage] = await store.usage(UsageQuery("acme", "key"))
    assert usage == UsageRow("acme", "key-1", (1, 0, batch.bytes, 3, 4))


async def test_a_batch_with_a_place_taken_twice_is_refused_whole(store: LogStore) -> None:
    """Two rows with one id cannot both be found again: nothing of their batch is stored."""
    batch = make_batch(store.clock, "acme", [record(), record(status="FAILED")])
    first = batch.rows[0]
    batch.rows[1] = (*first[:2], *batch.rows[1][2:])
    with pytest.raises(StorageUnavailable):
        await store.append(batch)
    assert await read_all(store, LogQuery("acme")) == []
    assert await store.usage(UsageQuery("acme", "key")) == []
    await append(store, "acme", record())
    assert len(await read_all(store, LogQuery("acme"))) == 1


async def test_a_closed_store_takes_nothing(backend: Backend) -> None:
    """After aclose every write fails as unavailable."""
    store = await backend.open()
    await store.ping()
    await store.aclose()
    with pytest.raises(StorageUnavailable):
        await store.ping()
    with pytest.raises(StorageUnavailable):
        await store.append(make_batch(store.clock, "acme", [record()]))
    with pytest.raises(StorageUnavailable):
        async with store.claim("acme", "key"):
            pass


# --- duplicates ----------------------------------------------------------------------------------


async def test_duplicates_within_one_batch(store: LogStore) -> None:
    """Of the records of one batch with one id, the earliest executed is stored."""
    sent = [record(id="a", message=str(n)) for n in range(3)] + [record(id="b"), record()]
    batch = make_batch(store.clock, "acme", sent)
    receipt = await store.append(batch)
    logs = await read_all(store, LogQuery("acme", order="asc"))
    assert receipt == Receipt(2, logs[0]["id"])
    assert [log["external_id"] for log in logs] == ["a", "b", None]
    assert logs[0]["message"] == "0"


async def test_duplicates_across_batches_and_workers(stores: Stores) -> None:
    """An id that any worker stored is not stored again, and the first log's id is told."""
    one, two = stores
    await append(one, "acme", record(id="a", message="first"))
    for store in (two, one):
        again = make_batch(store.clock, "acme", [record(id="a", message="again"), record(id=None)])
        receipt = await store.append(again)
        assert receipt.duplicates == 1
        logs = await read_all(store, LogQuery("acme", order="asc"))
        assert receipt.duplicate_id == logs[0]["id"]
        assert logs[0]["message"] == "first"
    assert len(logs) == 3


async def test_duplicates_of_batches_sent_at_once(stores: Stores) -> None:
    """Of many appends of one id at one time, exactly one stores it."""
    batches = [
        make_batch(store.clock, "acme", [record(id=f"id-{n}"), record(id="all")])
        for n, store in enumerate(stores * 10)
    ]
    receipts = await asyncio.gather(
        *(store.append(batch) for store, batch in zip(stores * 10, batches, strict=True))
    )
    assert sum(receipt.duplicates for receipt in receipts) == 19
    logs = await read_all(stores[0], LogQuery("acme"))
    assert len(logs) == 21
    [kept] = [log["id"] for log in logs if log["external_id"] == "all"]
    assert {receipt.duplicate_id for receipt in receipts if receipt.duplicates} == {kept}


async def test_duplicates_across_days(store: LogStore) -> None:
    """An id is known for the days of the window, and is free again after them."""
    for days_later, duplicates in ((0, 1), (1, 1), (6, 1), (7, 1), (9, 0)):
        client = f"after-{days_later}-days"
        await append(store, client, record(id="a"), day=20_000)
        later = make_batch(store.clock, client, [record(id="a")], day=20_000 + days_later)
        assert (await store.append(later)).duplicates == duplicates
        assert len(await read_all(store, LogQuery(client))) == 2 - duplicates


async def test_duplicates_while_midnight_passes(store: LogStore) -> None:
    """A worker whose clock is a day behind does not store an id again."""
    await append(store, "acme", record(id="a"), day=20_001)
    behind = make_batch(store.clock, "acme", [record(id="a")], day=20_000)
    assert (await store.append(behind)).duplicates == 1


async def test_duplicates_after_a_restart(backend: Backend) -> None:
    """Ids are remembered by what is stored, not by a process."""
    store = await backend.open()
    await append(store, "acme", record(id="a"))
    await store.aclose()
    store = await backend.open()
    again = make_batch(store.clock, "acme", [record(id="a")])
    assert (await store.append(again)).duplicates == 1
    assert len(await read_all(store, LogQuery("acme"))) == 1
    await store.aclose()


async def test_clients_share_no_ids(store: LogStore) -> None:
    """The same own id of two clients names two logs."""
    await append(store, "acme", record(id="a"))
    await append(store, "other", record(id="a"))
    for client in ("acme", "other"):
        assert len(await read_all(store, LogQuery(client))) == 1


async def test_any_text_is_an_own_id(store: LogStore) -> None:
    """Each text but the empty one, which is none, is an id of its own, and is known again."""
    ids = [text for text in HOSTILE if text]
    for own_id in ids:
        await append(store, "acme", record(id=own_id))
    for own_id in ids:
        again = make_batch(store.clock, "acme", [record(id=own_id)])
        assert (await store.append(again)).duplicates == 1
    logs = await read_all(store, LogQuery("acme"))
    assert sorted(log["external_id"] for log in logs) == sorted(ids)


# --- idempotency ---------------------------------------------------------------------------------


def _once(store: LogStore, key: str, *records: Record, client: str = "acme") -> Batch:
    batch = make_batch(store.clock, client, records)
    batch.idempotency = Idempotency(key, b"digest", b"outcome of " + key.encode())
    return batch


async def test_an_outcome_is_remembered_with_its_logs(backend: Backend) -> None:
    """The next claim of a key gives what its first one led to, also after a restart."""
    store = await backend.open()
    async with store.claim("acme", "k") as stored:
        assert stored is None
        await append(store, "acme", record(id="a"))
        receipt = await store.append(_once(store, "k", record(id="a"), record()))
    await store.aclose()
    store = await backend.open()
    async with store.claim("acme", "k") as stored:
        assert stored is not None
        assert stored.digest == b"digest"
        assert stored.outcome == b"outcome of k"
        assert stored.receipt == receipt
        assert stored.receipt.duplicates == 1
    await store.aclose()


async def test_a_claim_without_an_append_leaves_nothing(store: LogStore) -> None:
    """A request that fails before its commit gives the key back as it was."""

    async def fail() -> None:
        async with store.claim("acme", "k") as stored:
            assert stored is None
            raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            await fail()


async def _claim_soon(store: LogStore, key: str) -> StoredOutcome | None:
    """Claim a key of `acme` that is being released, at most a moment from now."""
    async with asyncio.timeout(10):
        while True:
            try:
                async with store.claim("acme", key) as stored:
                    return stored
            except ClaimHeld:
                await asyncio.sleep(0.01)


async def test_a_held_key_is_refused_to_all_others(stores: Stores) -> None:
    """While a key is held, neither another worker nor the same one gets it; then both do."""
    one, two = stores
    async with one.claim("acme", "k"):
        for store in stores:
            with pytest.raises(ClaimHeld):
                async with store.claim("acme", "k"):
                    pass
            async with store.claim("other", "k") as stored:
                assert stored is None
            assert await _claim_soon(store, "k2") is None
    for store in (two, one):
        assert await _claim_soon(store, "k") is None


async def test_a_repeat_is_answered_as_soon_as_the_first_is_stored(stores: Stores) -> None:
    """From the receipt on every worker gives the outcome, to any number at a time."""
    one, two = stores
    async with one.claim("acme", "k"):
        await one.append(_once(one, "k", record()))
        async with two.claim("acme", "k") as here, two.claim("acme", "k") as there:
            assert here is not None
            assert here == there
        with pytest.raises(StorageUnavailable):
            await one.append(_once(one, "k", record()))
    async with one.claim("acme", "k") as again:
        assert again == here
    assert len(await read_all(two, LogQuery("acme"))) == 1


async def test_of_many_claims_at_once_one_is_granted(stores: Stores) -> None:
    """Racing requests with one key store its logs once."""
    all_asked = asyncio.Event()
    asked = 0

    async def attempt(store: LogStore) -> str:
        nonlocal asked
        try:
            async with store.claim("acme", "k") as stored:
                asked += 1
                await all_asked.wait()
                if stored is not None:
                    return "replayed"
                await store.append(_once(store, "k", record()))
                return "stored"
        except ClaimHeld:
            asked += 1
            return "held"
        finally:
            if asked == 20:
                all_asked.set()

    outcomes = await asyncio.gather(*(attempt(store) for store in stores * 10))
    assert sorted(outcomes) == ["held"] * 19 + ["stored"]
    assert len(await read_all(stores[0], LogQuery("acme"))) == 1


async def test_a_claim_dies_with_its_holder(stores: Stores) -> None:
    """A worker that ends takes its claims with it, and can no longer append under them."""
    one, two = stores
    async with two.claim("acme", "k"):
        await two.aclose()
        assert await _claim_soon(one, "k") is None
        with pytest.raises(StorageUnavailable):
            await two.append(_once(two, "k", record()))
    assert await read_all(one, LogQuery("acme")) == []


async def test_an_append_without_its_claim_is_refused(store: LogStore) -> None:
    """What carries an Idempotency-Key that is not held is not stored."""
    with pytest.raises(StorageUnavailable):
        await store.append(_once(store, "k", record()))
    async with store.claim("other", "k"), store.claim("acme", "k2"):
        with pytest.raises(StorageUnavailable):
            await store.append(_once(store, "k", record()))
    assert await read_all(store, LogQuery("acme")) == []


async def test_a_cancelled_claim_is_free_again(store: LogStore) -> None:
    """A request that is cancelled while it waits for a key does not keep it."""

    async def hold() -> None:
        async with store.claim("acme", "k"):
            await asyncio.Event().wait()

    for turns in range(4):
        task = asyncio.create_task(hold())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with store.claim("acme", "k") as stored:
            assert stored is None


# --- pages ---------------------------------------------------------------------------------------


async def _fill(store: LogStore, client: str, random: Random, count: int) -> list[str]:
    """Append logs of few instants on several days in any order; give their ids in order."""
    ids: list[tuple[tuple[int, int], int, int, str]] = []
    for number in range(count):
        at, day = random.choice(INSTANTS), random.choice(DAYS)
        batch = make_batch(store.clock, client, [record(executed_at=at)], day=day)
        await store.append(batch)
        us, seq, *_ = batch.rows[0]
        ids.append((parse_instant(at), day, number, format_id(us, day, seq)))
    return [one[-1] for one in sorted(ids)]


@pytest.mark.parametrize("order", ORDERS)
async def test_pages_cover_all_once_in_order(store: LogStore, order: Order) -> None:
    """Pages of any size give each log once, by instant, then arrival, over all day files."""
    ids = await _fill(store, "acme", Random(1), 60)
    for limit in (1, 2, 3, 7, 1000):
        read = await read_all(store, LogQuery("acme", order=order, limit=limit))
        assert [log["id"] for log in read] == (ids if order == "asc" else ids[::-1])


@pytest.mark.parametrize("order", ORDERS)
async def test_every_cursor_place_continues_exactly(store: LogStore, order: Order) -> None:
    """From after any log the rest follows, within the same instant and across day files."""
    ids = await _fill(store, "acme", Random(7), 50)
    ordered = ids if order == "asc" else ids[::-1]
    query = LogQuery("acme", order=order, limit=1000)
    for index, log_id in enumerate(ordered):
        rest, more = await read_page(store, replace(query, after=parse_id(log_id)))
        assert [log["id"] for log in rest] == ordered[index + 1 :]
        assert more is None


@pytest.mark.parametrize("order", ORDERS)
async def test_a_page_that_is_just_full_has_no_next(store: LogStore, order: Order) -> None:
    """The last page says that nothing follows, also when it is exactly full."""
    for day in DAYS[:2]:
        await append(store, "acme", record(), record(), day=day)
    page, more = await read_page(store, LogQuery("acme", order=order, limit=4))
    assert (len(page), more) == (4, None)
    page, more = await read_page(store, LogQuery("acme", order=order, limit=3))
    assert (len(page), more) == (3, page[-1]["id"])


@pytest.mark.parametrize("order", ORDERS)
async def test_paging_while_logs_arrive(store: LogStore, order: Order) -> None:
    """What existed at the first page is neither skipped nor repeated, late arrivals or not."""
    random = Random(3)
    before = set(await _fill(store, "acme", random, 40))
    query = LogQuery("acme", order=order, limit=5)
    read: list[str] = []
    while True:
        page, last_id = await read_page(store, query)
        read += [log["id"] for log in page]
        if last_id is None:
            break
        query = replace(query, after=parse_id(last_id))
        await _fill(store, "acme", random, 2)
    assert len(read) == len(set(read))
    assert before <= set(read)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_page_is_bounded_in_bytes(store: LogStore, order: Order) -> None:
    """Large logs make short pages, in whatever member they are large; each log comes once."""
    large = "x" * 900_000
    members: list[Record] = [
        {"message": large},
        {"error": {"text": large}},
        {"metadata": {"text": large}},
        {"workflow": large},
        {},
        {"run_id": large},
        {"message": "small"},
    ]
    sent = [
        record(executed_at=f"2026-06-01T12:00:{n:02d}Z", n=n) | member
        for n, member in enumerate(members * 6)
    ]
    # Most large ones in one day's file: where that is cut, the small ones of others must not go on.
    for n, one in enumerate(sent):
        cut = (n % 3 or n < len(sent) / 2) and len(json.dumps(one)) > len(large)
        await append(store, "acme", one, day=20_001 if cut else 20_000 + 2 * (n % 2))
    query = LogQuery("acme", order=order, limit=1000)
    page = await store.page(query)
    assert PAGE_BYTES_MAX - 2 * len(large) < len(page.logs) < PAGE_BYTES_MAX + 100
    logs = await read_all(store, query)
    numbers = [log["metadata"]["n"] for log in logs]
    assert numbers == sorted(range(len(sent)), reverse=order == "desc")
    assert_same_logs(logs, sent)


async def test_a_log_larger_than_a_page_has_one_of_its_own(store: LogStore) -> None:
    """A page holds one log at least, else nobody would get by it."""
    batches = [make_batch(store.clock, "acme", [record(run_id=str(n))]) for n in range(3)]
    for batch in batches:
        row = list(batch.rows[0])
        row[6] = "m" * (PAGE_BYTES_MAX + 1)
        batch.rows = [tuple(row)]
        await store.append(batch)
    logs = await read_all(store, LogQuery("acme", order="asc"))
    assert [log["run_id"] for log in logs] == ["0", "1", "2"]


async def test_late_and_future_records_stand_at_their_own_time(store: LogStore) -> None:
    """A page goes by when a log was executed, not by when it came in."""
    years = (2031, 1999, 2026, 2025, 1955)
    for day, year in zip((20_004, 20_001, 20_003, 20_000, 20_002), years, strict=True):
        await append(store, "acme", record(executed_at=f"{year}-01-01T00:00:00Z"), day=day)
    logs = await read_all(store, LogQuery("acme", limit=2))
    assert [log["executed_at"][:4] for log in logs] == [str(y) for y in sorted(years)[::-1]]


async def test_nothing_stored_is_an_empty_page(store: LogStore) -> None:
    """A client without logs gets an empty page, and no fault."""
    assert await read_page(store, LogQuery("nobody")) == ([], None)
    await append(store, "acme", record())
    assert await read_page(store, LogQuery("nobody")) == ([], None)


# --- isolation -----------------------------------------------------------------------------------


async def test_clients_never_see_each_other(store: LogStore) -> None:
    """Any text is a client of its own, with the same ids, workflows and times as all others."""
    for number, client in enumerate(HOSTILE):
        own = [record(id="same", workflow="same", run_id="same", message=client)]
        await append(store, client, *own, day=20_000 + number % 2)
    for client in HOSTILE:
        logs = await read_all(store, LogQuery(client, filters={"workflow": ("same",)}))
        assert [(log["client_id"], log["message"]) for log in logs] == [(client, client)]
        assert [row.client_id for row in await store.usage(UsageQuery(client, "key"))] == [client]
        for other in HOSTILE:
            one = LogQuery(other, log_id=parse_id(logs[0]["id"]))
            assert bool((await store.page(one)).logs) == (other == client)
    for stranger in ("%", "it_s", "nul", "nul\x00", "\x00", "NULL", "*"):
        assert await read_all(store, LogQuery(stranger)) == []
        assert await store.usage(UsageQuery(stranger, "key")) == []


async def test_another_clients_cursor_shows_only_own_logs(store: LogStore) -> None:
    """A place of another client's log is a point in time, and nothing more."""
    await append(store, "acme", record(message="theirs"))
    await append(store, "other", record(message="mine"), day=20_000)
    [theirs] = await read_all(store, LogQuery("acme"))
    for order in ORDERS:
        query = LogQuery("other", order=order, after=parse_id(theirs["id"]))
        assert all(log["client_id"] == "other" for log in await read_all(store, query))


# --- one log -------------------------------------------------------------------------------------


async def test_a_log_is_found_by_its_id(store: LogStore) -> None:
    """An id gives the same object as the list; one that names nothing gives nothing."""
    await _fill(store, "acme", Random(1), 20)
    for log in await read_all(store, LogQuery("acme")):
        page = await store.page(LogQuery("acme", log_id=parse_id(log["id"])))
        assert json.loads(page.logs) == log
        place = parse_id(log["id"])
        assert place is not None
        for other in (
            place._replace(us=place.us + 1),
            place._replace(ns=place.ns ^ 1),
            place._replace(day=place.day + 1000),
            place._replace(arrival=place.arrival + 1),
        ):
            assert (await store.page(LogQuery("acme", log_id=other))).logs == ""


async def test_an_id_of_any_size_is_looked_up(store: LogStore) -> None:
    """The largest and smallest ids that can be written name nothing, and are no fault."""
    await append(store, "acme", record(), day=20_000)
    for text in (
        "f" * 15 + "000" + "4e20" + "0" * 14,
        "0" * 36,
        "f" * 15 + "3e7" + "4e20" + "0" * 14,
    ):
        place = parse_id(text)
        assert place is not None
        assert (await store.page(LogQuery("acme", log_id=place))).logs == ""


async def test_filters_hold_for_an_id_too(store: LogStore) -> None:
    """A log outside the datasets that are asked for is not found by its id either."""
    await append(store, "acme", record(dataset="orders"))
    await append(store, "acme", record(dataset="secret"))
    filters: dict[str, tuple[str, ...]] = {"dataset": ("orders", "absent")}
    for log in await read_all(store, LogQuery("acme")):
        page = await store.page(LogQuery("acme", filters=filters, log_id=parse_id(log["id"])))
        assert bool(page.logs) == (log["dataset"] == "orders")


# --- usage ---------------------------------------------------------------------------------------


def _counted(client: str, minute: int, key: str, dataset: str, *counts: int) -> Batch:
    requests, size, rejected, denied = counts
    series = [(dataset, "production", "SUCCESS", None, None)]
    day = minute // 1440
    return Batch(client, key, day, minute, [], [*series], requests, size, rejected, denied)


def test_usage_is_the_sum_of_its_batches(backend: Backend, hypothesis_clients: list[str]) -> None:
    """Each group's counts are the sums of its batches', within any range of minutes."""
    with asyncio.Runner() as runner:
        store = runner.run(backend.open())
        minutes = st.sampled_from([20_000 * 1440 + n for n in (0, 1, 59, 60, 1439, 1440, 3000)])
        counts = st.integers(0, 2**40)

        @settings(max_examples=60, deadline=None, derandomize=True)
        @given(
            st.lists(
                st.tuples(
                    minutes,
                    st.sampled_from(["k1", "k2"]),
                    st.sampled_from(["default", "orders"]),
                    *[counts] * 4,
                ),
                max_size=8,
            ),
            st.none() | minutes,
            st.none() | minutes,
        )
        @example([], None, None)
        def check(batches: list[tuple[Any, ...]], start: int | None, end: int | None) -> None:
            client = hypothesis_clients.pop()

            async def run() -> None:
                for one in batches:
                    await store.append(_counted(client, *one))
                for group, place in (("key", 1), ("dataset", 2), ("hour", 60), ("day", 1440)):
                    want: dict[Any, list[int]] = {}
                    for minute, *rest in batches:
                        if (start or 0) <= minute and (end is None or minute < end):
                            names = (minute, *rest)
                            name = names[place] if place < 60 else minute - minute % place
                            total = want.setdefault(name, [0] * 5)
                            requests, size, rejected, denied = rest[2:]
                            more = (requests, 0, size, rejected, denied)
                            total[:] = [a + b for a, b in zip(total, more, strict=True)]
                    query = UsageQuery(client, group, start, end)  # type: ignore[arg-type]
                    assert await store.usage(query) == [
                        UsageRow(client, name, tuple(want[name])) for name in sorted(want)
                    ]

            runner.run(run())

        check()
        runner.run(store.aclose())


async def test_usage_counts_what_was_stored(store: LogStore) -> None:
    """Logs are counted without duplicates, by dataset, and their bytes add up to the body's."""
    await append(store, "acme", record(id="a"))
    batch = make_batch(
        store.clock,
        "acme",
        [record(id="a"), record(dataset="orders"), record(dataset="orders"), record()],
    )
    await store.append(batch)
    rows = {row.group: row.counts for row in await store.usage(UsageQuery("acme", "dataset"))}
    assert rows["default"][:2] == (2, 2)
    assert rows["orders"][:2] == (0, 2)
    [total] = await store.usage(UsageQuery("acme", "key"))
    assert total.counts[:2] == (2, 4)
    assert sum(counts[2] for counts in rows.values()) == total.counts[2]


async def test_usage_of_all_clients(store: LogStore) -> None:
    """Without a client each one's usage stands in its own row, in order."""
    for client in ("b", "a", "c"):
        await append(store, client, record())
        await append(store, client, record(), record(), day=20_000)
    rows = await store.usage(UsageQuery(None, "key"))
    assert [(row.client_id, row.counts[:2]) for row in rows] == [
        (client, (2, 3)) for client in "abc"
    ]


async def test_usage_of_some_datasets(store: LogStore) -> None:
    """Limited to datasets, only what was counted for those is in any group."""
    await append(store, "acme", record(dataset="orders"), record(dataset="bills"), record())
    await append(store, "acme", record(dataset="bills"), day=20_000)
    for datasets, logs in (({"orders"}, 1), ({"bills", "absent"}, 2), ({"absent"}, 0), (set(), 0)):
        for group in USAGE_GROUPS:
            query = UsageQuery("acme", group, datasets=frozenset(datasets))
            rows = await store.usage(query)
            assert sum(row.counts[1] for row in rows) == logs
            if group == "dataset":
                assert {row.group for row in rows} == datasets - {"absent"}


async def test_usage_survives_a_restart(backend: Backend) -> None:
    """Usage is as durable as the logs that it counts."""
    store = await backend.open()
    await append(store, "acme", record(), record())
    before = await store.usage(UsageQuery("acme", "day"))
    await store.aclose()
    store = await backend.open()
    assert await store.usage(UsageQuery("acme", "day")) == before
    await store.aclose()


# --- values --------------------------------------------------------------------------------------


async def test_durations_come_back_exactly(store: LogStore) -> None:
    """A duration of any size and precision is the number that was sent."""
    whole = (0, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 + 1, 10**30)
    fractions = (0.0, 1.5, 5.0, 0.1 + 0.2, 1e-300, 5e-324, 1.7976931348623157e308, 1e22, 2.0**63)
    sent = [None, *whole, *fractions]
    await append(store, "acme", *(record(duration_ms=one) for one in sent))
    logs = await read_all(store, LogQuery("acme", order="asc"))
    assert [log["duration_ms"] for log in logs] == sent
    assert [type(log["duration_ms"]) for log in logs] == list(map(type, sent))


def test_any_value_comes_back(backend: Backend, hypothesis_clients: list[str]) -> None:
    """Text and JSON of every kind, controls and NUL included, come back as they were sent."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    json_value = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=8,
    )
    optional = {name: st.none() | text for name in ("workflow", "run_id", "level", "message")}
    fields = st.fixed_dictionaries(
        {
            "environment": text,
            "status": text,
            **optional,
            "id": st.none() | text,
            "error": st.none() | text | st.dictionaries(text, json_value, max_size=3),
            "metadata": st.none() | st.dictionaries(text, json_value, max_size=4),
            "duration_ms": st.none()
            | st.integers(0, 2**70)
            | st.floats(0, allow_nan=False, allow_infinity=False),
        }
    )
    with asyncio.Runner() as runner:
        store = runner.run(backend.open())

        @settings(max_examples=150, deadline=None, derandomize=True)
        @given(fields)
        @example({"environment": "\x00", "status": "a\x00b", "workflow": "\x00c", "run_id": "\x00"})
        @example({"message": "\x00", "error": "\x00e", "metadata": {"\x00": "\x00"}, "id": "\x00"})
        def check(values: dict[str, Any]) -> None:
            client = hypothesis_clients.pop()
            sent = record(**values)
            runner.run(append(store, client, sent))
            [log] = runner.run(read_all(store, LogQuery(client)))
            assert same(expected(sent), sent_part(log))

        check()
        runner.run(store.aclose())


def test_any_time_is_rendered_as_the_service_does(
    backend: Backend, hypothesis_clients: list[str]
) -> None:
    """The store's own rendering agrees with format_instant on every instant."""
    with asyncio.Runner() as runner:
        store = runner.run(backend.open())

        @settings(max_examples=100, deadline=None, derandomize=True)
        @given(st.lists(st.tuples(st.integers(MIN_US, MAX_US), st.integers(0, 999)), max_size=20))
        @example(list(product((MIN_US, -1, 0, 1, 999, 1000, 999_999, MAX_US), (0, 1, 999))))
        def check(instants: list[tuple[int, int]]) -> None:
            client = hypothesis_clients.pop()
            texts = [format_instant(*one) for one in instants]
            runner.run(append(store, client, *(record(executed_at=text) for text in texts)))
            logs = runner.run(read_all(store, LogQuery(client, order="asc")))
            assert [log["executed_at"] for log in logs] == [
                format_instant(*one) for one in sorted(instants)
            ]

        check()
        runner.run(store.aclose())


async def test_a_large_record_comes_back(store: LogStore) -> None:
    """A record of a megabyte is stored and paged like any other."""
    sent = [record(message="m" * 10**6), record(metadata={"k": "v" * 10**6}, executed_at=NOON)]
    await append(store, "acme", *sent)
    assert_same_logs(await read_all(store, LogQuery("acme", limit=1)), sent)
