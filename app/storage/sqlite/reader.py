"""Reading day files: pages rendered by SQL in one step, usage summed by SQL.

One step, because a thread that steps through rows waits for the interpreter lock at each of them
while the event loop is busy. Connections are read-only; a day file is asked only if its times can
matter to the page.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from heapq import merge
from pathlib import Path
from typing import Any, NamedTuple

from app.logs.identity import ARRIVAL_BITS, ARRIVAL_MASK, SLOT_BITS, Position
from app.logs.query import MINUTES, SERIES_FILTERS, LogQuery, Page, UsageQuery, UsageRow
from app.logs.timestamp import MAX_US, MIN_US, US_PER_DAY, US_PER_S
from app.sqlite import sqlite3
from app.storage.sqlite.schema import list_days

OPEN_FILES_MAX = 64
BUSY_MS = 2000

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


def _page_sql(query: LogQuery) -> str:
    """Compose the statement of a page; every value is bound, never written into the text."""
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
        WITH page AS (
            SELECT * FROM logs WHERE {" AND ".join(where)}
            ORDER BY us {direction}, seq {direction} LIMIT :limit
        ), rendered AS (
            SELECT {_ID} AS id, {_RENDER} AS log
            FROM page l CROSS JOIN series s ON s.id = l.series
            ORDER BY l.us {direction}, l.seq {direction}
        )
        SELECT group_concat(id, char(10)), group_concat(log, char(10)) FROM rendered"""


class _Candidate(NamedTuple):
    """A file that may hold logs of a page, with the bounds of its rows that may."""

    day: int
    client: int
    low: Key
    high: Key


class SqliteReader:
    """Answers queries from the day files of a directory. Thread-safe; raises sqlite3.Error."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []

    def close(self) -> None:
        """Close every thread's connections; no query may be running."""
        while self._all:
            self._all.pop().close()

    def page(self, query: LogQuery) -> Page:
        """Return a page, newest first or oldest first."""
        if query.log_id is not None:
            return self._one(query, query.log_id)
        wanted = query.limit + 1  # one more, to know whether more follow
        descending = query.order == "desc"
        found: list[tuple[str, str]] = []  # (id, log), in the order asked for
        for candidate in sorted(
            self._candidates(query),
            key=lambda one: one.high if descending else one.low,
            reverse=descending,
        ):
            if len(found) == wanted:
                edge = found[-1][0]
                # The files come by their nearest edge: once one can't improve on the last log
                # found, none after it can.
                if self._beyond(candidate, edge, descending=descending):
                    break
            rows = self._rows(query, candidate, wanted)
            if not found:
                found = rows
            else:
                found = list(merge(found, rows, key=lambda row: row[0], reverse=descending))
                del found[wanted:]
        logs = ",".join(log for _, log in found[: query.limit])
        return Page(logs, found[query.limit - 1][0] if len(found) == wanted else None)

    @staticmethod
    def _beyond(candidate: _Candidate, edge: str, *, descending: bool) -> bool:
        us = int(edge[:15], 16) + MIN_US
        return candidate.high[0] < us if descending else candidate.low[0] > us

    def _one(self, query: LogQuery, place: Position) -> Page:
        if place.day not in list_days(self._directory):
            return Page("")
        client = self._client(place.day, query.client_id)
        if client is None:
            return Page("")
        key = (place.us, place.seq)
        candidate = _Candidate(place.day, client, key, (place.us, place.seq + 1))
        return Page("".join(log for _, log in self._rows(query, candidate, 1)))

    def _rows(self, query: LogQuery, candidate: _Candidate, limit: int) -> list[tuple[str, str]]:
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
            "limit": limit,
        }
        ids, logs = self._db(candidate.day).execute(_page_sql(query), values).fetchone()
        if ids is None:
            return []
        return list(zip(ids.split("\n"), logs.split("\n"), strict=True))

    def _candidates(self, query: LogQuery) -> Iterator[_Candidate]:
        """Narrow each file to the client's own rows within the query's bounds."""
        for day in list_days(self._directory):
            client = self._client(day, query.client_id)
            if client is None:
                continue
            low, high = _bounds(query, day)
            first, last = (
                self._db(day)
                .execute(
                    f"""SELECT (SELECT us FROM logs WHERE {_WITHIN} ORDER BY us, seq LIMIT 1),
                    (SELECT us FROM logs WHERE {_WITHIN} ORDER BY us DESC, seq DESC LIMIT 1)""",
                    {"client": client, "low": low[0], "high": high[0]},
                )
                .fetchone()
            )
            if first is not None:
                low, high = max(low, (first, 0)), min(high, (last + 1, 0))
                yield _Candidate(day, client, low, high)

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Sum usage by group over all days."""
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

    def _client(self, day: int, client_id: str) -> int | None:
        found = (
            self._db(day)
            .execute("SELECT id FROM clients WHERE client_id = ?", (client_id,))
            .fetchone()
        )
        return None if found is None else int(found[0])

    def _db(self, day: int) -> "sqlite3.Connection":
        """Return this thread's connection to a day file, opened read-only."""
        open_files: OrderedDict[int, sqlite3.Connection] | None
        open_files = getattr(self._local, "open", None)
        if open_files is None:
            open_files = self._local.open = OrderedDict()
        db = open_files.get(day)
        if db is None:
            path = list_days(self._directory)[day]
            db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            self._all.append(db)
            open_files[day] = db
            if len(open_files) > OPEN_FILES_MAX:
                _, oldest = open_files.popitem(last=False)
                self._all.remove(oldest)
                oldest.close()
        open_files.move_to_end(day)
        return db


_WITHIN = "client = :client AND us BETWEEN :low AND :high"
_USAGE_COLUMN = {"key": "key_id", "dataset": "dataset"}


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
