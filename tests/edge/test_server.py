"""The real server behind real sockets: what HTTP clients do to it, good and bad."""

import http.client
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.edge.protocol import PIPELINED_MAX
from loadtests.server import Server, make_key, start_product
from tests.support import DEADLINE_S, LOGS, Json, eventually, gzipped, record

BODY = json.dumps(record()).encode()


class Answer(NamedTuple):
    """A response as it came off the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Read the body."""
        return json.loads(self.body)


class Wire:
    """One connection, spoken to in bytes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self.reader = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def answer(self) -> Answer:
        """Read one response, interim ones left out."""
        status = 100
        while status < 200:
            line = self.reader.readline()
            assert line, "the connection was closed without an answer"
            status = int(line.split()[1])
            headers = http.client.parse_headers(self.reader)
        size = int(headers["content-length"])
        named = {name.lower(): value for name, value in headers.items()}
        return Answer(status, named, self.reader.read(size))

    def is_closed(self) -> bool:
        """Say whether the server has closed its side."""
        return self.reader.read(1) == b""

    def close(self) -> None:
        """Close at once."""
        self.reader.close()
        self.socket.close()


class Site(NamedTuple):
    """A running server, a key of it, and where it keeps its data."""

    server: Server
    key: str
    data_dir: Path

    def wire(self) -> "closing[Wire]":
        """Connect."""
        return closing(Wire(self.server.port))

    def head(self, *headers: bytes, method: bytes = b"POST", path: bytes = LOGS.encode()) -> bytes:
        """Write the head of a request with the key."""
        lines = [
            b"%b %b HTTP/1.1" % (method, path),
            b"Host: x",
            b"X-API-Key: %b" % self.key.encode(),
        ]
        return b"\r\n".join([*lines, *headers]) + b"\r\n\r\n"

    def post(self, body: bytes, *headers: bytes) -> bytes:
        """Write a whole request."""
        return self.head(b"Content-Length: %d" % len(body), *headers) + body

    def ask(self, request: bytes) -> Answer:
        """Send one request on a connection of its own."""
        with self.wire() as wire:
            wire.send(request)
            return wire.answer()

    def logs(self, **params: str) -> list[Json]:
        """Read the client's logs."""
        query = "&".join(f"{name}={value}" for name, value in params.items())
        answer = self.ask(self.head(method=b"GET", path=f"{LOGS}?{query}".encode()))
        assert answer.status == 200
        found: list[Json] = answer.json()["logs"]
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start the product in processes of its own."""
    data_dir = tmp_path_factory.mktemp("site")
    with start_product(data_dir, {"MAX_BODY_BYTES": "100000"}) as server:
        yield Site(server, make_key(data_dir, "acme"), data_dir)


def marked(mark: str) -> bytes:
    """Write a record that can be found again."""
    return json.dumps(record(run_id=mark)).encode()


def test_one_answer_in_one_piece(site: Site) -> None:
    """The answer has a date, its length, its id, and nothing that names the server."""
    answer = site.ask(site.post(BODY))
    assert answer.status == 201
    assert len(answer.body) == int(answer.headers["content-length"])
    assert {"date", "x-request-id", "ratelimit", "content-type"} <= set(answer.headers)
    assert "server" not in answer.headers


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    """Requests sent without waiting get their answers in the order in which they were sent."""
    marks = [f"pipe-{n}" for n in range(20)]
    requests = [site.post(marked(mark)) for mark in marks]
    requests[7] = site.post(b"{")
    requests[3] = site.post(json.dumps(record(run_id="pipe-3", extra=1)).encode())
    requests[11] = site.head(b"Content-Length: 2", path=b"/nope") + b"{}"
    with site.wire() as wire:
        wire.send(b"".join(requests))
        answers = [wire.answer() for _ in requests]
    wanted = [201] * 20
    wanted[7], wanted[11] = 400, 404
    assert [answer.status for answer in answers] == wanted
    order = [answer.json()["id"] for answer in answers if answer.status == 201]
    stored = {log["run_id"]: log["id"] for log in site.logs(limit="1000")}
    assert order == [stored[mark] for n, mark in enumerate(marks) if n not in {7, 11}]


def test_a_connection_serves_both_planes(site: Site) -> None:
    """One connection takes writes, reads, refusals and writes again."""
    requests = [
        (site.post(BODY), 201),
        (site.head(method=b"GET"), 200),
        (site.post(BODY, b"Content-Encoding: br"), 415),
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (site.post(gzipped(BODY), b"Content-Encoding: gzip"), 201),
        (b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" % LOGS.encode(), 401),
        (site.post(BODY), 201),
    ]
    with site.wire() as wire:
        for request, status in requests:
            wire.send(request)
            assert wire.answer().status == status


def test_a_body_may_come_in_pieces(site: Site) -> None:
    """A body that arrives byte by byte, with a length or chunked, is stored as one."""
    body = marked("pieces")
    with site.wire() as wire:
        wire.send(site.head(b"Content-Length: %d" % len(body)))
        for at in range(len(body)):
            wire.send(body[at : at + 1])
        assert wire.answer().status == 201
        wire.send(site.head(b"Transfer-Encoding: chunked"))
        for at in range(0, len(body), 7):
            part = body[at : at + 7]
            wire.send(b"%x\r\n%b\r\n" % (len(part), part))
        wire.send(b"0\r\n\r\n")
        assert wire.answer().status == 201
    assert len(site.logs(run_id="pieces")) == 2


SAME_EITHER_WAY = {
    "plain": (BODY, []),
    "own id": (json.dumps(record(id="either-way")).encode(), []),
    "unknown field": (json.dumps(record(extra={"a": 1})).encode(), []),
    "array": (b"[%b,{}]" % BODY, []),
    "ndjson": (BODY + b"\n" + BODY, [b"Content-Type: application/x-ndjson"]),
    "no record": (b"{}", []),
    "no JSON": (b"{]}", []),
    "empty": (b"", []),
    "two objects": (BODY + BODY, []),
    "bad time": (json.dumps(record(executed_at="now")).encode(), []),
    "large": (json.dumps(record(message="x" * 60_000)).encode(), []),
    "too large": (json.dumps(record(message="x" * 100_000)).encode(), []),
    "gzip": (gzipped(BODY), [b"Content-Encoding: gzip"]),
    "brotli": (BODY, [b"Content-Encoding: br"]),
    "text": (BODY, [b"Content-Type: text/plain"]),
    "charset": (BODY, [b"Content-Type: application/json; charset=utf-8"]),
    "two types": (BODY, [b"Content-Type: application/json", b"Content-Type: text/plain"]),
    "two keys": (BODY, [b"Authorization: Bearer other"]),
    "idempotent": (BODY, [b"Idempotency-Key: either-way"]),
    "upgrade": (BODY, [b"Connection: Upgrade", b"Upgrade: websocket"]),
}


@pytest.mark.parametrize(("body", "headers"), SAME_EITHER_WAY.values(), ids=SAME_EITHER_WAY)
def test_one_read_or_two(site: Site, body: bytes, headers: list[bytes]) -> None:
    """A request gets the same answer whether one read brings it whole or not."""
    key = make_key(site.data_dir, "either")
    head = Site(site.server, key, site.data_dir).head(b"Content-Length: %d" % len(body), *headers)
    answers = []
    for parts in ((head + body,), (head, body), (head[:-1], head[-1:] + body)):
        with site.wire() as wire:
            for part in parts:
                wire.send(part)
                time.sleep(0.01)  # for the server to read them one by one, as it mostly will
            answers.append(wire.answer())
    first, *others = answers
    for other in others:
        assert other.status == first.status
        assert other.headers.keys() - {"idempotent-replayed"} == first.headers.keys()
        assert other.headers["content-type"] == first.headers["content-type"]
        reply, other_reply = first.json(), other.json()
        assert other_reply.keys() - {"duplicate"} == reply.keys()
        for name in reply.keys() - {"id", "received_at", "request_id"}:
            assert other_reply[name] == reply[name]


def test_each_request_of_a_connection_is_its_own(site: Site) -> None:
    """What follows requests of one head is answered as if it came alone, whatever it shares."""
    key = make_key(site.data_dir, "repeats")
    one = Site(site.server, key, site.data_dir)
    other = Site(site.server, key[:-1] + ("0" if key[-1] != "0" else "1"), site.data_dir)
    plain = one.post(marked("repeats"))
    head, _, body = plain.partition(b"\r\n\r\n")
    cases = [
        (one.post(marked("repeats-longer")), 201),
        (other.post(marked("repeats")), 401),
        (plain.replace(b"/api/v1/logs", b"/api/v1/nope"), 404),
        (plain.replace(b"POST", b"HEAD")[: len(head) + 4].replace(b"Content-Length", b"X"), 200),
        (one.post(b"{]}"), 400),
        (one.post(gzipped(BODY), b"Content-Encoding: gzip"), 201),
        (one.post(marked("repeats"), b"X-Request-Id: mine"), 201),
        (plain.replace(b"Content-Length: ", b"Content-Length: 00"), 201),
    ]
    with one.wire() as wire:
        for request, status in cases:
            for _ in range(3):
                wire.send(plain)
                assert wire.answer().status == 201
            wire.send(request)
            if status == 200:  # an answer to HEAD has no body
                assert wire.reader.readline().split()[1] == b"200"
                http.client.parse_headers(wire.reader)
            else:
                assert wire.answer().status == status
        for cut in (1, len(head), len(head) + 4, len(plain) - 1):
            wire.send(plain[:cut])
            time.sleep(0.01)
            wire.send(plain[cut:] + plain)
            assert [wire.answer().status for _ in range(2)] == [201, 201]
    stored = [log["run_id"] for log in one.logs(limit="1000") if "run_id" in log]
    assert stored.count("repeats-longer") == 1
    assert stored.count("repeats") == 3 * len(cases) + 2 + 2 * 4
    assert json.loads(body)["run_id"] == "repeats"


def test_the_rest_of_a_head_is_no_head(site: Site) -> None:
    """What completed a request that was begun before is no request when it comes again."""
    plain = site.post(BODY)
    at = plain.index(b"X-API-Key")
    assert site.ask(plain).status == 201  # from here on the key is known
    with site.wire() as wire:
        wire.send(plain[:at])
        time.sleep(0.01)
        wire.send(plain[at:])
        assert wire.answer().status == 201
        wire.send(plain[at:])
        assert wire.answer().status == 400


def test_a_client_that_leaves_harms_nobody(site: Site) -> None:
    """Requests whose clients are gone before the answer are stored, and the server goes on."""
    for n in range(20):
        with site.wire() as wire:
            wire.send(site.post(marked(f"gone-{n}")))
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert site.ask(site.post(BODY)).status == 201


def test_expect_100_continue(site: Site) -> None:
    """A client that asks first is told to go on, or refused before it has sent its body."""
    expect = b"Expect: 100-continue"
    with site.wire() as wire:
        wire.send(site.head(expect, b"Content-Length: %d" % len(BODY)))
        assert wire.reader.readline().split()[1] == b"100"
        assert wire.reader.readline() == b"\r\n"
        wire.send(BODY)
        assert wire.answer().status == 201
    for headers, status in (([b"Content-Length: 100001"], 413), ([b"Content-Encoding: br"], 415)):
        with site.wire() as wire:
            wire.send(site.head(expect, *headers))
            line = wire.reader.readline()
            assert int(line.split()[1]) == status


def test_connection_close_is_honoured(site: Site) -> None:
    """After the answer to `Connection: close` the connection ends; HTTP/1.0 ends by itself."""
    for request in (
        site.post(BODY, b"Connection: close"),
        site.post(BODY).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ):
        with site.wire() as wire:
            wire.send(request)
            assert wire.answer().status == 201
            assert wire.is_closed()


def test_an_early_close_stores_nothing(site: Site) -> None:
    """A connection that breaks in the middle of a body leaves no log, and its key free."""
    body = marked("early")
    name = b"Idempotency-Key: early"
    with site.wire() as wire:
        wire.send(site.head(b"Content-Length: %d" % len(body), name) + body[:30])
    answer = eventually(lambda: site.ask(site.post(body, name)), lambda a: a.status != 409)
    assert answer.status == 201
    assert "idempotent-replayed" not in answer.headers
    assert len(site.logs(run_id="early")) == 1


def test_a_second_request_while_the_first_is_slow(site: Site) -> None:
    """While a slow body is on its way its Idempotency-Key is taken; then it has its outcome."""
    body, name = marked("slow"), b"Idempotency-Key: slow"
    with site.wire() as wire:
        wire.send(site.head(b"Content-Length: %d" % len(body), name) + body[:10])
        # The first is known to hold the key only once another is refused it. A probe that comes
        # too early has another body, cut in two, and leaves nothing.
        eventually(lambda: site.ask(site.post(b"{", name)).status, lambda status: status == 409)
        wire.send(body[10:])
        first = wire.answer()
    assert first.status == 201
    again = site.ask(site.post(body, name))
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert len(site.logs(run_id="slow")) == 1


@pytest.mark.parametrize(
    "header",
    [b"X-API-Key: \xc3\xa9\xff", b"Authorization: Bearer \xe9", b"Authorization: \xff\xfe"],
)
@pytest.mark.parametrize("method", [b"POST", b"GET"])
def test_bytes_beyond_ascii_are_401(site: Site, header: bytes, method: bytes) -> None:
    """A key with bytes beyond ASCII is an unknown key on either plane, never a fault."""
    head = b"%b %b HTTP/1.1\r\nHost: x\r\n%b\r\nContent-Length: 2\r\n\r\n{}"
    answer = site.ask(head % (method, LOGS.encode(), header))
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'ApiKey realm="central-logger"'
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "header",
    [b"Content-Type: \xff", b"Content-Encoding: \xff", b"Idempotency-Key: \xff", b"X-Other: \xff"],
)
def test_other_headers_beyond_ascii(site: Site, header: bytes) -> None:
    """Strange bytes in any other header are refused by name or ignored, never a fault."""
    assert site.ask(site.post(BODY, header)).status in {201, 415, 422}


def test_a_body_too_large_is_refused_unread(site: Site) -> None:
    """A declared size over the limit is answered before the body is sent."""
    with site.wire() as wire:
        wire.send(site.head(b"Content-Length: 10000000000"))
        answer = wire.answer()
    assert answer.status == 413
    assert answer.json()["detail"] == "Body too large: more than 100000 bytes"


def test_a_chunked_body_too_large_is_refused(site: Site) -> None:
    """A body without a declared size is refused when it gets too large."""
    with site.wire() as wire:
        wire.send(site.head(b"Transfer-Encoding: chunked"))
        for _ in range(3):
            wire.send(b"%x\r\n%b\r\n" % (40_000, b" " * 40_000))
        assert wire.answer().status == 413


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x00\xa5",
        b"GET\r\n\r\n",
        b"POST / HTTP/9\r\n\r\n",
        b"\r\n" * 5 + b"nonsense\r\n\r\n",
    ],
)
def test_garbage_is_no_fault(site: Site, garbage: bytes) -> None:
    """What is no HTTP at all ends its connection and harms nobody."""
    with site.wire() as wire:
        wire.send(garbage)
        wire.socket.shutdown(socket.SHUT_WR)
        assert re.match(rb"(HTTP/1.1 400 .*)?$", wire.reader.read(), re.DOTALL)
    assert site.ask(site.post(BODY)).status == 201


def test_nothing_logged_holds_a_key(site: Site) -> None:
    """After all this, what the server wrote holds no key of a caller, and no traceback."""
    tail = site.server.log_tail(1000)
    assert site.key not in tail
    assert "Traceback" not in tail


@pytest.mark.parametrize("field", [b"x-long: ", b"x: y\r\n"], ids=["one", "many"])
def test_a_head_without_end_is_refused(site: Site, field: bytes) -> None:
    """However its fields are cut, a head is read up to 64 KiB, answered 431, and no further."""
    with site.wire() as wire:
        wire.send(b"POST /api/v1/logs HTTP/1.1\r\nhost: logger\r\n" + field)
        sent = 0
        with suppress(OSError):
            while sent < 4 * 1024**2:
                wire.send(field * 4096)
                sent += len(field) * 4096
        assert sent < 4 * 1024**2
    with site.wire() as wire:
        wire.send(b"POST /api/v1/logs HTTP/1.1\r\nhost: logger\r\n")
        wire.send((field * 70_000)[: 64 * 1024])
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert answer.json()["detail"] == "The head of the request is larger than 65536 bytes"
        assert wire.is_closed()


def test_a_large_head_is_read(site: Site) -> None:
    """A head just below the limit is one like any other, and so is the next."""
    with site.wire() as wire:
        for _ in range(2):
            wire.send(site.head(b"content-length: %d" % len(BODY), b"x-long: " + b"a" * 60_000))
            wire.send(BODY)
            assert wire.answer().status == 201


def test_a_trailer_is_no_head(site: Site) -> None:
    """A credential behind the body is none, and one before it is not touched by what follows."""
    chunked = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
    head = b"POST /api/v1/logs HTTP/1.1\r\nhost: logger\r\ntransfer-encoding: chunked\r\n"
    key = b"x-api-key: " + site.key.encode() + b"\r\n"
    with site.wire() as wire:
        wire.send(head + b"\r\n" + chunked + key + b"\r\n")
        assert wire.answer().status == 401
    with site.wire() as wire:
        wire.send(head + key + b"\r\n" + chunked + b"x-api-key: another\r\n\r\n")
        assert wire.answer().status == 201


def test_a_trailer_without_end_is_cut_off(site: Site) -> None:
    """What follows the last part of a body is bounded as a head is."""
    with site.wire() as wire:
        wire.send(site.head(b"transfer-encoding: chunked"))
        wire.send(b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY))
        sent = 0
        with suppress(OSError):
            while sent < 4 * 1024**2:
                wire.send(b"x: y\r\n" * 4096)
                sent += 6 * 4096
        assert sent < 4 * 1024**2


def test_a_flood_of_pipelined_requests_is_cut_off(site: Site) -> None:
    """One read may bring thousands of requests: they take no more memory than a few."""
    before = site.server.rss_bytes()
    for _ in range(5):
        with site.wire() as wire, suppress(OSError):
            wire.send(b"GET /x HTTP/1.1\r\n\r\n" * 12_000)
            assert wire.reader.read().count(b"HTTP/1.1 404") <= 2 * PIPELINED_MAX
    assert site.server.rss_bytes() - before < 40 * 1024**2
    with site.wire() as wire:
        wire.send(site.post(BODY))
        assert wire.answer().status == 201


def test_a_pipelining_client_that_leaves_is_noticed(site: Site) -> None:
    """Each request under way learns that its client is gone, though others were sent behind it."""
    tail = site.head(method=b"GET", path=f"{LOGS}/tail".encode())
    with site.wire() as wire:
        wire.send(tail + site.head(method=b"GET") * 2)
        assert wire.reader.readline() == b"HTTP/1.1 200 OK\r\n"
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _ in range(20):
        with site.wire() as wire:
            wire.send(site.post(b"[%b]" % BODY) + site.post(BODY) + tail + site.post(BODY))
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert site.ask(site.post(BODY)).status == 201  # which the tail would be told of
    time.sleep(0.5)
    site.server.output.seek(0)
    assert b"Traceback" not in site.server.output.read()
