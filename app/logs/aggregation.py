"""Questions that count and measure logs rather than show them: POST /api/v1/query. Pure.

A store sums what it can where the logs are and hands each part to `Groups`, which puts the parts
of several files together and makes the table.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.errors import Invalid, fault
from app.logs.identity import parse_id
from app.logs.percentile import percentile
from app.logs.selection import Fault, Selection, parse_selection
from app.logs.timestamp import MIN_US, US_PER_MINUTE, format_instant

Cell = str | int | float | None
Key = tuple[Cell, ...]  # the values of the dimensions; a time as us since 1970
Run = int | str

DIMENSIONS = ("status", "workflow", "environment", "level", "dataset", "client_id")
TIME = "time"
ERROR_STATUSES = ("FAILED", "FAILURE", "ERROR")
DEFAULT_LIMIT = 1_000
MAX_LIMIT = 10_000
# Longer durations count as this one: the sum of such a number and others must be one.
DURATION_MS_MAX = 1e300
# In memory at once; a table for people and dashboards is a thousand times smaller.
GROUPS_MAX = 100_000
GROUP_BYTES_MAX = 16 * 1024**2
# Durations, of 8 bytes each, and runs, which are held until the table is made.
VALUES_MAX = 2_000_000

_BUCKET = re.compile(r"time:(\d{1,4})([mhd])", re.ASCII)
_UNIT_MINUTES = {"m": 1, "h": 60, "d": 1440}
_PERCENTILE = re.compile(r"p(50|95|99)_duration_ms")


@dataclass(slots=True)
class Sums:
    """What is known of the logs of one group; `durations` counts those that have one."""

    logs: int = 0
    errors: int = 0
    durations: int = 0
    duration_ms: float = 0.0
    values_ms: "array[float]" = field(default_factory=lambda: array("d"))
    runs: set[Run | tuple[Run, Run]] = field(default_factory=set)

    def add(self, other: "Sums") -> None:
        """Take in what is known of more logs of the group."""
        self.logs += other.logs
        self.errors += other.errors
        self.durations += other.durations
        self.duration_ms += other.duration_ms
        self.values_ms += other.values_ms
        self.runs |= other.runs


def countable_ms(duration_ms: float | str) -> float:
    """Return a duration as a number to calculate with."""
    number = float(duration_ms) if isinstance(duration_ms, str) else duration_ms
    return float(min(number, DURATION_MS_MAX))  # an integer may be too large for a float


METRICS: Mapping[str, Callable[[Sums], Cell]] = {
    "count": lambda sums: sums.logs,
    "error_count": lambda sums: sums.errors,
    "error_rate": lambda sums: sums.errors / sums.logs if sums.logs else None,
    "avg_duration_ms": lambda sums: sums.duration_ms / sums.durations if sums.durations else None,
    "p50_duration_ms": lambda sums: percentile(sums.values_ms, 50),
    "p95_duration_ms": lambda sums: percentile(sums.values_ms, 95),
    "p99_duration_ms": lambda sums: percentile(sums.values_ms, 99),
    "distinct_runs": lambda sums: len(sums.runs),
}


@dataclass(frozen=True, slots=True)
class Aggregation(Selection):
    """A table of `metrics` of the logs selected, of one client or of all (None), by `dimensions`.

    A dimension is one of DIMENSIONS or TIME, cut into buckets of `bucket_minutes`. `order` names
    columns, each with whether it descends.
    """

    client_id: str | None
    metrics: tuple[str, ...] = field(default=("count",), kw_only=True)
    dimensions: tuple[str, ...] = field(default=(), kw_only=True)
    bucket_minutes: int = field(default=60, kw_only=True)
    order: tuple[tuple[str, bool], ...] = field(default=(), kw_only=True)
    limit: int = field(default=DEFAULT_LIMIT, kw_only=True)

    @property
    def needs_values(self) -> bool:
        """Say whether each duration must be known, and not only their sum."""
        return any(_PERCENTILE.fullmatch(metric) for metric in self.metrics)

    @property
    def needs_sums(self) -> bool:
        """Say whether anything is asked that each duration or run does not tell."""
        return not all(
            _PERCENTILE.fullmatch(metric) or metric == "distinct_runs" for metric in self.metrics
        )

    @property
    def needs_runs(self) -> bool:
        """Say whether each run must be known."""
        return "distinct_runs" in self.metrics

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the table's columns."""
        return (*self.dimensions, *self.metrics)


