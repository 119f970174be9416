"""Sealing: what makes blocks of a client's logs, so that they take a third of the room.

The newest logs of each client stay as they were written, which is fast to write but large, and has
no words to search by. A read looks at both, in one snapshot: nothing is ever missing or twice.

Logs are sealed in groups of neighbours, some blocks at a time, and within a group those of one
workflow and status lie together: a page of these unpacks a third of the blocks that it would have
to if each block held the logs of a time.
"""

from collections.abc import Iterator
from math import inf
from statistics import median
from typing import NamedTuple

import msgspec

from app.logs.aggregation import countable_ms
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_BYTES_MAX, BLOCK_LOGS, pack, run_hash, words_of
from app.storage.sqlite.durations import Durations
from app.storage.sqlite.render import RENDER, SIZE
from app.storage.sqlite.wire import Block, Head, Seal

# Logs of one client that may wait: a search reads each of them, in some milliseconds.
WAITING_LOGS = 1024
# So many wait for more of their time, where they stray far from the others. A block of strays
# would be in the way of every page from there to here; thousands of them make better blocks.
WAITING_STRAYS = 2048
# A block is one of strays if it spans so many times the time that the middle one does.
STRAYING = 4
# A group: one message to the writer, and one stop of its work of 5 ms.
SEAL_LOGS = 4 * BLOCK_LOGS
SEAL_BYTES = 2 * BLOCK_BYTES_MAX
US_PER_HOUR = 3600 * 1_000_000

_READ = f"""
    WITH head AS (
        SELECT us, seq, {SIZE} AS size FROM logs
        WHERE client = :client AND (us, seq) > (:us, :seq) ORDER BY us, seq LIMIT {BLOCK_LOGS}
    ), measured AS (
        SELECT us, seq, row_number() OVER so_far AS n, sum(size) OVER so_far AS bytes
        FROM head WINDOW so_far AS (ORDER BY us, seq ROWS UNBOUNDED PRECEDING)
    ), chosen AS (
        SELECT l.*, {RENDER} AS log
        FROM measured m
        CROSS JOIN logs l ON l.client = :client AND l.us = m.us AND l.seq = m.seq
        CROSS JOIN series s ON s.id = l.series
        WHERE n = 1 OR bytes <= {BLOCK_BYTES_MAX} ORDER BY n
    )
    SELECT json_group_array(
            json_array(us, seq, series, duration_ms, run_id, external_id, commit_no)),
        group_concat(log, char(10))
    FROM chosen"""  # the parts are constants

_decode_rows = msgspec.json.Decoder(
    list[tuple[int, int, int, int | float | str | None, str | None, str | None, int]]
).decode


class Client(NamedTuple):
    """A client as one day file knows it."""

    number: int
    client_id: str


def find_full(db: sqlite3.Connection, waiting_logs: int) -> list[Client]:
    """Return the clients of a day file with as many logs waiting to be sealed."""
    clients = db.execute("SELECT id, client_id FROM clients").fetchall()
    return [
        Client(*client)
        for client in clients
        if db.execute(
            "SELECT 1 FROM logs WHERE client = ? LIMIT 1 OFFSET ?", (client[0], waiting_logs - 1)
        ).fetchone()
    ]


def find_span(db: sqlite3.Connection, client: Client) -> float:
    """Return the time in us that a block of a client may span, so that strays are left to wait."""
    [found] = db.execute(
        """SELECT json_group_array(us) FROM (
            SELECT us FROM logs WHERE client = ? ORDER BY us, seq)""",
        (client.number,),
    ).fetchone()
    times = msgspec.json.decode(found, type=list[int])
    # Fewer than a block where logs have gone meanwhile.
    if not BLOCK_LOGS <= len(times) < WAITING_STRAYS:
        return inf
    return STRAYING * median(b - a for a, b in zip(times, times[BLOCK_LOGS - 1 :], strict=False))


class _Log(NamedTuple):
    """A log on its way into a block."""

    head: Head
    commit_no: int
    line: bytes


