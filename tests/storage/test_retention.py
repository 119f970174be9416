"""Every log store lets go of logs that have been kept for their time, and of nothing else."""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path

import pytest

from app.logs.aggregation import parse_aggregation
from app.logs.dead_letters import RejectedQuery
from app.logs.identity import ArrivalClock
from app.logs.place import START, Place
from app.logs.query import LogQuery, UsageQuery
from app.logs.retention import Expired, Retention
from app.logs.search import parse_search
from app.logs.selection import Selection
from app.logs.store import LogStore
from app.storage.sqlite.reader import SqliteReader
from app.storage.sqlite.schema import list_days, remove_day
from app.storage.sqlite.sealer import WriterLink, tidy_day
from app.storage.sqlite.store import SqliteLogStore
from app.storage.sqlite.wire import (
    Done,
    Erased,
    Expire,
    Failed,
    Name,
    Retire,
    Rewrite,
    Scrub,
    Seal,
)
from app.storage.sqlite.writer import DayFiles
from tests.storage.batches import append, make_batch, read_all, record
from tests.storage.conftest import Backend
from tests.storage.test_rejected import read_rejected, rejecting

pytestmark = pytest.mark.anyio

DAY = 20_000
WINDOW = 7
LONG_AGO = DAY + WINDOW + 2  # a day from which DAY is not asked for ids


async def messages(store: LogStore, client_id: str = "acme") -> str:
    """Give the messages of a client's logs, sorted."""
    logs = await read_all(store, LogQuery(client_id))
    return "".join(sorted(log["message"] for log in logs))


def files_of(path: Path) -> list[int]:
    """Give the days that have a file."""
    return sorted(list_days(path / "logs"))


@pytest.mark.parametrize(("today", "left"), [(DAY + 2, "abc"), (DAY + 3, "bc"), (DAY + 4, "c")])
async def test_days_count_from_the_arrival(store: LogStore, today: int, left: str) -> None:
    """A log of N days is there until N days after its day of arrival are over."""
    for day, message in ((DAY, "a"), (DAY + 1, "b"), (DAY + 2, "c")):
        await append(store, "acme", record(message=message), day=day)
    expired = await store.expire({"acme": Retention(2)}, today)
    assert await messages(store) == left
    assert expired == Expired(logs=3 - len(left))
    assert await store.expire({"acme": Retention(2)}, today) == Expired()


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        (Retention(), "abc"),
        (Retention(5), ""),
        (Retention(dataset_days={"orders": 5}), "ac"),
        (Retention(5, {"orders": 30}), "b"),
        (Retention(30, {"orders": 5, "default": 5}), "c"),
        (Retention(30, {"missing": 1}), "abc"),
    ],
)
async def test_datasets_have_days_of_their_own(
    store: LogStore, policy: Retention, left: str
) -> None:
    """What a dataset's own days say goes before the client's; no days are for ever."""
    for today in (DAY + 6, LONG_AGO):
        sent = [
            record(message="a"),
            record(message="b", dataset="orders"),
            record(message="c", dataset="bills"),
        ]
        await append(store, "acme", *sent, day=DAY)
        await append(store, "other", record(message="d"), day=DAY)
        await store.expire({"acme": policy}, today)
        assert await messages(store) == left
        assert "d" in await messages(store, "other")
        await store.erase("acme", Selection())


async def test_many_logs_go_in_steps(store: LogStore) -> None:
    """More logs than fit a step go too, and others among them stay."""
    for part in range(3):
        sent = [
            record(message="x", dataset="orders" if n % 2 else "bills", run_id=f"{part}-{n}")
            for n in range(1500)
        ]
        await append(store, "acme", *sent, day=DAY)
    expired = await store.expire({"acme": Retention(dataset_days={"orders": 1})}, DAY + 3)
    assert expired == Expired(logs=2250)
    logs = await read_all(store, LogQuery("acme", limit=1000))
    assert [log["dataset"] for log in logs] == ["bills"] * 2250


