"""Bodies: read and expanded within bounds, whatever their sender has in mind."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from app.edge import body as module
from app.edge.body import (
    ClientGone,
    Inflight,
    Share,
    check_encoding,
    declared_bytes,
    expand,
    read_body,
)
from app.errors import MalformedBody, Overloaded, TooLarge, UnsupportedMedia

BYTES_MAX = 1_000_000
TEXT = b'{"environment":"production"}' * 50


def raw_deflate(data: bytes) -> bytes:
    """Compress as those do who take "deflate" at its word."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def zstd(data: bytes) -> bytes:
    """Compress as zstd."""
    return zstandard.ZstdCompressor().compress(data)


def zstd_stream(data: bytes) -> bytes:
    """Compress as zstd without the size in front."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    return compressor.compress(data) + compressor.flush()


FORMS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("zstd", zstd),
    ("zstd", zstd_stream),
]
MULTI = [form for form in FORMS if form[1] is not raw_deflate]
forms = pytest.mark.parametrize(("encoding", "compress"), FORMS)


def share(bytes_max: int = 10**9) -> Share:
    """Give a share of a budget of its own."""
    return Share(Inflight(bytes_max))


def expanded(body: bytes, encoding: str, bytes_max: int = BYTES_MAX) -> bytes:
    """Expand a body."""
    return asyncio.run(expand(body, encoding, share(), bytes_max))


@forms
@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 300_000, BYTES_MAX])
def test_what_was_compressed_comes_out(
    encoding: str, compress: Callable[[bytes], bytes], size: int
) -> None:
    """Every supported encoding gives back what went in, up to the very limit."""
    data = (TEXT * (size // len(TEXT) + 1))[:size]
    assert expanded(compress(data), encoding) == data


@forms
@given(data=st.binary(max_size=5000))
def test_any_bytes_come_out(encoding: str, compress: Callable[[bytes], bytes], data: bytes) -> None:
    """What does not compress comes out as well."""
    assert expanded(compress(data), encoding) == data


@forms
def test_a_truncated_body_is_malformed(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """However much of its end is missing, a body is refused, never taken for a shorter one."""
    whole = compress(TEXT)
    for kept in range(len(whole)):
        with pytest.raises(MalformedBody, match=f"^Malformed body: not valid {encoding}"):
            expanded(whole[:kept], encoding)


@pytest.mark.parametrize(("encoding", "compress"), FORMS)
@pytest.mark.parametrize("junk", [b"junk", b"\x00", b"{}", b"\x1f\x8b"])
def test_junk_behind_a_body_is_malformed(
    encoding: str, compress: Callable[[bytes], bytes], junk: bytes
) -> None:
    """What follows the end of a body must be a further member."""
    with pytest.raises(MalformedBody):
        expanded(compress(TEXT) + junk, encoding)


@pytest.mark.parametrize(("encoding", "compress"), MULTI)
def test_members_are_joined(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """A body of several members or frames is what they hold together."""
    parts = [b"one\n", b"", b"two\n" * 3000, b"three"]
    assert expanded(b"".join(map(compress, parts)), encoding) == b"".join(parts)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
@given(body=st.binary(max_size=300))
def test_any_other_bytes_are_malformed(encoding: str, body: bytes) -> None:
    """Bytes that no compressor wrote are refused as malformed, if they do not happen to expand."""
    with suppress(MalformedBody):
        expanded(body, encoding)


@forms
def test_a_bomb_is_refused_before_it_takes_memory(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """A small body that would expand a thousandfold stops at the limit."""
    bomb = compress(bytes(200_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=r"^Body too large: more than 1000000 bytes"):
            expanded(bomb, encoding)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000


@forms
def test_expanding_leaves_the_loop_to_others(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """Few bytes that expand to very many are expanded elsewhere; few that stay few are not."""

    async def turns(body: bytes) -> int:
        """Count how often others had the loop."""
        expanding = asyncio.ensure_future(expand(body, encoding, share(), 50_000_000))
        count = -1
        while not expanding.done():
            await asyncio.sleep(0)
            count += 1
        return count

    assert asyncio.run(turns(compress(TEXT))) == 0
    assert asyncio.run(turns(compress(bytes(50_000_000)))) > 0


def test_few_bodies_are_expanded_at_once() -> None:
    """A large body waits for a thread, a small one waits for nobody."""

    async def main() -> None:
        inflight = Inflight(10**9)
        large = gzip.compress(bytes(2_000_000))
        for _ in range(module.EXPANSIONS_MAX):
            await inflight.expansions.acquire()
        waiting = asyncio.create_task(expand(large, "gzip", Share(inflight), 10**8))
        small = await expand(gzip.compress(TEXT), "gzip", Share(inflight), 10**8)
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert (small, done) == (TEXT, set())
        inflight.expansions.release()
        assert len(await waiting) == 2_000_000

    asyncio.run(main())


@forms
def test_memory_is_accounted_for_as_it_is_taken(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """A body that expands beyond what all may hold is turned away long before its end."""
    inflight = Inflight(1_000_000)
    Share(inflight).take(1)
    bomb = compress(bytes(80_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(Overloaded):
            asyncio.run(expand(bomb, encoding, Share(inflight), 10**9))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000


@pytest.mark.parametrize(("encoding", "compress"), MULTI)
def test_a_bomb_of_empty_members_costs_no_more_than_its_bytes(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """Very many members that expand to nothing are refused, not worked through."""
    with pytest.raises(MalformedBody, match="more than 10000 members"):
        expanded(compress(b"") * 200_000, encoding)
    assert expanded(compress(b"") * 9_999 + compress(TEXT), encoding) == TEXT


def test_one_byte_over_the_limit_is_too_large() -> None:
    """The limit holds for what comes out, to the byte."""
    for encoding, compress in FORMS:
        with pytest.raises(TooLarge):
            expanded(compress(bytes(BYTES_MAX + 1)), encoding)


def test_a_frame_may_not_ask_for_gigabytes() -> None:
    """A zstd frame whose window is above what any usual level has is refused."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = compressor.compress(TEXT) + compressor.flush()
    with pytest.raises(MalformedBody):
        expanded(frame, "zstd")


