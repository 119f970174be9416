"""Where the logs of a question may be: a client's rows in day files, and its blocks."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from app.logs.identity import ARRIVAL_BITS, ID_LENGTH
from app.logs.query import LogQuery
from app.logs.selection import SERIES_FILTERS, Selection
from app.logs.timestamp import MAX_US, MIN_US
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_BITS, BLOCK_LOGS, Lines, run_hash
from app.storage.sqlite.schema import CLIENT_SHIFT

# Blocks in memory at a time.
BLOCKS_STEP = 16

Key = tuple[int, int]  # (us, seq): the place within a client's rows of one file
LOWEST: Key = (MIN_US - 1, 0)
HIGHEST: Key = (MAX_US + 1, 0)
# The SQL condition of a source's own logs.
BOUNDS = (
    "client = :client AND (us, seq) >= (:low_us, :low_seq) AND (us, seq) < (:high_us, :high_seq)"
)
# What stands before the id, in each rendered log.
LINE_START = '{"id":"'


class Files(Protocol):
    """Day files, all read as of one moment while a page is made."""

    def days(self) -> Sequence[int]:
        """Return the days there are."""
        ...

    def db(self, day: int) -> "sqlite3.Connection":
        """Return a connection inside a transaction; raise StorageUnavailable when time is up."""
        ...


class Source(NamedTuple):
    """Where logs of a page may be, with the first key that may and the first beyond those."""

    day: int
    client: int
    low: Key
    high: Key


class Part(NamedTuple):
    """Logs as (id, JSON), in the order asked for; where it is `cut`, more follow the last one."""

    logs: list[tuple[str, str]]
    cut: bool


# Integers beyond 64 bits are texts. SQLite takes one in a thousand of these for a float beside the
# nearest one, and a filter must find what it names.
_LASTED = "iif(typeof(duration_ms) = 'text', nearest_float(duration_ms), CAST(duration_ms AS REAL))"


def add_functions(db: sqlite3.Connection) -> None:
    """Teach a connection what `conditions` ask for."""
    db.create_function("nearest_float", 1, float, deterministic=True)


def conditions(query: Selection, run: str) -> list[str]:
    """Return the SQL conditions of the filters; `run` is the column that tells a log's run.

    Every value is bound, by `values`, never written into the text.
    """
    where = row_conditions(query, run)
    if series := series_conditions(query):
        where.append(
            f"series IN (SELECT id FROM series WHERE client = :client AND {' AND '.join(series)})"
        )
    return where


def series_conditions(query: Selection) -> list[str]:
    """Return those about the columns of a series."""
    return [
        f"{name} IN (SELECT value FROM json_each(:{name}))"
        for name in SERIES_FILTERS
        if name in query.filters
    ]


def row_conditions(query: Selection, run: str) -> list[str]:
    """Return those about the columns of a log beside its series."""
    where = []
    if "run_id" in query.filters:
        where.append(f"{run} IN (SELECT value FROM json_each(:{run}))")
    if query.min_duration_ms is not None:
        where.append(f"{_LASTED} >= :min_duration_ms")
    return where


def values(query: Selection) -> dict[str, Any]:
    """Return what the names in `conditions` stand for, but for the client."""
    bound: dict[str, Any] = {name: json.dumps(accepted) for name, accepted in query.filters.items()}
    bound["run"] = json.dumps([run_hash(run_id) for run_id in query.filters.get("run_id", ())])
    bound["min_duration_ms"] = query.min_duration_ms
    return bound


def source_values(query: LogQuery, source: Source) -> dict[str, Any]:
    """Return all that the statements about a source bind."""
    return {
        **values(query),
        "client": source.client,
        "client_id": query.client_id,
        "day": source.day,
        "low_us": source.low[0],
        "low_seq": source.low[1],
        "high_us": source.high[0],
        "high_seq": source.high[1],
        "limit": query.limit,
    }


def within(query: LogQuery, run: str) -> str:
    """Return the condition of a source's own logs that match."""
    return " AND ".join((BOUNDS, *conditions(query, run)))


def direction_of(query: LogQuery) -> str:
    """Return the order of a query in SQL."""
    return "ASC" if query.order == "asc" else "DESC"


