"""Pages of logs from day files, rendered by SQL or cut from sealed blocks.

A page comes from sources, each with the bounds of its logs: a day file, in which one statement
finds the places of a page; or, where a log's texts decide, the waiting logs of a file and the
sealed ones in those blocks that hold the words sought. Sources are read nearest first, until no
other one can hold a log of the page.
"""

from collections.abc import Iterator
from heapq import merge
from operator import itemgetter

from app.logs.identity import Position
from app.logs.query import PAGE_BYTES_MAX, LogQuery, Page
from app.storage.sqlite.render import RENDER, SERIES_SIZE, SIZE, id_sql
from app.storage.sqlite.searching import read_sealed, read_waiting
from app.storage.sqlite.sources import (
    Files,
    Part,
    Source,
    direction_of,
    is_beyond,
    nearest,
    sealed_lines,
    source_values,
    sources_of,
    up_to,
    within,
)


def read_page(files: Files, query: LogQuery) -> Page:
    """Return a page, newest first or oldest first."""
    part = read_part(files, query)
    return Page(",".join(log for _, log in part.logs), part.logs[-1][0] if part.cut else None)


def read_part(files: Files, query: LogQuery) -> Part:
    """Return the logs of a page."""
    descending = query.order == "desc"
    part = Part([], cut=False)
    readers = (read_waiting, read_sealed) if query.reads_content else (_read_file,)
    for source in nearest(sources_of(files, query), descending=descending):
        # They come by their nearest edge: once one can't improve on the last log of a full page,
        # none after it can.
        if part.cut and is_beyond(source, part.logs[-1][0], descending=descending):
            break
        for read in readers:
            if part.cut:
                source = up_to(source, part.logs[-1][0], descending=descending)  # noqa: PLW2901
            part = _join(query, part, read(files, query, source))
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
    part = _read_file(files, query, Source(place.day, int(found[0]), low, high))
    return Page("".join(log for _, log in part.logs))


def _read_file(files: Files, query: LogQuery, source: Source) -> Part:
    db = files.db(source.day)
    bound = source_values(query, source)
    ids, logs, found = db.execute(_page_sql(query), bound).fetchone()
    if ids is None:
        return Part([], cut=False)
    rendered: list[tuple[str, str]] = []
    size = 0
    for id_, log in zip(ids.split("\n"), _filled(files, source, logs.split("\n")), strict=False):
        size += len(log)
        if rendered and size > PAGE_BYTES_MAX:
            break
        rendered.append((id_, log))
    return Part(rendered, cut=found > len(rendered))


def _page_sql(query: LogQuery) -> str:
    """Compose the statement of a page.

    It first finds the places of one log more than asked for, to know whether more follow, and
    then reads and renders as many of them as a page holds, but one at least. For a sealed log it
    gives the place in the blocks instead.
    """
    direction = direction_of(query)
    waiting, sealed = (within(query, run) for run in ("run_id", "run"))
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


def _filled(files: Files, source: Source, logs: list[str]) -> Iterator[str]:
    """Yield rendered logs, those in blocks fetched by their places."""
    places = [None if log[0] == "{" else int(log) for log in logs]
    sealed = sealed_lines(files, source, [place for place in places if place is not None])
    for log, place in zip(logs, places, strict=True):
        yield log if place is None else next(sealed).decode()


def _join(query: LogQuery, *parts: Part) -> Part:
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
            return Part(logs, cut=True)
        logs.append(log)
        if log[0] == end:
            break
    return Part(logs, cut=end is not None)