@pytest.mark.parametrize(
    ("header", "name"),
    [(b"", ""), (b"identity", ""), (b" GZIP ", "gzip"), (b"x-gzip", "gzip"), (b"zstd", "zstd")],
)
def test_encodings_are_known_by_name(header: bytes, name: str) -> None:
    """Names are taken without regard to case, with the old name of gzip."""
    assert check_encoding(header) == name


@pytest.mark.parametrize("header", [b"br", b"gzip, gzip", b"compress", b"\xff", b"gzip;q=1"])
def test_other_encodings_are_not_supported(header: bytes) -> None:
    """Anything else is refused with the list of what would have been understood."""
    with pytest.raises(UnsupportedMedia) as caught:
        check_encoding(header)
    assert caught.value.members == {"supported": ["gzip", "deflate", "zstd"]}


def test_a_declared_size_is_checked_before_reading() -> None:
    """A Content-Length over the limit is refused on sight; a strange one is left to the server."""
    assert declared_bytes(b"1000000", BYTES_MAX) == BYTES_MAX
    assert [declared_bytes(value, BYTES_MAX) for value in (None, b"", b"-1", b"x")] == [0] * 4
    for value in (b"1000001", b"9" * 4300):
        with pytest.raises(TooLarge):
            declared_bytes(value, BYTES_MAX)


def read(*messages: dict[str, Any], held: Share | None = None, bytes_max: int = BYTES_MAX) -> bytes:
    """Read a body that arrives as these messages."""
    arriving = iter(messages)

    async def receive() -> dict[str, Any]:
        message = next(arriving, None)
        if message is None:
            await asyncio.Event().wait()
            raise AssertionError
        return message

    return asyncio.run(read_body(receive, held or share(), bytes_max))


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    """Make the message of one part."""
    return {"type": "http.request", "body": body, "more_body": more}


