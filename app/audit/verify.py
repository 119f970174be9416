"""Chains held against their seals: what was changed, removed, inserted or cut off. Pure.

The same check reads a database and an export, so that an export can be checked where nothing else
of the installation is at hand but its secret.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from app.audit.chain import (
    ACTIVITY,
    CHAIN_STARTED,
    CONTROL,
    GENESIS,
    PLATFORM,
    ChainKeys,
    Checkpoint,
    Head,
    Link,
    same,
)
from app.audit.checkpoints import is_signed

_BOOKS = {"", CONTROL, ACTIVITY}
_SHOWN_LENGTH_MAX = 200


class Span(NamedTuple):
    """Events one after the other."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first} to {self.last}" if self.last > self.first else f"{self.first}"


class Fault(NamedTuple):
    """Where a chain of a book does not hold, and why."""

    book: str
    chain: str
    seq: object
    reason: str

    def __str__(self) -> str:
        # What stands in a database does not reach a terminal raw, where it could be a command.
        book = self.book if self.book in _BOOKS else _shown(self.book)
        seq = self.seq if isinstance(self.seq, int | Span) else _shown(self.seq)
        return f"{book or 'file'}: chain {_shown(self.chain)}, event {seq}: {self.reason}"


class Unreadable(NamedTuple):
    """A row that can't be what was written."""

    seq: object
    reason: str


Row = Link | Checkpoint | Head | Unreadable


class Section(NamedTuple):
    """A chain as it is stored: its events in order, behind each its checkpoint, its head at last.

    Those of a book come in the order of their names, the platform's first.
    """

    book: str
    chain: str
    rows: Iterator[Row]


class Checker:
    """Checks sections one after the other, and counts them.

    `keys` gives the keys of a book; `signers` are the public Ed25519 keys of this installation.
    With `is_whole` a chain that is missing is a fault, or one that nobody announced; `announces`
    says what the platform's chain of a book has been told since it was checked, `begun` names the
    books that must be there.
    """

    def __init__(
        self,
        keys: Callable[[str], ChainKeys],
        signers: Collection[bytes],
        *,
        is_whole: bool = True,
        announces: Callable[[str, str], bool] = lambda _book, _chain: False,
        begun: Collection[str] = (),
    ) -> None:
        self.events = 0
        self.chains = 0
        self._keys = keys
        self._signers = signers
        self._is_whole = is_whole
        self._announces = announces
        self._started: set[tuple[str, str]] = {(book, PLATFORM) for book in begun}
        self._seen: set[tuple[str, str]] = set()

    def check(self, sections: Iterable[Section]) -> Iterator[Fault]:
        """Give the faults of all sections, each once."""
        for section in sections:
            place = (section.book, section.chain)
            self.chains += 1
            if place in self._seen:
                yield Fault(*place, 0, "stands here for a second time")
            elif self._is_whole and not self._is_announced(*place):
                yield Fault(*place, 0, "its beginning is not in the platform's chain")
            self._seen.add(place)
            yield from self._check_section(section)
        if self._is_whole:
            for place in sorted(self._started - self._seen):
                yield Fault(*place, 1, "the whole chain is missing")

    def _check_section(self, section: Section) -> Iterator[Fault]:
        """Check a chain; behind a fault it goes on from the seal that stands there."""
        book, chain, rows = section
        keys = self._keys(book)
        seq, head = 0, None
        seal: bytes | None = GENESIS
        for row in rows:
            if head is not None:
                yield Fault(book, chain, row.seq, "stands behind the end of its chain")
            if isinstance(row, Unreadable):
                yield Fault(book, chain, row.seq, row.reason)
                seal = None
            elif isinstance(row, Checkpoint):
                yield from self._check_checkpoint(book, row, seq, seal)
            elif isinstance(row, Head):
                head = row
            else:
                yield from _check_place(book, chain, row, seq)
                yield from _check_link(chain, row, seal if row.seq == seq + 1 else None, keys)
                self._count(book, row)
                seq, seal = row.seq, row.seal
        yield from _check_end(section, head, keys, seq, seal)

    def _is_announced(self, book: str, chain: str) -> bool:
        is_known = chain == PLATFORM or (book, chain) in self._started
        return is_known or self._announces(book, chain)

    def _count(self, book: str, link: Link) -> None:
        self.events += 1
        if link.chain == PLATFORM and link.event.action == CHAIN_STARTED:
            self._started.add((book, link.event.target))

    def _check_checkpoint(
        self, book: str, checkpoint: Checkpoint, seq: int, seal: bytes | None
    ) -> Iterator[Fault]:
        place = (book, checkpoint.chain, checkpoint.seq)
        if checkpoint.public_key not in self._signers or not is_signed(book, checkpoint):
            yield Fault(*place, "the checkpoint's signature is not this installation's")
        elif checkpoint.seq > seq:
            yield Fault(book, checkpoint.chain, seq + 1, f"cut off: one was signed at {place[2]}")
        elif checkpoint.seq < seq:
            yield Fault(*place, "the event that a checkpoint was signed for is not here")
        elif seal is not None and not same(checkpoint.seal, seal):
            yield Fault(*place, "is not what its checkpoint was signed for")


def _check_place(book: str, chain: str, link: Link, before: int) -> Iterator[Fault]:
    if link.seq <= before:
        yield Fault(book, chain, link.seq, f"stands behind event {before}")
    elif link.seq > before + 1:
        yield Fault(book, chain, Span(before + 1, link.seq - 1), "missing")


def _check_link(chain: str, link: Link, before: bytes | None, keys: ChainKeys) -> Iterator[Fault]:
    """Check an event against the seal before it, None where that is not known."""
    place = (keys.book, chain, link.seq)
    if link.event.chain != chain or link.chain != chain:
        yield Fault(*place, "belongs to another chain")
    elif not keys.has(link.secret_id):
        reason = f"was sealed under a secret that is not here: {_shown(link.secret_id)}"
        yield Fault(*place, reason)
    elif before is not None:
        expected = keys.seal(link.secret_id, before, chain, link.seq, link.event)
        if not same(expected, link.seal):
            yield Fault(*place, "was changed, or put in")


def _check_end(
    section: Section, head: Head | None, keys: ChainKeys, seq: int, seal: bytes | None
) -> Iterator[Fault]:
    book, chain, _ = section
    if head is None:
        yield Fault(book, chain, seq, "the end of the chain is not sealed")
    elif not keys.has(head.secret_id):
        reason = f"its end was sealed under a secret that is not here: {_shown(head.secret_id)}"
        yield Fault(book, chain, head.seq, reason)
    elif head.chain != chain or not same(
        keys.seal_head(head.secret_id, chain, head.seq, head.seal), head.head_seal
    ):
        yield Fault(book, chain, head.seq, "the seal of the end is not right")
    elif head.seq > seq:
        yield Fault(book, chain, seq + 1, f"cut off: the end was sealed at {head.seq}")
    elif head.seq < seq or (seal is not None and not same(head.seal, seal)):
        yield Fault(book, chain, seq, "is not the end that was sealed")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH_MAX else f"{text[:_SHOWN_LENGTH_MAX]}…"
