"""Portions of an export: the lines of pages, without an id and a size for each log."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from app.logs.query import PORTION_BYTES_MAX, PORTION_LOGS_MAX, LogQuery, Portion
from app.sqlite import sqlite3
from app.storage.sqlite.pages import read_part
from app.storage.sqlite.render import RENDER, SIZE
from app.storage.sqlite.searching import FEW_LOGS
from app.storage.sqlite.sources import (
    Files,
    Source,
    direction_of,
    id_of,
    nearest,
    sealed_lines,
    source_values,
    sources_of,
    within,
)

_decode_places = msgspec.json.Decoder(list[int | None]).decode


def read_portion(files: Files, query: LogQuery) -> Portion:
    """Return the next logs of an export: those of pages, at a fraction of their cost.

    Where one file alone has the next logs, and columns alone decide, they need no merging.
    """
    query = replace(query, limit=PORTION_LOGS_MAX)
    descending = query.order == "desc"
    sources = nearest(sources_of(files, query), descending=descending)
    if not sources:
        return Portion(b"")
    first, *others = sources
    if not query.reads_content:
        alone = _alone(first, others[0], descending=descending) if others else first
        lines, cut = _read_lines(files, query, alone)
        if cut or not others or len(lines) >= FEW_LOGS:
            more = cut or bool(others)
            return Portion(b"\n".join((*lines, b"")), id_of(lines[-1]) if more else None)
    part = read_part(files, query)
    text = "".join(f"{log}\n" for _, log in part.logs)
    return Portion(text.encode(), part.logs[-1][0] if part.cut else None)


def _alone(source: Source, next_one: Source, *, descending: bool) -> Source:
    """Narrow the nearest source to what stands before all logs of the next one."""
    if descending:
        us, seq = next_one.high
        return source._replace(low=max(source.low, (us + (seq > 0), 0)))
    return source._replace(high=min(source.high, (next_one.low[0], 0)))


def _read_lines(files: Files, query: LogQuery, source: Source) -> tuple[list[bytes], bool]:
    """Return the first logs of a source, and whether more follow."""
    db = files.db(source.day)
    bound = source_values(query, source)
    direction = direction_of(query)
    waiting_where, sealed_where = (within(query, run) for run in ("run_id", "run"))
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
    sealed = sealed_lines(files, source, sealed_places)
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
    direction = direction_of(query)
    [rendered] = db.execute(
        f"""WITH found AS (
            SELECT us, seq, {SIZE} AS size FROM logs WHERE {within(query, "run_id")}
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
