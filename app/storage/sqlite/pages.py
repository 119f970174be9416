"""Pages of logs from day files, rendered by SQL or cut from sealed blocks.

A page comes from sources, each with the bounds of its logs: a day file, in which one statement
finds the places of a page; or, where a log's texts decide, the waiting logs of a file and each of
its blocks that may hold what is sought, by its words. Sources are read nearest first, until no
other one can hold a log of the page.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from app.logs.identity import ARRIVAL_BITS, Position
from app.logs.query import PAGE_BYTES_MAX, LogQuery, Page
from app.logs.search import fold, parse_exactly
from app.logs.selection import SERIES_FILTERS, Selection
from app.logs.timestamp import MAX_US, MIN_US
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_BITS, BLOCK_LOGS, run_hash, unpack, word_hash
from app.storage.sqlite.render import RENDER, SERIES_SIZE, SIZE, id_sql
from app.storage.sqlite.schema import CLIENT_SHIFT

# Waiting logs whose texts are looked at in one step.
WAITING_STEP = 1024
# Blocks unpacked before a look at how much of the page they fill.
BLOCKS_STEP = 16

Key = tuple[int, int]  # (us, seq): the place within a client's rows of one file
LOWEST: Key = (MIN_US - 1, 0)
HIGHEST: Key = (MAX_US + 1, 0)


class Files(Protocol):
    """Day files, all read as of one moment while a page is made."""

    def days(self) -> Sequence[int]:
        """Return the days there are."""
        ...

    def db(self, day: int) -> "sqlite3.Connection":
        """Return a connection inside a transaction; raise StorageUnavailable when time is up."""
        ...


class _Source(NamedTuple):
    """Where logs of a page may be, with the first key that may and the first beyond those."""

    day: int
    client: int
    low: Key
    high: Key
    read: Callable[[Files, LogQuery, "_Source"], "_Part"]
    block: int = 0


class _Part(NamedTuple):
    """Logs as (id, JSON), in the order asked for; where it is `cut`, more follow the last one."""

    logs: list[tuple[str, str]]
    cut: bool


def read_page(files: Files, query: LogQuery) -> Page:
    """Return a page, newest first or oldest first."""
    descending = query.order == "desc"
    part = _Part([], cut=False)
    sources = [one for file in _files(files, query) for one in _sources(files, query, file)]
    for source in sorted(
        sources, key=lambda one: one.high if descending else one.low, reverse=descending
    ):
        # They come by their nearest edge: once one can't improve on the last log of a full page,
        # none after it can.
        if part.cut and _is_beyond(source, part.logs[-1][0], descending=descending):
            break
        part = _join(query, part, source.read(files, query, source))
    return Page(",".join(log for _, log in part.logs), part.logs[-1][0] if part.cut else None)


def read_one(files: Files, query: LogQuery, place: Position) -> Page:
    """Return the page of the log at a place, if it is there and matches the query."""
    if place.day not in files.days():
        return Page("")
    found = (
        files.db(place.day)
        .execute("SELECT id FROM clients WHERE client_id = ?", (query.client_id,))
        .fetchone()
    )
    if found is None:
        return Page("")
    low, high = (place.us, place.seq), (place.us, place.seq + 1)
    part = _read_file(files, query, _Source(place.day, int(found[0]), low, high, _read_file))
    return Page("".join(log for _, log in part.logs))


def conditions(query: Selection, run: str) -> list[str]:
    """Return the SQL conditions of the filters; `run` is the column that tells a log's run.

    Every value is bound, by `values`, never written into the text.
    """
    where = []
    series = [
        f"{name} IN (SELECT value FROM json_each(:{name}))"
        for name in SERIES_FILTERS
        if name in query.filters
    ]
    if series:
        where.append(
            f"series IN (SELECT id FROM series WHERE client = :client AND {' AND '.join(series)})"
        )
    if "run_id" in query.filters:
        where.append(f"{run} IN (SELECT value FROM json_each(:{run}))")
    if query.min_duration_ms is not None:
        where.append("CAST(duration_ms AS REAL) >= :min_duration_ms")
    return where


def values(query: Selection) -> dict[str, Any]:
    """Return what the names in `conditions` stand for, but for the client."""
    bound: dict[str, Any] = {name: json.dumps(accepted) for name, accepted in query.filters.items()}
    bound["run"] = json.dumps([run_hash(run_id) for run_id in query.filters.get("run_id", ())])
    bound["min_duration_ms"] = query.min_duration_ms
    return bound


def _values(query: LogQuery, source: _Source) -> dict[str, Any]:
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


_WITHIN = (
    "client = :client AND (us, seq) >= (:low_us, :low_seq) AND (us, seq) < (:high_us, :high_seq)"
)


# A whole file, where columns alone decide.


def _read_file(files: Files, query: LogQuery, source: _Source) -> _Part:
    db = files.db(source.day)
    bound = _values(query, source)
    ids, logs, found = db.execute(_page_sql(query), bound).fetchone()
    if ids is None:
        return _Part([], cut=False)
    rendered: list[tuple[str, str]] = []
    size = 0
    for id_, log in zip(
        ids.split("\n"), _filled(db, source.client, logs.split("\n")), strict=False
    ):
        size += len(log)
        if rendered and size > PAGE_BYTES_MAX:
            break
        rendered.append((id_, log))
    return _Part(rendered, cut=found > len(rendered))


def _page_sql(query: LogQuery) -> str:
    """Compose the statement of a page.

    It first finds the places of one log more than asked for, to know whether more follow, and
    then reads and renders as many of them as a page holds, but one at least. For a sealed log it
    gives the place in the blocks instead.
    """
    direction = "ASC" if query.order == "asc" else "DESC"
    waiting, sealed = (
        " AND ".join([_WITHIN, *conditions(query, run)]) for run in ("run_id", "run")
    )
    return f"""
        WITH found AS (
            SELECT us, seq, series, {SIZE} AS size, NULL AS place FROM logs WHERE {waiting}
            UNION ALL SELECT us, seq, series, 0, place FROM sealed WHERE {sealed}
            ORDER BY us {direction}, seq {direction} LIMIT :limit + 1
        ), measured AS (
            SELECT us, seq, place, row_number() OVER so_far AS n,
                sum(size + {SERIES_SIZE}) OVER so_far AS bytes
            FROM found f CROSS JOIN series s ON s.id = f.series
            WINDOW so_far AS (
                ORDER BY us {direction}, seq {direction} ROWS UNBOUNDED PRECEDING)
        ), rendered AS (
            SELECT {id_sql("m")} AS id, CASE WHEN place IS NULL THEN (
                SELECT {RENDER} FROM logs l CROSS JOIN series s ON s.id = l.series
                WHERE l.client = :client AND l.us = m.us AND l.seq = m.seq
            ) ELSE place END AS log
            FROM measured m
            WHERE n = 1 OR (n <= :limit AND bytes <= {PAGE_BYTES_MAX})
            ORDER BY n
        )
        SELECT group_concat(id, char(10)), group_concat(log, char(10)),
            (SELECT count(*) FROM found) FROM rendered"""


def _filled(db: sqlite3.Connection, client: int, logs: list[str]) -> Iterator[str]:
    """Yield rendered logs, those in blocks fetched by their places."""
    blocks: dict[int, list[str]] = {}
    for at, log in enumerate(logs):
        if log[0] == "{":
            yield log
            continue
        number, line = divmod(int(log), BLOCK_LOGS)
        if number not in blocks:
            later = (int(one) >> BLOCK_BITS for one in islice(logs, at, None) if one[0] != "{")
            blocks = _read_blocks(db, client, list(dict.fromkeys(later))[:BLOCKS_STEP])
        yield blocks[number][line]


def _read_blocks(db: sqlite3.Connection, client: int, numbers: list[int]) -> dict[int, list[str]]:
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
        blocks[int(id_) - first] = unpack(packed[at : at + length])
        at += length
    return blocks


# Waiting logs and blocks, where texts decide.


def _sources(files: Files, query: LogQuery, file: _Source) -> Iterator[_Source]:
    if not query.reads_content:
        yield file
        return
    yield file._replace(read=_read_waiting)
    first = file.client << CLIENT_SHIFT
    where, bound = _words_sql(query)
    found = (
        files.db(file.day)
        .execute(
            f"""SELECT json_group_array(json_array(id - :first, first_us, last_us)) FROM words
            WHERE id BETWEEN :first AND :last AND last_us >= :low AND first_us <= :high {where}""",
            {
                **bound,
                "first": first,
                "last": first | (1 << CLIENT_SHIFT) - 1,
                "low": file.low[0],
                "high": file.high[0],
            },
        )
        .fetchone()
    )
    for number, first_us, last_us in json.loads(found[0]):
        low, high = max(file.low, (first_us, 0)), min(file.high, (last_us + 1, 0))
        yield _Source(file.day, file.client, low, high, _read_block, number)


def _words_sql(query: Selection) -> tuple[str, dict[str, bytes]]:
    """Return the condition of a block's words, and its values."""
    bound: dict[str, bytes] = {}

    def has(word: str) -> str:
        name = f"word_{len(bound)}"
        bound[name] = word_hash(word)
        return f"instr(words, :{name})"

    where = "".join(
        f" AND ({' OR '.join(' AND '.join(map(has, sorted(one))) or '1' for one in either)})"
        for either in query.required_words()
    )
    return where, bound


