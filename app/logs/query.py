"""Questions to a log store, and their parsing from a query string. Pure."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Literal

import msgspec

from app.errors import Invalid, fault
from app.logs.batch import USAGE_COUNTERS
from app.logs.identity import Position, parse_id
from app.logs.selection import Fault, Instant, Params, Selection, parse_selection, read_one

Order = Literal["desc", "asc"]
UsageGroup = Literal["key", "dataset", "hour", "day"]

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
# A page ends before it grows beyond this, though `limit` allow more: logs may have 1 MiB each.
PAGE_BYTES_MAX = 8 * 1024**2
USAGE_GROUPS: tuple[UsageGroup, ...] = ("key", "dataset", "hour", "day")
MINUTES = {"hour": 60, "day": 1440}

_PAGING = frozenset({"order", "limit", "cursor"})
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class LogQuery(Selection):
    """One page of one client's logs.

    `after` is the place of the last log of the page before, in the direction of `order`.
    `log_id` asks for that one log.
    """

    client_id: str
    order: Order = field(default="desc", kw_only=True)
    limit: int = field(default=DEFAULT_LIMIT, kw_only=True)
    after: Position | None = field(default=None, kw_only=True)
    log_id: Position | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Page:
    """`logs` is JSON objects joined by commas; `last_id` is set where more logs follow.

    It has `limit` logs at most, and fewer where PAGE_BYTES_MAX ends it; one log is always let in.
    """

    logs: str
    last_id: str | None = None


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Usage of one client, or of all (None), in minutes since 1970, half open."""

    client_id: str | None
    group_by: UsageGroup
    start_minute: int | None = None
    end_minute: int | None = None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """`group` is a key_id, a dataset, or the first minute of an hour or a day."""

    client_id: str
    group: str | int
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.counts) == len(USAGE_COUNTERS)  # noqa: S101


class _Cursor(msgspec.Struct, array_like=True):
    """What the next page needs; the bounds are in it, since `from=-1h` moves between pages."""

    last_id: str
    start: Instant | None
    end: Instant | None


class Cursors:
    """Seals places into opaque texts that only their client can use, and only for its query."""

    TAG_BYTES = 16

    def __init__(self, secret: bytes) -> None:
        self._secret = secret[:64]

    def seal(self, query: LogQuery, last_id: str) -> str:
        """Return the cursor that continues `query` after `last_id`."""
        payload = msgspec.msgpack.encode(_Cursor(last_id, query.start, query.end))
        return urlsafe_b64encode(self._tag(query, payload) + payload).decode().rstrip("=")

    def open(self, query: LogQuery, cursor: str) -> LogQuery:
        """Return `query` continued; raise Invalid for a cursor that isn't this query's own."""
        refusal = Invalid.parameter("cursor", "is not a cursor of this query")
        try:
            sealed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except ValueError:
            raise refusal from None
        tag, payload = sealed[: self.TAG_BYTES], sealed[self.TAG_BYTES :]
        if not compare_digest(tag, self._tag(query, payload)):
            raise refusal
        opened = msgspec.msgpack.decode(payload, type=_Cursor)
        after = parse_id(opened.last_id)
        return replace(query, start=opened.start, end=opened.end, after=after)

    def _tag(self, query: LogQuery, payload: bytes) -> bytes:
        bound = [query.client_id, query.as_params(), query.order, payload]
        message = msgspec.msgpack.encode(bound)
        return blake2b(message, key=self._secret, digest_size=self.TAG_BYTES).digest()


def parse_log_query(client_id: str, params: Params, now_us: int, cursors: Cursors) -> LogQuery:
    """Read the parameters of GET /api/v1/logs; unknown or bad ones raise Invalid, all at once."""
    paging: dict[str, str] = {}
    others: list[tuple[str, str]] = []
    faults: list[Fault] = []
    for name, value in params:
        if name not in _PAGING:
            others.append((name, value))
        elif name in paging:
            faults.append(fault(name, "is given twice"))
        else:
            paging[name] = value
    order = read_one("order", paging, _order, faults) or "desc"
    limit = read_one("limit", paging, _limit, faults) or DEFAULT_LIMIT
    try:
        selection = parse_selection(others, now_us)
    except Invalid as error:
        raise Invalid([*error.members["errors"], *faults]) from None
    if faults:
        raise Invalid(faults)
    query = LogQuery(client_id, **_members(selection), order=order, limit=limit)
    return cursors.open(query, paging["cursor"]) if "cursor" in paging else query


def _members(selection: Selection) -> dict[str, Any]:
    return {one.name: getattr(selection, one.name) for one in fields(selection)}


def _order(text: str) -> Order:
    if text not in {"asc", "desc"}:
        raise ValueError("must be desc or asc")
    return "asc" if text == "asc" else "desc"


def _limit(text: str) -> int:
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= MAX_LIMIT:
        raise ValueError(f"must be a number from 1 to {MAX_LIMIT}")
    return int(text)
