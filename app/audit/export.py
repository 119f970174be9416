"""An export of the audit: NDJSON that can be checked without the database it came from.

The first line says what it is, the last one how much, and seals all lines before it. Between them
stands each chain: its events in order, behind each its checkpoint, and its end. `detail` is the
very text that was sealed. Bytes are in hex.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from hashlib import blake2b
from itertools import groupby
from typing import Any, BinaryIO, NamedTuple

from app.audit.chain import (
    CHAIN_STARTED,
    CONTROL,
    PLATFORM,
    ChainKeys,
    Checkpoint,
    Event,
    Head,
    Link,
    epoch_us,
    same,
)
from app.audit.checkpoints import as_json, of_json
from app.audit.verify import Fault, Row, Section, Unreadable
from app.columns import utc_now

VERSION = 1
# No line of ours comes near; a file without line breaks is not to fill the memory.
_LINE_BYTES_MAX = 1024**2

_PLACE = 0  # of the fault of a file in place of an event's number


class Counts(NamedTuple):
    """How much was written."""

    events: int
    chains: int


class Damaged(Exception):
    """A row is not what we wrote: an export of it would prove nothing. The text says which."""


def write_export(  # noqa: PLR0913, PLR0917  # what, under which keys, and what it is held against
    file: BinaryIO,
    sections: Iterable[Section],
    keys: ChainKeys,
    signers: Collection[bytes],
    client_id: str | None = None,
    announces: Callable[[str, str], bool] = lambda _book, _chain: False,
) -> Counts:
    """Write sections to a file, in constant memory; raise Damaged for a row of theirs.

    Chains that have begun since the platform's was written are left out: of those it tells nothing.
    `announces` says whether it tells of them by now.
    """
    digest = blake2b()
    events = chains = 0
    started: set[tuple[str, str]] = set()

    def write(line: dict[str, Any]) -> None:
        encoded = json.dumps(line).encode() + b"\n"
        digest.update(encoded)
        file.write(encoded)

    head = {"kind": "export", "version": VERSION, "at": utc_now().isoformat()}
    write({**head, "client": client_id, "public_keys": [one.hex() for one in signers]})
    for book, chain, rows in sections:
        is_told = client_id is not None or chain == PLATFORM or (book, chain) in started
        if not is_told and announces(book, chain):
            continue
        chains += 1
        for row in rows:
            if isinstance(row, Unreadable):
                raise Damaged(str(Fault(book, chain, row.seq, row.reason)))
            if isinstance(row, Link):
                events += 1
                if chain == PLATFORM and row.event.action == CHAIN_STARTED:
                    started.add((book, row.event.target))
            write({"book": book, **_line(row)})
    seal = keys.seal_file(keys.current, digest.digest())
    write(
        {
            "kind": "end",
            "events": events,
            "chains": chains,
            "secret_id": keys.current,
            "seal": seal.hex(),
        }
    )
    return Counts(events, chains)


class Export:
    """An export that is read: its sections, and what is wrong with the file as a whole."""

    def __init__(self, file: BinaryIO, keys: Callable[[str], ChainKeys]) -> None:
        self._file = file
        self._keys = keys(CONTROL)
        self._digest = blake2b()
        self._before = b""
        self._last: dict[str, Any] = {}
        self._lines = 0
        self._events = self._chains = 0
        first = self._read(next(self._raw(), b""))
        self.is_export = first.get("kind") == "export" and first.get("version") == VERSION
        self.is_whole = first.get("client") is None

    def sections(self) -> Iterator[Section]:
        """Give the chains, each to be read to its end before the next."""
        for (book, chain), rows in groupby(self._rows(), key=lambda row: row[:2]):
            self._chains += 1
            yield Section(book, chain, (row for _, _, row in rows))

    def faults(self) -> Iterator[Fault]:
        """Say what is wrong with the file, once its sections have been read."""
        end, secret_id = self._last, str(self._last.get("secret_id"))
        place = ("", "", _PLACE)
        if end.get("kind") != "end":
            yield Fault(*place, "the export is cut off: its last line is missing")
        elif not self._keys.has(secret_id):
            yield Fault(*place, f"was sealed under a secret that is not here: {secret_id!r}")
        else:
            expected = self._keys.seal_file(secret_id, self._before)
            seal = b""
            with suppress(ValueError):
                seal = bytes.fromhex(str(end.get("seal")))
            if not same(expected, seal):
                yield Fault(*place, "the file is not what was exported")
            # No seal covers what the last line says itself.
            told = end.get("events"), end.get("chains")
            if told != (self._events, self._chains) or {type(one) for one in told} != {int}:
                found = f"{self._events} events in {self._chains} chains"
                yield Fault(*place, f"its last line does not tell of the {found} that are here")

    def _rows(self) -> Iterator[tuple[str, str, Row]]:
        for raw in self._raw():
            if self._last:
                # Only the last line is the end, whatever others say of themselves.
                yield "", f"line {self._lines}", Unreadable(_PLACE, "stands behind the end")
            line = self._read(raw)
            if line.get("kind") == "end":
                self._last = line
                continue
            try:
                row = _row(line)
                place = _text(line["book"]), _text(line["chain"])
            except (ValueError, TypeError, KeyError, OverflowError):
                yield "", f"line {self._lines}", Unreadable(_PLACE, "is no line of an export")
                continue
            self._events += isinstance(row, Link)
            yield *place, row

    def _raw(self) -> Iterator[bytes]:
        while raw := self._file.readline(_LINE_BYTES_MAX):
            self._lines += 1
            self._before = self._digest.digest()
            self._digest.update(raw)
            yield raw

    @staticmethod
    def _read(raw: bytes) -> dict[str, Any]:
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            return {}
        return line if isinstance(line, dict) else {}


def _line(row: Link | Checkpoint | Head) -> dict[str, Any]:
    if isinstance(row, Checkpoint):
        return {"kind": "checkpoint", **as_json(row)}
    if isinstance(row, Head):
        place = {"kind": "head", "chain": row.chain, "seq": row.seq, "seal": row.seal.hex()}
        return {**place, "secret_id": row.secret_id, "head_seal": row.head_seal.hex()}
    return {
        "kind": "event",
        "chain": row.chain,
        "seq": row.seq,
        **row.event._asdict(),
        "at": row.event.at.isoformat(),
        "secret_id": row.secret_id,
        "seal": row.seal.hex(),
    }


def _row(line: dict[str, Any]) -> Row:
    """Read a line back.

    Raises ValueError, TypeError, KeyError or OverflowError for what is none of ours.
    """
    kind = line["kind"]
    if kind == "checkpoint":
        return of_json(line)
    if type(line["seq"]) is not int:
        raise ValueError("not a line of ours")
    chain, seq, seal = _text(line["chain"]), line["seq"], bytes.fromhex(line["seal"])
    secret_id = _text(line["secret_id"])
    if kind == "head":
        return Head(chain, seq, seal, secret_id, bytes.fromhex(line["head_seal"]))
    if kind != "event":
        raise ValueError("not a line of ours")
    at = datetime.fromisoformat(line["at"])
    if at.utcoffset() is None:
        raise ValueError("a time without a zone")
    epoch_us(at)  # which has a meaning for every moment that was ever written
    texts = {name: _text(line[name]) for name in Event._fields[1:] if name != "client_id"}
    client_id = None if line["client_id"] is None else _text(line["client_id"])
    return Link(chain, seq, Event(at=at, client_id=client_id, **texts), secret_id, seal)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a line of ours")
    value.encode()  # a lone surrogate is none of ours either
    return value
