"""Tests of app.storage.sqlite.writer, as a process: its groups, its faults, its end."""

import asyncio
import json
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from app.errors import StorageUnavailable
from app.logs.batch import Idempotency
from app.logs.query import LogQuery, UsageQuery
from app.sqlite import sqlite3
from app.storage.sqlite.schema import list_days
from app.storage.sqlite.store import SqliteLogStore
from app.storage.sqlite.writer import ALREADY_RUNNING
from loadtests.server import ROOT
from tests.storage.batches import append, assert_same_logs, make_batch, read_all, record
from tests.storage.sqlite.conftest import names_in, recovered, wait_for_one_writer, writer_of

pytestmark = pytest.mark.anyio

MakeStore = Callable[..., SqliteLogStore]


def _commits(directory: Path) -> int:
    """Count the transactions in the one day file's log of writes, which is not folded in yet."""
    [path] = list_days(directory).values()
    wal = path.with_name(f"{path.name}-wal").read_bytes()
    frame_bytes = 24 + int.from_bytes(wal[8:12], "big")
    # A frame that ends a transaction tells the size of the database after it (fileformat2, 4.1).
    frames = range(32, len(wal) - frame_bytes + 1, frame_bytes)
    return sum(wal[at + 4 : at + 8] != b"\0\0\0\0" for at in frames)


