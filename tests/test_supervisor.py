"""Workers that die are replaced, and one that cannot start now ends nothing."""

from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from loadtests.server import Server, start_product
from tests.process.service import PATH, ask, wait_until, workers_in

KEYS = "api_keys: [{key: weak-key-of-acme, tenant: acme}]\n"
# On connections of their own, which fall on either worker.
PROBES = 20


def _kill_one(server: Server) -> psutil.Process:
    worker = workers_in(server)[0]
    worker.kill()
    return worker


def _statuses(server: Server) -> set[int]:
    headers = {"X-API-Key": "weak-key-of-acme", "Connection": "close"}
    return {ask(server.port, "GET", PATH, headers=headers)[0] for _ in range(PROBES)}


def _said(server: Server, text: str) -> int:
    server.output.seek(0)
    return server.output.read().decode().count(text)


@pytest.mark.parametrize(
    ("way", "told"),
    [("broken", "Application startup failed"), ("gone", "API_KEYS_FILE: is not a file")],
)
def test_a_worker_waits_for_a_file_to_be_mended(tmp_path: Path, way: str, told: str) -> None:
    """With a bad API_KEYS_FILE the others serve on, and a worker that died is back afterwards."""
    path = tmp_path / "keys.yaml"
    path.write_text(KEYS)
    env = {"API_KEYS_FILE": str(path)}
    with start_product(tmp_path / "data", env, workers=2) as server:
        wait_until(lambda: _said(server, "Application startup complete") == 2, "both workers")
        if way == "broken":
            path.write_text(KEYS + "- [")
        else:
            path.unlink()
        _kill_one(server)
        wait_until(lambda: _said(server, told), "a start that failed")
        assert server.process.poll() is None
        assert _statuses(server) == {200}
        path.write_text(KEYS)
        wait_until(lambda: _said(server, "Application startup complete") == 3, "the new worker")
        assert _statuses(server) == {200}
        server.process.terminate()
        assert server.process.wait(20) == 0
