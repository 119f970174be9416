"""Reading a request body: bounded in bytes as sent, as expanded, in time and in memory over all."""

import asyncio
import zlib
from collections.abc import MutableMapping
from typing import Any

import zstandard

from app.errors import MalformedBody, Overloaded, TooLarge, UnsupportedMedia

ENCODINGS = ("gzip", "deflate", "zstd")
# A sender that pauses longer than this between two parts of a body has gone.
PAUSE_S_MAX = 30.0
# Below this, expanding takes less than handing it to a thread.
THREAD_BYTES_MIN = 64 * 1024
# More than any level but zstd's --ultra ones uses; a frame may ask the reader for gigabytes.
ZSTD_WINDOW_BYTES_MAX = 32 * 1024**2
# A body is expanded in pieces: what follows the end of a member in its piece is copied.
PIECE_BYTES = 1024
# A member may be of 9 bytes and expand to nothing, so no other limit bounds what they cost.
MEMBERS_MAX = 10_000
_ZLIB_OR_GZIP, _RAW_DEFLATE = 47, -15

Message = MutableMapping[str, Any]


class ClientGone(Exception):
    """The caller closed the connection; there is nobody to answer."""


class Inflight:
    """The bytes that all requests of this process hold; MAX_INFLIGHT_BYTES bounds them."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0


class Share:
    """What one request holds."""

    __slots__ = ("_inflight", "bytes")

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self.bytes = 0

    def give_back(self) -> None:
        """End the request."""
        self._inflight.bytes -= self.bytes
        self.bytes = 0

    def take(self, count: int) -> None:
        """Take more; raise Overloaded if too much is held by all together."""
        inflight = self._inflight
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
    """Read the body as sent.

    Raises TooLarge, Overloaded, ClientGone, and MalformedBody for one that stops arriving.
    """
    message: Message = await receive()
    if not message.get("more_body", False) and message["type"] == "http.request":
        body: bytes = message.get("body", b"")
        if len(body) > bytes_max:
            raise too_large(bytes_max)
        share.take(len(body))
        return body
    parts = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        if len(parts) + len(part) > bytes_max:
            raise too_large(bytes_max)
        share.take(len(part))
        parts += part
        if not message.get("more_body", False):
            return bytes(parts)
        try:
            async with asyncio.timeout(PAUSE_S_MAX):
                message = await receive()
        except TimeoutError:
            raise MalformedBody("Malformed body: it did not arrive in time") from None


async def expand(body: bytes, encoding: str, share: Share, bytes_max: int) -> bytes:
    """Undo a Content-Encoding; raise TooLarge before the memory is taken, or MalformedBody."""
    if len(body) < THREAD_BYTES_MIN:
        expanded = _expand(body, encoding, bytes_max)
    else:
        expanded = await asyncio.to_thread(_expand, body, encoding, bytes_max)
    share.take(len(expanded))
    return expanded


def _expand(body: bytes, encoding: str, bytes_max: int) -> bytes:
    try:
        expanded = _unzstd(body, bytes_max) if encoding == "zstd" else _inflate(body, bytes_max)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise MalformedBody(f"Malformed body: not valid {encoding} ({error})") from None
    if len(expanded) > bytes_max:
        raise too_large(bytes_max)
    return expanded


def _inflate(body: bytes, bytes_max: int) -> bytes:
    """Expand zlib (RFC 1950), gzip of one or more members (RFC 1952) or bare deflate (RFC 1951)."""
    parts: list[bytes] = []
    size = at = members = 0
    bits = _ZLIB_OR_GZIP
    while at < len(body) or not members:
        members = _next_member(members)
        stream = zlib.decompressobj(bits)
        while at < len(body) and not stream.eof:
            piece = body[at : at + PIECE_BYTES]
            try:
                part = stream.decompress(piece, bytes_max + 1 - size)
            except zlib.error:
                if at or bits == _RAW_DEFLATE or body.startswith(b"\x1f\x8b"):
                    raise
                bits = _RAW_DEFLATE  # some senders mean this by "deflate"
                stream = zlib.decompressobj(bits)
                continue
            at += len(piece)
            parts.append(part)
            size += len(part)
            if size > bytes_max:
                return b"".join(parts)
        if not stream.eof:
            raise EOFError("it ends too early")
        at -= len(stream.unused_data)
    return b"".join(parts)


def _unzstd(body: bytes, bytes_max: int) -> bytes:
    """Expand zstd frames (RFC 8878)."""
    parts: list[bytes] = []
    size = at = members = 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    while at < len(body) or not members:
        members = _next_member(members)
        # decompressobj has no bound on its output: feed it pieces whose output is bounded, since
        # one block of at most 128 KiB comes out of as little as 4 bytes.
        stream = decompressor.decompressobj()
        while at < len(body) and not stream.eof:
            piece = body[at : at + PIECE_BYTES]
            part = stream.decompress(piece)
            at += len(piece)
            parts.append(part)
            size += len(part)
            if size > bytes_max:
                return b"".join(parts)
        if not stream.eof:
            raise EOFError("it ends too early")
        at -= len(stream.unused_data)
    return b"".join(parts)


def _next_member(members: int) -> int:
    if members >= MEMBERS_MAX:
        raise EOFError(f"it has more than {MEMBERS_MAX} members")
    return members + 1
