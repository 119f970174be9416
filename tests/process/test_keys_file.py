"""API_KEYS_FILE is followed by every worker, while it serves."""

import threading
import time
from collections import defaultdict
from pathlib import Path

from loadtests.server import start_product
from tests.process.service import PATH, Load, ask, wait_until, workers_in

BODY = b'{"environment":"dev","executed_at":0,"status":"OK"}'
IN_FORCE_S_MAX = 5.0
# Of each key, on connections of their own, which fall on either worker.
PROBES = 60


def _write(path: Path, *keys: str) -> float:
    rows = [f"  - {{key: {key}, tenant: {key.partition('-')[0]}}}" for key in keys]
    path.with_name("draft").write_text("\n".join(["api_keys:", *rows, ""]))
    path.with_name("draft").replace(path)
    return time.monotonic()


def _statuses(port: int, key: str) -> set[int]:
    headers = {"X-API-Key": key, "Content-Type": "application/json", "Connection": "close"}
    return {ask(port, "POST", PATH, BODY, headers)[0] for _ in range(PROBES)}


def _see(port: int, key: str, status: int, written: float) -> None:
    """Fail unless every worker answers a key so by 5 s after the file was written."""
    while _statuses(port, key) != {status}:
        assert time.monotonic() < written + IN_FORCE_S_MAX, f"{key} is not answered {status}"


class Garbage:
    """Keys that nobody has, sent all the time."""

    def __init__(self, port: int) -> None:
        self.statuses: dict[int, int] = defaultdict(int)
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Wait until none is under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            headers = {"X-API-Key": f"garbage-{number}"}
            self.statuses[ask(self._port, "GET", PATH, headers=headers)[0]] += 1
            self._stop.wait(0.005)


def test_keys_of_the_file_come_and_go_in_every_worker(tmp_path: Path) -> None:
    """A key is accepted 5 s after it was written, and refused 5 s after it was taken out."""
    path = tmp_path / "keys.yaml"
    _write(path, "acme-1")
    env = {"API_KEYS_FILE": str(path), "AUTH_FAILURES_PER_MINUTE": "0"}
    with start_product(tmp_path / "data", env, workers=2) as server:
        assert len(workers_in(server)) == 2
        assert "First start" not in server.log_tail()
        garbage = Garbage(server.port)
        try:
            with Load(server.port, "acme-1", "traffic").running(4) as load:
                load.wait_for_more(100)
                assert _statuses(server.port, "demo-1") == {401}
                written = _write(path, "acme-1", "demo-1")
                _see(server.port, "demo-1", 201, written)
                load.wait_for_more(100)
                assert load.refusals == []
                written = _write(path, "acme-1")
                _see(server.port, "demo-1", 401, written)
                # A file that cannot be used changes nothing.
                path.write_text("api_keys: [{key: hunter2, role: emperor}]")
                time.sleep(IN_FORCE_S_MAX)
                assert load.refusals == []
                # Of the key that all the traffic uses, no worker's memory may speak.
                written = _write(path, "demo-1")
                _see(server.port, "acme-1", 401, written)
                _see(server.port, "demo-1", 201, written)
        finally:
            garbage.stop()
        assert set(garbage.statuses) == {401}
        server.output.seek(0)
        told = server.output.read().decode()
    assert told.count("role must be one of") == 2
    assert not any(key in told for key in ("hunter2", "acme-1", "demo-1", "garbage-"))


def test_no_end_of_a_key_waits_for_new_ones(tmp_path: Path) -> None:
    """Keys that are taken out are refused 5 s later, although hundreds of new ones come with it."""
    path = tmp_path / "keys.yaml"
    _write(path, "acme-1", "acme-2", "acme-3")
    # Their argon2 takes a worker about 7 s.
    new = [f"demo-{number}" for number in range(200)]
    env = {"API_KEYS_FILE": str(path), "AUTH_FAILURES_PER_MINUTE": "0"}
    with start_product(tmp_path / "data", env) as server:
        assert _statuses(server.port, "acme-1") == {201}
        for remaining, gone in (("acme-2", "acme-3"), "acme-1"), (("acme-3",), "acme-2"):
            written = _write(path, *remaining, *new)
            _see(server.port, gone, 401, written)
            assert _statuses(server.port, "acme-3") == {201}
        wait_until(lambda: _statuses(server.port, new[-1]) == {201}, "the last new key")
