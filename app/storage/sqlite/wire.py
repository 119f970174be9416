"""What HTTP workers and the writer process say to each other: length-prefixed MessagePack.

    worker → writer   Append, Claim, Release, Ping
    sealer → writer   Sealer, Seal
    writer → worker   Welcome, Done, Receipted, Claimed, Failed

Every question has a number of its connection's own, and each gets exactly one answer, but for
Release and Sealer, which need none. `Done` answers many plain appends of a group commit at once.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from app.logs.batch import Batch, Receipt, StoredOutcome

SOCKET_NAME = "writer.sock"
SOCKET_PATH_BYTES_MAX = 100  # the system's own limit is 104 or 108
LENGTH_BYTES = 4


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


# What stays of a log beside its block: (us, seq, series, duration_ms, run_hash, external_id).
Head = tuple[int, int, int, Any, int | None, str | None]


class Block(msgspec.Struct, array_like=True):
    """A block of sealed logs; see block.py and the tables of schema.py."""

    heads: list[Head]
    logs: bytes
    words: bytes
    last_commit_no: int


class Seal(msgspec.Struct, array_like=True, tag="s"):
    """Put these blocks in the place of the logs in them, if all of those are still there.

    `client` is the number of a client in the file of the day. `hours` sums the logs up: (hour,
    series, logs, logs with a duration, their durations).
    """

    number: int
    day: int
    client: int
    blocks: list[Block]
    hours: list[tuple[int, int, int, int, float]]


class Sealer(msgspec.Struct, array_like=True, tag="S"):
    """Said by the sealer: it is no worker, and the writer need not stay for it."""


class Welcome(msgspec.Struct, array_like=True, tag="W"):
    """The first word of the writer: the slot that this connection's ids carry."""

    slot: int


class Done(msgspec.Struct, array_like=True, tag="D"):
    """These are on disk, without duplicates (or, after a Ping, could be); the blocks are made."""

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


Question = Append | Claim | Release | Ping | Seal | Sealer
Answer = Welcome | Done | Receipted | Claimed | Failed

T = TypeVar("T")
_encode = msgspec.msgpack.Encoder().encode


def frame(message: Question | Answer) -> bytes:
    """Return a message ready to send."""
    payload = _encode(message)
    return len(payload).to_bytes(LENGTH_BYTES, "little") + payload


class FrameProtocol(asyncio.Protocol):
    """Cuts a byte stream into frames and hands each decoded one to `received`."""

    def __init__(self, decode: Callable[[bytes], Any], received: Callable[[Any], None]) -> None:
        self._decode = decode
        self._received = received
        self._buffer = bytearray()
        self._needed = LENGTH_BYTES

    def data_received(self, data: bytes) -> None:
        """Take in bytes; nothing is cut before a whole frame is there."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._needed:
            return
        at = 0
        with memoryview(buffer) as view:
            while True:
                body = at + LENGTH_BYTES
                end = body + int.from_bytes(view[at:body], "little")
                if len(view) < body or len(view) < end:
                    self._needed = end - at if len(view) >= body else LENGTH_BYTES
                    break
                self._received(self._decode(view[body:end]))  # type: ignore[arg-type]
                at = end
        del buffer[:at]


@contextmanager
def short_path(directory: Path) -> Iterator[Path]:
    """Name a directory so briefly that a Unix socket in it can be reached."""
    paths = (directory, Path(os.path.relpath(directory)))
    short = min(paths, key=lambda path: len(os.fsencode(path)))
    if len(os.fsencode(short / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX:
        yield short
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")  # where there is none, connecting fails
    finally:
        os.close(descriptor)
