"""Reading a request body: bounded in bytes as sent, as expanded, in time and in memory over all."""

import asyncio
import re
import zlib
from collections.abc import Callable, Generator, Iterator, MutableMapping
from functools import partial
from types import coroutine
from typing import Any

import zstandard

from app.errors import MalformedBody, Overloaded, TooLarge, UnsupportedMedia

ENCODINGS = ("gzip", "deflate", "zstd")
# A sender that has not sent the whole body after this, however steadily, is not sending one. It may
# pause for a quarter of it: one that pauses for longer has gone. BODY_TIMEOUT_S.
BODY_S_MAX = 120.0
_PAUSE_PART = 4
# What is expanded in the event loop, at about 2 ms: bytes that go in and come out.
INLINE_BYTES_MAX = 256 * 1024
# What a thread expands before it is accounted for.
SLICE_BYTES = 1024 * 1024
# Threads that expand at once; the pool is shared with what else would hold up the loop.
EXPANSIONS_MAX = 2
# More than any level but zstd's --ultra ones uses; a frame may ask the reader for gigabytes.
ZSTD_WINDOW_BYTES_MAX = 32 * 1024**2
# A body is expanded in pieces, since neither library bounds its output well, and what follows the
# end of a member in its piece is copied. One piece gives at most 0.5 MB in deflate and 16 MiB
# in zstd, where 4 bytes may be a block of 128 KiB of one byte.
PIECE_BYTES = 512
# A member may be of 9 bytes and expand to nothing, so no other limit bounds what they cost.
MEMBERS_MAX = 10_000
_ZLIB_OR_GZIP, _BARE_DEFLATE = 47, -15
_WRAPPED = re.compile(rb"\x1f\x8b|[\x08\x18\x28\x38\x48\x58\x68\x78]")

Message = MutableMapping[str, Any]


class ClientGone(Exception):
    """The caller closed the connection; there is nobody to answer."""


class Inflight:
    """The bytes that all requests of this process hold, and for how long one may go on.

    MAX_INFLIGHT_BYTES and BODY_TIMEOUT_S.
    """

    def __init__(self, bytes_max: int, body_s_max: float = BODY_S_MAX) -> None:
        self.bytes_max = bytes_max
        self.body_s_max = body_s_max
        self.bytes = 0
        self.expansions = asyncio.Semaphore(EXPANSIONS_MAX)

    def take(self, count: int) -> bool:
        """Take this much if there is room; it is given back by `give_back`."""
        if self.bytes + count > self.bytes_max:
            return False
        self.bytes += count
        return True

    def give_back(self, count: int) -> None:
        """End what was taken."""
        self.bytes -= count


class Share:
    """What one request holds."""

    __slots__ = ("bytes", "inflight")

    def __init__(self, inflight: Inflight) -> None:
        self.inflight = inflight
        self.bytes = 0

    def give_back(self) -> None:
        """End the request."""
        self.inflight.bytes -= self.bytes
        self.bytes = 0

    def take(self, count: int) -> None:
        """Take more; raise Overloaded if too much is held by all together."""
        inflight = self.inflight
        # One request alone always may: else a small setting would refuse a body for ever.
        if inflight.bytes + count > inflight.bytes_max and inflight.bytes > self.bytes:
            raise Overloaded
        inflight.bytes += count
        self.bytes += count


def check_encoding(content_encoding: bytes) -> str:
    """Return the name of a supported Content-Encoding, empty for none; raise UnsupportedMedia."""
    name = content_encoding.decode("latin-1").strip().lower()
    if name in {"", "identity"}:
        return ""
    if name == "x-gzip":
        return "gzip"
    if name not in ENCODINGS:
        raise UnsupportedMedia(
            f"Content-Encoding {name!r} is not supported", supported=list(ENCODINGS)
        )
    return name


def declared_bytes(content_length: bytes | None, bytes_max: int) -> int:
    """Return the Content-Length, 0 without one; raise TooLarge before anything is read."""
    if content_length is None or not content_length.isdigit():
        return 0
    declared = int(content_length[:20])
    if declared > bytes_max:
        raise too_large(bytes_max)
    return declared


