"""Every log store erases what is asked for, and nothing else: from every way to read it."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from app.logs.aggregation import parse_aggregation
from app.logs.batch import Idempotency, Receipt
from app.logs.dead_letters import RejectedQuery
from app.logs.erasure import Erased
from app.logs.query import LogQuery, UsageQuery
from app.logs.search import parse_search
from app.logs.selection import Selection
from app.logs.store import LogStore
from app.logs.timestamp import parse_instant
from app.sqlite import sqlite3
from app.storage.sqlite.block import Lines
from app.storage.sqlite.erasing import WHOLE, build_rewrite, find_stale
from app.storage.sqlite.schema import create_day, day_path
from app.storage.sqlite.sealer import WriterLink, tidy_day
from app.storage.sqlite.store import SqliteLogStore
from tests.storage.batches import (
    DAYS,
    INSTANTS,
    append,
    make_batch,
    read_all,
    read_page,
    record,
)
from tests.storage.conftest import SealedBackend
from tests.storage.test_rejected import read_rejected, rejecting

pytestmark = pytest.mark.anyio

ALL = Selection()
SECRET = "zebrafinch"


def digest_of(ids: Sequence[str]) -> str:
    """Give the digest that the contract names."""
    return sha256("\n".join(sorted(ids)).encode()).hexdigest()


def messages(logs: Sequence[Any]) -> list[str]:
    """Give the messages, sorted."""
    return sorted(log["message"] for log in logs)


async def test_all_of_a_client_and_nothing_of_another(store: LogStore) -> None:
    """Without filters all logs of all days go, and the reply says which they were."""
    for day in DAYS:
        sent = [record(executed_at=instant, message=str(day)) for instant in INSTANTS]
        await append(store, "acme", *sent, day=day)
        await append(store, "other", *sent, day=day)
    before = await read_all(store, LogQuery("acme", order="asc"))
    usage = await store.usage(UsageQuery(None, "dataset"))
    erased = await store.erase("acme", ALL)
    assert erased == Erased(
        len(before),
        parse_instant(before[0]["executed_at"]),
        parse_instant(before[-1]["executed_at"]),
        digest_of([log["id"] for log in before]),
    )
    assert await read_all(store, LogQuery("acme")) == []
    assert len(await read_all(store, LogQuery("other"))) == len(before)
    assert await store.usage(UsageQuery(None, "dataset")) == usage


async def test_nothing_to_erase(store: LogStore) -> None:
    """Of a client without logs nothing is erased, nor twice of any."""
    nothing = Erased(0, None, None, sha256().hexdigest())
    assert await store.erase("nobody", ALL) == nothing
    await append(store, "acme", record())
    assert (await store.erase("acme", ALL)).logs == 1
    assert await store.erase("acme", ALL) == nothing


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(filters={"status": ("FAILED",)}), "bcd"),
        (Selection(filters={"workflow": ("sync",), "status": ("SUCCESS",)}), "acd"),
        (Selection(filters={"dataset": ("orders", "missing")}), "abd"),
        (Selection(filters={"run_id": ("r1",)}), "acd"),
        (Selection(search=parse_search("disk")), "acd"),
        (Selection(metadata={"host": ("db_1",)}), "abd"),
        (Selection(min_duration_ms=5), "abc"),
        (Selection(start=(1780315201 * 10**6, 0)), "ab"),
        (Selection(end=(1780315201 * 10**6, 0)), "cd"),
        (Selection(search=parse_search("missing")), "abcd"),
    ],
)
async def test_filters(store: LogStore, selection: Selection, left: str) -> None:
    """Only what matches all filters goes; searches, pages and tables agree on what is left."""
    second = "2026-06-01T12:00:01Z"
    sent = [
        record(message="a", status="FAILED", workflow="sync"),
        record(message="b", run_id="r1", workflow="sync", error="the disk is full"),
        record(message="c", executed_at=second, dataset="orders", metadata={"host": "db_1"}),
        record(message="d", executed_at=second, duration_ms=7),
    ]
    await append(store, "acme", *sent)
    erased = await store.erase("acme", selection)
    assert erased.logs == 4 - len(left)
    found = await read_all(store, LogQuery("acme"))
    assert "".join(messages(found)) == left
    page, _ = await read_page(store, LogQuery("acme", search=parse_search("-missing")))
    assert "".join(messages(page)) == left
    assert (await store.erase("acme", ALL)).logs == len(left)


async def test_tables_count_what_is_left(store: LogStore) -> None:
    """Sums by the hour are those of the logs that are left, however large those that went."""
    durations = (10**400, 0.1, 0.2, 0.3, 10**300, 5, None)
    sent = [
        record(run_id=str(n), duration_ms=one, executed_at=f"2026-06-01T{12 + n % 2}:30:00Z")
        for n, one in enumerate(durations)
    ]
    await append(store, "acme", *sent, day=DAYS[0])
    for run_ids in (("0",), ("4", "2")):
        await store.erase("acme", Selection(filters={"run_id": run_ids}))
    asked = {"metrics": ["count", "avg_duration_ms"], "dimensions": ["time:1h"]}
    query = parse_aggregation("acme", asked, 0)
    rows = await store.aggregate(query)
    assert [row[:2] for row in rows] == [
        ["2026-06-01T12:00:00Z", 1],
        ["2026-06-01T13:00:00Z", 3],
    ]
    assert rows[0][2] is None
    assert rows[1][2] == pytest.approx((0.1 + 0.3 + 5) / 3)


async def test_sums_stay_finite(store: LogStore) -> None:
    """Of durations beyond any float, what is left after an erasure has a mean as before."""
    huge = int("1" + "0" * 400)
    sent = [record(duration_ms=huge, run_id="gone" if n else "left") for n in range(3)]
    await append(store, "acme", *sent)
    await store.erase("acme", Selection(filters={"run_id": ("gone",)}))
    question = {"metrics": ["count", "avg_duration_ms"]}
    assert await store.aggregate(parse_aggregation("acme", question, 0)) == [[1, 1e300]]


async def test_sums_stay_exact_over_many_erasures(store: LogStore) -> None:
    """A mean is that of what is left, though each erasure took most of what there was."""
    durations = [96.0 * 752.7**n for n in range(8)]
    sent = [record(duration_ms=one, run_id=str(n)) for n, one in enumerate(durations)]
    await append(store, "acme", *sent)
    for n in range(7, 0, -1):
        await store.erase("acme", Selection(filters={"run_id": (str(n),)}))
        query = parse_aggregation("acme", {"metrics": ["avg_duration_ms"]}, 0)
        assert await store.aggregate(query) == [[pytest.approx(sum(durations[:n]) / n)]]


async def test_an_erased_id_may_be_sent_again(store: LogStore) -> None:
    """The client's own ids of erased logs are forgotten, those of others are not."""
    sent = [record(id="a", status="FAILED"), record(id="b")]
    await append(store, "acme", *sent, day=DAYS[0])
    await store.erase("acme", Selection(filters={"status": ("FAILED",)}))
    receipt = await store.append(make_batch(store.clock, "acme", sent, day=DAYS[1]))
    assert receipt.duplicates == 1
    assert len(await read_all(store, LogQuery("acme"))) == 2


