"""The logs of a client in the order of their commits, for those who follow them.

A log is read where it is then: waiting as it was written, or sealed in a block, which tells the
first and the last commit of its logs.
"""

import json
import time
from typing import NamedTuple

import msgspec

from app.logs.identity import parse_id
from app.logs.place import (
    START,
    STREAM_BYTES_MAX,
    STREAM_LOGS_MAX,
    Following,
    Mark,
    Place,
    end_of_commit,
)
from app.logs.timestamp import US_PER_DAY
from app.sqlite import sqlite3
from app.storage.sqlite.erasing import find_left
from app.storage.sqlite.render import RENDER, SERIES_SIZE, SIZE
from app.storage.sqlite.schema import CLIENT_SHIFT
from app.storage.sqlite.sources import BLOCKS_STEP, Files, id_of, read_blocks

_Logs = list[tuple[Mark, str]]

_FIND_CLIENT = "SELECT id FROM clients WHERE client_id = ?"
_LAST_COMMIT = """
    SELECT max(coalesce((SELECT max(commit_no) FROM logs WHERE client = :client), -1),
        coalesce((SELECT max(last_commit_no) FROM words WHERE id BETWEEN :first AND :last), -1))"""
_WAITING = f"""
    WITH found AS (
        SELECT commit_no, us, seq, series, {SIZE} AS size FROM logs
        WHERE client = :client AND commit_no >= :commit_no
            AND (commit_no, us, seq) > (:commit_no, :us, :seq)
        ORDER BY commit_no, us, seq LIMIT :limit
    ), measured AS (
        SELECT commit_no, us, seq, row_number() OVER so_far AS n,
            sum(size + {SERIES_SIZE}) OVER so_far AS bytes
        FROM found f CROSS JOIN series s ON s.id = f.series
        WINDOW so_far AS (ORDER BY commit_no, us, seq ROWS UNBOUNDED PRECEDING)
    ), chosen AS (
        SELECT m.commit_no, m.us, m.seq, {RENDER} AS log
        FROM measured m
        CROSS JOIN logs l ON l.client = :client AND l.us = m.us AND l.seq = m.seq
        CROSS JOIN series s ON s.id = l.series
        WHERE n = 1 OR bytes <= {STREAM_BYTES_MAX} ORDER BY n
    )
    SELECT json_group_array(json_array(commit_no, us, seq)), group_concat(log, char(10)),
        (SELECT count(*) FROM found) FROM chosen"""  # the parts are constants
_BLOCKS = """
    SELECT json_group_array(json_array(id - :first, first_commit_no)) FROM (
        SELECT id, first_commit_no FROM words
        WHERE id BETWEEN :first AND :last AND last_commit_no >= :commit_no
        ORDER BY first_commit_no)"""
_decode_marks = msgspec.json.Decoder(list[Mark]).decode


class _Part(NamedTuple):
    """The first logs after a mark; where it is `cut`, more follow the last one."""

    logs: _Logs
    cut: bool


def read_now(files: Files, client_id: str) -> Place:
    """Return the place behind all logs of a client that are stored now."""
    days = files.days()
    day = max(days, default=time.time_ns() // 1000 // US_PER_DAY)
    marks = [
        _last_mark(files.db(one), client_id) if one in days else START for one in (day, day - 1)
    ]
    return Place(day, *marks)


def read_following(files: Files, client_id: str, after: Place, limit: int) -> Following:
    """Return a client's next logs after a place, oldest day first."""
    place = after
    logs: list[tuple[int, Mark, str]] = []
    size = 0
    limit = min(limit, STREAM_LOGS_MAX)
    for day in sorted(files.days()):
        mark = after.mark_of(day)
        if mark is None:
            continue
        if len(logs) >= limit:
            return Following(place, logs, more=True)
        part = _read_day(files.db(day), client_id, day, mark, limit - len(logs))
        for one, log in part.logs:
            size += len(log)
            if logs and size > STREAM_BYTES_MAX:
                return Following(place, logs, more=True)
            place = place.at(day, one)
            logs.append((day, one, log))
        if part.cut:
            return Following(place, logs, more=True)
    return Following(place, logs)


def _last_mark(db: sqlite3.Connection, client_id: str) -> Mark:
    client = _client(db, client_id)
    if client is None:
        return START
    return end_of_commit(db.execute(_LAST_COMMIT, _block_range(client)).fetchone()[0])


def _read_day(db: sqlite3.Connection, client_id: str, day: int, after: Mark, limit: int) -> _Part:
    client = _client(db, client_id)
    if client is None:
        return _Part([], cut=False)
    bound = {
        **_block_range(client),
        **after._asdict(),
        "client_id": client_id,
        "day": day,
        "limit": limit,
    }
    marks, texts, found = db.execute(_WAITING, bound).fetchone()
    places = _decode_marks(marks)
    waiting = list(zip(places, texts.split("\n") if places else (), strict=True))
    part = _Part(waiting, cut=found == limit or found > len(waiting))
    blocks: list[tuple[int, int]] = json.loads(db.execute(_BLOCKS, bound).fetchone()[0])
    while blocks:
        step, blocks = blocks[:BLOCKS_STEP], blocks[BLOCKS_STEP:]
        part = _join(part, _read_sealed(db, client, step, after), limit)
        if part.cut and blocks and part.logs[-1][0].commit_no < blocks[0][1]:
            break  # all that is in later blocks comes later
    return part


def _read_sealed(
    db: sqlite3.Connection, client: int, blocks: list[tuple[int, int]], after: Mark
) -> _Logs:
    logs = []
    for number, lines in read_blocks(db, client, [number for number, _ in blocks]).items():
        left = find_left(db, client, number)
        for at, commit_no in enumerate(lines.commit_nos):
            if (
                commit_no < after.commit_no
                or not lines[at]
                or (left is not None and at not in left)
            ):
                continue
            line = lines[at]
            place = parse_id(id_of(line))
            assert place is not None  # noqa: S101  # the service's own
            mark = Mark(commit_no, place.us, place.seq)
            if mark > after:
                logs.append((mark, line.decode()))
    return logs


def _join(part: _Part, others: _Logs, limit: int) -> _Part:
    """Add logs to the first ones; nobody knows what follows the end of a part that was cut."""
    end = part.logs[-1][0] if part.cut else None
    logs: _Logs = []
    size = 0
    for log in sorted(part.logs + others):
        size += len(log[1])
        if logs and (len(logs) == limit or size > STREAM_BYTES_MAX):
            return _Part(logs, cut=True)
        logs.append(log)
        if log[0] == end:
            return _Part(logs, cut=True)
    return _Part(logs, cut=False)


def _client(db: sqlite3.Connection, client_id: str) -> int | None:
    found = db.execute(_FIND_CLIENT, (client_id,)).fetchone()
    return None if found is None else int(found[0])


def _block_range(client: int) -> dict[str, int]:
    first = client << CLIENT_SHIFT
    return {"client": client, "first": first, "last": first | (1 << CLIENT_SHIFT) - 1}
