"""Pages of logs from day files, rendered by SQL or cut from sealed blocks.

A page comes from sources, each with the bounds of its logs: a day file, in which one statement
finds the places of a page; or, where a log's texts decide, the waiting logs of a file and the
sealed ones in those blocks that hold the words sought. Sources are read nearest first, until no
other one can hold a log of the page.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import merge
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import msgspec

from app.logs.identity import ARRIVAL_BITS, ID_LENGTH, Position, parse_id
from app.logs.query import (
    PAGE_BYTES_MAX,
    PORTION_BYTES_MAX,
    PORTION_LOGS_MAX,
    LogQuery,
    Page,
    Portion,
)
from app.logs.search import fold, parse_exactly
from app.logs.selection import SERIES_FILTERS, Selection
from app.logs.timestamp import MAX_US, MIN_US
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_BITS, BLOCK_LOGS, Lines, run_hash, word_hash
from app.storage.sqlite.render import RENDER, SERIES_SIZE, SIZE, id_sql
from app.storage.sqlite.schema import CLIENT_SHIFT

# Logs whose texts are looked at in one step: the first, and at most; and of texts that wait.
STEP_LOGS_MIN, STEP_LOGS_MAX = 256, 8192
STEP_BYTES_MAX = 8 * 1024**2
RENDERED_STEP = 64
# Logs that are looked into all, rather than in order until there are enough.
FEW_LOGS = 256
# Blocks in memory at a time.
BLOCKS_STEP = 16
# Of the words that a log must have, those that its block is asked for: more would tell little, and
# a statement can't be of any size.
WORDS_ASKED_MAX = 16
CHOICES_ASKED_MAX = 32

Key = tuple[int, int]  # (us, seq): the place within a client's rows of one file
LOWEST: Key = (MIN_US - 1, 0)
HIGHEST: Key = (MAX_US + 1, 0)
_ID_AT = len('{"id":"')
_decode_places = msgspec.json.Decoder(list[int | None]).decode


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


class _Part(NamedTuple):
    """Logs as (id, JSON), in the order asked for; where it is `cut`, more follow the last one."""

    logs: list[tuple[str, str]]
    cut: bool


def read_page(files: Files, query: LogQuery) -> Page:
    """Return a page, newest first or oldest first."""
    part = _read_part(files, query)
    return Page(",".join(log for _, log in part.logs), part.logs[-1][0] if part.cut else None)


def read_portion(files: Files, query: LogQuery) -> Portion:
    """Return the next logs of an export: those of pages, at a fraction of their cost.

    Where one file alone has the next logs, and columns alone decide, they need no merging.
    """
    query = replace(query, limit=PORTION_LOGS_MAX)
    descending = query.order == "desc"
    sources = _nearest(_sources(files, query), descending=descending)
    if not sources:
        return Portion(b"")
    first, *others = sources
    if not query.reads_content:
        alone = _alone(first, others[0], descending=descending) if others else first
        lines, cut = _read_lines(files, query, alone)
        if cut or not others or len(lines) >= FEW_LOGS:
            more = cut or bool(others)
            return Portion(b"\n".join((*lines, b"")), id_of(lines[-1]) if more else None)
    part = _read_part(files, query)
    text = "".join(f"{log}\n" for _, log in part.logs)
    return Portion(text.encode(), part.logs[-1][0] if part.cut else None)


def _read_part(files: Files, query: LogQuery) -> _Part:
    descending = query.order == "desc"
    part = _Part([], cut=False)
    sources = (
        source._replace(read=read)
        for source in _sources(files, query)
        for read in ((_read_waiting, _read_sealed) if query.reads_content else (_read_file,))
    )
    for source in _nearest(sources, descending=descending):
        # They come by their nearest edge: once one can't improve on the last log of a full page,
        # none after it can.
        if part.cut and _is_beyond(source, part.logs[-1][0], descending=descending):
            break
        part = _join(query, part, source.read(files, query, source))
    return part


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


def _within(query: LogQuery, run: str) -> str:
    bounds = ("(us, seq) >= (:low_us, :low_seq)", "(us, seq) < (:high_us, :high_seq)")
    return " AND ".join(("client = :client", *bounds, *conditions(query, run)))


def _direction(query: LogQuery) -> str:
    return "ASC" if query.order == "asc" else "DESC"


# A whole file, where columns alone decide.


def _read_file(files: Files, query: LogQuery, source: _Source) -> _Part:
    db = files.db(source.day)
    bound = _values(query, source)
    ids, logs, found = db.execute(_page_sql(query), bound).fetchone()
    if ids is None:
        return _Part([], cut=False)
    rendered: list[tuple[str, str]] = []
    size = 0
    for id_, log in zip(ids.split("\n"), _filled(files, source, logs.split("\n")), strict=False):
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
    direction = _direction(query)
    waiting, sealed = (_within(query, run) for run in ("run_id", "run"))
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


def _filled(files: Files, source: _Source, logs: list[str]) -> Iterator[str]:
    """Yield rendered logs, those in blocks fetched by their places."""
    places = [None if log[0] == "{" else int(log) for log in logs]
    sealed = _sealed_lines(files, source, [place for place in places if place is not None])
    for log, place in zip(logs, places, strict=True):
        yield log if place is None else next(sealed).decode()


def _sealed_lines(files: Files, source: _Source, places: list[int]) -> Iterator[bytes]:
    """Yield the sealed logs at these places, in their order."""
    blocks: dict[int, Lines] = {}
    for at, place in enumerate(places):
        number, line = divmod(place, BLOCK_LOGS)
        if number not in blocks:
            ahead = dict.fromkeys(later >> BLOCK_BITS for later in places[at:])
            # Asked for the file each time, it says when time is up.
            db = files.db(source.day)
            blocks = read_blocks(db, source.client, list(ahead)[:BLOCKS_STEP])
        yield blocks[number][line]


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


# Lines of one file, for exports: the same again, without an id and a size for each log.


def _alone(source: _Source, next_one: _Source, *, descending: bool) -> _Source:
    """Narrow the nearest source to what stands before all logs of the next one."""
    if descending:
        us, seq = next_one.high
        return source._replace(low=max(source.low, (us + (seq > 0), 0)))
    return source._replace(high=min(source.high, (next_one.low[0], 0)))


def _read_lines(files: Files, query: LogQuery, source: _Source) -> tuple[list[bytes], bool]:
    """Return the first logs of a source, and whether more follow."""
    db = files.db(source.day)
    bound = _values(query, source)
    direction = _direction(query)
    waiting_where, sealed_where = (_within(query, run) for run in ("run_id", "run"))
    [found] = db.execute(
        f"""SELECT json_group_array(place) FROM (
            SELECT us, seq, NULL AS place FROM logs WHERE {waiting_where}
            UNION ALL SELECT us, seq, place FROM sealed WHERE {sealed_where}
            ORDER BY us {direction}, seq {direction} LIMIT :limit + 1)""",
        bound,
    ).fetchone()
    places = _decode_places(found)
    count = min(len(places), query.limit)
    sealed_places = [place for place in places[:count] if place is not None]
    sealed = _sealed_lines(files, source, sealed_places)
    waiting: Iterator[bytes] = iter(())
    if len(sealed_places) < count:
        bound["limit"] = count - len(sealed_places)
        waiting = _waiting_lines(db, query, bound)
    lines: list[bytes] = []
    size = 0
    for place in places[:count]:
        line = next(waiting, None) if place is None else next(sealed)
        if line is None:
            break
        size += len(line)
        if lines and size > PORTION_BYTES_MAX:
            break
        lines.append(line)
    return lines, len(places) > len(lines)


def _waiting_lines(
    db: sqlite3.Connection, query: LogQuery, bound: dict[str, Any]
) -> Iterator[bytes]:
    """Yield the first waiting logs, as many as a portion holds but one at least."""
    direction = _direction(query)
    [rendered] = db.execute(
        f"""WITH found AS (
            SELECT us, seq, {SIZE} AS size FROM logs WHERE {_within(query, "run_id")}
            ORDER BY us {direction}, seq {direction} LIMIT :limit
        ), measured AS (
            SELECT us, seq, row_number() OVER so_far AS n, sum(size) OVER so_far AS bytes
            FROM found WINDOW so_far AS (
                ORDER BY us {direction}, seq {direction} ROWS UNBOUNDED PRECEDING)
        )
        SELECT group_concat(log, char(10)) FROM (
            SELECT {RENDER} AS log FROM measured m
            CROSS JOIN logs l ON l.client = :client AND l.us = m.us AND l.seq = m.seq
            CROSS JOIN series s ON s.id = l.series
            WHERE n = 1 OR bytes <= {PORTION_BYTES_MAX} ORDER BY n)""",
        bound,
    ).fetchone()
    return iter(rendered.encode().split(b"\n"))


def id_of(line: bytes) -> str:
    """Return the id of a rendered log, the first thing in it."""
    return line[_ID_AT : _ID_AT + ID_LENGTH].decode()


# Where texts decide: waiting logs and sealed ones apart, since only these have words to go by.


def _read_waiting(files: Files, query: LogQuery, source: _Source) -> _Part:
    """Look into the texts of one waiting log after the other."""
    db = files.db(source.day)
    may = may_match(query)
    direction = _direction(query)

    def step(bound: dict[str, Any], limit: int) -> _Step:
        keys, texts = db.execute(
            f"""SELECT json_group_array(json_array(us, seq)), group_concat(replace(
                coalesce(message, '') || ' ' || coalesce(error, '') || ' ' ||
                coalesce(metadata, ''), char(10), ' '), char(10))
            FROM (SELECT us, seq, message, error, metadata FROM logs
                WHERE {_within(query, "run_id")}
                ORDER BY us {direction}, seq {direction}
                LIMIT {_limit_bytes(db, query, bound, limit)})""",
            bound,
        ).fetchone()
        places = json.loads(keys)
        if not places:
            return _Step(None, iter(()))
        texts = texts.encode().split(b"\n")
        chosen = [place for place, text in zip(places, texts, strict=True) if may(text)]
        logs = _rendered(files, source, bound, chosen, direction)
        return _Step(places[-1], _matching(query, logs))

    return _search(query, source, step)


def _limit_bytes(db: sqlite3.Connection, query: LogQuery, bound: dict[str, Any], limit: int) -> int:
    """Return so many logs, or fewer where they are large. A sum for each would cost thrice this."""
    direction = _direction(query)
    while limit > 1:
        [size] = db.execute(
            f"""SELECT sum(size) FROM (
                SELECT {SIZE} AS size FROM logs WHERE {_within(query, "run_id")}
                ORDER BY us {direction}, seq {direction} LIMIT {limit})""",
            bound,
        ).fetchone()
        if size is None or size <= STEP_BYTES_MAX:
            break
        limit = max(1, limit * STEP_BYTES_MAX // (2 * size))
    return limit


def _rendered(
    files: Files, source: _Source, bound: dict[str, Any], places: list[Any], direction: str
) -> Iterator[bytes]:
    """Yield waiting logs, rendered some at a time: the first few may be all that is needed."""
    for at in range(0, len(places), RENDERED_STEP):
        db = files.db(source.day)  # each time, as in _sealed_lines
        [rendered] = db.execute(
            f"""SELECT group_concat(log, char(10)) FROM (
                SELECT {RENDER} AS log
                FROM json_each(:places) p
                CROSS JOIN logs l ON l.client = :client AND l.us = p.value ->> 0
                    AND l.seq = p.value ->> 1
                CROSS JOIN series s ON s.id = l.series
                ORDER BY l.us {direction}, l.seq {direction})""",
            {**bound, "places": json.dumps(places[at : at + RENDERED_STEP])},
        ).fetchone()
        yield from rendered.encode().split(b"\n")


def _read_sealed(files: Files, query: LogQuery, source: _Source) -> _Part:
    """Look into the blocks that hold all the words that a log must have."""
    db = files.db(source.day)
    blocks = _blocks_to_search(db, query, source)
    if not blocks:
        return _Part([], cut=False)
    may = may_match(query)
    if len(blocks) <= BLOCKS_STEP:
        unpacked = read_blocks(db, source.client, blocks).values()
        chosen = [log for lines in unpacked for log in lines if may(log)]
        if len(chosen) <= FEW_LOGS:
            return _sealed_among(db, query, source, chosen)
    direction = _direction(query)

    def step(bound: dict[str, Any], limit: int) -> _Step:
        [keys] = db.execute(
            f"""SELECT json_group_array(json_array(us, seq, place)) FROM (
                SELECT us, seq, place FROM sealed
                WHERE {_within(query, "run")}
                    AND place >> {BLOCK_BITS} IN (SELECT value FROM json_each(:blocks))
                ORDER BY us {direction}, seq {direction} LIMIT {limit})""",
            {**bound, "blocks": json.dumps(blocks)},
        ).fetchone()
        rows = json.loads(keys)
        logs = _sealed_lines(files, source, [place for _, _, place in rows])
        last = (rows[-1][0], rows[-1][1]) if rows else None
        return _Step(last, _matching(query, filter(may, logs)))

    return _search(query, source, step)


def _blocks_to_search(db: sqlite3.Connection, query: LogQuery, source: _Source) -> list[int]:
    """Return the numbers of a client's blocks that may hold a log that matches."""
    first = source.client << CLIENT_SHIFT
    where, bound = _words_sql(query)
    found = db.execute(
        f"""SELECT json_group_array(id - :first) FROM words
        WHERE id BETWEEN :first AND :last AND last_us >= :low AND first_us <= :high {where}""",
        {
            **bound,
            "first": first,
            "last": first | (1 << CLIENT_SHIFT) - 1,
            "low": source.low[0],
            "high": source.high[0],
        },
    ).fetchone()
    return list(json.loads(found[0]))