async def test_usage_stays(backend: Backend, store: LogStore) -> None:
    """What was counted is still counted once, by each group, when the logs have gone."""
    for day in (DAY, DAY + 1, LONG_AGO):
        for client_id in ("acme", "other"):
            sent = [record(), record(dataset="orders")]
            await append(store, client_id, *sent, day=day)
    queries = [UsageQuery(None, group) for group in ("key", "dataset", "hour", "day")]
    queries.append(UsageQuery("acme", "day", start_minute=(DAY + 1) * 1440))
    queries.append(UsageQuery("acme", "day", end_minute=(DAY + 1) * 1440))
    queries.append(UsageQuery("acme", "key", datasets=frozenset({"orders"})))
    before = [await store.usage(query) for query in queries]
    policies = {"acme": Retention(1), "other": Retention(dataset_days={"default": 1, "orders": 1})}
    await store.expire(policies, LONG_AGO + 1)
    assert len(await read_all(store, LogQuery("acme"))) == 2
    assert [await store.usage(query) for query in queries] == before
    await append(store, "acme", record(), day=LONG_AGO + 1)
    assert sum(row.counts[1] for row in await store.usage(UsageQuery("acme", "key"))) == 7
    second = await backend.open()
    assert len(await second.usage(UsageQuery(None, "day"))) == 7
    await second.aclose()


async def test_ids_of_expired_logs_are_known(backend: Backend, store: LogStore) -> None:
    """Within the window a log is not stored again for having expired, nor by a later writer."""
    sent = [record(id="a"), record(id="b"), record()]
    await append(store, "acme", *sent, day=DAY)
    assert (await store.expire({"acme": Retention(1)}, DAY + 2)).logs == 3
    again = make_batch(store.clock, "acme", sent[:2], day=DAY + WINDOW)
    assert (await store.append(again)).duplicates == 2
    await store.aclose()
    store = await backend.open()
    again = make_batch(store.clock, "acme", sent[:2], day=DAY)
    assert (await store.append(again)).duplicates == 2
    await append(store, "other", *sent[:2], day=DAY)
    await append(store, "acme", *sent[:2], day=DAY + WINDOW + 1)
    await store.aclose()


async def test_an_erasure_forgets_ids_of_expired_logs(store: LogStore) -> None:
    """Where all of a client is erased, nothing of its expired logs is left either."""
    for client_id in ("acme", "other"):
        await append(store, client_id, record(id="a"), day=DAY)
    await store.expire({"acme": Retention(1), "other": Retention(1)}, DAY + 2)
    await store.erase("acme", Selection())
    await append(store, "acme", record(id="a"), day=DAY + 1)
    again = make_batch(store.clock, "other", [record(id="a")], day=DAY + 1)
    assert (await store.append(again)).duplicates == 1


async def test_rejected_records_expire(store: LogStore) -> None:
    """Rejected records go with the logs of their day and dataset."""
    batch = rejecting(store, "acme", "bad")
    await store.append(batch)
    kept = [Retention(1), Retention(dataset_days={"default": 1, "missing": 1})]
    for policy, age in zip(kept, (1, 2), strict=True):
        await store.expire({"acme": policy}, batch.day + age)
        assert len(await read_rejected(store, RejectedQuery("acme"))) == 1
    await store.expire({"acme": Retention(1)}, batch.day + 2)
    assert await read_rejected(store, RejectedQuery("acme")) == []


async def test_workers_do_it_at_one_time(stores: tuple[LogStore, LogStore]) -> None:
    """Any number of workers may let go of the same logs, while others read and write."""
    store, second = stores
    for day in range(DAY, DAY + 12):
        await append(store, "acme", *[record(message="x") for _ in range(30)], day=day)
        await append(store, "other", record(message="o"), day=day)
    before = await store.usage(UsageQuery(None, "day"))
    policies = {"acme": Retention(3), "other": Retention(5)}
    jobs = [one.expire(policies, DAY + 12) for one in stores for _ in range(2)]
    reads = [one.usage(UsageQuery(None, "day")) for one in stores for _ in range(20)]
    pages = [one.page(LogQuery("other")) for one in stores for _ in range(20)]
    done = await asyncio.gather(*jobs, *reads, *pages)
    assert [one for one in done if isinstance(one, list)] == [before] * 40
    assert await messages(second) == "x" * 30 * 3
    assert await messages(store, "other") == "o" * 5
    assert await second.usage(UsageQuery(None, "day")) == before


# Files.


async def open_sqlite(path: Path) -> SqliteLogStore:
    """Open a store on files."""
    store = SqliteLogStore(path / "logs", WINDOW)
    (path / "logs").mkdir(exist_ok=True)
    await store.open()
    return store


async def fill(store: SqliteLogStore, days: Sequence[int], *client_ids: str) -> None:
    """Store a log of each client on each day."""
    for day in days:
        for client_id in client_ids:
            await append(store, client_id, record(message="x", id=f"{day}"), day=day)


