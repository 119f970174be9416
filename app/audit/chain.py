"""Chains of events: each is sealed together with the seal before it. Pure.

A seal is a BLAKE2b hash under a key that is derived from the server's secret. Who can write to the
database and has not the secret can change, remove or insert no event without breaking the chain
there, and cut nothing off its end without the head's own seal failing. Such a one could put back a
whole older state, head and all: against that stand checkpoints, signed every hour, wherever copies
of them are kept.

A book is the chains of one database. Its name is part of each seal: two databases have chains of
the same names, and none may be put in the place of the other.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, NamedTuple

from app.journal import redacted

# The chain of what belongs to no client. It comes before all others in the order of their names.
PLATFORM = "*"
# What is done, and what was refused: on embedded storage two files, elsewhere one database.
CONTROL = "control"
ACTIVITY = "activity"
# An event of the platform's chain: who removes a whole chain leaves this one behind.
CHAIN_STARTED = "audit.chain_started"
# In a book's own chain, and in that of the first book.
BOOK_STARTED = "audit.book_started"

SEAL_BYTES = 32
GENESIS = bytes(SEAL_BYTES)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


class Event(NamedTuple):
    """What happened: who did what to which thing of which client, and from where.

    `detail` is JSON, as `detail_text` writes it.
    """

    at: datetime
    action: str
    actor: str
    client_id: str | None
    target: str
    source_ip: str
    user_agent: str
    request_id: str
    detail: str

    @property
    def chain(self) -> str:
        """Name the chain that it belongs to."""
        return self.client_id or PLATFORM


class Link(NamedTuple):
    """An event in its place."""

    chain: str
    seq: int
    event: Event
    secret_id: str
    seal: bytes


class Head(NamedTuple):
    """Where a chain ends."""

    chain: str
    seq: int
    seal: bytes
    secret_id: str
    head_seal: bytes


class Checkpoint(NamedTuple):
    """How far a chain had grown at a moment, and who signed that: an Ed25519 key of 32 bytes."""

    chain: str
    seq: int
    at: datetime
    seal: bytes
    public_key: bytes
    signature: bytes


class ChainKey(NamedTuple):
    """A key that seals, and the public id of the secret that it comes from."""

    secret_id: str
    key: bytes


class ChainKeys:
    """The keys of all secrets of the server, the present one's first, for the chains of a book."""

    def __init__(self, keys: Sequence[ChainKey], book: str) -> None:
        self._keys = {one.secret_id: one.key for one in keys}
        self.current = keys[0].secret_id
        self.book = book

    def seal(self, secret_id: str, before: bytes, chain: str, seq: int, event: Event) -> bytes:
        """Seal an event behind another; raise KeyError for the id of a secret that is not here."""
        content = _canonical([self.book, chain, seq, epoch_us(event.at), *event[1:]])
        return self._hash(secret_id, before + content, b"audit event")

    def seal_head(self, secret_id: str, chain: str, seq: int, seal: bytes) -> bytes:
        """Seal the end of a chain; raise KeyError as `seal`."""
        content = _canonical([self.book, chain, seq, seal.hex()])
        return self._hash(secret_id, content, b"audit head")

    def seal_file(self, secret_id: str, digest: bytes) -> bytes:
        """Seal an export whose lines have this digest; raise KeyError as `seal`."""
        return self._hash(secret_id, digest, b"audit export")

    def has(self, secret_id: str) -> bool:
        """Say whether what was sealed under a secret can be checked."""
        return secret_id in self._keys

    def _hash(self, secret_id: str, content: bytes, purpose: bytes) -> bytes:
        key = self._keys[secret_id]
        return blake2b(content, key=key, digest_size=SEAL_BYTES, person=purpose).digest()


def same(one: bytes, other: bytes) -> bool:
    """Compare seals, in a time that says nothing of where they differ."""
    return compare_digest(one, other)


def epoch_us(at: datetime) -> int:
    """Give a moment in microseconds since 1970, exactly: a float would take two of them for one."""
    return (at - _EPOCH) // _US


def detail_text(detail: Mapping[str, Any]) -> str:
    """Write details as they are stored and sealed: JSON in ASCII, its names in order, no key.

    What looks like a key is taken out here: some paste one into a description.
    """
    return json.dumps(_plain(detail), sort_keys=True)


def checkpoint_text(book: str, chain: str, seq: int, at: datetime, seal: bytes) -> bytes:
    """Give what is signed of a checkpoint."""
    parts = ["central-logger audit checkpoint", book, chain, seq, epoch_us(at), seal.hex()]
    return _canonical(parts)


def _plain(value: Any) -> Any:
    """Give a value as JSON knows it."""
    if isinstance(value, Mapping):
        return {redacted(str(name)): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if value is None or isinstance(value, bool | int | float):
        return value
    return redacted(str(value))


def _canonical(parts: list[Any]) -> bytes:
    return json.dumps(parts, ensure_ascii=True, separators=(",", ":")).encode()