def _words_sql(query: Selection) -> tuple[str, dict[str, bytes]]:
    """Return the condition of a block's words, and its values."""
    bound: dict[str, bytes] = {}

    def has(word: str) -> str:
        name = f"word_{len(bound)}"
        bound[name] = word_hash(word.encode())
        return f"instr(words, :{name})"

    def has_all(needed: frozenset[str]) -> str:
        telling = sorted(needed, key=len, reverse=True)[:WORDS_ASKED_MAX]
        return " AND ".join(map(has, telling)) or "1"

    where = "".join(
        f" AND ({' OR '.join(map(has_all, either)) or '0'})"
        for either in query.required_words()
        if len(either) <= CHOICES_ASKED_MAX
    )
    return where, bound


def _sealed_among(
    db: sqlite3.Connection, query: LogQuery, source: _Source, chosen: list[bytes]
) -> _Part:
    """Look at the texts first, and at the columns of those few logs whose texts match."""
    logs = dict(_matching(query, chosen))
    direction = _direction(query)
    keys = [(place.us, place.seq) for place in map(parse_id, logs) if place is not None]
    ids = db.execute(
        f"""SELECT group_concat({id_sql("l")}) FROM (
            SELECT us, seq FROM json_each(:keys) k
            CROSS JOIN sealed ON client = :client AND us = k.value ->> 0 AND seq = k.value ->> 1
            WHERE {_within(query, "run")} ORDER BY us {direction}, seq {direction}) l""",
        {**_values(query, source), "keys": json.dumps(keys)},
    ).fetchone()[0]
    return _Part([(id_, logs[id_]) for id_ in ids.split(",")] if ids else [], cut=False)