def too_many_groups() -> Invalid:
    """Say that a table would be larger than memory is for."""
    bound = f"more than {GROUPS_MAX} groups, or {GROUP_BYTES_MAX} bytes of names"
    return Invalid.parameter("dimensions", f"make {bound}")


class Groups:
    """The groups of a table in the making."""

    def __init__(self, aggregation: Aggregation) -> None:
        self._aggregation = aggregation
        self._groups: dict[Key, Sums] = {} if aggregation.dimensions else {(): Sums()}
        self._values = 0
        self._bytes = 0

    def add(self, key: Key, sums: Sums) -> None:
        """Add logs to a group; raise Invalid where there come to be too many to hold."""
        self._values += len(sums.values_ms) + len(sums.runs)
        if self._values > VALUES_MAX:
            raise Invalid.parameter(
                "metrics", f"percentiles and distinct runs take {VALUES_MAX} logs at most: ask less"
            )
        known = self._groups.get(key)
        if known is not None:
            known.add(sums)
            return
        self._bytes += sum(len(cell) for cell in key if isinstance(cell, str))
        if len(self._groups) >= GROUPS_MAX or self._bytes > GROUP_BYTES_MAX:
            raise too_many_groups()
        self._groups[key] = sums

    def table(self) -> list[list[Cell]]:
        """Return the rows asked for, in their order; times as RFC 3339."""
        asked = self._aggregation
        rows = []
        for key, sums in self._groups.items():
            rows.append([*key, *(METRICS[metric](sums) for metric in asked.metrics)])
        rows.sort(key=lambda row: [_sortable(cell) for cell in row[: len(asked.dimensions)]])
        for column, descends in reversed(asked.order):
            at = asked.columns.index(column)
            rows.sort(key=lambda row, at=at: _sortable(row[at]), reverse=descends)  # type: ignore[misc]
        rows = rows[: asked.limit]
        if TIME in asked.dimensions:
            at = asked.dimensions.index(TIME)
            for row in rows:
                # A bucket of several days may begin before there are any.
                row[at] = format_instant(max(MIN_US, int(row[at] or 0)))
        return rows


def _sortable(cell: Cell) -> tuple[int, float | str]:
    """Order cells of one column, null before all others."""
    if cell is None:
        return 0, 0
    return (1, cell) if isinstance(cell, int | float) else (2, cell)


class Counted(msgspec.Struct):
    """What a table asks of a rendered log; the duration as it was sent, of any size."""

    id: str
    client_id: str
    status: str
    environment: str
    dataset: str
    duration_ms: msgspec.Raw
    workflow: str | None = None
    level: str | None = None
    run_id: str | None = None


decode_counted = msgspec.json.Decoder(list[Counted]).decode


def group_of(aggregation: Aggregation, log: Counted) -> tuple[Key, Sums]:
    """Return the group that a log belongs to, and what it adds to it."""
    place = parse_id(log.id)
    assert place is not None  # noqa: S101
    width = aggregation.bucket_minutes * US_PER_MINUTE
    key = tuple(
        place.us - place.us % width if name == TIME else getattr(log, name)
        for name in aggregation.dimensions
    )
    sums = Sums(1, int(log.status in ERROR_STATUSES))
    duration = bytes(log.duration_ms)
    if duration != b"null":
        sums.durations, sums.duration_ms = 1, countable_ms(duration.decode())
        if aggregation.needs_values:
            sums.values_ms.append(sums.duration_ms)
    if aggregation.needs_runs and log.run_id is not None:
        sums.runs.add(run_of(aggregation, log.client_id, log.run_id))
    return key, sums


def run_of(aggregation: Aggregation, owner: Run, run: Run) -> Run | tuple[Run, Run]:
    """Tell runs apart: of all clients, those of one id are as many as there are clients of it."""
    return run if aggregation.client_id is not None else (owner, run)