async def test_appends_at_one_time_are_one_commit(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """What arrives while the disk is busy is committed together."""
    await append(sqlite_store, "acme", record())
    before = _commits(directory)
    batches = [make_batch(sqlite_store.clock, "acme", [record()]) for _ in range(500)]
    await asyncio.gather(*map(sqlite_store.append, batches))
    assert 1 <= _commits(directory) - before <= 20
    assert len(await read_all(sqlite_store, LogQuery("acme"))) == 501


async def test_a_receipt_is_a_commit(sqlite_store: SqliteLogStore, directory: Path) -> None:
    """Appends one after the other are each committed before their receipt."""
    for number in range(1, 6):
        await append(sqlite_store, "acme", record())
        # The logs and the end of the making of the file.
        assert _commits(directory) == number


async def test_a_bad_batch_does_not_fail_its_neighbours(sqlite_store: SqliteLogStore) -> None:
    """Of a group only the batch that cannot be stored fails."""
    batches = [make_batch(sqlite_store.clock, "acme", [record(run_id=str(n))]) for n in range(9)]
    batches[4].rows *= 2
    results = await asyncio.gather(*map(sqlite_store.append, batches), return_exceptions=True)
    assert [isinstance(one, StorageUnavailable) for one in results] == [n == 4 for n in range(9)]
    logs = await read_all(sqlite_store, LogQuery("acme", order="asc"))
    assert [log["run_id"] for log in logs] == ["0", "1", "2", "3", "5", "6", "7", "8"]
    [usage] = await sqlite_store.usage(UsageQuery("acme", "key"))
    assert usage.counts[:2] == (8, 8)


async def test_the_writer_ends_with_the_last_worker(
    open_stores: MakeStore, directory: Path
) -> None:
    """It stays while one worker is there, and is gone when the last one has closed."""
    one, two = open_stores(), open_stores()
    await one.open()
    await two.open()
    writer = writer_of(directory)
    await two.aclose()
    await one.ping()
    assert writer.is_running()
    await one.aclose()
    assert not psutil.pid_exists(writer.pid)


async def test_the_day_is_folded_when_the_writer_ends(
    open_stores: MakeStore, directory: Path
) -> None:
    """A clean end leaves one file a day, which a copy may take."""
    store = open_stores()
    await store.open()
    await append(store, "acme", record())
    await store.aclose()
    [path] = list_days(directory).values()
    assert [name for name in names_in(directory) if ".db" in name] == [path.name]
    store = open_stores()
    await store.open()
    assert len(await read_all(store, LogQuery("acme"))) == 1


async def test_two_workers_share_one_writer(open_stores: MakeStore, directory: Path) -> None:
    """Workers that start together end up with one writer, and with slots of their own."""
    stores = [open_stores() for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        await store.ping()
    await asyncio.to_thread(wait_for_one_writer, directory)
    for store in stores:
        await store.ping()
    assert len({store.clock.slot for store in stores}) == 4
    await asyncio.gather(*(append(store, "acme", record()) for store in stores))
    assert len(await read_all(stores[0], LogQuery("acme"))) == 4


async def test_a_second_writer_leaves_at_once(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """A directory has one writer, however many are started."""
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.storage.sqlite.writer", str(directory), "7"), cwd=ROOT
    )
    assert await second.wait() == ALREADY_RUNNING
    await sqlite_store.ping()


def test_a_writer_without_workers_and_their_signals(tmp_path: Path) -> None:
    """The signals that a terminal or a supervisor sends to all do not end the writer."""
    command = [sys.executable, "-m", "app.storage.sqlite.writer", str(tmp_path), "7"]
    with subprocess.Popen(command, cwd=ROOT) as writer:
        while not (tmp_path / "writer.sock").exists():
            assert writer.poll() is None
        for harmless in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            writer.send_signal(harmless)
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.3)
        writer.kill()


async def test_files_are_for_the_owner_alone(sqlite_store: SqliteLogStore, directory: Path) -> None:
    """Nobody else on the machine may read logs or talk to the writer."""
    await append(sqlite_store, "acme", record())
    await read_all(sqlite_store, LogQuery("acme"))
    names = names_in(directory)
    assert {"writer.sock", "writer.lock"} < set(names)
    assert len(names) == 5  # and the day with its log of writes and their index
    modes = [stat.S_IMODE((directory / name).stat().st_mode) for name in names]
    assert [mode & 0o077 for mode in modes] == [0] * 5


async def test_a_full_disk_and_then_room(sqlite_store: SqliteLogStore, directory: Path) -> None:
    """While nothing can be written appends fail; then all goes on, with nothing lost or doubled."""
    stored = [record(run_id=f"before-{n}", id=f"before-{n}") for n in range(50)]
    await append(sqlite_store, "acme", *stored)
    pid = writer_of(directory).pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    full = (directory / f"{next(iter(list_days(directory).values())).name}-wal").stat().st_size
    for allowed in (0, 1, full, full + 100, full + 9_000):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (allowed, hard))
        for number in range(3):
            sent = [record(run_id=f"during-{allowed}-{number}", message="m" * 30_000)]
            with pytest.raises(StorageUnavailable):
                await append(sqlite_store, "acme", *sent)
        assert_same_logs(await read_all(sqlite_store, LogQuery("acme")), stored)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        after = [record(run_id=f"after-{allowed}", id=f"after-{allowed}")]
        await append(sqlite_store, "acme", *after)
        stored += after
    assert writer_of(directory).pid == pid
    again = make_batch(sqlite_store.clock, "acme", stored)
    assert (await sqlite_store.append(again)).duplicates == len(stored)
    assert_same_logs(await read_all(sqlite_store, LogQuery("acme")), stored)
    [usage] = await sqlite_store.usage(UsageQuery("acme", "key"))
    assert usage.counts[1] == len(stored)


async def test_a_full_disk_at_the_day_s_first_log(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """A day that begins on a full disk begins later, when there is room."""
    pid = writer_of(directory).pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    for allowed in (0, 10_000, 60_000, 80_000):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (allowed, hard))
        with pytest.raises(StorageUnavailable):
            await append(sqlite_store, "acme", record(message="m" * 100_000), day=20_000)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    await append(sqlite_store, "acme", record(), day=20_000)
    assert len(await read_all(sqlite_store, LogQuery("acme"))) == 1


