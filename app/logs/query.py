"""Questions to a log store, and their parsing from a query string. Pure."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Literal, TypeVar

import msgspec

from app.errors import Invalid, fault
from app.logs.batch import USAGE_COUNTERS
from app.logs.identity import Position, parse_id
from app.logs.selection import Fault, Instant, Params, Selection, parse_selection, read_one

Order = Literal["desc", "asc"]
ExportFormat = Literal["ndjson", "csv"]
UsageGroup = Literal["key", "dataset", "hour", "day"]

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
# A page ends before it grows beyond this, though `limit` allow more: logs may have 1 MiB each.
PAGE_BYTES_MAX = 8 * 1024**2
# What an export takes from the store at a time: 10 ms of work for logs of usual size, so that a
# page that waits behind it does not wait for long.
PORTION_LOGS_MAX = 8192
PORTION_BYTES_MAX = 2 * 1024**2
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("ndjson", "csv")
USAGE_GROUPS: tuple[UsageGroup, ...] = ("key", "dataset", "hour", "day")
MINUTES = {"hour": 60, "day": 1440}

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
class Portion:
    """`lines` is JSON objects, each with a line break behind; `last_id` is set where more follow.

    The logs are those of pages, in their order, PORTION_LOGS_MAX of them at most and PAGE_BYTES_MAX
    together, but for one log alone. An empty portion is the last one.
    """

    lines: bytes
    last_id: str | None = None


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Usage of one client, or of all (None), in minutes since 1970, half open.

    `datasets` leaves only what was counted for one of these.
    """

    client_id: str | None
    group_by: UsageGroup
    start_minute: int | None = None
    end_minute: int | None = None
    datasets: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """`group` is a key_id, a dataset, or the first minute of an hour or a day."""

    client_id: str
    group: str | int
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.counts) == len(USAGE_COUNTERS)  # noqa: S101


Q = TypeVar("Q", bound=LogQuery)


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
        return self.seal_place(_bound(query), payload)

    def open(self, query: Q, cursor: str) -> Q:
        """Return `query` continued; raise Invalid for a cursor that isn't this query's own."""
        payload = self.open_place(_bound(query), cursor)
        opened = msgspec.msgpack.decode(payload, type=_Cursor)
        after = parse_id(opened.last_id)
        return replace(query, start=opened.start, end=opened.end, after=after)

    def seal_place(self, bound: list[Any], payload: bytes) -> str:
        """Return a cursor of a list that is told from others by `bound`."""
        return urlsafe_b64encode(self._tag(bound, payload) + payload).decode().rstrip("=")

    def open_place(self, bound: list[Any], cursor: str) -> bytes:
        """Return what was sealed; raise Invalid for a cursor of another list, or of none."""
        refusal = Invalid.parameter("cursor", "is not a cursor of this query")
        try:
            sealed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except ValueError:
            raise refusal from None
        tag, payload = sealed[: self.TAG_BYTES], sealed[self.TAG_BYTES :]
        if not compare_digest(tag, self._tag(bound, payload)):
            raise refusal
        return payload

    def _tag(self, bound: list[Any], payload: bytes) -> bytes:
        message = msgspec.msgpack.encode([*bound, payload])
        return blake2b(message, key=self._secret, digest_size=self.TAG_BYTES).digest()


def _bound(query: LogQuery) -> list[Any]:
    return [query.client_id, query.as_params(), query.order]


def parse_log_query(client_id: str, params: Params, now_us: int, cursors: Cursors) -> LogQuery:
    """Read the parameters of GET /api/v1/logs; unknown or bad ones raise Invalid, all at once."""
    own, selection = _parse(params, now_us, {"order": _order, "limit": _limit, "cursor": str})
    cursor = own.pop("cursor", None)
    query = LogQuery(client_id, **selection.members(), **own)
    return query if cursor is None else cursors.open(query, cursor)


def parse_export_query(
    client_id: str, params: Params, now_us: int
) -> tuple[LogQuery, ExportFormat]:
    """Read the parameters of GET /api/v1/logs/export, which is oldest first and has no pages."""
    own, selection = _parse(params, now_us, {"order": _order, "format": _format})
    order: Order = own.get("order", "asc")
    form: ExportFormat = own.get("format", "ndjson")
    return LogQuery(client_id, **selection.members(), order=order), form


def _parse(
    params: Params, now_us: int, readers: dict[str, Callable[[str], Any]]
) -> tuple[dict[str, Any], Selection]:
    """Read what a route alone takes, each once at most, and the filters that all take."""
    own: dict[str, str] = {}
    others: list[tuple[str, str]] = []
    faults: list[Fault] = []
    for name, value in params:
        if name not in readers:
            others.append((name, value))
        elif name in own:
            faults.append(fault(name, "is given twice"))
        else:
            own[name] = value
    values = {name: read_one(name, own, readers[name], faults) for name in own}
    try:
        selection = parse_selection(others, now_us)
    except Invalid as error:
        raise Invalid([*error.members["errors"], *faults]) from None
    if faults:
        raise Invalid(faults)
    return values, selection


def _order(text: str) -> Order:
    if text not in {"asc", "desc"}:
        raise ValueError("must be desc or asc")
    return "asc" if text == "asc" else "desc"


def _format(text: str) -> ExportFormat:
    for form in EXPORT_FORMATS:
        if text == form:
            return form
    raise ValueError(f"must be {' or '.join(EXPORT_FORMATS)}")


def _limit(text: str) -> int:
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= MAX_LIMIT:
        raise ValueError(f"must be a number from 1 to {MAX_LIMIT}")
    return int(text)