def parse_aggregation(client_id: str | None, body: Mapping[str, Any], now_us: int) -> Aggregation:
    """Read the body of POST /api/v1/query; unknown or bad members raise Invalid, all at once."""
    faults = [fault(name, "is not a known member") for name in body.keys() - _MEMBERS]
    dimensions, bucket_minutes = _dimensions(body.get("dimensions"), client_id, faults)
    metrics = _names(body, "metrics", faults) or ["count"]
    faults += [
        fault("metrics", f"{metric!r} is none of {', '.join(METRICS)}")
        for metric in metrics
        if metric not in METRICS
    ]
    if len(set(metrics)) < len(metrics):
        faults.append(fault("metrics", "names one twice"))
    order = _order(body.get("order"), (*dimensions, *metrics), faults)
    limit = body.get("limit", DEFAULT_LIMIT)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        faults.append(fault("limit", f"must be a number from 1 to {MAX_LIMIT}"))
    selection = Selection()
    try:
        selection = parse_selection(_params(body, faults), now_us)
    except Invalid as error:
        faults += error.members["errors"]
    if faults:
        raise Invalid(faults)
    return Aggregation(
        client_id,
        **selection.members(),
        metrics=tuple(metrics),
        dimensions=dimensions,
        bucket_minutes=bucket_minutes,
        order=order,
        limit=limit,
    )


_MEMBERS = frozenset(
    {"client_id", "dataset", "metrics", "dimensions", "filters", "from", "to", "order", "limit"}
)


def _names(body: Mapping[str, Any], name: str, faults: list[Fault]) -> list[str]:
    value = body.get(name)
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    faults.append(fault(name, "must be a list of names"))
    return []


def _dimensions(
    value: Any, client_id: str | None, faults: list[Fault]
) -> tuple[tuple[str, ...], int]:
    asked = _names({"dimensions": value}, "dimensions", faults)
    names: list[str] = []
    minutes = 60
    for one in asked:
        bucket = _BUCKET.fullmatch(one)
        if bucket is not None:
            minutes = int(bucket[1]) * _UNIT_MINUTES[bucket[2]]
            if not minutes or (1440 % minutes and minutes % 1440):
                faults.append(fault("dimensions", f"{one!r} does not part a day evenly"))
            names.append(TIME)
        elif one in DIMENSIONS and (one != "client_id" or client_id is None):
            names.append(one)
        else:
            known = [name for name in DIMENSIONS if name != "client_id" or client_id is None]
            detail = f"{one!r} is none of {', '.join(known)}, time:1h"
            faults.append(fault("dimensions", detail))
    if len(set(names)) < len(names):
        faults.append(fault("dimensions", "names one twice"))
    return tuple(names), max(minutes, 1)


def _order(
    value: Any, columns: tuple[str, ...], faults: list[Fault]
) -> tuple[tuple[str, bool], ...]:
    """Read `asc`, `desc`, `column`, `-column`, `column desc`, or a list of the latter.

    A direction alone is that of the time, or of the first column that measures.
    """
    asked = [value] if isinstance(value, str) else _names({"order": value}, "order", faults)
    order = []
    for one in asked:
        name, _, direction = one.partition(" ")
        if one in {"asc", "desc"}:
            metrics = [column for column in columns if column in METRICS]
            name, direction = (TIME if TIME in columns else metrics[0] if metrics else "count"), one
        elif one.startswith("-"):
            name, direction = one[1:], "desc"
        if name not in columns or direction not in {"", "asc", "desc"}:
            faults.append(fault("order", f"{one!r} is no column of this table: asc, desc, -column"))
        order.append((name, direction == "desc"))
    return tuple(order)


def _params(body: Mapping[str, Any], faults: list[Fault]) -> list[tuple[str, str]]:
    """Give the filters of a body as those of a query string."""
    filters = {} if body.get("filters") is None else body["filters"]
    if not isinstance(filters, dict):
        faults.append(fault("filters", "must be an object"))
        return []
    params = list(_values("filters", filters, faults))
    if body.get("dataset") is not None:
        if "dataset" in filters:
            faults.append(fault("dataset", "is given twice"))
        params += _values("dataset", {"dataset": body["dataset"]}, faults)
    for name in ("from", "to"):
        if name in filters:
            faults.append(fault(f"filters.{name}", "stands beside the filters"))
        elif body.get(name) is not None:
            params += _values(name, {name: body[name]}, faults)
    return params


def _values(
    member: str, filters: Mapping[str, Any], faults: list[Fault]
) -> Iterable[tuple[str, str]]:
    for name, value in filters.items():
        for one in value if isinstance(value, list) and value else [value]:
            if isinstance(one, str):
                yield name, one
            elif isinstance(one, int | float) and not isinstance(one, bool):
                yield name, repr(one)
            else:
                where = name if member in {name, "dataset"} else f"{member}.{name}"
                faults.append(fault(where, "must be a string or a list of strings"))
