"""Tables of counts and measures from day files.

Sealed logs have been summed by the hour; where these sums answer, few logs are looked at: those
that wait, and those at ragged ends of the time asked for. Where each duration or run counts, the
columns of all are read; where texts decide, the logs themselves, page by page.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import orjson

from app.logs.aggregation import (
    DIMENSIONS,
    DURATION_MS_MAX,
    ERROR_STATUSES,
    TIME,
    Aggregation,
    Cell,
    Groups,
    Key,
    Sums,
    group_of,
)
from app.logs.identity import parse_id
from app.logs.query import LogQuery
from app.logs.timestamp import US_PER_MINUTE
from app.storage.sqlite.block import run_hash
from app.storage.sqlite.pages import read_page
from app.storage.sqlite.sealing import US_PER_HOUR
from app.storage.sqlite.sources import (
    Files,
    instant_bounds,
    row_conditions,
    series_conditions,
    values,
)

# Logs looked into at a time, where texts decide.
PAGE_LOGS = 5000

_decode_groups = msgspec.json.Decoder(
    list[
        tuple[
            list[str | int | None],
            int,
            int,
            int,
            float | None,
            list[float | None] | None,
            list[int | str | None] | None,
        ]
    ]
).decode


def read_table(files: Files, query: Aggregation) -> list[list[Cell]]:
    """Return the rows of a table."""
    groups = Groups(query)
    if query.reads_content:
        for client_id in _clients(files, query):
            for key, sums in _of_logs(files, query, client_id):
                groups.add(key, sums)
    else:
        for day in files.days():
            for key, sums in _of_columns(files, query, day):
                groups.add(key, sums)
    return groups.table()


# Where columns decide.


def _of_columns(files: Files, query: Aggregation, day: int) -> Iterator[tuple[Key, Sums]]:
    """Yield the groups of one file, summed up by SQL."""
    span = _span(query)
    found = files.db(day).execute(_sql(query, span), _values(query, span)).fetchone()
    for key, logs, errors, durations, duration_ms, values_ms, runs in _decode_groups(found[0]):
        yield (
            tuple(key),
            Sums(
                logs,
                errors,
                durations,
                duration_ms or 0.0,
                [value for value in values_ms or () if value is not None],
                {
                    run_hash(run) if isinstance(run, str) else run
                    for run in runs or ()
                    if run is not None
                },
            ),
        )


class _Span(NamedTuple):
    """The time asked for: its keys, and the whole hours in it that the sums by hour answer for."""

    low: tuple[int, int]
    high: tuple[int, int]
    first_hour: int
    last_hour: int

    @property
    def by_hours(self) -> bool:
        return self.first_hour < self.last_hour


def _span(query: Aggregation) -> _Span:
    low, high = instant_bounds(query)
    first = -(-(low[0] + (low[1] > 0)) // US_PER_HOUR)
    last = high[0] // US_PER_HOUR
    if (
        query.needs_values
        or query.needs_runs
        or "run_id" in query.filters
        or query.min_duration_ms is not None
        or (TIME in query.dimensions and query.bucket_minutes % 60)
    ):
        last = first
    return _Span(low, high, first, last)


def _sql(query: Aggregation, span: _Span) -> str:
    """Compose the statement; every value is bound, never written into the text."""
    columns = [_dimension(name, query.bucket_minutes) for name in query.dimensions]
    values = "json_group_array(value_ms)" if query.needs_values else "NULL"
    runs = "json_group_array(DISTINCT run)" if query.needs_runs else "NULL"
    failed = ", ".join(f"'{status}'" for status in ERROR_STATUSES)
    where = series_conditions(query)
    return f"""
        WITH part AS ({" UNION ALL ".join(_parts(query, span))}), made AS (
            SELECT json_array({", ".join(columns)}) AS key, sum(logs) AS logs,
                sum(iif(s.status IN ({failed}), logs, 0)) AS errors,
                sum(durations) AS durations, sum(duration_ms) AS duration_ms,
                {values} AS value_ms, {runs} AS runs
            FROM part p CROSS JOIN series s ON s.id = p.series
            {"WHERE " + " AND ".join(where) if where else ""}
            GROUP BY {", ".join(columns) or "1 = 1"})
        SELECT json_group_array(json_array(
            json(key), logs, errors, durations, duration_ms, json(value_ms), json(runs)))
        FROM made"""


def _dimension(name: str, bucket_minutes: int) -> str:
    if name == TIME:
        width = bucket_minutes * US_PER_MINUTE
        return f"us - ((us % {width}) + {width}) % {width}"
    if name == "client_id":
        return "(SELECT client_id FROM clients c WHERE c.id = s.client)"
    assert name in DIMENSIONS  # noqa: S101  # it goes into the text of a statement
    return f"s.{name}"


def _parts(query: Aggregation, span: _Span) -> Iterator[str]:
    """Yield statements that give (us, series, logs, durations, duration_ms, value_ms, run)."""
    low, high = ":low_us, :low_seq", ":high_us, :high_seq"
    yield _rows(query, "logs", "run_id", low, high)
    if not span.by_hours:
        yield _rows(query, "sealed", "run", low, high)
        return
    # The ragged ends, of which one or both may be empty.
    yield _rows(query, "sealed", "run", low, ":first_us, 0")
    yield _rows(query, "sealed", "run", ":last_us, 0", high)
    yield f"""
        SELECT hour * {US_PER_HOUR} AS us, series, logs, durations, duration_ms,
            NULL AS value_ms, NULL AS run
        FROM clients c CROSS JOIN hours h ON h.client = c.id
        WHERE {_client(query)} AND hour >= :first_hour AND hour < :last_hour"""


def _rows(query: Aggregation, table: str, run: str, low: str, high: str) -> str:
    where = [_client(query), *row_conditions(query, run)]
    return f"""
        SELECT us, series, 1 AS logs, duration_ms IS NOT NULL AS durations,
            {_COUNTABLE} AS duration_ms, {_COUNTABLE} AS value_ms, {run} AS run
        FROM clients c CROSS JOIN {table} l
            ON l.client = c.id AND (us, seq) >= ({low}) AND (us, seq) < ({high})
        WHERE {" AND ".join(where)}"""


# See countable_ms; min() of SQLite is null if one of two is.
_COUNTABLE = f"min(CAST(duration_ms AS REAL), {DURATION_MS_MAX!r})"


def _client(query: Aggregation) -> str:
    return "1" if query.client_id is None else "c.client_id = :client_id"


def _values(query: Aggregation, span: _Span) -> dict[str, Any]:
    return {
        **values(query),
        "client_id": query.client_id,
        "low_us": span.low[0],
        "low_seq": span.low[1],
        "high_us": span.high[0],
        "high_seq": span.high[1],
        "first_hour": span.first_hour,
        "last_hour": span.last_hour,
        "first_us": span.first_hour * US_PER_HOUR,
        "last_us": span.last_hour * US_PER_HOUR,
    }


# Where texts decide.


def _clients(files: Files, query: Aggregation) -> Iterator[str]:
    if query.client_id is not None:
        yield query.client_id
        return
    known = {
        client_id
        for day in files.days()
        for client_id in json.loads(
            files.db(day).execute("SELECT json_group_array(client_id) FROM clients").fetchone()[0]
        )
    }
    yield from sorted(known)


def _of_logs(files: Files, query: Aggregation, client_id: str) -> Iterator[tuple[Key, Sums]]:
    """Yield each log that matches as a group of its own."""
    asked = LogQuery(client_id, **query.members(), limit=PAGE_LOGS)
    while True:
        page = read_page(files, asked)
        for log in orjson.loads(f"[{page.logs}]"):
            yield group_of(query, log)
        if page.last_id is None:
            return
        asked = replace(asked, after=parse_id(page.last_id))