async def test_a_full_disk_keeps_an_idempotency_key_usable(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """A request that failed for want of room is not remembered, and succeeds when repeated."""
    await append(sqlite_store, "acme", record())
    pid = writer_of(directory).pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    for succeeds in (False, True):
        batch = make_batch(sqlite_store.clock, "other", [record()])
        batch.idempotency = Idempotency("k", b"d", b"o")
        async with sqlite_store.claim("other", "k") as stored:
            assert stored is None
            if succeeds:
                await sqlite_store.append(batch)
            else:
                with pytest.raises(StorageUnavailable):
                    await sqlite_store.append(batch)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert len(await read_all(sqlite_store, LogQuery("other"))) == 1


@pytest.mark.parametrize("day", [None, 20_000])
async def test_a_ping_tells_of_a_full_disk(
    sqlite_store: SqliteLogStore, directory: Path, day: int | None
) -> None:
    """Once a write has failed the store is not ready, until there is room, asked or not."""
    pid = writer_of(directory).pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    for allowed in (0, 100, 9_000):
        await append(sqlite_store, "acme", record())
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (allowed, hard))
        with pytest.raises(StorageUnavailable):
            await append(sqlite_store, "acme", record(message="m" * 30_000), day=day)
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                await sqlite_store.ping()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        await sqlite_store.ping()
    assert writer_of(directory).pid == pid
    assert len(await read_all(sqlite_store, LogQuery("acme"))) == 3


async def test_a_write_that_succeeds_makes_the_store_ready(
    sqlite_store: SqliteLogStore, directory: Path
) -> None:
    """After a commit a ping is free: it does not write for each who asks."""
    await append(sqlite_store, "acme", record())
    pid = writer_of(directory).pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    with pytest.raises(StorageUnavailable):
        await append(sqlite_store, "acme", record())
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    await append(sqlite_store, "acme", record())
    before = _commits(directory)
    for _ in range(3):
        await sqlite_store.ping()
    assert _commits(directory) == before


async def test_an_outcome_is_forgotten_after_a_day(open_stores: MakeStore, directory: Path) -> None:
    """An Idempotency-Key is free again after 24 hours, and then kept anew."""
    store = open_stores()
    await store.open()
    for outcome in (b"first", b"second"):
        async with store.claim("acme", "k") as stored:
            assert stored is None
            batch = make_batch(store.clock, "acme", [record()])
            batch.idempotency = Idempotency("k", b"d", outcome)
            await store.append(batch)
        async with store.claim("acme", "k") as stored:
            assert stored is not None
            assert stored.outcome == outcome
        await store.aclose()
        [path] = list_days(directory).values()
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE idempotency SET created_us = created_us - 86400 * 1000000")
        connection.close()
        store = open_stores()
        await store.open()


async def test_a_batch_that_breaks_the_writer_is_not_the_end(
    open_stores: MakeStore, capfd: pytest.CaptureFixture[str]
) -> None:
    """A fault that nobody foresaw ends the writer with a line of JSON, and another one follows."""
    store = open_stores()
    await store.open()
    await append(store, "acme", record())
    broken = make_batch(store.clock, "acme", [record()])
    broken.series = []  # its rows name one
    with pytest.raises(StorageUnavailable):
        await store.append(broken)
    await recovered(store)
    await append(store, "acme", record())
    assert len(await read_all(store, LogQuery("acme"))) == 2
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    [last_words] = [json.loads(one) for one in said.out.splitlines() if one.startswith('{"')]
    assert last_words["level"] == "error"
    assert "IndexError" in last_words["exception"]


def test_a_writer_that_cannot_begin_says_so_in_json(tmp_path: Path) -> None:
    """What ends the writer before it serves anybody is a line like all of the service's logs."""
    done = subprocess.run(
        [sys.executable, "-m", "app.storage.sqlite.writer", str(tmp_path / "not-there"), "7"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    assert "FileNotFoundError" in json.loads(done.stdout)["exception"]