def test_parts_are_joined() -> None:
    """A body is all its parts; a message without one is an empty part."""
    assert read(part(b"whole", more=False)) == b"whole"
    assert (
        read(
            part(b"a"),
            part(b""),
            {"type": "http.request", "more_body": True},
            part(b"b", more=False),
        )
        == b"ab"
    )
    assert read({"type": "http.request"}) == b""


@pytest.mark.parametrize("before", [[], [part(b"half")]])
def test_a_caller_who_leaves_is_not_a_body(before: list[dict[str, Any]]) -> None:
    """A connection closed in the middle of a body stores nothing."""
    with pytest.raises(ClientGone):
        read(*before, {"type": "http.disconnect"})


def test_a_body_over_the_limit_is_left_unread() -> None:
    """The first part that goes over the limit ends the reading."""
    with pytest.raises(TooLarge):
        read(part(b"12345", more=False), bytes_max=4)
    with pytest.raises(TooLarge):
        read(part(b"123"), part(b"45"), bytes_max=4)
    assert read(part(b"12"), part(b"34", more=False), bytes_max=4) == b"1234"


def test_a_sender_that_pauses_too_long_is_gone() -> None:
    """A body that stops arriving ends with an error, not with a connection held for ever."""
    for arrived in ([], [part(b"half")]):
        with pytest.raises(MalformedBody, match=r"^Malformed body: it did not arrive in time$"):
            read(*arrived, held=Share(Inflight(10**9, 0.04)))


def test_a_sender_that_never_ends_is_gone() -> None:
    """A byte now and then does not hold a connection for ever, nor does its reader wait on."""
    given_up = []

    async def receive() -> dict[str, Any]:
        try:
            await asyncio.sleep(0.004)
        except asyncio.CancelledError:
            given_up.append(1)
            raise
        return part(b" ")

    with pytest.raises(MalformedBody, match=r"^Malformed body: it did not arrive in time$"):
        asyncio.run(read_body(receive, Share(Inflight(10**9, 0.05)), BYTES_MAX))
    assert given_up == [1]


def test_what_is_waited_for_arrives() -> None:
    """Parts come at once or later, after one wait or several; a fault in between gets through."""
    arriving = iter([b"a", b"b", b"c", b"d"])

    async def receive() -> dict[str, Any]:
        body = next(arriving)
        for _ in range(body[0] % 3):
            await asyncio.sleep(0.001)
        return part(body, more=body != b"c")

    assert asyncio.run(read_body(receive, share(), BYTES_MAX)) == b"abc"

    async def fail() -> dict[str, Any]:
        await asyncio.sleep(0)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(read_body(fail, share(), BYTES_MAX))


def test_a_reader_can_be_cancelled() -> None:
    """A request that is given up while its body arrives gives up the waiting as well."""

    async def main() -> None:
        event = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await event.wait()
            raise AssertionError

        reading = asyncio.create_task(read_body(receive, share(), BYTES_MAX))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(main())


def test_all_requests_share_one_budget() -> None:
    """Over MAX_INFLIGHT_BYTES a further request is turned away, and may come when one has gone."""
    inflight = Inflight(100)
    one, two = Share(inflight), Share(inflight)
    one.take(60)
    with pytest.raises(Overloaded):
        two.take(41)
    two.take(40)
    with pytest.raises(Overloaded):
        one.take(1)
    one.give_back()
    two.take(60)
    two.give_back()
    assert inflight.bytes == 0


def test_one_request_alone_always_may() -> None:
    """A budget smaller than a body must not refuse it for ever."""
    inflight = Inflight(10)
    one = Share(inflight)
    one.take(50)
    one.take(50)
    with pytest.raises(Overloaded):
        Share(inflight).take(1)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_an_expanded_body_is_held_too(compress: Callable[[bytes], bytes]) -> None:
    """What a body expands to counts against the budget like what was sent."""
    inflight = Inflight(1000)
    other, own = Share(inflight), Share(inflight)
    other.take(1)
    encoding = "zstd" if compress is zstd else "gzip"
    with pytest.raises(Overloaded):
        asyncio.run(expand(compress(bytes(5000)), encoding, own, BYTES_MAX))
