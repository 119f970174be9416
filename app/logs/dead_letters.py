"""Rejected records, kept for their client to look at: bounded, and without keys of ours. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters, digits
from typing import Any

import msgspec
from msgspec import Raw

from app.errors import Invalid, fault
from app.journal import redacted
from app.logs.batch import DEFAULT_DATASET, DeadLetter
from app.logs.identity import SLOT_BITS, Position
from app.logs.query import Cursors, LogQuery, parse_log_query
from app.logs.record import Rejection
from app.logs.selection import Instant, Params
from app.logs.timestamp import US_PER_DAY

# Of one record's text: enough to see what is wrong with it.
LETTER_BYTES_MAX = 64 * 1024
CUT = "… [cut]"
# Of one request: a sender whose every record is bad tells no more with the next thousand. Looking
# for keys in so much text takes 30 ms.
REQUEST_LETTERS_MAX = 500
REQUEST_BYTES_MAX = 1024**2
PARAMETERS = frozenset({"from", "to", "limit", "cursor"})

_STEP = 1 << SLOT_BITS
# Longer than a key: what a cut may have left of one.
_KEY_LENGTH_MAX = 256
_KEY_LETTERS = ascii_letters + digits + "_-"


class _Named(msgspec.Struct):
    dataset: str | None = None


_decode_named = msgspec.json.Decoder(_Named).decode


@dataclass(frozen=True, slots=True)
class RejectedQuery(LogQuery):
    """One page of a client's rejected records, the newest first.

    `start` and `end` bound their arrival; of the filters, `dataset` alone counts.
    """

    def as_params(self) -> list[Any]:
        """Give it in a form that no question about logs has."""
        return ["rejected", *LogQuery.as_params(self)]

    def arrivals(self, day: int) -> tuple[int, int]:
        """Return the first arrival of a day that is asked for, and the first beyond those."""
        low, high = 0, _ARRIVAL_MAX
        if self.start is not None:
            low = _arrival(self.start, day)
        if self.end is not None:
            high = _arrival(self.end, day)
        if self.after is not None and self.after.day <= day:
            high = min(high, self.after.arrival if self.after.day == day else 0)
        return low, high


def letter_place(day: int, arrival: int) -> Position:
    """Return where a rejected record would stand if it had been executed when it arrived."""
    return Position(day * US_PER_DAY + (arrival >> SLOT_BITS), 0, day, arrival)


def parse_rejected_query(
    client_id: str, params: Params, now_us: int, cursors: Cursors
) -> RejectedQuery:
    """Read the parameters of GET /api/v1/logs/rejected; bad ones raise Invalid, all at once."""
    params = list(params)
    unknown = dict.fromkeys(name for name, _ in params if name not in PARAMETERS)
    if unknown:
        raise Invalid([fault(name, "is not a known parameter") for name in unknown])
    given = [value for name, value in params if name == "cursor"]
    if len(given) > 1:
        raise Invalid.parameter("cursor", "is given twice")
    bounds = [(name, value) for name, value in params if name != "cursor"]
    read = parse_log_query(client_id, bounds, now_us, cursors)
    query = RejectedQuery(client_id, start=read.start, end=read.end, limit=read.limit)
    return cursors.open(query, given[0]) if given else query


def make_letters(
    rejections: Sequence[tuple[int, Rejection]], texts: Sequence[bytes | Raw], arrival: int
) -> list[DeadLetter]:
    """Return what is kept of a request's rejections; `texts` are all of its records as sent.

    `arrival` is the first of the run that the request's records have.
    """
    letters: list[DeadLetter] = []
    left = REQUEST_BYTES_MAX
    for index, rejection in rejections[:REQUEST_LETTERS_MAX]:
        text = texts[index]
        record = _shown(memoryview(text))
        left -= len(record.encode())
        if letters and left < 0:
            break
        dataset = rejection.dataset or _dataset(text)
        letters.append(
            DeadLetter(
                arrival + index * _STEP,
                index,
                rejection.field,
                rejection.detail,
                dataset,
                record,
            )
        )
    return letters


def _shown(text: memoryview) -> str:
    """Return a record's text as it is kept: bytes that are not UTF-8 escaped, keys taken out."""
    shown = redacted(bytes(text[:LETTER_BYTES_MAX]).decode("utf-8", "backslashreplace"))
    encoded = shown.encode()
    if len(text) <= LETTER_BYTES_MAX and len(encoded) <= LETTER_BYTES_MAX:
        return shown
    cut = encoded[:LETTER_BYTES_MAX].decode("utf-8", "ignore")
    return cut[:-_KEY_LENGTH_MAX] + cut[-_KEY_LENGTH_MAX:].rstrip(_KEY_LETTERS) + CUT


def _dataset(text: bytes | Raw) -> str | None:
    """Return the dataset that a record was meant for; None where nobody can tell."""
    try:
        named = _decode_named(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return DEFAULT_DATASET if named.dataset is None else named.dataset


# Beyond the last of a day.
_ARRIVAL_MAX = 1 << 62


def _arrival(instant: Instant, day: int) -> int:
    """Return the first arrival of a day at or after an instant."""
    us, ns = instant
    return min(max(0, (us + (ns > 0) - day * US_PER_DAY) << SLOT_BITS), _ARRIVAL_MAX)
