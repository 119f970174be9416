"""Exports of a real server: what ends them, and what they hold while a client takes its time."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

import pytest

from app.api.services import EXPORTS_PER_CLIENT_MAX
from app.keys.database import embedded_url, open_engine
from app.keys.lifecycle import deactivate_key
from loadtests.server import HOST, Server, make_key, start_product
from tests.process.service import PATH, WAIT_S_MAX, ask, wait_until
from tests.support import BY, key_id_of

EXPORT = f"{PATH}/export"
BATCHES, BATCH_LOGS = 60, 1000
# No more of it than this is in the sockets' own buffers.
RECEIVE_BYTES = 64 * 1024


class House:
    """A server, and a client with 60 MB of logs."""

    def __init__(self, data_dir: Path, server: Server) -> None:
        self.data_dir = data_dir
        self.server = server
        self.headers = {"X-API-Key": make_key(data_dir, "acme")}
        self._fill()

    def _fill(self) -> None:
        headers = {**self.headers, "Content-Type": "application/x-ndjson"}

        def send(number: int) -> int:
            first = number * BATCH_LOGS
            lines = [
                {
                    "environment": "production",
                    "executed_at": 1_780_000_000 + n,
                    "status": "SUCCESS",
                    "message": f"{n} " + "m" * 700,
                }
                for n in range(first, first + BATCH_LOGS)
            ]
            body = "\n".join(map(json.dumps, lines)).encode()
            return ask(self.server.port, "POST", PATH, body, headers)[0]

        with ThreadPoolExecutor(4) as senders:
            assert set(senders.map(send, range(BATCHES))) == {201}

    @contextmanager
    def exporting(self, query: str = "") -> Iterator[HTTPResponse]:
        """Begin an export, and read no more of it than its first bytes."""
        connection = HTTPConnection(HOST, self.server.port, timeout=WAIT_S_MAX)
        connection.sock = socket.socket()
        connection.sock.settimeout(WAIT_S_MAX)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        connection.sock.connect((HOST, self.server.port))
        try:
            connection.request("GET", EXPORT + query, headers=self.headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.read(100)
            yield response
        finally:
            connection.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Start a server and fill it."""
    with start_product(tmp_path) as server:
        yield House(tmp_path, server)


def rest_of(response: HTTPResponse) -> bytes:
    """Read to the end, or raise if there is none."""
    return b"".join(iter(lambda: response.read(1024 * 1024), b""))


def test_a_large_export_is_whole_and_takes_little_memory(house: House) -> None:
    """All of 60 MB comes in order; with a client that does not read the server waits as well."""
    before = house.server.rss_bytes()
    with house.exporting() as response:
        time.sleep(1)  # for what would pile up
        grown = house.server.rss_bytes() - before
        rest = rest_of(response)
    assert grown < 40 * 1024**2
    numbers = [int(line.partition(b'"message":"')[2].split()[0]) for line in rest.splitlines()[1:]]
    assert numbers == list(range(1, BATCHES * BATCH_LOGS))


@pytest.mark.parametrize("query", ["", "?format=csv"])
def test_a_revoked_key_ends_its_export(house: House, query: str) -> None:
    """The connection of an export under way breaks off, whether its client reads or not."""
    engine = open_engine(embedded_url(house.data_dir))
    with house.exporting(query) as response:
        deactivate_key(engine, key_id_of(house.headers["X-API-Key"]), by=BY)
        wait_until(lambda: exports_open(house.server) == 0, "the end of the export")
        with pytest.raises((HTTPException, OSError)):
            rest_of(response)
    engine.dispose()
    assert "Traceback" not in house.server.log_tail()


def exports_open(server: Server) -> int:
    """Count the connections that the server holds."""
    return sum(
        one.status == "ESTABLISHED" and one.laddr.port == server.port
        for one in server.process.net_connections("tcp")
    )


def test_a_fault_of_the_store_breaks_an_export_off(house: House) -> None:
    """What cannot be read is not left out: the stream has no end that its client could trust."""
    with house.exporting() as response:
        for path in (house.data_dir / "logs").iterdir():
            if path.name.endswith((".db", ".db-wal")):
                with path.open("r+b") as file:
                    file.truncate(0)
        with pytest.raises((HTTPException, OSError)):
            rest_of(response)
    assert "export cut off" in house.server.log_tail()


def test_clients_that_leave_give_their_places_back(house: House) -> None:
    """A client's exports at one time are bounded; one that hangs up makes room for the next."""
    port = house.server.port

    def status() -> int:
        code, headers, _ = ask(port, "GET", f"{EXPORT}?status=none", headers=house.headers)
        assert ("retry-after" in headers) is (code == 429)
        return code

    held = [house.exporting() for _ in range(EXPORTS_PER_CLIENT_MAX)]
    for one in held:
        one.__enter__()
    assert status() == 429
    held[0].__exit__(None, None, None)
    wait_until(lambda: status() == 200, "a place for an export")
    for one in held[1:]:
        one.__exit__(None, None, None)


def test_head_reads_nothing(house: House) -> None:
    """HEAD has the headers of an export, and ends at once."""
    code, headers, body = ask(house.server.port, "HEAD", EXPORT, headers=house.headers)
    assert (code, body) == (200, b"")
    assert headers["content-type"] == "application/x-ndjson"