async def test_a_file_goes_when_nothing_in_it_is_kept(tmp_path: Path) -> None:
    """An old file is unlinked with all that belongs to it; one that anybody needs stays."""
    store = await open_sqlite(tmp_path)
    await fill(store, (DAY, DAY + 1, DAY + 2), "acme")
    await fill(store, (DAY + 1,), "other")
    policies = {"acme": Retention(1)}
    assert await store.expire(policies, LONG_AGO) == Expired(logs=2, days=1)
    assert files_of(tmp_path) == [DAY + 1, DAY + 2]
    assert await store.expire(policies, LONG_AGO + 1) == Expired()
    assert files_of(tmp_path) == [DAY + 1, DAY + 2]
    assert await store.expire(policies, LONG_AGO + 2) == Expired(days=1)
    policies["other"] = Retention(2)
    assert await store.expire(policies, LONG_AGO + 2) == Expired(days=1)
    assert files_of(tmp_path) == []
    usage = await store.usage(UsageQuery(None, "key"))
    assert [(row.client_id, row.counts[1]) for row in usage] == [("acme", 3), ("other", 1)]
    await store.aclose()
    left = {one.name for one in (tmp_path / "logs").iterdir() if ".db" in one.name}
    assert left <= {"usage.db", "usage.db-wal", "usage.db-shm"}


async def test_a_crash_between_the_fold_and_the_unlink(tmp_path: Path) -> None:
    """A file whose usage is in the lasting one already counts once, and goes the next time."""
    store = await open_sqlite(tmp_path)
    await fill(store, range(DAY, DAY + 3), "acme")
    await store.aclose()
    (tmp_path / "before").mkdir()
    for path in list_days(tmp_path / "logs").values():
        shutil.copy(path, tmp_path / "before")
    store = await open_sqlite(tmp_path)
    before = await store.usage(UsageQuery(None, "day"))
    assert await store.expire({"acme": Retention(1)}, LONG_AGO + 2) == Expired(days=3)
    await store.aclose()
    for path in list_days(tmp_path / "before").values():
        shutil.copy(path, tmp_path / "logs")  # as it would be if the unlink had not come
    store = await open_sqlite(tmp_path)
    assert await store.usage(UsageQuery(None, "day")) == before
    assert await store.expire({"acme": Retention(1)}, LONG_AGO + 2) == Expired(days=3)
    assert await store.usage(UsageQuery(None, "day")) == before
    await store.aclose()


async def test_much_usage_is_folded_in_steps(tmp_path: Path) -> None:
    """A day whose usage takes several steps is whole in the lasting file before it goes."""
    store = await open_sqlite(tmp_path)
    batches = []
    for number in range(12_000):
        batch = make_batch(store.clock, f"client-{number % 7}", [], day=DAY, key_id=f"{number}")
        batch.minute = DAY * 1440 + number % 1440
        batches.append(store.append(batch))
    await asyncio.gather(*batches)
    await append(store, "acme", record(), day=DAY)
    before = await store.usage(UsageQuery(None, "hour"))
    assert await store.expire({"acme": Retention(1)}, LONG_AGO) == Expired(days=1)
    assert files_of(tmp_path) == []
    assert await store.usage(UsageQuery(None, "hour")) == before
    assert sum(row.counts[0] for row in before) == 12_001
    await store.aclose()


async def test_ids_are_forgotten_after_the_window(tmp_path: Path) -> None:
    """A file that others keep holds no ids of expired logs once nobody asks for them."""
    store = await open_sqlite(tmp_path)
    sent = [record(id=f"secret-{n}") for n in range(2500)]
    await append(store, "acme", *sent, day=DAY)
    await fill(store, (DAY,), "other")
    policies = {"acme": Retention(1)}
    assert (await store.expire(policies, DAY + 2)).logs == 2500
    assert (await store.append(make_batch(store.clock, "acme", sent, day=DAY))).duplicates == 2500
    link = WriterLink(tmp_path / "logs")
    await asyncio.to_thread(tidy_day, tmp_path / "logs", DAY, link)  # nothing names acme any more
    link.close()
    await store.expire(policies, LONG_AGO)
    await append(store, "acme", *sent, day=DAY)
    await store.aclose()


class LateReader(SqliteReader):
    """Comes to the files when they have just gone."""

    def days(self) -> Sequence[int]:
        """List the days, and lose their files."""
        days = super().days()
        for path in list_days(self._directory).values():
            remove_day(path)
        return days


