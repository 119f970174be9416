"""What an erasure says that it did, in a form that can be checked later. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from app.logs.identity import parse_id
from app.logs.selection import Instant


@dataclass(frozen=True, slots=True)
class Erased:
    """How many logs are gone, and when the first and the last of them were executed.

    `digest` is the SHA-256, in hex, of their ids, sorted and joined by line breaks: who kept the
    ids can prove which logs they were, and nobody can tell them from it.
    """

    logs: int
    first: Instant | None
    last: Instant | None
    digest: str


class Tally:
    """Adds up an erasure whose ids come in ascending order."""

    def __init__(self) -> None:
        self._logs = 0
        self._first = self._last = ""
        self._digest = sha256()

    def add(self, ids: Iterable[str]) -> None:
        """Count ids that are beyond all those before."""
        for id_ in ids:
            self._digest.update(f"\n{id_}".encode() if self._logs else id_.encode())
            self._first = self._first or id_
            self._last = id_
            self._logs += 1

    def total(self) -> Erased:
        """Return what was counted."""
        digest = self._digest.hexdigest()
        return Erased(self._logs, _instant(self._first), _instant(self._last), digest)


def _instant(id_: str) -> Instant | None:
    place = parse_id(id_)
    return None if place is None else (place.us, place.ns)
