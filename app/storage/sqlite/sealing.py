"""Sealing: what makes blocks of a client's logs, so that they take a third of the room.

The newest logs of each client stay as they were written, which is fast to write but large, and has
no words to search by. A read looks at both, in one snapshot: nothing is ever missing or twice.
"""

from collections.abc import Iterator
from math import inf
from statistics import median
from typing import NamedTuple

import msgspec

from app.logs.aggregation import countable_ms
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_BYTES_MAX, BLOCK_LOGS, pack, pack_words, run_hash
from app.storage.sqlite.render import RENDER, SIZE
from app.storage.sqlite.wire import Block, Head, Seal

# Logs of one client that may wait: a search reads each of them, in some milliseconds.
WAITING_LOGS = 1024
# So many wait for more of their time, where they stray far from the others. A block of strays
# would be in the way of every page from there to here; thousands of them make better blocks.
WAITING_STRAYS = 2048
# A block is one of strays if it spans so many times the time that the middle one does.
STRAYING = 4
# One message to the writer, and one stop of its work: 5 ms.
SEAL_LOGS = 4 * BLOCK_LOGS
SEAL_BYTES = BLOCK_BYTES_MAX
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
        group_concat(log, char(10)), group_concat(coalesce(message, ''), char(10)),
        group_concat(coalesce(error, '') || char(10) || coalesce(metadata, ''), char(10))
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


def build_seals(
    db: sqlite3.Connection, day: int, client: Client, span_us_max: float = inf
) -> Iterator[Seal]:
    """Make blocks of the logs of a client that wait now, but for blocks of a longer time."""
    values = {"client": client.number, "client_id": client.client_id, "day": day}
    last = (-(1 << 62), 0)
    seal = Seal(0, day, client.number, [], [])
    hours: dict[tuple[int, int], list[float]] = {}
    while True:
        rows, logs, messages, contents = db.execute(
            _READ, {**values, "us": last[0], "seq": last[1]}
        ).fetchone()
        decoded = _decode_rows(rows)
        heads = [_head(*row[:-1]) for row in decoded]
        if heads:
            last = heads[-1][:2]
        if heads and last[0] - heads[0][0] <= span_us_max:
            words = pack_words(messages.split("\n"), contents.split("\n"))
            commit_nos = [row[-1] for row in decoded]
            packed = pack(logs, commit_nos)
            seal.blocks.append(Block(heads, packed, words, max(commit_nos), min(commit_nos)))
            _add_hours(hours, heads)
        if not heads or _is_full(seal):
            if seal.blocks:
                seal.hours = [(*key, *sums) for key, sums in hours.items()]  # type: ignore[misc]
                yield seal
            if not heads:
                return
            seal, hours = Seal(0, day, client.number, [], []), {}


def _is_full(seal: Seal) -> bool:
    return (
        sum(len(block.heads) for block in seal.blocks) >= SEAL_LOGS
        or sum(len(block.logs) + len(block.words) for block in seal.blocks) >= SEAL_BYTES
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
