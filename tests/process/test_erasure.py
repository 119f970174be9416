"""An erasure in a service that dies, and beside others who write."""

import json
import threading
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from app.sqlite import sqlite3
from loadtests.server import Server, make_admin_key, make_key, start_product
from tests.process.service import (
    Load,
    Reply,
    ask,
    check_stored,
    kill_all,
    stored_logs,
    stored_usage,
    wait_until,
)

GONE, OTHER = "gone", "other"
PATH = f"/api/v1/clients/{GONE}/logs"
SECRET = "zebrafinch"
LOGS = 20_000


def fill(server: Server, key: str) -> None:
    """Store logs with a word that nobody else writes."""
    log = {"environment": "dev", "status": "OK", "message": SECRET, "metadata": {"a": SECRET}}
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    for batch in range(0, LOGS, 2000):
        records = [
            log | {"executed_at": f"2026-06-01T00:{n % 60:02}:00Z", "id": str(n)}
            for n in range(batch, batch + 2000)
        ]
        status, _, body = ask(
            server.port, "POST", "/api/v1/logs", json.dumps(records).encode(), headers
        )
        assert (status, json.loads(body)["accepted"]) == (201, 2000)


def erase(server: Server, key: str) -> Reply:
    """Erase all logs."""
    return ask(server.port, "DELETE", PATH, headers={"X-API-Key": key})


def count_of(data_dir: Path) -> int:
    """Count the logs left, in whatever state the files are."""
    [path] = (data_dir / "logs").glob("????-??-??.db")
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    [(count,)] = db.execute(
        """SELECT (SELECT count(*) FROM logs WHERE client = c.id)
            + (SELECT count(*) FROM sealed WHERE client = c.id)
        FROM clients c WHERE client_id = ?""",
        (GONE,),
    ).fetchall()
    db.close()
    return int(count)


def is_left(data_dir: Path) -> bool:
    """Say whether the word is in any file."""
    return any(
        SECRET.encode() in path.read_bytes()
        for path in (data_dir / "logs").iterdir()
        if path.is_file() and not path.name.endswith("-shm")
    )


def test_kill_9_in_the_middle_of_an_erasure(tmp_path: Path) -> None:
    """After a kill nothing comes back, a repeat does the rest, and others have lost nothing."""
    key, other = make_key(tmp_path, GONE), make_key(tmp_path, OTHER)
    admin = make_admin_key(tmp_path)
    loads = []
    with start_product(tmp_path, workers=2) as server:
        fill(server, key)
        load = Load(server.port, other, "first")
        loads.append(load)
        with load.running():
            load.wait_for_more(100)
            thread = threading.Thread(target=_erase_in_vain, args=(server, admin))
            thread.start()
            wait_until(lambda: count_of(tmp_path) < LOGS, "the first logs to go")
            kill_all(server)
            thread.join()
    left = count_of(tmp_path)
    assert 0 < left < LOGS
    with start_product(tmp_path, workers=2) as server:
        load = Load(server.port, other, "second")
        loads.append(load)
        with load.running():
            load.wait_for_more(100)
            status, _, body = erase(server, admin)
            assert (status, json.loads(body)["erased"]) == (200, left)
        assert load.statuses.keys() == {201}
        assert stored_logs(tmp_path, GONE) == []
        assert json.loads(erase(server, admin)[2])["erased"] == 0
        wait_until(lambda: not is_left(tmp_path), "the files to be tidied")
        assert server.stop() == 0
    check_stored(tmp_path, OTHER, *loads)
    assert stored_usage(tmp_path, GONE) == (LOGS // 2000, LOGS)


def _erase_in_vain(server: Server, admin: str) -> None:
    with suppress(OSError, HTTPException):
        erase(server, admin)