async def test_the_rest_goes_with_all(store: LogStore) -> None:
    """Dead letters and remembered replies go where all is erased, and only the client's own."""
    for client_id in ("acme", "other"):
        async with store.claim(client_id, "once"):
            batch = rejecting(store, client_id, "bad")
            batch.idempotency = Idempotency("once", b"digest", b"outcome")
            assert await store.append(batch) == Receipt()
    for selection, left in ((Selection(filters={"status": ("x",)}), 1), (ALL, 0)):
        await store.erase("acme", selection)
        assert len(await read_rejected(store, RejectedQuery("acme"))) == left
        async with store.claim("acme", "once") as stored:
            assert (stored is not None) is bool(left)
    assert len(await read_rejected(store, RejectedQuery("other"))) == 1
    async with store.claim("other", "once") as stored:
        assert stored is not None


async def test_logs_may_follow(store: LogStore) -> None:
    """After an erasure logs are stored and read as ever."""
    for n in range(3):
        await append(store, "acme", *[record(message=str(n), id=f"{i}") for i in range(5)])
        assert messages(await read_all(store, LogQuery("acme"))) == [str(n)] * 5
        assert (await store.erase("acme", ALL)).logs == 5


async def test_followers_see_what_is_left(store: LogStore) -> None:
    """Who follows the logs from before an erasure is given those alone that are left."""
    await append(store, "acme", record(message="first"), day=DAYS[0])
    place = (await store.follow("acme", None)).place
    sent = [record(message=f"m{n}", status=f"{n}") for n in range(5)]
    await append(store, "acme", *sent, day=DAYS[0])
    await store.erase("acme", Selection(filters={"status": ("0", "3")}))
    await append(store, "acme", record(message="last"), day=DAYS[0])
    following = await store.follow("acme", place)
    assert [json.loads(log)["message"] for _, _, log in following.logs] == [
        *("m1", "m2", "m4", "last")
    ]


# --- the files -----------------------------------------------------------------------------------


def bytes_of(directory: Path) -> bytes:
    """Give all that is in the files of a directory."""
    return b"".join(path.read_bytes() for path in directory.glob("*.db*"))


def tidy(directory: Path, day: int) -> None:
    """Do what the sealer does after an erasure."""
    link = WriterLink(directory)
    tidy_day(directory, day, link)
    link.close()


