"""Clients that take their time, or too many connections, before a real server."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from loadtests.server import make_key, start_product
from tests.edge.test_server import BODY, Site, Wire
from tests.support import DEADLINE_S, LOGS, eventually, record

HEAD_S = 0.6
CONNECTIONS = 12
UNREAD_S = 1.5
# Of a page of 8 MiB the kernel takes some for its client.
UNREAD_BYTES = 20_000_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start a server that is in a hurry."""
    data_dir = tmp_path_factory.mktemp("slow")
    settings = {
        "HEAD_TIMEOUT_S": str(HEAD_S),
        "BODY_TIMEOUT_S": "1.2",
        "KEEP_ALIVE_S": "1",
        "CONNECTIONS_PER_ADDRESS": str(CONNECTIONS),
        "UNREAD_TIMEOUT_S": str(UNREAD_S),
    }
    with start_product(data_dir, settings) as server:
        yield Site(server, make_key(data_dir, "acme"), data_dir)


def test_a_head_that_does_not_come_is_refused(site: Site) -> None:
    """A request whose head is not there in time gets 408, whether bytes come or not."""
    head = site.head()
    with site.wire() as wire:
        wire.send(head[:20])
        answer = wire.answer()
        assert answer.status == 408
        assert answer.json()["detail"] == "The request did not arrive in time"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert answer.headers["connection"] == "close"
        assert wire.is_closed()
    with site.wire() as wire:
        for byte in head * 10:  # steadily, but for longer than it may
            try:
                wire.send(bytes([byte]))
            except OSError:
                break
            time.sleep(HEAD_S / 20)
        else:
            pytest.fail("the server listened to all of it")


def test_a_connection_without_a_request_is_closed(site: Site) -> None:
    """Who connects and says nothing, or only line breaks, is let go without an answer."""
    for said in (b"", b"\r\n"):
        with site.wire() as wire:
            wire.send(said)
            assert wire.is_closed()


def test_a_second_head_that_does_not_come_is_refused(site: Site) -> None:
    """A connection that was good once has as long for each request, and is closed when idle."""
    with site.wire() as wire:
        for _ in range(2):
            wire.send(site.post(BODY))
            assert wire.answer().status == 201
            time.sleep(HEAD_S)  # idle for less than KEEP_ALIVE_S
        wire.send(site.head()[:20])
        assert wire.answer().status == 408
        assert wire.is_closed()
    with site.wire() as wire:
        wire.send(site.post(BODY))
        assert wire.answer().status == 201
        assert wire.is_closed()


def test_line_breaks_keep_no_connection(site: Site) -> None:
    """Line breaks after an answer, which stop the timer of an idle connection, don't hold it."""
    with site.wire() as wire:
        wire.send(site.post(BODY))
        assert wire.answer().status == 201
        wire.send(b"\r\n")
        assert wire.is_closed()


def test_a_body_after_its_answer_keeps_no_connection(site: Site) -> None:
    """A body that goes on after the request was refused for it holds the connection no longer."""
    with site.wire() as wire:
        wire.send(site.head(b"Content-Length: 1000", b"Content-Encoding: none"))
        assert wire.answer().status == 415
        for _ in range(200):
            try:
                wire.send(b" ")
            except OSError:
                break
            time.sleep(0.05)
        else:
            pytest.fail("the server listened to all of it")


def test_a_body_has_its_time(site: Site) -> None:
    """A body that pauses, or goes on for too long, is refused; a slow one within that is stored."""
    head = site.head(b"Content-Length: %d" % len(BODY))
    with site.wire() as wire:
        wire.send(head + BODY[:10])
        answer = wire.answer()
        assert answer.status == 400
        assert answer.json()["detail"] == "Malformed body: it did not arrive in time"
    with site.wire() as wire:
        wire.send(head)
        for at in range(0, len(BODY), 30):
            time.sleep(0.02)
            wire.send(BODY[at : at + 30])
        assert wire.answer().status == 201


def test_a_long_answer_is_not_cut_off(site: Site) -> None:
    """A tail outlives every one of these times: its client owes nothing."""
    with site.wire() as wire:
        wire.send(site.head(method=b"GET", path=f"{LOGS}/tail".encode()))
        assert wire.reader.readline().split()[1] == b"200"
        time.sleep(4 * HEAD_S)
        assert site.ask(site.post(BODY)).status == 201
        while b"data: " not in (line := wire.reader.readline()):
            assert line


