"""The head of the last request: what it lets pass is what the parser would have read."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.edge.repeated import HEAD_BYTES_MAX, repeated_head

HEAD = b"POST /api/v1/logs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nX-API-Key: k\r\n\r\n"


class _Parsed:
    """One request, as the server's own parser reads it."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.bodies: list[bytes] = []
        self.completed = 0
        self.begun = 0
        httptools.HttpRequestParser(self).feed_data(data)

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.bodies.append(body)

    def on_message_complete(self) -> None:
        self.completed += 1


def request(body: bytes) -> bytes:
    """Write a request as one client always does."""
    return HEAD % len(body) + body


@given(st.binary(min_size=1, max_size=40), st.data())
def test_what_it_lets_pass_is_one_whole_request(first: bytes, data: st.DataObject) -> None:
    """Whatever follows a request, what is taken for one of the same head is just that."""
    known = repeated_head(request(first), first)
    assert known is not None
    body = data.draw(st.binary(min_size=1, max_size=40))
    whole = request(body)
    at, size = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 3))
    changed = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + size :]
    assert known.body_of(whole) == body
    found = known.body_of(changed)
    if found is not None:
        parsed = _Parsed(changed)
        assert (parsed.begun, parsed.completed) == (1, 1)
        assert b"".join(parsed.bodies) == found
        once = _Parsed(request(first))
        assert parsed.url == once.url
        length = b"content-length"
        assert [one for one in parsed.headers if one[0] != length] == [
            one for one in once.headers if one[0] != length
        ]


@pytest.mark.parametrize(
    "length",
    [b"", b" ", b"+5", b"-5", b"0x5", b"5 ", b" 5", b"5,5", b"\xb2", b"0000000005", b"4", b"6"],
)
def test_a_length_is_plain_digits(length: bytes) -> None:
    """A Content-Length that is not the body's, or not plain digits, is left to the parser."""
    known = repeated_head(request(b"first"), b"first")
    assert known is not None
    assert known.body_of(request(b"other").replace(b": 5\r", b": " + length + b"\r")) is None


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"", b""),
        (request(b"body")[1:-4], b"body"),
        (request(b"body") + request(b"next"), b"next"),
        (b"x" + request(b"body"), b"bod"),
        (HEAD.replace(b"Content-Length: %d", b"A: b") + b"body", b"body"),
        (HEAD.replace(b"\r\nContent-Length: %d", b"\r\n Content-Length: 4") + b"body", b"body"),
        (HEAD.replace(b"k", b"k" * HEAD_BYTES_MAX) % 4 + b"body", b"body"),
    ],
    ids=["nothing", "part", "two", "more", "no length", "folded", "large"],
)
def test_a_head_that_is_not_remembered(data: bytes, body: bytes) -> None:
    """Only a whole request with a length of its own, of a usual size, is remembered by its head."""
    assert repeated_head(data, body) is None