def too_large(bytes_max: int) -> TooLarge:
    """Return the error for a body over MAX_BODY_BYTES."""
    return TooLarge(f"Body too large: more than {bytes_max} bytes")


async def read_body(receive: Any, share: Share, bytes_max: int) -> bytes:
    """Read the body as sent, within BODY_TIMEOUT_S for all and a quarter of it for each part.

    Raises TooLarge, Overloaded, ClientGone, and MalformedBody for one that stops arriving.
    """
    parts = bytearray()
    ends_at = 0.0
    while True:
        # A body mostly arrives with its headers. A deadline takes longer than all else here, so it
        # is set only once there is something to wait for.
        arriving = receive()
        try:
            waits_for = arriving.send(None)
        except StopIteration as arrived:
            message: Message = arrived.value
        else:
            now = asyncio.get_running_loop().time()
            longest_s = share.inflight.body_s_max
            ends_at = ends_at or now + longest_s
            try:
                async with asyncio.timeout_at(min(now + longest_s / _PAUSE_PART, ends_at)):
                    message = await _rest(arriving, waits_for)
            except TimeoutError:
                raise MalformedBody("Malformed body: it did not arrive in time") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        if len(parts) + len(part) > bytes_max:
            raise too_large(bytes_max)
        share.take(len(part))
        if not message.get("more_body", False):
            return b"".join((parts, part)) if parts else part
        parts += part


@coroutine
def _rest(arriving: Any, waits_for: Any) -> Generator[Any, None, Message]:
    """Await what has been started by hand and came to its first wait."""
    try:
        yield waits_for
    except BaseException as error:
        arriving.throw(error)
        raise
    message: Message = yield from arriving
    return message


async def expand(body: bytes, encoding: str, share: Share, bytes_max: int) -> bytes:
    """Undo a Content-Encoding; raise TooLarge, Overloaded, or MalformedBody.

    What comes out is taken from the share slice by slice, so the memory of a request is little more
    than a slice ahead of its share; only while the slices are joined, it is held twice.
    """
    expansion = _expand(body, encoding, bytes_max)
    slices: list[bytes] = []
    try:
        one, is_whole = _pull(expansion, INLINE_BYTES_MAX)
        while True:
            share.take(len(one))
            slices.append(one)
            if is_whole:
                return b"".join(slices)
            async with share.inflight.expansions:
                one, is_whole = await asyncio.to_thread(_pull, expansion, SLICE_BYTES)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise MalformedBody(f"Malformed body: not valid {encoding} ({error})") from None


def _pull(expansion: Iterator[bytes], bytes_max: int) -> tuple[bytes, bool]:
    """Expand on until this many bytes went in or out, and say whether that was all."""
    parts: list[bytes] = []
    for part in expansion:
        parts.append(part)
        bytes_max -= PIECE_BYTES + len(part)
        if bytes_max <= 0:
            return b"".join(parts), False
    return b"".join(parts), True


def _expand(body: bytes, encoding: str, bytes_max: int) -> Iterator[bytes]:
    """Expand one or more members or frames, piece by piece."""
    open_member = _opener(body, encoding)
    size = at = members = 0
    while at < len(body) or not members:
        members += 1
        if members > MEMBERS_MAX:
            raise EOFError(f"it has more than {MEMBERS_MAX} members")
        member = open_member()
        while at < len(body) and not member.eof:
            piece = body[at : at + PIECE_BYTES]
            part = member.decompress(piece)
            at += len(piece)
            size += len(part)
            if size > bytes_max:
                raise too_large(bytes_max)
            yield part
        if not member.eof:
            raise EOFError("it ends too early")
        at -= len(member.unused_data)


def _opener(body: bytes, encoding: str) -> Callable[[], Any]:
    """Return what begins a member: zstd (RFC 8878), gzip (RFC 1952), zlib (1950) or deflate (1951).

    Some senders mean bare deflate by "deflate". It can't be taken for one of the others: their
    first byte would be a stored block with padding that is not zero, or a block of no type.
    """
    if encoding == "zstd":
        return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX).decompressobj
    is_bare = encoding == "deflate" and not _WRAPPED.match(body)
    return partial(zlib.decompressobj, _BARE_DEFLATE if is_bare else _ZLIB_OR_GZIP)