class _Step(NamedTuple):
    """The key of the last log that is looked at (None: there is none), and those that match."""

    last: Key | None
    logs: Iterator[tuple[str, str]]


def _search(
    query: LogQuery, source: _Source, step: Callable[[dict[str, Any], int], _Step]
) -> _Part:
    """Look at logs in order, at more and more of them at a time, until a page is full."""
    bound = _values(query, source)
    logs: list[tuple[str, str]] = []
    size = 0
    limit = STEP_LOGS_MIN
    while True:
        last, found = step(bound, limit)
        for log in found:
            size += len(log[1])
            if logs and (len(logs) == query.limit or size > PAGE_BYTES_MAX):
                return _Part(logs, cut=True)
            logs.append(log)
        if last is None:
            return _Part(logs, cut=False)
        us, seq = last
        if query.order == "desc":
            bound |= {"high_us": us, "high_seq": seq}
        else:
            bound |= {"low_us": us, "low_seq": seq + 1}
        limit = min(4 * limit, STEP_LOGS_MAX)


def may_match(query: Selection) -> Callable[[bytes], bool]:
    """Return what tells fast, of most logs' texts in UTF-8, that they don't match."""
    required = query.required_words()
    # Nearly always all: what follows is the innermost loop of a search.
    sure = [word for either in required if len(either) == 1 for word in either[0]]
    sure_plain = [word.encode() for word in sure]
    unsure = [either for either in required if len(either) > 1]

    def may(text: bytes) -> bool:
        if text.isascii():
            folded = text.lower()
            for word in sure_plain:
                if word not in folded:
                    return b"\\u" in text  # and behind it a letter, perhaps
            if not unsure:
                return True
        letters = fold(text.decode())
        return (
            all(word in letters for word in sure)
            and all(any(all(w in letters for w in one) for one in either) for either in unsure)
        ) or b"\\u" in text

    return may


def _matching(query: LogQuery, logs: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Yield the logs that do match."""
    for log in logs:
        parsed = parse_exactly(log)
        if query.matches_content(parsed):
            yield parsed["id"], log.decode()


# Which files, and how their parts come together.


def _nearest(sources: Iterable[_Source], *, descending: bool) -> list[_Source]:
    """Return sources in the order in which their first logs may be asked for."""
    return sorted(sources, key=lambda one: one.high if descending else one.low, reverse=descending)


def _sources(files: Files, query: LogQuery) -> Iterator[_Source]:
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
