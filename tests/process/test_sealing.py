"""The service while its logs are sealed: nothing is lost, twice or out of reach."""

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from app.sqlite import sqlite3
from app.storage.sqlite.schema import list_days
from loadtests.server import Server, make_key, start_product
from tests.process.service import (
    Load,
    ask,
    check_stored,
    kill_all,
    the_writer_in,
    wait_until,
)

CLIENT = "acme"


def _sealers_in(server: Server) -> list[psutil.Process]:
    found = []
    for process in server.tree():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "app.storage.sqlite.sealer" in process.cmdline():
                found.append(process)
    return found


def _sealed(data_dir: Path) -> int:
    count = 0
    for path in list_days(data_dir / "logs").values():
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        count += db.execute("SELECT count(*) FROM sealed").fetchone()[0]
        db.close()
    return count


def _sealed_more(data_dir: Path, than: int) -> bool:
    return _sealed(data_dir) > than


def _end(server: Server, victim: str) -> None:
    if victim == "sealer":
        wait_until(partial(_sealers_in, server), "a sealer")
        for sealer in _sealers_in(server):
            with suppress(psutil.NoSuchProcess):
                sealer.kill()
    else:
        the_writer_in(server).kill()


@pytest.mark.parametrize("victim", ["sealer", "writer"])
def test_kill_9_under_load_while_logs_are_sealed(tmp_path: Path, victim: str) -> None:
    """Whatever dies, the service seals on, and what was acknowledged is there once."""
    key = make_key(tmp_path, CLIENT)
    with start_product(tmp_path) as server:
        load = Load(server.port, key, victim)
        with load.running():
            for _ in range(2):
                load.wait_for_more(2500)
                _end(server, victim)
                load.wait_for_more(2500)
                wait_until(partial(_sealed_more, tmp_path, _sealed(tmp_path)), "more sealed logs")
        assert load.statuses.keys() <= ({201} if victim == "sealer" else {201, 503})
        kill_all(server)
    check_stored(tmp_path, CLIENT, load)
    with start_product(tmp_path) as server:  # and goes on from there
        again = Load(server.port, key, "again")
        with again.running():
            again.wait_for_more(100)
        assert server.stop() == 0
    check_stored(tmp_path, CLIENT, load, again)


def test_the_deepest_log_is_found_and_sealed(tmp_path: Path) -> None:
    """A log nested as deeply as is let in hinders neither a search nor the sealer."""
    key = make_key(tmp_path, CLIENT)
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    required = '"environment":"dev","executed_at":1,"status":"OK","message":"deep"'
    question = urlencode({"q": "deep bottom", "limit": 1})
    with start_product(tmp_path) as server:
        stored = 0
        for depth in range(1010, 900, -1):
            nested = "[" * depth + r'"\u0062ottom"' + "]" * depth
            body = f'{{{required},"run_id":"{depth}","metadata":{{"a":{nested}}}}}'
            status, _, _ = ask(server.port, "POST", "/api/v1/logs", body.encode(), headers)
            assert status in {201, 400, 422}
            stored += status == 201
            if stored == 3:
                break
        path = f"/api/v1/logs?{question}"
        status, _, waiting = ask(server.port, "GET", path, b"", headers)
        assert status == 200
        assert b"ottom" in waiting
        others = [{"environment": "dev", "executed_at": n, "status": "OK"} for n in range(2, 2102)]
        plain = json.dumps(others)
        assert ask(server.port, "POST", "/api/v1/logs", plain.encode(), headers)[0] == 201
        wait_until(partial(_sealed_more, tmp_path, 2000), "sealed logs")
        assert ask(server.port, "GET", path, b"", headers)[2] == waiting
