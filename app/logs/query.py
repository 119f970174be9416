"""Questions to a log store, and their parsing from a query string. Pure."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import Literal

import msgspec

from app.errors import Invalid
from app.logs.batch import USAGE_COUNTERS
from app.logs.identity import Position, parse_id
from app.logs.timestamp import MIN_US, US_PER_S, BadTime, parse_instant

Instant = tuple[int, int]  # us since 1970, ns beyond
Fault = dict[str, object]  # {index, field, detail}
Order = Literal["desc", "asc"]
UsageGroup = Literal["key", "dataset", "hour", "day"]

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
# A page ends before it grows beyond this, though `limit` allow more: logs may have 1 MiB each.
PAGE_BYTES_MAX = 8 * 1024**2
# Values that a log either has or not; a list of them means any of them.
SERIES_FILTERS = ("environment", "status", "level", "workflow", "dataset")
FILTERS = (*SERIES_FILTERS, "run_id")
USAGE_GROUPS: tuple[UsageGroup, ...] = ("key", "dataset", "hour", "day")
MINUTES = {"hour": 60, "day": 1440}

SINGLE = frozenset({"from", "to", "order", "limit", "cursor"})

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_RELATIVE = re.compile(r"-(\d{1,9})([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class LogQuery:
    """One page of one client's logs: `start` <= executed_at < `end`, matching every filter.

    `after` is the place of the last log of the page before, in the direction of `order`.
    `log_id` asks for that one log. `filters` maps a name of FILTERS to its accepted values.
    """

    client_id: str
    start: Instant | None = None
    end: Instant | None = None
    filters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    order: Order = "desc"
    limit: int = DEFAULT_LIMIT
    after: Position | None = None
    log_id: Position | None = None


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
        return LogQuery(
            client_id=query.client_id,
            start=opened.start,
            end=opened.end,
            filters=query.filters,
            order=query.order,
            limit=query.limit,
            after=parse_id(opened.last_id),
        )

    def _tag(self, query: LogQuery, payload: bytes) -> bytes:
        bound = [query.client_id, sorted(query.filters.items()), query.order, payload]
        message = msgspec.msgpack.encode(bound)
        return blake2b(message, key=self._secret, digest_size=self.TAG_BYTES).digest()


def parse_log_query(
    client_id: str, params: Iterable[tuple[str, str]], now_us: int, cursors: Cursors
) -> LogQuery:
    """Read the filters of GET /api/v1/logs; unknown or bad ones raise Invalid, all at once.

    An unknown name is refused, not ignored: a misspelt filter would show everything.
    """
    single: dict[str, str] = {}
    filters: dict[str, tuple[str, ...]] = {}
    faults: list[Fault] = []
    for name, value in params:
        if name in FILTERS:
            filters[name] = (*filters.get(name, ()), value)
        elif name not in SINGLE:
            faults.append(_fault(name, "is not a known parameter"))
        elif name in single:
            faults.append(_fault(name, "is given twice"))
        else:
            single[name] = value
    order = single.get("order", "desc")
    if order not in {"desc", "asc"}:
        faults.append(_fault("order", "must be desc or asc"))
    query = LogQuery(
        client_id=client_id,
        start=_bound(single, "from", now_us, faults),
        end=_bound(single, "to", now_us, faults),
        filters=filters,
        order="asc" if order == "asc" else "desc",
        limit=_limit(single, faults),
    )
    if faults:
        raise Invalid(faults)
    return cursors.open(query, single["cursor"]) if "cursor" in single else query


def parse_bound(text: str, now_us: int) -> Instant:
    """Read a bound: RFC 3339, or relative to now as in `-1h`; raise BadTime."""
    relative = _RELATIVE.fullmatch(text)
    if relative is not None:
        return max(MIN_US, now_us - int(relative[1]) * _UNIT_S[relative[2]] * US_PER_S), 0
    try:
        # A `+` in a query string arrives as a space unless the caller escaped it; the one between
        # date and time is another matter.
        return parse_instant(text[:11] + text[11:].replace(" ", "+"))
    except BadTime:
        raise BadTime("must be an RFC 3339 time, or relative like -1h or -7d") from None


def _bound(single: dict[str, str], name: str, now_us: int, faults: list[Fault]) -> Instant | None:
    if name not in single:
        return None
    try:
        return parse_bound(single[name], now_us)
    except BadTime as error:
        faults.append(_fault(name, str(error)))
        return None


def _limit(single: dict[str, str], faults: list[Fault]) -> int:
    text = single.get("limit", str(DEFAULT_LIMIT))
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= MAX_LIMIT:
        faults.append(_fault("limit", f"must be a number from 1 to {MAX_LIMIT}"))
        return DEFAULT_LIMIT
    return int(text)


def _fault(name: str, detail: str) -> Fault:
    return {"index": 0, "field": name, "detail": detail}
