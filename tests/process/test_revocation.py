"""A revoked key fails on its very next request, in every worker."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.sqlite import sqlite3
from loadtests.server import (
    HOST,
    ROOT,
    Server,
    make_admin_key,
    make_key,
    product_env,
    start_product,
)
from tests.process.service import (
    PATH,
    WholeConnection,
    ask,
    read_reply,
    stored_logs,
    wait_until,
    workers_in,
)

SENDERS = 8
BODY = b'{"environment":"dev","executed_at":0,"status":"OK"}'


Revoke = Callable[[Server, Path, str], None]


def _by_api(server: Server, data_dir: Path, key_id: str) -> None:
    headers = {"X-API-Key": make_admin_key(data_dir)}
    path = f"/api/v1/api-keys/{key_id}/deactivate"
    status, _, body = ask(server.port, "POST", path, headers=headers)
    assert status == 200
    assert json.loads(body)["workers"] == 2


def _by_client(server: Server, data_dir: Path, key_id: str) -> None:
    del key_id
    headers = {"X-API-Key": make_admin_key(data_dir), "Content-Type": "application/json"}
    body = b'{"is_active": false}'
    status, _, _ = ask(server.port, "PATCH", "/api/v1/clients/acme", body, headers)
    assert status == 200


def _by_script(_: Server, data_dir: Path, key_id: str) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "revoke_api_key.py"), key_id, "--yes"],
        cwd=ROOT,
        env=product_env(data_dir),
        check=True,
        capture_output=True,
        timeout=30,
    )


def _by_sql(_: Server, data_dir: Path, key_id: str) -> None:
    connection = sqlite3.connect(data_dir / "control.db", isolation_level=None)
    changed = connection.execute("UPDATE api_keys SET is_active = 0 WHERE key_id = ?", (key_id,))
    assert changed.rowcount == 1
    connection.close()


class Senders:
    """Threads that use a key without pause, and when each request began and what it got."""

    def __init__(self, port: int, key: str) -> None:
        self.results: list[tuple[float, int]] = []
        self.faults: list[BaseException] = []
        self._port = port
        self._headers = {"X-API-Key": key, "Content-Type": "application/json"}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(SENDERS)
        ]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until no request is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.faults, self.faults

    def _run(self, number: int) -> None:
        try:
            connection = WholeConnection(HOST, self._port, timeout=30)
            while not self._stop.is_set():
                if number % 2:
                    # A connection of its own may reach either worker; a kept one stays with its.
                    connection.close()
                method, path = ("POST", PATH) if number % 4 < 2 else ("GET", f"{PATH}?limit=1")
                began = time.perf_counter()
                connection.request(method, path, BODY, self._headers)
                self.results.append((began, read_reply(connection)[0]))
            connection.close()
        except Exception as error:  # noqa: BLE001  # told to the test, which fails with it
            self.faults.append(error)


@pytest.mark.parametrize(
    "revoke", [_by_script, _by_sql, _by_api, _by_client], ids=["script", "sql", "api", "client"]
)
def test_no_request_succeeds_after_a_revocation(tmp_path: Path, revoke: Revoke) -> None:
    """Once the key is off, not one later request succeeds, in any worker, under load."""
    kept_client = "other" if revoke is _by_client else "acme"
    key, kept = make_key(tmp_path, "acme"), make_key(tmp_path, kept_client)
    # Else the refusals of one address end in 429, which is not what is to be seen here.
    with start_product(tmp_path, {"AUTH_FAILURES_PER_MINUTE": "0"}, workers=2) as server:
        assert len(workers_in(server)) == 2
        senders = Senders(server.port, key)
        senders.start()
        try:
            wait_until(lambda: len(senders.results) > 300 or senders.faults, "requests before")
            revoke(server, tmp_path, key[-61:-49])
            revoked = time.perf_counter()
            count = len(senders.results)
            wait_until(lambda: len(senders.results) > count + 500 or senders.faults, "and after")
        finally:
            senders.stop()
        before = [status for began, status in senders.results if began < revoked]
        after = [status for began, status in senders.results if began >= revoked]
        assert {200, 201} <= set(before) <= {200, 201, 401}
        assert set(after) == {401}
        assert len(after) >= 400
        # Another key works on.
        headers = {"X-API-Key": kept, "Content-Type": "application/json"}
        assert ask(server.port, "POST", PATH, BODY, headers)[0] == 201
        status, _, body = ask(server.port, "GET", "/api/v1/usage", headers={"X-API-Key": kept})
        assert status == 200
        stored = json.loads(body)["totals"]["logs"]
    assert stored == len(stored_logs(tmp_path, kept_client))
    sent = 0 if revoke is _by_client else sum(status == 201 for _, status in senders.results)
    assert stored == sent + 1
