"""More than the service may hold at once: refused with 503, in bounded memory."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from loadtests.server import HOST, Server, make_key, start_product
from tests.process.service import PATH, Reply, ask, stored_logs, wait_until

MIB = 1024**2
LOG = {"environment": "dev", "executed_at": 0, "status": "OK"}


@pytest.fixture
def key(tmp_path: Path) -> str:
    """Give a key of client `acme`."""
    return make_key(tmp_path, "acme")


@pytest.fixture
def server(tmp_path: Path, key: str) -> Iterator[Server]:
    """Give a server that may hold little."""
    with start_product(tmp_path, env={"MAX_INFLIGHT_BYTES": str(4 * MIB)}) as server:
        yield server


def _log(size: int) -> bytes:
    return json.dumps(LOG | {"message": "m" * size}).encode()


def _batch(logs: int) -> bytes:
    return b"[" + b",".join([_log(MIB // 2)] * logs) + b"]"


BIG, SMALL = _batch(9), _log(500_000)
HELD = 4 * MIB - 100_000


def _open(server: Server, key: str, length: int) -> socket.socket:
    """Begin a request whose body is to have `length` bytes."""
    connection = socket.create_connection((HOST, server.port), timeout=30)
    connection.sendall(
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return connection


def _post(server: Server, key: str, body: bytes) -> Reply:
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    return ask(server.port, "POST", PATH, body, headers)


def _fill(server: Server, key: str, replies: list[Reply]) -> socket.socket:
    """Hold most of the bound with a body that is not finished; add the replies to others.

    The last of the replies is a refusal.
    """
    while True:
        held = _open(server, key, len(BIG))
        held.sendall(BIG[:HELD])
        while not select.select([held], [], [], 0)[0]:
            replies.append(_post(server, key, SMALL))
            if replies[-1][0] == 503:
                return held
        # It came to the bound itself while one of the others was being served: once more.
        assert held.recv(12) == b"HTTP/1.1 503"
        held.close()


def test_what_is_too_much_at_once_is_refused(tmp_path: Path, server: Server, key: str) -> None:
    """While a held-open body fills the bound others get 503 with Retry-After, and later none."""
    replies: list[Reply] = []
    with _fill(server, key, replies) as held:
        _, headers, body = replies[-1]
        assert int(headers["retry-after"]) >= 1
        assert json.loads(body)["detail"] == "Overloaded"
        # The one that holds most goes on: it alone may pass the bound, or it could never be sent.
        held.sendall(BIG[HELD:])
        assert held.recv(12) == b"HTTP/1.1 201"
    accepted = sum(status == 201 for status, _, _ in replies)
    assert _post(server, key, SMALL)[0] == 201
    assert len(stored_logs(tmp_path, "acme")) == 9 + accepted + 1


def test_a_client_that_goes_away_gives_back_what_it_held(server: Server, key: str) -> None:
    """A connection closed in the middle of its body frees its share of the bound."""
    for _ in range(3):
        with _fill(server, key, []):
            assert _post(server, key, SMALL)[0] == 503
        wait_until(lambda: _post(server, key, SMALL)[0] == 201, "room again")


def test_memory_is_bounded_whatever_is_offered(server: Server, key: str) -> None:
    """Many large bodies at once cost no more memory than the bound and some buffers."""
    assert _post(server, key, _log(10))[0] == 201
    before = server.rss_bytes()
    body = _batch(8)[:-1]
    with ExitStack() as stack:
        held = [stack.enter_context(_open(server, key, len(body) + 1)) for _ in range(80)]
        for connection in held:
            connection.setblocking(False)
        sent = [0] * len(held)
        for _ in range(400):
            for place, connection in enumerate(held):
                if sent[place] < len(body):
                    try:
                        sent[place] += connection.send(body[sent[place] : sent[place] + 65_536])
                    except (BlockingIOError, ConnectionError):
                        continue
        assert sum(sent) > 40 * MIB
        assert server.rss_bytes() - before < 64 * MIB
    wait_until(lambda: _post(server, key, _log(10))[0] == 201, "room again")


def test_a_setting_smaller_than_a_body_refuses_no_body_for_ever(
    tmp_path: Path, server: Server, key: str
) -> None:
    """One request alone is served, however small the bound is."""
    for logs in (9, 20):
        assert _post(server, key, _batch(logs))[0] == 201
    assert len(stored_logs(tmp_path, "acme")) == 29