def _read_waiting(files: Files, query: LogQuery, source: _Source) -> _Part:
    db = files.db(source.day)
    bound = _values(query, source)
    descending = query.order == "desc"
    direction = "DESC" if descending else "ASC"
    where = " AND ".join([_WITHIN, *conditions(query, "run_id")])
    logs: list[tuple[str, str]] = []
    while True:
        keys, texts = db.execute(
            f"""SELECT json_group_array(json_array(us, seq)), group_concat(replace(
                coalesce(message, '') || ' ' || coalesce(error, '') || ' ' ||
                coalesce(metadata, ''), char(10), ' '), char(10))
            FROM (SELECT us, seq, message, error, metadata FROM logs WHERE {where}
                ORDER BY us {direction}, seq {direction} LIMIT {WAITING_STEP})""",
            bound,
        ).fetchone()
        places = json.loads(keys)
        if not places:
            return _Part(logs, cut=False)
        may = may_match(query)
        chosen = [place for place, text in zip(places, texts.split("\n"), strict=True) if may(text)]
        logs += _matching(query, _render(db, bound, chosen, direction))
        if len(logs) > query.limit:
            return _Part(logs[: query.limit], cut=True)
        us, seq = places[-1]
        edge = (
            {"high_us": us, "high_seq": seq} if descending else {"low_us": us, "low_seq": seq + 1}
        )
        bound |= edge


