"""Places in the stream of a client's logs, in the order of their commits. Pure.

A page goes by executed_at; who follows the logs goes by when they were stored, as late logs come
late. A commit belongs to one day's file, and around midnight to either of two: so a place says how
far each of two days was seen.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from hmac import compare_digest
from typing import NamedTuple

import msgspec

# What a store gives at a time. A log of any size is let in if it is the first.
STREAM_LOGS_MAX = 2000
STREAM_BYTES_MAX = 1024**2

_INT64_MAX = 2**63 - 1


class Mark(NamedTuple):
    """How far a day's logs were seen: up to this one, as they stand in its file's commits."""

    commit_no: int
    us: int
    seq: int


START = Mark(-1, 0, 0)


def end_of_commit(commit_no: int) -> Mark:
    """Return the mark behind all logs of a commit."""
    return Mark(commit_no, _INT64_MAX, _INT64_MAX)


class Place(NamedTuple):
    """What of a client's logs was seen: of `day` up to `mark`, of the day before up to `before`.

    All of earlier days counts as seen, and nothing of later ones.
    """

    day: int
    mark: Mark = START
    before: Mark = START

    def mark_of(self, day: int) -> Mark | None:
        """Return how far a day was seen; None: it is over."""
        if day >= self.day:
            return self.mark if day == self.day else START
        return self.before if day == self.day - 1 else None

    def has(self, day: int, mark: Mark) -> bool:
        """Say whether the log at a mark of a day was seen."""
        seen = self.mark_of(day)
        return seen is None or mark <= seen

    def at(self, day: int, mark: Mark) -> "Place":
        """Return the place after the log at a mark of a day that is not over."""
        if day == self.day:
            return Place(day, mark, self.before)
        if day > self.day:
            return Place(day, mark, self.mark if day == self.day + 1 else START)
        return Place(self.day, self.mark, mark)

    def earliest(self, other: "Place") -> "Place":
        """Return a place from which nothing is missing that either has still to see."""
        low, high = (self, other) if self.day <= other.day else (other, self)
        marks = [
            min(low_mark, high.mark_of(day) or low_mark)
            for day, low_mark in ((low.day, low.mark), (low.day - 1, low.before))
        ]
        return Place(low.day, *marks)


class Following(NamedTuple):
    """The next logs after a place, each as (day, mark, JSON); `more` may follow at once.

    `place` is behind the last of them.
    """

    place: Place
    logs: list[tuple[int, Mark, str]]
    more: bool = False


class Places:
    """Seals places into opaque texts that only their client can use.

    They are bound to no filter: a place tells what of all of a client's logs was seen, so whoever
    comes back with other filters gets what matches these from there on.
    """

    TAG_BYTES = 16

    def __init__(self, secret: bytes) -> None:
        self._digest = blake2b(key=secret[:64], digest_size=self.TAG_BYTES, person=b"place").copy

    def seal(self, client_id: str, place: Place) -> str:
        """Return the id of the event at a place."""
        payload = _encode(place)
        return urlsafe_b64encode(self._tag(client_id, payload) + payload).decode().rstrip("=")

    def open(self, client_id: str, text: str) -> Place:
        """Return the place that an id of this client names; raise ValueError for any other text."""
        try:
            sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            sealed = b""
        tag, payload = sealed[: self.TAG_BYTES], sealed[self.TAG_BYTES :]
        if not compare_digest(tag, self._tag(client_id, payload)):
            raise ValueError("is not the id of an event of this client")
        return _decode(payload)

    def _tag(self, client_id: str, payload: bytes) -> bytes:
        digest = self._digest()
        digest.update(b"%b\0%b" % (client_id.encode(), payload))
        return digest.digest()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Place).decode
