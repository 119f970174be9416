"""Reading day files: pages rendered by SQL in one step, usage summed by SQL.

One step, because a thread that steps through rows waits for the interpreter lock at each of them
while the event loop is busy. Connections are read-only; a day file is asked only if its times can
matter to the page.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import StorageUnavailable
from app.logs.identity import ARRIVAL_BITS, ARRIVAL_MASK, SLOT_BITS, Position
from app.logs.query import (
    MINUTES,
    PAGE_BYTES_MAX,
    SERIES_FILTERS,
    LogQuery,
    Page,
    UsageQuery,
    UsageRow,
)
from app.logs.timestamp import MAX_US, MIN_US, US_PER_DAY, US_PER_S
from app.sqlite import sqlite3
from app.storage.sqlite.schema import day_path, list_days

OPEN_FILES_MAX = 64
BUSY_MS = 2000
# How often a statement looks at the clock, in steps of SQLite's machine: some milliseconds. Each
# look waits for the interpreter lock, so that an ordinary page should get by without one.
STEPS_BETWEEN_LOOKS = 50_000

Key = tuple[int, int]  # (us, seq): the place within a client's rows of one file
LOWEST: Key = (MIN_US - 1, 0)
HIGHEST: Key = (MAX_US + 1, 0)


def _instant_sql(us: str, ns: str) -> str:
    """Return SQL for the text of an instant that app.logs.timestamp.format_instant gives."""
    micro = f"((({us}) % {US_PER_S} + {US_PER_S}) % {US_PER_S})"
    second = f"strftime('%Y-%m-%dT%H:%M:%S', (({us}) - {micro}) / {US_PER_S}, 'unixepoch')"
    return f"""{second} || CASE
        WHEN {ns} <> 0 THEN format('.%06d%03d', {micro}, {ns})
        WHEN {micro} = 0 THEN ''
        WHEN {micro} % 1000 = 0 THEN format('.%03d', {micro} / 1000)
        ELSE format('.%06d', {micro}) END || 'Z'"""


def _text(column: str) -> str:
    return f"coalesce(json_quote({column}), 'null')"


_ID = f"""format('%015x%03x%04x%014x', l.us - ({MIN_US}), l.seq >> {ARRIVAL_BITS}, :day,
    l.seq & {ARRIVAL_MASK})"""
_RECEIVED_US = f":day * {US_PER_DAY} + ((l.seq & {ARRIVAL_MASK}) >> {SLOT_BITS})"
# A log as JSON. Texts that are JSON already are passed on as they are, numbers of any size too.
_RENDER = "||".join(
    (
        f"""'{{"id":"' || {_ID}""",
        """ '","client_id":' || json_quote(:client_id)""",
        f""" ',"executed_at":"' || {_instant_sql("l.us", f"(l.seq >> {ARRIVAL_BITS})")}""",
        f""" '","received_at":"' || {_instant_sql(_RECEIVED_US, "0")}""",
        f""" '","environment":' || {_text("s.environment")}""",
        f""" ',"status":' || {_text("s.status")}""",
        f""" ',"dataset":' || {_text("s.dataset")}""",
        f""" ',"level":' || {_text("s.level")}""",
        f""" ',"workflow":' || {_text("s.workflow")}""",
        f""" ',"run_id":' || {_text("l.run_id")}""",
        f""" ',"message":' || {_text("l.message")}""",
        """ ',"duration_ms":' || CASE typeof(l.duration_ms) WHEN 'text' THEN l.duration_ms
            ELSE coalesce(json_quote(l.duration_ms), 'null') END""",
        """ ',"error":' || coalesce(l.error, 'null')""",
        f""" ',"external_id":' || {_text("l.external_id")}""",
        """ ',"metadata":' || coalesce(l.metadata, '{}') || '}'""",
    )
)
# The bytes of a column without reading it, where SQLite can tell them (since 3.43).
_BYTES = (
    "octet_length({})" if sqlite3.sqlite_version_info >= (3, 43) else "length(CAST({} AS BLOB))"
)
_SIZE, _SERIES_SIZE = (
    " + ".join(f"coalesce({_BYTES.format(column)}, 0)" for column in columns)
    for columns in (
        ("run_id", "duration_ms", "external_id", "message", "error", "metadata"),
        ("s.dataset", "s.environment", "s.status", "s.level", "s.workflow"),
    )
)


def _page_sql(query: LogQuery) -> str:
    """Compose the statement of a page; every value is bound, never written into the text.

    It first finds the places of one log more than asked for, to know whether more follow, and
    then reads and renders as many of them as a page holds, but one at least.
    """
    where = ["client = :client", "(us, seq) >= (:low_us, :low_seq)"]
    where.append("(us, seq) < (:high_us, :high_seq)")
    series = [
        f"{name} IN (SELECT value FROM json_each(:{name}))"
        for name in SERIES_FILTERS
        if name in query.filters
    ]
    if series:
        matching = f"SELECT id FROM series WHERE client = :client AND {' AND '.join(series)}"
        where.append(f"series IN ({matching})")
    if "run_id" in query.filters:
        where.append("run_id IN (SELECT value FROM json_each(:run_id))")
    direction = "ASC" if query.order == "asc" else "DESC"
    return f"""
        WITH place AS (
            SELECT us, seq, series, {_SIZE} AS size FROM logs WHERE {" AND ".join(where)}
            ORDER BY us {direction}, seq {direction} LIMIT :limit + 1
        ), measured AS (
            SELECT us, seq, row_number() OVER so_far AS n,
                sum(size + {_SERIES_SIZE}) OVER so_far AS bytes
            FROM place p CROSS JOIN series s ON s.id = p.series
            WINDOW so_far AS (
                ORDER BY us {direction}, seq {direction} ROWS UNBOUNDED PRECEDING)
        ), rendered AS (
            SELECT {_ID} AS id, {_RENDER} AS log
            FROM measured m
            CROSS JOIN logs l ON l.client = :client AND l.us = m.us AND l.seq = m.seq
            CROSS JOIN series s ON s.id = l.series
            WHERE n = 1 OR (n <= :limit AND bytes <= {PAGE_BYTES_MAX})
            ORDER BY n
        )
        SELECT group_concat(id, char(10)), group_concat(log, char(10)),
            (SELECT count(*) FROM place) FROM rendered"""


class _Candidate(NamedTuple):
    """A file that may hold logs of a page, with the bounds of its rows that may."""

    day: int
    client: int
    low: Key
    high: Key


class _Part(NamedTuple):
    """Logs as (id, JSON), in the order asked for; where it is `cut`, more follow the last one."""

    logs: list[tuple[str, str]]
    cut: bool


class SqliteReader:
    """Answers queries from the day files of a directory. Thread-safe.

    Every query has a `deadline` on the monotonic clock, in seconds, and raises StorageUnavailable
    beyond it, or sqlite3.Error.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self.stopped = False

    def stop(self) -> None:
        """End the running queries soon, and every later one at once."""
        self.stopped = True

    def close(self) -> None:
        """Close every thread's connections; no query may be running."""
        while self._all:
            self._all.pop().close()

    def page(self, query: LogQuery, deadline: float) -> Page:
        """Return a page, newest first or oldest first."""
        with self._until(deadline):
            if query.log_id is not None:
                return self._one(query, query.log_id)
            return self._page(query)

    @contextmanager
    def _until(self, deadline: float) -> Iterator[None]:
        self._local.deadline = deadline
        try:
            self._look()
            yield
        except sqlite3.OperationalError:
            self._look()  # it was interrupted for what this raises, or is a fault of its own
            raise

    def _look(self) -> None:
        if self.stopped:
            raise StorageUnavailable("closed")
        if time.monotonic() > self._local.deadline:
            raise StorageUnavailable("the query took too long")

    def _overdue(self) -> bool:
        return self.stopped or time.monotonic() > self._local.deadline

    def _page(self, query: LogQuery) -> Page:
        descending = query.order == "desc"
        part = _Part([], cut=False)
        for candidate in sorted(
            self._candidates(query),
            key=lambda one: one.high if descending else one.low,
            reverse=descending,
        ):
            # The files come by their nearest edge: once one can't improve on the last log of a full
            # page, none after it can.
            if part.cut and self._beyond(candidate, part.logs[-1][0], descending=descending):
                break
            part = _join(query, part, self._part(query, candidate))
        return Page(",".join(log for _, log in part.logs), part.logs[-1][0] if part.cut else None)

    @staticmethod
    def _beyond(candidate: _Candidate, edge: str, *, descending: bool) -> bool:
        us = int(edge[:15], 16) + MIN_US
        return candidate.high[0] < us if descending else candidate.low[0] > us

    def _one(self, query: LogQuery, place: Position) -> Page:
        if place.day not in list_days(self._directory):
            return Page("")
        found = (
            self._db(place.day)
            .execute("SELECT id FROM clients WHERE client_id = ?", (query.client_id,))
            .fetchone()
        )
        if found is None:
            return Page("")
        low, high = (place.us, place.seq), (place.us, place.seq + 1)
        part = self._part(query, _Candidate(place.day, int(found[0]), low, high))
        return Page("".join(log for _, log in part.logs))

    def _part(self, query: LogQuery, candidate: _Candidate) -> _Part:
        values: dict[str, Any] = {
            name: _json_array(accepted) for name, accepted in query.filters.items()
        }
        values |= {
            "client": candidate.client,
            "client_id": query.client_id,
            "day": candidate.day,
            "low_us": candidate.low[0],
            "low_seq": candidate.low[1],
            "high_us": candidate.high[0],
            "high_seq": candidate.high[1],
            "limit": query.limit,
        }
        ids, logs, found = self._db(candidate.day).execute(_page_sql(query), values).fetchone()
        if ids is None:
            return _Part([], cut=False)
        rendered = list(zip(ids.split("\n"), logs.split("\n"), strict=True))
        return _Part(rendered, cut=found > len(rendered))

    def _candidates(self, query: LogQuery) -> Iterator[_Candidate]:
        """Narrow each file to the client's own rows within the query's bounds."""
        for day in list_days(self._directory):
            low, high = _bounds(query, day)
            found = (
                self._db(day)
                .execute(_EDGES, {"client_id": query.client_id, "low": low[0], "high": high[0]})
                .fetchone()
            )
            if found is not None and found[1] is not None:
                client, first, last = found
                low, high = max(low, (first, 0)), min(high, (last + 1, 0))
                yield _Candidate(day, client, low, high)

    def usage(self, query: UsageQuery, deadline: float) -> list[UsageRow]:
        """Sum usage by group over all days."""
        with self._until(deadline):
            return self._usage(query)

    def _usage(self, query: UsageQuery) -> list[UsageRow]:
        minutes = MINUTES.get(query.group_by)
        group = f"minute - minute % {minutes}" if minutes else _USAGE_COLUMN[query.group_by]
        where = ["1"]
        if query.client_id is not None:
            where.append("c.client_id = :client_id")
        if query.start_minute is not None:
            where.append("minute >= :start")
        if query.end_minute is not None:
            where.append("minute < :end")
        values = {
            "client_id": query.client_id,
            "start": query.start_minute,
            "end": query.end_minute,
        }
        sums: dict[tuple[str, Any], list[int]] = {}
        for day in list_days(self._directory):
            rows = self._db(day).execute(
                f"""SELECT c.client_id, {group}, sum(requests), sum(logs), sum(bytes),
                sum(rejected), sum(denied)
                FROM usage u JOIN clients c ON c.id = u.client
                WHERE {" AND ".join(where)} GROUP BY 1, 2""",
                values,
            )
            for client_id, name, *counts in rows.fetchall():
                total = sums.setdefault((client_id, name), [0] * len(counts))
                total[:] = [a + b for a, b in zip(total, counts, strict=True)]
        return [UsageRow(*key, tuple(counts)) for key, counts in sorted(sums.items())]

    def _db(self, day: int) -> "sqlite3.Connection":
        """Return this thread's connection to a day file, opened read-only."""
        self._look()
        open_files: dict[int, sqlite3.Connection] | None = getattr(self._local, "open", None)
        if open_files is None:
            open_files = self._local.open = {}
        db = open_files.get(day)
        if db is None:
            if len(open_files) >= OPEN_FILES_MAX:
                # Not the one used longest ago: a query that goes over more files than may be open
                # would then find none of them. The newest days are the most asked for.
                oldest = open_files.pop(min(open_files))
                self._all.remove(oldest)
                oldest.close()
            db = open_files[day] = self._open(day)
        return db

    def _open(self, day: int) -> "sqlite3.Connection":
        path = day_path(self._directory, day).absolute()
        db = sqlite3.connect(
            f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._all.append(db)
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        db.set_progress_handler(self._overdue, STEPS_BETWEEN_LOOKS)
        return db


_WITHIN = "l.client = c.id AND us BETWEEN :low AND :high"
_EDGES = f"""
    SELECT c.id, (SELECT us FROM logs l WHERE {_WITHIN} ORDER BY us, seq LIMIT 1),
        (SELECT us FROM logs l WHERE {_WITHIN} ORDER BY us DESC, seq DESC LIMIT 1)
    FROM clients c WHERE c.client_id = :client_id"""
_USAGE_COLUMN = {"key": "key_id", "dataset": "dataset"}


def _join(query: LogQuery, *parts: _Part) -> _Part:
    """Merge parts of a page, ended where its limit or its size says so.

    Nobody knows what follows the end of a part that was cut: logs of other files that stand beyond
    it would overtake, so the page ends there at the latest.
    """
    descending = query.order == "desc"
    ends = [part.logs[-1][0] for part in parts if part.cut]
    end = (max(ends) if descending else min(ends)) if ends else None
    logs: list[tuple[str, str]] = []
    size = 0
    for log in merge(*(part.logs for part in parts), key=itemgetter(0), reverse=descending):
        size += len(log[1])
        if logs and (len(logs) == query.limit or size > PAGE_BYTES_MAX):
            return _Part(logs, cut=True)
        logs.append(log)
        if log[0] == end:
            break
    return _Part(logs, cut=end is not None)


def _bounds(query: LogQuery, day: int) -> tuple[Key, Key]:
    """Return the first key that may be on the page, and the first beyond those that may."""
    low, high = LOWEST, HIGHEST
    if query.start is not None:
        low = (query.start[0], query.start[1] << ARRIVAL_BITS)
    if query.end is not None:
        high = (query.end[0], query.end[1] << ARRIVAL_BITS)
    if query.after is not None:
        after = query.after
        # Ids sort by (us, ns, day, arrival): of a log of the very same instant the arrival day
        # decides, before the arrival within it.
        same = after.ns << ARRIVAL_BITS
        if query.order == "desc":
            seq = (after.seq, same, same + (1 << ARRIVAL_BITS))
            high = min(high, (after.us, seq[_compare(after.day, day)]))
        else:
            seq = (after.seq + 1, same, same + (1 << ARRIVAL_BITS))
            low = max(low, (after.us, seq[_compare(after.day, day)]))
    return low, high


def _compare(after_day: int, day: int) -> int:
    """0: the same day; 1: this file's logs come after those of the cursor's day; 2: before."""
    return 0 if day == after_day else 1 if day > after_day else 2


def _json_array(values: tuple[str, ...]) -> str:
    return json.dumps(values)
