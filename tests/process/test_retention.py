"""Retention in a service that dies, and beside others who write."""

import asyncio
import json
import shutil
import time
from functools import partial
from pathlib import Path

from app.storage.sqlite.schema import day_path, list_days
from app.storage.sqlite.store import SqliteLogStore
from loadtests.server import Server, make_admin_key, make_key, start_product
from tests.process.service import (
    Load,
    ask,
    check_stored,
    kill_all,
    stored_logs,
    stored_usage,
    wait_until,
)
from tests.storage.batches import append, record

OLD, OTHER = "old", "other"
DAYS = 20
LOGS_A_DAY = 50
# Of a day whose file stays.
MIXED_LOGS = 2000
WINDOW = 7
TOTAL = DAYS * LOGS_A_DAY + MIXED_LOGS


def today() -> int:
    """Give the UTC day."""
    return int(time.time() // 86_400)


async def _fill(directory: Path) -> None:
    store = SqliteLogStore(directory, WINDOW)
    await store.open()
    for age in range(10, 10 + DAYS):
        await append(store, OLD, *[record() for _ in range(LOGS_A_DAY)], day=today() - age)
    await append(store, OLD, *[record() for _ in range(MIXED_LOGS)], day=today() - 3)
    await append(store, "third", record(), day=today() - 3)
    await store.aclose()


def fill(data_dir: Path) -> None:
    """Store logs that arrived long ago, as nobody can through the API."""
    directory = data_dir / "logs"
    directory.mkdir(exist_ok=True)
    asyncio.run(_fill(directory))


def days_of(data_dir: Path) -> list[int]:
    """Give the days that have a file, but for today's."""
    return sorted(day for day in list_days(data_dir / "logs") if day < today() - 1)


def has_fewer(data_dir: Path, count: int) -> bool:
    """Say whether there are fewer days than that."""
    return len(days_of(data_dir)) < count


def set_retention(server: Server, admin: str) -> None:
    """Have the old logs kept for a day."""
    headers = {"X-API-Key": admin, "Content-Type": "application/json"}
    body = json.dumps({"retention_days": 1}).encode()
    status, _, reply = ask(server.port, "PATCH", f"/api/v1/clients/{OLD}", body, headers)
    assert (status, json.loads(reply)["retention_days"]) == (200, 1)


def logs_counted(data_dir: Path) -> int:
    """Give how many logs the usage of the old client counts."""
    return stored_usage(data_dir, OLD)[1]


def test_kill_9_in_the_middle_of_an_expiry(tmp_path: Path) -> None:
    """Wherever it is killed, usage is counted once, the rest goes later, and others lose nothing.

    Under load, by two workers at one time: all at once dies while files are unlinked.
    """
    make_key(tmp_path, OLD)
    key, admin = make_key(tmp_path, OTHER), make_admin_key(tmp_path)
    fill(tmp_path)
    (kept := tmp_path / "kept").mkdir()
    for day in days_of(tmp_path)[:5]:
        shutil.copy(day_path(tmp_path / "logs", day), kept)
    loads = []
    for number in range(2):
        before = len(days_of(tmp_path))
        with start_product(tmp_path, workers=2) as server:
            set_retention(server, admin)
            loads.append(load := Load(server.port, key, f"load-{number}"))
            with load.running():
                wait_until(partial(has_fewer, tmp_path, before), "the next file to go")
                kill_all(server)
        assert logs_counted(tmp_path) == TOTAL
    for path in kept.iterdir():  # as if it had died between the fold and the unlink
        shutil.copy(path, tmp_path / "logs")
    assert logs_counted(tmp_path) == TOTAL
    with start_product(tmp_path, workers=2) as server:
        loads.append(load := Load(server.port, key, "last"))
        with load.running():
            wait_until(lambda: days_of(tmp_path) == [today() - 3], "all old files to go")
            assert logs_counted(tmp_path) == TOTAL
            wait_until(lambda: not stored_logs(tmp_path, OLD), "the old logs to go")
            load.wait_for_more(100)
        assert load.statuses.keys() == {201}
        assert server.stop() == 0
    check_stored(tmp_path, OTHER, *loads)
    assert logs_counted(tmp_path) == TOTAL