@pytest.mark.parametrize("filters", [{}, {"workflow": (SECRET,)}])
@pytest.mark.parametrize("kept", [0, 700])
async def test_nothing_of_it_is_left_in_the_file(
    sqlite_backend: SqliteLogStore, filters: dict[str, tuple[str, ...]], kept: int
) -> None:
    """Once the sealer has been there, no text of an erased log is in the day's files."""
    store, directory = sqlite_backend, sqlite_backend._directory  # noqa: SLF001
    sent = [
        record(message=f"{SECRET} {n}" * 9, workflow=SECRET, run_id=SECRET, error=SECRET)
        for n in range(900)
    ]
    others = [record(message=f"harmless {n}", duration_ms=n) for n in range(kept)]
    mixed = [one for n in range(900) for one in (sent[n : n + 1] + others[n : n + 1])]
    for at in range(0, len(mixed), 100):
        await append(store, "acme", *mixed[at : at + 100], day=DAYS[0])
    await append(store, "other", *others[:10], day=DAYS[0])
    assert SECRET.encode() in bytes_of(directory)
    selection = Selection(filters=filters)
    assert (await store.erase("acme", selection)).logs == 900 + (0 if filters else kept)
    tidy(directory, DAYS[0])
    assert SECRET.encode() not in bytes_of(directory)
    left = await read_all(store, LogQuery("acme", limit=1000))
    assert messages(left) == messages(others if filters else [])
    found, _ = await read_page(store, LogQuery("acme", search=parse_search("harmless"), limit=999))
    assert len(found) == len(left)
    assert len(await read_all(store, LogQuery("other"))) == min(kept, 10)


@pytest.fixture(params=["waiting", "sealed"])
async def sqlite_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Give a store whose logs wait, or are sealed."""
    if request.param == "sealed":
        store = await SealedBackend(tmp_path).open()
    else:
        (tmp_path / "logs").mkdir()
        store = SqliteLogStore(tmp_path / "logs", 7)
        await store.open()
    yield store
    await store.aclose()


async def test_blocks_are_packed_anew(tmp_path: Path) -> None:
    """A block with erased lines is smaller afterwards, an empty one is gone at once."""
    store = await SealedBackend(tmp_path).open()
    path = day_path(tmp_path / "logs", DAYS[0])
    for n in range(3):
        status = "FAILED" if n else "SUCCESS"
        sent = [record(status=status, message=f"{i * 77}") for i in range(100)]
        sent += [record(status="SUCCESS") for _ in range(n % 2)]
        await append(store, "acme", *sent, day=DAYS[0])
    await store.erase("acme", Selection(filters={"status": ("FAILED",)}))
    db = sqlite3.connect(path)
    count = """SELECT count(*), max(length(logs))
        FROM blocks JOIN words USING (id) JOIN durations USING (id) WHERE id > ?"""
    first = db.execute("SELECT min(id) FROM blocks").fetchone()
    [(blocks, size)] = db.execute(count, first).fetchall()
    assert blocks == 1
    assert db.execute("SELECT count(*) FROM stale").fetchone() == (2,)
    assert db.execute("SELECT count(*) FROM durations").fetchone() == (2,)
    tidy(tmp_path / "logs", DAYS[0])
    [(blocks, size_after)] = db.execute(count, first).fetchall()
    assert (blocks, size_after < size) == (1, True)
    assert db.execute("SELECT count(*) FROM stale").fetchone() == (0,)
    assert db.execute("SELECT sum(logs) FROM hours").fetchone() == (101,)
    db.close()
    assert len(await read_all(store, LogQuery("acme"))) == 101
    await store.aclose()


async def test_a_block_erased_from_meanwhile_is_left_for_later(tmp_path: Path) -> None:
    """What the sealer packed before another erasure does not bring back what that erased."""
    store = await SealedBackend(tmp_path).open()
    sent = [record(message=f"{n}", status=f"{n}") for n in range(3)]
    await append(store, "acme", *sent, day=DAYS[0])
    await store.erase("acme", Selection(filters={"status": ("0",)}))
    with sqlite3.connect(day_path(tmp_path / "logs", DAYS[0])) as db:
        [id_] = [id_ for id_ in find_stale(db) if id_ & WHOLE != WHOLE]
        early = build_rewrite(db, DAYS[0], id_, find_stale(db)[id_])
        assert early is not None
        await store.erase("acme", Selection(filters={"status": ("1",)}))
        link = WriterLink(tmp_path / "logs")
        assert not link.ask(early)
        late = build_rewrite(db, DAYS[0], id_, find_stale(db)[id_])
        assert late is not None
        assert link.ask(late)
        assert not link.ask(late)
        link.close()
        [(packed,)] = db.execute("SELECT logs FROM blocks").fetchall()
        assert len([*Lines(packed)]) == 1
    db.close()
    assert messages(await read_all(store, LogQuery("acme"))) == ["2"]
    await store.aclose()


async def test_a_file_of_version_1_keeps_nothing_either(tmp_path: Path) -> None:
    """A file that can't give back its free pages holds no text of an erased log in them."""
    path = day_path(tmp_path, DAYS[0])
    create_day(path)
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("PRAGMA auto_vacuum = NONE")
        db.execute("VACUUM")
    db.close()
    store = SqliteLogStore(tmp_path, 7)
    await store.open()
    sent = [record(message=SECRET * 400, status=SECRET) for _ in range(300)]
    await append(store, "acme", *sent, day=DAYS[0])
    assert (await store.erase("acme", ALL)).logs == 300
    tidy(tmp_path, DAYS[0])
    assert SECRET.encode() not in bytes_of(tmp_path)
    await store.aclose()
