"""SIGTERM: what was accepted is stored and answered, and the exit code says so."""

import json
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from loadtests.server import HOST, Server, make_key, start_product
from tests.process.service import (
    Load,
    check_stored,
    stored_logs,
    the_writer_in,
    wait_until,
)

CLIENT = "acme"
STOP_S_MAX = 10.0


def _terminate(server: Server) -> tuple[int, float]:
    started = time.monotonic()
    server.process.terminate()
    code: int = server.process.wait(STOP_S_MAX + 5)
    return code, time.monotonic() - started


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load(tmp_path: Path, workers: int) -> None:
    """The service ends with code 0 within 10 s, its writer too; all it acknowledged is there."""
    key = make_key(tmp_path, CLIENT)
    loads = []
    for number in range(2):
        with start_product(tmp_path, workers=workers) as server:
            load = Load(server.port, key, f"round{number}")
            loads.append(load)
            with load.running():
                load.wait_for_more(800)
                tree = server.tree()
                code, seconds = _terminate(server)
            assert (code, seconds < STOP_S_MAX) == (0, True), server.log_tail()
            _, alive = psutil.wait_procs(tree, timeout=5)
            assert not alive
        # What it could not take any more it refused or never read: no other answer.
        assert load.statuses.keys() <= {201, 503}
        check_stored(tmp_path, CLIENT, *loads)


def test_a_request_that_is_being_sent_is_finished(tmp_path: Path) -> None:
    """A body half sent when the signal comes is still read, stored and acknowledged."""
    key = make_key(tmp_path, CLIENT)
    body = json.dumps({"environment": "dev", "executed_at": 1e9, "status": "late"}).encode()
    head = (
        f"POST /api/v1/logs HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with (
        start_product(tmp_path) as server,
        socket.create_connection((HOST, server.port), timeout=20) as connection,
    ):
        connection.sendall(head + body[:10])
        # Answered on a second connection: so the first one's bytes, sent before, were read.
        with socket.create_connection((HOST, server.port), timeout=20) as other:
            other.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert other.recv(12) == b"HTTP/1.1 200"
        server.process.terminate()
        wait_until(lambda: not _listens(server.port), "no more connections")
        connection.sendall(body[10:])
        assert connection.recv(12) == b"HTTP/1.1 201"
        assert server.process.wait(STOP_S_MAX) == 0
    assert [log["status"] for log in stored_logs(tmp_path, CLIENT)] == ["late"]


def test_a_client_that_never_finishes_does_not_hold_the_stop(tmp_path: Path) -> None:
    """The service waits for a stuck client, but not beyond 10 s."""
    key = make_key(tmp_path, CLIENT)
    head = (
        f"POST /api/v1/logs HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: 99\r\n\r\n"
    )
    with (
        start_product(tmp_path) as server,
        socket.create_connection((HOST, server.port), timeout=20) as connection,
    ):
        connection.sendall(head.encode() + b"[")
        with socket.create_connection((HOST, server.port), timeout=20) as other:
            other.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert other.recv(12) == b"HTTP/1.1 200"
        code, seconds = _terminate(server)
        assert (code, seconds < STOP_S_MAX) == (0, True), server.log_tail()


def test_sigterm_while_the_writer_is_stopped(tmp_path: Path) -> None:
    """A writer that does not answer does not hold the stop beyond what the drain may take."""
    key = make_key(tmp_path, CLIENT)
    with start_product(tmp_path) as server:
        load = Load(server.port, key, "load")
        with load.running(senders=2):
            load.wait_for_more(50)
            writer = the_writer_in(server)
            writer.suspend()
            try:
                code, seconds = _terminate(server)
            finally:
                writer.resume()
            psutil.wait_procs([writer], timeout=10)
        assert (code, seconds < STOP_S_MAX) == (0, True), server.log_tail()
    check_stored(tmp_path, CLIENT, load)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


def test_the_data_is_the_owner_s_alone(tmp_path: Path) -> None:
    """Nobody else on the machine can read keys, secret or logs."""
    data_dir = tmp_path / "data"
    with start_product(data_dir) as server:
        assert server.stop() == 0
    assert data_dir.stat().st_mode & 0o777 == 0o700
    assert (data_dir / "logs").stat().st_mode & 0o777 == 0o700
    assert (data_dir / "secret.key").stat().st_mode & 0o777 == 0o600
