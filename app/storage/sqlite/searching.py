"""Searches: where texts decide. Waiting logs and sealed ones apart, for only these have words."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from app.logs.identity import parse_id
from app.logs.query import PAGE_BYTES_MAX, LogQuery
from app.logs.selection import Selection
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_BITS, WORD_BYTES, word_hash
from app.storage.sqlite.render import RENDER, SIZE, id_sql
from app.storage.sqlite.schema import CLIENT_SHIFT
from app.storage.sqlite.sieving import matcher, may_match, sieve
from app.storage.sqlite.sources import (
    BLOCKS_STEP,
    BOUNDS,
    Files,
    Key,
    Part,
    Source,
    conditions,
    direction_of,
    id_of,
    read_blocks,
    sealed_lines,
    source_values,
    within,
)

# Logs whose texts are looked at in one step: the first, and at most; and of texts that wait.
STEP_LOGS_MIN, STEP_LOGS_MAX = 256, 8192
STEP_BYTES_MAX = 8 * 1024**2
RENDERED_STEP = 64
# Logs within the bounds that are looked up each, rather than sought in their blocks.
FEW_LOGS = STEP_LOGS_MIN
# Of the words that a log must have, those that its block is asked for: more would tell little, and
# a statement can't be of any size.
WORDS_ASKED_MAX = 16
CHOICES_ASKED_MAX = 32


def read_waiting(files: Files, query: LogQuery, source: Source) -> Part:
    """Look into the texts of one waiting log after the other."""
    db = files.db(source.day)
    may, matches = may_match(query), matcher(query)
    direction = direction_of(query)

    def step(bound: dict[str, Any], limit: int) -> _Step:
        keys, texts = db.execute(
            f"""SELECT json_group_array(json_array(us, seq)), group_concat(replace(
                coalesce(message, '') || ' ' || coalesce(error, '') || ' ' ||
                coalesce(metadata, ''), char(10), ' '), char(10))
            FROM (SELECT us, seq, message, error, metadata FROM logs
                WHERE {within(query, "run_id")}
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
        return _Step(places[-1], filter(matches, logs))

    return _search(query, source, step)


def _limit_bytes(db: sqlite3.Connection, query: LogQuery, bound: dict[str, Any], limit: int) -> int:
    """Return so many logs, or fewer where they are large. A sum for each would cost thrice this."""
    direction = direction_of(query)
    while limit > 1:
        [size] = db.execute(
            f"""SELECT sum(size) FROM (
                SELECT {SIZE} AS size FROM logs WHERE {within(query, "run_id")}
                ORDER BY us {direction}, seq {direction} LIMIT {limit})""",
            bound,
        ).fetchone()
        if size is None or size <= STEP_BYTES_MAX:
            break
        limit = max(1, limit * STEP_BYTES_MAX // (2 * size))
    return limit


def _rendered(
    files: Files, source: Source, bound: dict[str, Any], places: list[Any], direction: str
) -> Iterator[bytes]:
    """Yield waiting logs, rendered some at a time: the first few may be all that is needed."""
    for at in range(0, len(places), RENDERED_STEP):
        db = files.db(source.day)  # each time, as in sealed_lines
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


def read_sealed(files: Files, query: LogQuery, source: Source) -> Part:
    """Look into the blocks that hold all the words that a log must have."""
    db = files.db(source.day)
    blocks, plain = _blocks_to_search(db, query, source)
    if not blocks:
        return Part([], cut=False)
    if len(blocks) <= BLOCKS_STEP and not _are_few(db, query, source):
        unpacked = read_blocks(db, source.client, blocks)
        logs = sieve(query, source, unpacked, plain)
        return _search(query, source, _among(files, query, source, logs), query.limit + 1)
    may, matches = may_match(query), matcher(query)
    direction = direction_of(query)

    def step(bound: dict[str, Any], limit: int) -> _Step:
        [keys] = db.execute(
            f"""SELECT json_group_array(json_array(us, seq, place)) FROM (
                SELECT us, seq, place FROM sealed
                WHERE {within(query, "run")}
                    AND place >> {BLOCK_BITS} IN (SELECT value FROM json_each(:blocks))
                ORDER BY us {direction}, seq {direction} LIMIT {limit})""",
            {**bound, "blocks": json.dumps(blocks)},
        ).fetchone()
        rows = json.loads(keys)
        logs = sealed_lines(files, source, [place for _, _, place in rows])
        last = (rows[-1][0], rows[-1][1]) if rows else None
        return _Step(last, filter(matches, filter(may, logs)))

    return _search(query, source, step)


def _blocks_to_search(
    db: sqlite3.Connection, query: LogQuery, source: Source
) -> tuple[list[int], list[int]]:
    """Return the numbers of a client's blocks that may hold a log that matches.

    And those of them in which every ASCII word stands plainly, as `pack_words` has marked them.
    """
    first = source.client << CLIENT_SHIFT
    where, bound = _words_sql(query)
    found = db.execute(
        f"""SELECT json_group_array(id - :first),
            json_group_array(id - :first) FILTER (WHERE length(words) % {WORD_BYTES} = 1)
        FROM words
        WHERE id BETWEEN :first AND :last AND last_us >= :low AND first_us <= :high {where}""",
        {
            **bound,
            "first": first,
            "last": first | (1 << CLIENT_SHIFT) - 1,
            "low": source.low[0],
            "high": source.high[0],
        },
    ).fetchone()
    blocks, plain = map(json.loads, found)
    return blocks, plain


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


def _are_few(db: sqlite3.Connection, query: LogQuery, source: Source) -> bool:
    """Say whether so few sealed logs stand within the bounds that the index tells them best."""
    [count] = db.execute(
        f"""SELECT count(*) FROM (
            SELECT 1 FROM sealed WHERE {BOUNDS} LIMIT {FEW_LOGS + 1})""",
        source_values(query, source),
    ).fetchone()
    return bool(count <= FEW_LOGS)


def _among(
    files: Files, query: LogQuery, source: Source, logs: Iterable[bytes]
) -> Callable[[dict[str, Any], int], "_Step"]:
    """Look at logs that may match, some at a time: at their texts, and what the index says of them.

    First at what tells more. Without filters of columns the index knows only which were erased.
    """
    matches = matcher(query)
    # A line begins with its id, in the order of which logs are read.
    left = iter(sorted(logs, reverse=query.order == "desc"))
    if is_by_text := not conditions(query, "run"):
        left = filter(matches, left)
    direction = direction_of(query)

    def step(bound: dict[str, Any], limit: int) -> _Step:
        lines = {id_of(line): line for line in islice(left, limit)}
        keys = [(place.us, place.seq) for place in map(parse_id, lines) if place is not None]
        if not keys:
            return _Step(None, iter(()))
        db = files.db(source.day)  # each time, as in sealed_lines
        [ids] = db.execute(
            f"""SELECT json_group_array({id_sql("l")}) FROM (
                SELECT us, seq FROM json_each(:keys) k
                CROSS JOIN sealed ON client = :client AND us = k.value ->> 0 AND seq = k.value ->> 1
                WHERE {within(query, "run")} ORDER BY us {direction}, seq {direction}) l""",
            {**bound, "keys": json.dumps(keys)},
        ).fetchone()
        there = [lines[id_] for id_ in json.loads(ids)]
        return _Step(keys[-1], iter(there) if is_by_text else filter(matches, there))

    return step


class _Step(NamedTuple):
    """The key of the last log that is looked at (None: there is none), and those that match."""

    last: Key | None
    logs: Iterator[bytes]


def _search(
    query: LogQuery,
    source: Source,
    step: Callable[[dict[str, Any], int], _Step],
    limit: int = STEP_LOGS_MIN,
) -> Part:
    """Look at logs in order, at more and more of them at a time, until a page is full."""
    bound = source_values(query, source)
    logs: list[tuple[str, str]] = []
    size = 0
    while True:
        last, found = step(bound, limit)
        for log in found:
            text = log.decode()
            size += len(text)
            if logs and (len(logs) == query.limit or size > PAGE_BYTES_MAX):
                return Part(logs, cut=True)
            logs.append((id_of(log), text))
        if last is None:
            return Part(logs, cut=False)
        us, seq = last
        if query.order == "desc":
            bound |= {"high_us": us, "high_seq": seq}
        else:
            bound |= {"low_us": us, "low_seq": seq + 1}
        limit = min(4 * limit, STEP_LOGS_MAX)