async def test_a_file_that_goes_before_it_is_read(tmp_path: Path) -> None:
    """A query goes on without a file that was unlinked since it looked which there are."""
    store = await open_sqlite(tmp_path)
    queries: list[Callable[[SqliteReader], object]] = [
        lambda reader: reader.page(LogQuery("acme"), inf).logs,
        lambda reader: reader.portion(LogQuery("acme"), inf).lines,
        lambda reader: reader.page(LogQuery("acme", search=parse_search("x")), inf).logs,
        lambda reader: reader.rejected(RejectedQuery("acme"), inf).logs,
        lambda reader: reader.table(parse_aggregation("acme", {"metrics": ["count"]}, 0), inf)[1:],
        lambda reader: reader.following(("acme", Place(DAY, START, START), 9), inf).logs,
        lambda reader: reader.usage(UsageQuery("acme", "day"), inf),
        lambda reader: reader.stored_bytes(inf),
    ]
    await fill(store, (DAY, DAY + 1), "acme")
    await store.aclose()
    logs = tmp_path / "logs"
    (tmp_path / "kept").mkdir()
    for query in queries:
        reader = LateReader(logs)
        kept = [shutil.copy(one, tmp_path / "kept") for one in list_days(logs).values()]
        assert not query(reader)
        assert files_of(tmp_path) == []
        for one in kept:
            shutil.move(one, logs)
        reader.close()


def test_the_sealer_brings_no_file_back(tmp_path: Path) -> None:
    """What the sealer asks for a day whose file has gone is done with, without a new file."""
    files = DayFiles(tmp_path, WINDOW)
    assert not files.seal(Seal(1, DAY, 1, [], []))
    for asked in (Scrub(2, DAY, {}), Rewrite(2, DAY, 1 << 32, 1, b"", b"", None)):
        assert files.erase(asked) == Done([2])
    assert files.erase(Expire(3, DAY, "acme", ["default"], [], keeps_ids=True)) == Erased(3, [])
    assert files.erase(Retire(4, DAY, [])) == Erased(4, [])
    assert list_days(tmp_path) == {}


def test_a_file_with_something_new_is_not_unlinked(tmp_path: Path) -> None:
    """The writer looks once more: what has arrived since a worker looked is kept."""
    files = DayFiles(tmp_path, WINDOW)
    batch = make_batch(ArrivalClock(), "acme", [record()], day=DAY)
    files.get(DAY).commit([batch])
    others: list[list[Name]] = [[], [("acme", "orders")], [("other", "default")]]
    for names in others:
        assert isinstance(files.erase(Retire(1, DAY, names)), Failed)
    assert list(list_days(tmp_path)) == [DAY]
    assert files.erase(Retire(1, DAY, [("acme", "default")])) == Erased(1, [])
    assert list_days(tmp_path) == {}
    files.drop()


def test_what_a_dead_writer_leaves_of_a_file(tmp_path: Path) -> None:
    """A log of writes without its file goes at the next start; others stay."""
    for name in ("2024-10-04.db-wal", "2024-10-04.db-shm", "2024-10-05.db.corrupt-7-wal"):
        (tmp_path / name).write_bytes(b"text of a log")
    DayFiles(tmp_path, WINDOW).drop()
    assert [one.name for one in tmp_path.iterdir()] == ["2024-10-05.db.corrupt-7-wal"]


async def test_a_reader_lets_go_of_files_that_are_gone(tmp_path: Path) -> None:
    """No store holds the room of a file that was unlinked beyond its next queries."""
    store, other = await open_sqlite(tmp_path), await open_sqlite(tmp_path)
    await fill(store, range(DAY, DAY + 3), "acme")
    for one in (store, other):
        await asyncio.gather(*(one.page(LogQuery("acme")) for _ in range(30)))
    await store.expire({"acme": Retention(1)}, LONG_AGO + 2)
    deadline = asyncio.get_running_loop().time() + 20
    while held_files(tmp_path):
        assert asyncio.get_running_loop().time() < deadline
        for one in (store, other):
            assert await messages(one) == ""
    await other.aclose()
    await store.aclose()


def held_files(path: Path) -> list[str]:
    """Give the files under a path that this process holds though they are gone."""
    links = [one.readlink() for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return [str(one) for one in links if str(one).startswith(str(path)) and "(deleted)" in str(one)]