def large_page(site: Site) -> bytes:
    """Store what fills a page; write the request for it."""
    for _ in range(2):
        records = [record(message="m" * 900_000) for _ in range(5)]
        assert site.ask(site.post(json.dumps(records).encode())).status == 201
    return site.head(method=b"GET", path=f"{LOGS}?limit=1000".encode())


@pytest.fixture(scope="module")
def page(site: Site) -> bytes:
    """Give the request for a large reply."""
    return large_page(site)


def slow_reader(site: Site) -> socket.socket:
    """Connect with little room for a reply."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    reader.connect(("127.0.0.1", site.server.port))
    reader.settimeout(DEADLINE_S)
    return reader


def is_cut_off(reader: socket.socket) -> bool:
    """Say whether the server has reset a connection, without a look at what came before that."""
    return reader.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n\r\n"], ids=["kept", "last"])
def test_a_reply_that_nobody_reads_is_let_go(site: Site, page: bytes, close: bytes) -> None:
    """Who takes nothing of a reply is cut off, also if it is the last one of its connection."""
    with closing(slow_reader(site)) as reader:
        reader.sendall(page.removesuffix(b"\r\n") + close if close else page)
        eventually(lambda: is_cut_off(reader), bool)


def test_a_reply_that_is_read_slowly_comes_whole(site: Site, page: bytes) -> None:
    """Who takes some of a reply now and then gets all of it, however long that takes."""
    with closing(slow_reader(site)) as reader:
        reader.sendall(page)
        began = time.monotonic()
        head, _, body = reader.recv(16_384).partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split()[0])
        assert size > 8_000_000
        left = size - len(body)
        while left:
            if time.monotonic() - began < 2 * UNREAD_S + 2 * HEAD_S:
                time.sleep(0.1)  # of the time that there is, less than the kernel's own buffers
            left -= len(reader.recv(min(left, 16_384)) or pytest.fail("it was cut off"))


def test_what_is_pipelined_waits_for_the_reader(site: Site, page: bytes) -> None:
    """Behind a reply that is not taken nothing is begun; it is when the reply has been taken."""
    log = json.dumps(record(run_id="behind")).encode()
    with closing(slow_reader(site)) as reader:
        reader.sendall(page + site.post(log))
        answers = reader.recv(16_384)
        time.sleep(0.3)  # in which it would be stored
        assert not site.logs(run_id="behind")
        while b"HTTP/1.1 201" not in answers[-20_000:]:
            answers += reader.recv(1 << 20) or pytest.fail("it was cut off")
    assert len(site.logs(run_id="behind")) == 1


def test_replies_that_wait_are_bounded(tmp_path: Path) -> None:
    """Of replies that are too much together the one that has waited longest is let go."""
    with start_product(tmp_path, {"MAX_UNREAD_BYTES": str(UNREAD_BYTES)}) as server:
        site = Site(server, make_key(tmp_path, "acme"), tmp_path)
        request = large_page(site)
        with ExitStack() as stack:
            readers = [stack.enter_context(closing(slow_reader(site))) for _ in range(8)]
            for reader in readers:
                reader.sendall(request)
                time.sleep(0.05)
            eventually(lambda: is_cut_off(readers[0]), bool)
            assert not is_cut_off(readers[-1])
        assert site.ask(request).status == 200


def test_an_address_has_so_many_connections(site: Site) -> None:
    """One connection too many is refused with 503 unread, and there is room when others end."""

    def ask() -> int:
        return site.ask(site.post(BODY)).status

    eventually(ask, lambda status: status == 201)
    with ExitStack() as stack:
        wires = [
            stack.enter_context(closing(Wire(site.server.port))) for _ in range(CONNECTIONS + 3)
        ]
        answers = [wire.answer() for wire in wires[CONNECTIONS:]]
        assert [answer.status for answer in answers] == [503] * 3
        assert answers[0].json()["detail"] == "Overloaded"
        assert answers[0].headers["retry-after"] == "1"
        wires[0].send(site.post(BODY))
        assert wires[0].answer().status == 201
    eventually(lambda: _status(site), lambda status: status == 201)


def _status(site: Site) -> int:
    """Ask on a new connection; 0 while it is closed before the request is read."""
    try:
        return site.ask(site.post(BODY)).status
    except OSError:
        return 0