def build_seals(
    db: sqlite3.Connection,
    day: int,
    client: Client,
    span_us_max: float = inf,
    *,
    with_rest: bool = True,
) -> Iterator[Seal]:
    """Make blocks of the logs of a client that wait now, but for runs of a longer time.

    Without the rest, what would make a small block waits for more.
    """
    ranks = _ranks(db, client)
    group: list[_Log] = []
    size = 0
    for run in _runs(db, day, client):
        run_size = sum(len(log.line) for log in run)
        is_small = len(run) < BLOCK_LOGS and run_size < BLOCK_BYTES_MAX // 2
        if run[-1].head[0] - run[0].head[0] > span_us_max or (is_small and not with_rest):
            continue
        group += run
        size += run_size
        if len(group) >= SEAL_LOGS or size >= SEAL_BYTES:
            yield _seal(day, client, group, ranks)
            group, size = [], 0
    if group:
        yield _seal(day, client, group, ranks)


def _runs(db: sqlite3.Connection, day: int, client: Client) -> Iterator[list[_Log]]:
    """Yield the logs that wait in their order, as many at a time as a block may hold."""
    values = {"client": client.number, "client_id": client.client_id, "day": day}
    last = (-(1 << 62), 0)
    while True:
        rows, logs = db.execute(_READ, {**values, "us": last[0], "seq": last[1]}).fetchone()
        decoded = _decode_rows(rows)
        if not decoded:
            return
        lines = logs.encode().split(b"\n")
        yield [
            _Log(_head(*row[:-1]), row[-1], line) for row, line in zip(decoded, lines, strict=True)
        ]
        last = decoded[-1][:2]


def _ranks(db: sqlite3.Connection, client: Client) -> dict[int, int]:
    """Give the series of a client so far in the order in which they are to lie, by number."""
    [ids] = db.execute(
        """SELECT json_group_array(id) FROM (
            SELECT id FROM series WHERE client = ? ORDER BY workflow, status, id)""",
        (client.number,),
    ).fetchone()
    return {id_: rank for rank, id_ in enumerate(msgspec.json.decode(ids, type=list[int]))}


def _seal(day: int, client: Client, group: list[_Log], ranks: dict[int, int]) -> Seal:
    hours: dict[tuple[int, int], list[float]] = {}
    _add_hours(hours, [log.head for log in group])
    # In the order of their times within each; one that is new since comes first.
    by_series = sorted(group, key=lambda log: ranks.get(log.head[2], -1))
    return Seal(
        *(0, day, client.number),
        blocks=[_block(logs) for logs in _parts(by_series)],
        hours=[(*key, *sums) for key, sums in hours.items()],  # type: ignore[misc]
    )


def _parts(logs: list[_Log]) -> Iterator[list[_Log]]:
    """Cut logs into what a block may hold."""
    part: list[_Log] = []
    size = 0
    for log in logs:
        size += len(log.line)
        if part and (len(part) == BLOCK_LOGS or size > BLOCK_BYTES_MAX):
            yield part
            part, size = [], len(log.line)
        part.append(log)
    yield part


def _block(logs: list[_Log]) -> Block:
    lines = [log.line for log in logs]
    commit_nos = [log.commit_no for log in logs]
    heads = [log.head for log in logs]
    durations = Durations.of(
        (series, None if duration_ms is None else countable_ms(duration_ms))
        for _, _, series, duration_ms, _, _ in heads
    )
    return Block(
        *(heads, pack(lines, commit_nos), words_of(lines)),
        *(max(commit_nos), min(commit_nos), durations.pack()),
    )


def _head(  # noqa: PLR0913, PLR0917  # the columns
    us: int,
    seq: int,
    series: int,
    duration_ms: float | str | None,
    run_id: str | None,
    external_id: str | None,
) -> Head:
    run = None if run_id is None else run_hash(run_id)
    return us, seq, series, duration_ms, run, external_id


def _add_hours(hours: dict[tuple[int, int], list[float]], heads: list[Head]) -> None:
    for us, _, series, duration_ms, _, _ in heads:
        sums = hours.setdefault((us // US_PER_HOUR, series), [0, 0, 0.0])
        sums[0] += 1
        if duration_ms is not None:
            sums[1] += 1
            sums[2] += countable_ms(duration_ms)
