"""What HTTP workers and the writer process say to each other: length-prefixed MessagePack.

    worker → writer   Append, Claim, Release, Ping
    writer → worker   Welcome, Done, Receipted, Claimed, Failed

Every question has a number of its connection's own, and each gets exactly one answer, but for
Release, which needs none. `Done` answers many plain appends of a group commit at once.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from app.logs.batch import Batch, Receipt, StoredOutcome

SOCKET_NAME = "writer.sock"
_LENGTH_BYTES = 4


class Append(msgspec.Struct, array_like=True, tag="a"):
    """Commit this."""

    number: int
    batch: Batch


class Claim(msgspec.Struct, array_like=True, tag="c"):
    """Hold an Idempotency-Key."""

    number: int
    client_id: str
    key: str


class Release(msgspec.Struct, array_like=True, tag="r"):
    """Let go of an Idempotency-Key."""

    client_id: str
    key: str


class Ping(msgspec.Struct, array_like=True, tag="p"):
    """Answer if you live and can write."""

    number: int


class Welcome(msgspec.Struct, array_like=True, tag="W"):
    """The first word of the writer: the slot that this connection's ids carry."""

    slot: int


class Done(msgspec.Struct, array_like=True, tag="D"):
    """These are on disk, without duplicates (or, after a Ping, could be)."""

    numbers: list[int]


class Receipted(msgspec.Struct, array_like=True, tag="R"):
    """This is on disk, apart from its duplicates."""

    number: int
    receipt: Receipt


class Claimed(msgspec.Struct, array_like=True, tag="C"):
    """The key is held, with what it led to before; or it is not granted."""

    number: int
    granted: bool
    stored: StoredOutcome | None


class Failed(msgspec.Struct, array_like=True, tag="F"):
    """Nothing of it is stored."""

    number: int
    reason: str


Question = Append | Claim | Release | Ping
Answer = Welcome | Done | Receipted | Claimed | Failed

T = TypeVar("T")
_encode = msgspec.msgpack.Encoder().encode


def frame(message: Question | Answer) -> bytes:
    """Return a message ready to send."""
    payload = _encode(message)
    return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload


class FrameProtocol(asyncio.Protocol):
    """Cuts a byte stream into frames and hands each decoded one to `received`."""

    def __init__(self, decode: Callable[[bytes], Any], received: Callable[[Any], None]) -> None:
        self._decode = decode
        self._received = received
        self._buffer = bytearray()
        self._needed = _LENGTH_BYTES

    def data_received(self, data: bytes) -> None:
        """Take in bytes; nothing is cut before a whole frame is there."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._needed:
            return
        at = 0
        with memoryview(buffer) as view:
            while True:
                body = at + _LENGTH_BYTES
                end = body + int.from_bytes(view[at:body], "little")
                if len(view) < body or len(view) < end:
                    self._needed = end - at if len(view) >= body else _LENGTH_BYTES
                    break
                self._received(self._decode(view[body:end]))  # type: ignore[arg-type]
                at = end
        del buffer[:at]