def read_blocks(db: sqlite3.Connection, client: int, numbers: list[int]) -> dict[int, Lines]:
    """Unpack blocks, fetched in one step: each row would wait for the interpreter's lock."""
    first = client << CLIENT_SHIFT
    ids, lengths, packed = db.execute(
        """SELECT group_concat(id), group_concat(length(logs)),
            CAST(group_concat(CAST(logs AS TEXT), '') AS BLOB)
        FROM blocks WHERE id IN (SELECT value FROM json_each(?))""",
        (json.dumps([first | number for number in numbers]),),
    ).fetchone()
    blocks = {}
    at = 0
    for id_, length in zip(ids.split(","), map(int, lengths.split(",")), strict=True):
        blocks[int(id_) - first] = Lines(packed[at : at + length])
        at += length
    return blocks


def sealed_lines(files: Files, source: Source, places: list[int]) -> Iterator[bytes]:
    """Yield the sealed logs at these places, in their order."""
    blocks: dict[int, Lines] = {}
    for at, place in enumerate(places):
        number, line = divmod(place, BLOCK_LOGS)
        if number not in blocks:
            ahead = dict.fromkeys(later >> BLOCK_BITS for later in places[at:])
            # Asked for the file each time, it says when time is up.
            db = files.db(source.day)
            wanted = list(ahead)[:BLOCKS_STEP]
            # Logs of some blocks may alternate: those at hand are not unpacked again.
            blocks = {one: blocks[one] for one in wanted if one in blocks}
            missing = [one for one in wanted if one not in blocks]
            blocks |= read_blocks(db, source.client, missing)
        yield blocks[number][line]


def id_of(line: bytes) -> str:
    """Return the id of a rendered log, the first thing in it."""
    return line[len(LINE_START) : len(LINE_START) + ID_LENGTH].decode()


def nearest(sources: Iterable[Source], *, descending: bool) -> list[Source]:
    """Return sources in the order in which their first logs may be asked for."""
    return sorted(sources, key=lambda one: one.high if descending else one.low, reverse=descending)


def sources_of(files: Files, query: LogQuery) -> Iterator[Source]:
    """Narrow each file to the client's own rows within the query's bounds."""
    for day in files.days():
        low, high = _bounds(query, day)
        found = (
            files.db(day)
            .execute(_EDGES, {"client_id": query.client_id, "low": low[0], "high": high[0]})
            .fetchone()
        )
        if found is not None and found[1] is not None:
            client, first, last = found
            low, high = max(low, (first, 0)), min(high, (last + 1, 0))
            yield Source(day, client, low, high)


def _edge(direction: str, best: str) -> str:
    """Return SQL for the first or last `us` of a client's logs, waiting and sealed."""
    ends = (
        f"""SELECT (SELECT us FROM {table} l WHERE l.client = c.id AND us BETWEEN :low AND :high
            ORDER BY us {direction}, seq {direction} LIMIT 1) AS us"""
        for table in ("logs", "sealed")
    )
    return f"(SELECT {best}(us) FROM ({' UNION ALL '.join(ends)}))"


_EDGES = f"""
    SELECT c.id, {_edge("ASC", "min")}, {_edge("DESC", "max")}
    FROM clients c WHERE c.client_id = :client_id"""


def is_beyond(source: Source, edge: str, *, descending: bool) -> bool:
    """Say whether all logs of a source stand behind the one of an id."""
    us = _us_of(edge)
    return source.high[0] < us if descending else source.low[0] > us


def up_to(source: Source, edge: str, *, descending: bool) -> Source:
    """Leave out of a source what stands behind the log of an id, as of a microsecond."""
    us = _us_of(edge)
    if descending:
        return source._replace(low=max(source.low, (us, 0)))
    return source._replace(high=min(source.high, (us + 1, 0)))


def _us_of(id_: str) -> int:
    return int(id_[:15], 16) + MIN_US


def instant_bounds(query: Selection) -> tuple[Key, Key]:
    """Return the first key that is in the time asked for, and the first beyond."""
    low, high = LOWEST, HIGHEST
    if query.start is not None:
        low = (query.start[0], query.start[1] << ARRIVAL_BITS)
    if query.end is not None:
        high = (query.end[0], query.end[1] << ARRIVAL_BITS)
    return low, high


def _bounds(query: LogQuery, day: int) -> tuple[Key, Key]:
    """Return the first key that may be on the page, and the first beyond those that may."""
    low, high = instant_bounds(query)
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