def _render(
    db: sqlite3.Connection, bound: dict[str, Any], places: list[Any], direction: str
) -> list[str]:
    if not places:
        return []
    rendered = db.execute(
        f"""SELECT group_concat(log, char(10)) FROM (
            SELECT {RENDER} AS log
            FROM json_each(:places) p
            CROSS JOIN logs l ON l.client = :client AND l.us = p.value ->> 0
                AND l.seq = p.value ->> 1
            CROSS JOIN series s ON s.id = l.series
            ORDER BY l.us {direction}, l.seq {direction})""",
        {**bound, "places": json.dumps(places)},
    ).fetchone()[0]
    return list(rendered.split("\n"))


def _read_block(files: Files, query: LogQuery, source: _Source) -> _Part:
    db = files.db(source.day)
    direction = "ASC" if query.order == "asc" else "DESC"
    where = " AND ".join([_WITHIN, *conditions(query, "run")])
    lines = db.execute(
        f"""SELECT group_concat(place & {BLOCK_LOGS - 1}) FROM (
            SELECT place FROM sealed WHERE {where} AND place >> {BLOCK_BITS} = :block
            ORDER BY us {direction}, seq {direction})""",
        {**_values(query, source), "block": source.block},
    ).fetchone()[0]
    if lines is None:
        return _Part([], cut=False)
    logs = _read_blocks(db, source.client, [source.block])[source.block]
    may = may_match(query)
    chosen = [log for log in (logs[int(line)] for line in lines.split(",")) if may(log)]
    return _Part(_matching(query, chosen), cut=False)


def may_match(query: Selection) -> Callable[[str], bool]:
    """Return what tells fast, of most texts of logs, that they don't match."""
    required = query.required_words()

    def may(text: str) -> bool:
        folded = fold(text)
        return "\\u" in text or all(
            any(all(word in folded for word in one) for one in either) for either in required
        )

    return may


def _matching(query: Selection, logs: list[str]) -> list[tuple[str, str]]:
    matching = []
    for log in logs:
        parsed = parse_exactly(log)
        if query.matches_content(parsed):
            matching.append((parsed["id"], log))
    return matching


# Which files, and how their parts come together.


def _files(files: Files, query: LogQuery) -> Iterator[_Source]:
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
            yield _Source(day, client, low, high, _read_file)


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


def _is_beyond(source: _Source, edge: str, *, descending: bool) -> bool:
    us = int(edge[:15], 16) + MIN_US
    return source.high[0] < us if descending else source.low[0] > us


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
