"""What HTTP workers and the writer process say to each other: length-prefixed MessagePack.

    worker → writer   Append, Erase, EraseRest, Expire, Retire, Claim, Release, Ping, Follow,
                      SetAside
    sealer → writer   Sealer, Seal
    writer → worker   Welcome, Done, Receipted, Erased, Claimed, Failed, Committed

Every question has a number of its connection's own, and each gets exactly one answer, but for
Release, Sealer and SetAside, which need none, and Follow, whose answer may come with a later
commit. `Done` answers many plain appends of a group commit at once.
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


class Follow(msgspec.Struct, array_like=True, tag="f"):
    """Say so, once, when logs of this client are on disk that were not when you last said so."""

    client_id: str


class SetAside(msgspec.Struct, array_like=True, tag="x"):
    """The file of a day is damaged, if it still is the one of this inode: go on without it."""

    day: int
    inode: int


# What stays of a log beside its block: (us, seq, series, duration_ms, run_hash, external_id).
Head = tuple[int, int, int, Any, int | None, str | None]


class Block(msgspec.Struct, array_like=True):
    """A block of sealed logs; see block.py and the tables of schema.py."""

    heads: list[Head]
    logs: bytes
    words: bytes
    last_commit_no: int
    first_commit_no: int
    durations: bytes


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


# (us, seq): the place of a log within a client's rows of one file.
Key = tuple[int, int]


class Erase(msgspec.Struct, array_like=True, tag="e"):
    """Delete the logs at these places of a client; Erased tells which there were."""

    number: int
    day: int
    client_id: str
    places: list[Key]


class EraseRest(msgspec.Struct, array_like=True, tag="E"):
    """Delete what a client's requests left beside logs, or a part of it; Erased tells."""

    number: int
    day: int
    client_id: str


# (client_id, dataset); rejected records may have no dataset.
Name = tuple[str, str | None]


class Expire(msgspec.Struct, array_like=True, tag="v"):
    """Delete the logs at these places of a client, and its rejected records of these datasets.

    The own ids of the logs are kept, or else some of those that were are forgotten; Erased tells
    the places and whether there may be more ids to forget.
    """

    number: int
    day: int
    client_id: str
    datasets: list[str | None]
    places: list[Key]
    keeps_ids: bool


class Retire(msgspec.Struct, array_like=True, tag="u"):
    """Unlink the file of a day, in steps, when its usage is in the lasting file.

    Failed if it holds anything but what has these names. Erased tells whether there is more to do.
    """

    number: int
    day: int
    names: list[Name]


class Rewrite(msgspec.Struct, array_like=True, tag="w"):
    """Put this in the place of a block, if so many erasures have changed it; see erasing.py."""

    number: int
    day: int
    id: int
    erasures: int
    logs: bytes
    words: bytes
    durations: bytes | None  # none of a block of an earlier version


class Scrub(msgspec.Struct, array_like=True, tag="b"):
    """Leave nothing of what was erased in a file: one step, Failed while there are more.

    `stale` is what was left to do when the blocks had been written anew.
    """

    number: int
    day: int
    stale: dict[int, int]


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


class Erased(msgspec.Struct, array_like=True, tag="E"):
    """These places are empty now and were not before; of the rest, there may be `more`."""

    number: int
    places: list[Key]
    more: bool = False


class Claimed(msgspec.Struct, array_like=True, tag="C"):
    """The key is held, with what it led to before; or it is not granted."""

    number: int
    granted: bool
    stored: StoredOutcome | None


class Failed(msgspec.Struct, array_like=True, tag="F"):
    """Nothing of it is stored."""

    number: int
    reason: str


class Committed(msgspec.Struct, array_like=True, tag="L"):
    """Logs of these clients are on disk, of those that were followed."""

    client_ids: list[str]


Erasing = Erase | EraseRest | Expire | Retire | Rewrite | Scrub
Question = Append | Claim | Release | Ping | Follow | Seal | Sealer | SetAside | Erasing
Answer = Welcome | Done | Receipted | Erased | Claimed | Failed | Committed

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
