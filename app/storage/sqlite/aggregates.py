"""Tables of counts and measures from day files.

Sealed logs have been summed by the hour; where these sums answer, few logs are looked at: those
that wait, and those at ragged ends of the time asked for. Where each duration or run counts, their
columns are read of all logs; where texts decide, the logs themselves, page by page.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from app.logs.aggregation import (
    DIMENSIONS,
    ERROR_STATUSES,
    GROUP_BYTES_MAX,
    GROUPS_MAX,
    TIME,
    Aggregation,
    Cell,
    Groups,
    Key,
    Sums,
    decode_counted,
    group_of,
    too_many_groups,
)
from app.logs.identity import parse_id
from app.logs.query import LogQuery
from app.logs.timestamp import US_PER_MINUTE
from app.storage.sqlite.pages import read_page
from app.storage.sqlite.samples import COUNTABLE, read_samples
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

# What is around the names of a key in JSON, times and escapes, comes on top of them.
_KEY_BYTES_MAX = 2 * GROUP_BYTES_MAX

_decode_groups = msgspec.json.Decoder(
    list[tuple[list[str | int | None], int, int, int, float | None]]
).decode


def read_table(files: Files, query: Aggregation) -> list[list[Cell]]:
    """Return the rows of a table."""
    groups = Groups(query)
    if query.reads_content:
        for client_id in _clients(files, query):
            for key, sums in _of_logs(files, query, client_id):
                groups.add(key, sums)
        return groups.table()
    for day in files.days():
        if query.needs_sums:
            for key, sums in _of_columns(files, query, day):
                groups.add(key, sums)
        if query.needs_values or query.needs_runs:
            for key, sums in read_samples(files, query, day):
                groups.add(key, sums)
    return groups.table()


# Where columns decide: what can be summed up.


def _of_columns(files: Files, query: Aggregation, day: int) -> Iterator[tuple[Key, Sums]]:
    """Yield the groups of one file, summed up by SQL."""
    span = _span(query)
    found = files.db(day).execute(_sql(query, span), _values(query, span)).fetchone()
    if found[0] is None:
        raise too_many_groups()
    for key, logs, errors, durations, duration_ms in _decode_groups(found[0]):
        yield tuple(key), Sums(logs, errors, durations, duration_ms or 0.0)


class _Span(NamedTuple):
    """The time asked for: its keys, and the hours that the sums by hour answer for.

    Those are whole hours within it; or where tallies do, those to which its ends are the nearest:
    of an hour that has just begun or nearly ended few logs are then left to add or to take off. An
    hour under way is over as far as there are logs of it.
    """

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
    if _is_tallied(query):
        now_us = time.time_ns() // 1000
        first, last = (_nearest_hour(end[0], now_us) for end in (low, high))
    if (
        "run_id" in query.filters
        or query.min_duration_ms is not None
        or (TIME in query.dimensions and query.bucket_minutes % 60)
    ):
        last = first
    return _Span(low, high, first, last)


def _nearest_hour(us: int, now_us: int) -> int:
    """Return the hour that begins or ends where the fewest logs are likely to lie in between."""
    hour, behind = divmod(us, US_PER_HOUR)
    ahead = min((hour + 1) * US_PER_HOUR, now_us) - us if us <= now_us else US_PER_HOUR - behind
    return hour if behind <= ahead else hour + 1


def _sql(query: Aggregation, span: _Span) -> str:
    """Compose the statement; every value is bound, never written into the text."""
    columns = [_dimension(name, query.bucket_minutes) for name in query.dimensions]
    failed = ", ".join(f"'{status}'" for status in ERROR_STATUSES)
    where = series_conditions(query)
    return f"""
        WITH part AS ({" UNION ALL ".join(_parts(query, span))}), made AS MATERIALIZED (
            SELECT json_array({", ".join(columns)}) AS key, sum(logs) AS logs,
                sum(iif(status IN ({failed}), logs, 0)) AS errors,
                sum(durations) AS durations, min(sum(duration_ms), 1.7e308) AS duration_ms
            FROM part
            {"WHERE " + " AND ".join(where) if where else ""}
            GROUP BY {", ".join(columns) or "1 = 1"} HAVING sum(logs)
            LIMIT {GROUPS_MAX + 1})
        SELECT iif(
            (SELECT count(*) > {GROUPS_MAX} OR total(length(key)) > {_KEY_BYTES_MAX} FROM made),
            NULL,
            (SELECT json_group_array(json_array(json(key), logs, errors, durations, duration_ms))
            FROM made))"""


def _dimension(name: str, bucket_minutes: int) -> str:
    if name == TIME:
        width = bucket_minutes * US_PER_MINUTE
        return f"us - ((us % {width}) + {width}) % {width}"
    if name == "client_id":
        return "(SELECT client_id FROM clients c WHERE c.id = client)"
    assert name in DIMENSIONS  # noqa: S101  # it goes into the text of a statement
    return name


_SERIES = "s.client, s.dataset, s.environment, s.status, s.level, s.workflow"


def _parts(query: Aggregation, span: _Span) -> Iterator[str]:
    """Yield statements that give us, sums, and the columns of a series."""
    low, high = ":low_us, :low_seq", ":high_us, :high_seq"
    yield _rows(query, "logs", "run_id", low, high)
    if not span.by_hours:
        yield _rows(query, "sealed", "run", low, high)
        return
    # The ragged ends, most of which are empty.
    first, last = ":first_us, 0", ":last_us, 0"
    yield _rows(query, "sealed", "run", low, first)
    yield _rows(query, "sealed", "run", last, high)
    tallied = _is_tallied(query)
    if tallied:
        yield _rows(query, "sealed", "run", first, low, logs=-1)
        yield _rows(query, "sealed", "run", high, last, logs=-1)
    yield f"""
        SELECT hour * {US_PER_HOUR} AS us, logs, {_TALLIED if tallied else _SUMMED}
        FROM clients c CROSS JOIN {"tallies" if tallied else "hours"} h ON h.client = c.id
        {"" if tallied else "CROSS JOIN series s ON s.id = h.series"}
        WHERE {_client(query)} AND hour >= :first_hour AND hour < :last_hour"""


_TALLIED = """0 AS durations, 0.0 AS duration_ms,
    h.client, dataset, NULL AS environment, status, NULL AS level, NULL AS workflow"""
_SUMMED = f"durations, duration_ms, {_SERIES}"


def _is_tallied(query: Aggregation) -> bool:
    """Say whether no more is asked than how many logs of a dataset and status there are."""
    return (
        "avg_duration_ms" not in query.metrics
        and {"workflow", "environment", "level"}.isdisjoint(query.dimensions)
        and query.filters.keys() <= {"dataset", "status"}
    )


def _rows(  # noqa: PLR0913, PLR0917  # which rows, and what they count
    query: Aggregation, table: str, run: str, low: str, high: str, logs: int = 1
) -> str:
    where = [_client(query), *row_conditions(query, run)]
    return f"""
        SELECT us, {logs} AS logs, duration_ms IS NOT NULL AS durations,
            {COUNTABLE} AS duration_ms, {_SERIES}
        FROM clients c CROSS JOIN {table} l
            ON l.client = c.id AND (us, seq) >= ({low}) AND (us, seq) < ({high})
        CROSS JOIN series s ON s.id = l.series
        WHERE {" AND ".join(where)}"""


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
        for log in decode_counted(f"[{page.logs}]"):
            yield group_of(query, log)
        if page.last_id is None:
            return
        asked = replace(asked, after=parse_id(page.last_id))
