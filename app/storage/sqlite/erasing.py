"""Erasing from a day file: the rows at once, the texts inside blocks when these are written anew.

A line of a sealed log can't be cut out of its block without packing it again, which is too slow for
the writer. So the log's row goes, and nothing finds the line any more; `stale` tells the sealer
which blocks to pack anew, with nothing in the place of the line. Deleting a row leaves its text in
a page that is free: those pages are given back to the system, and the log of writes is cut off,
when all blocks are done. Until then, and after a crash, `stale` tells that there is work left.
"""

import json
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

import msgspec

from app.logs.aggregation import DURATION_MS_MAX, countable_ms
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_BITS, BLOCK_LOGS, Lines, pack, words_of
from app.storage.sqlite.durations import Durations
from app.storage.sqlite.schema import CLIENT_SHIFT
from app.storage.sqlite.wire import Key, Rewrite

# Of one transaction: 10 ms, for which the others wait.
ERASE_ROWS_MAX = 1000
# Free pages given back to the system in one step.
SCRUB_PAGES = 256
# No number of a block: what stands for the rest of a client's file in `stale`.
WHOLE = (1 << CLIENT_SHIFT) - 1
US_PER_HOUR = 3600 * 1_000_000
# A sum of durations is added up anew rather than reduced once it is so much smaller than it was
# that the rounding of a float would show.
SUM_LOSS_MAX = 1000
PEAKS_MAX = 50_000

# The largest that a sum in `hours` was since it was added up, by (client, hour, series).
Peaks = dict[tuple[int, int, int], float]

_MARK = "INSERT INTO stale VALUES (?, 1) ON CONFLICT DO UPDATE SET erasures = erasures + 1"


def erase_logs(
    db: sqlite3.Connection, client: int, places: Sequence[Key], peaks: Peaks
) -> list[Key]:
    """Delete the logs at these places in the caller's transaction; return those that there were.

    `peaks` is the caller's to keep for the next call, or to empty if this one is rolled back.
    """
    bound = {"client": client, "places": msgspec.json.encode(places).decode()}
    waiting = db.execute(_select("logs", "l.us, l.seq"), bound).fetchall()
    columns = "l.us, l.seq, l.series, l.duration_ms, l.place"
    sealed = db.execute(_select("sealed", columns), bound).fetchall()
    for table, rows in (("logs", waiting), ("sealed", sealed)):
        db.executemany(
            f"DELETE FROM {table} WHERE client = ? AND us = ? AND seq = ?",
            [(client, row[0], row[1]) for row in rows],
        )
    _reduce_hours(db, client, sealed, peaks)
    for number in {row[4] >> BLOCK_BITS for row in sealed}:
        _mark_block(db, client, number)
    if waiting or sealed:
        mark_rest(db, client)
    return [(row[0], row[1]) for row in (*waiting, *sealed)]


def _select(table: str, columns: str) -> str:
    return f"""SELECT {columns} FROM json_each(:places) p CROSS JOIN {table} l
        ON l.client = :client AND l.us = p.value ->> 0 AND l.seq = p.value ->> 1"""


def erase_the_rest(db: sqlite3.Connection, client: int) -> bool:
    """Delete a client's dead letters, and some of the other rows; say whether more follow."""
    letters = db.execute("DELETE FROM rejected WHERE client = ?", (client,)).rowcount
    outcomes = db.execute(
        """DELETE FROM idempotency WHERE client = ?1 AND key IN (
            SELECT key FROM idempotency WHERE client = ?1 LIMIT ?2)""",
        (client, ERASE_ROWS_MAX),
    ).rowcount
    ids = forget_ids(db, client)
    if letters or outcomes or ids:
        mark_rest(db, client)
    return ERASE_ROWS_MAX in {outcomes, ids}


def forget_ids(db: sqlite3.Connection, client: int) -> int:
    """Forget some of a client's own ids of expired logs; return how many."""
    return db.execute(
        """DELETE FROM expired_ids WHERE client = ?1 AND external_id IN (
            SELECT external_id FROM expired_ids WHERE client = ?1 LIMIT ?2)""",
        (client, ERASE_ROWS_MAX),
    ).rowcount


def _reduce_hours(
    db: sqlite3.Connection, client: int, sealed: Iterable[Sequence[Any]], peaks: Peaks
) -> None:
    """Take logs that are gone out of the sums by the hour."""
    gone: dict[tuple[int, int], list[float]] = {}
    for us, _, series, duration_ms, _ in sealed:
        sums = gone.setdefault((us // US_PER_HOUR, series), [0, 0, 0.0])
        sums[0] += 1
        if duration_ms is not None:
            sums[1] += 1
            sums[2] += countable_ms(duration_ms)
    if len(peaks) > PEAKS_MAX:
        peaks.clear()
    inexact: dict[int, list[int]] = {}
    for (hour, series), (logs, durations, duration_ms) in gone.items():
        key = (client, hour, series)
        before = db.execute(
            f"SELECT logs, durations, duration_ms FROM hours {_OF_SERIES}", key
        ).fetchone()
        left = (before[0] - logs, before[1] - durations)
        if not left[0]:
            db.execute(f"DELETE FROM hours {_OF_SERIES}", key)
            peaks.pop(key, None)
            continue
        sum_left = before[2] - duration_ms if left[1] else 0.0
        # What is not known was of a writer before this one; it is added up once.
        peaks[key] = max(peaks.get(key, inf), before[2]) if left[1] else 0.0
        if not peaks[key] <= SUM_LOSS_MAX * sum_left and left[1]:
            inexact.setdefault(hour, []).append(series)
        db.execute(
            f"UPDATE hours SET logs = ?, durations = ?, duration_ms = ? {_OF_SERIES}",
            (*left, sum_left, *key),
        )
    for hour, some in inexact.items():
        for series, total in _sum_durations(db, client, hour, some):
            key = (client, hour, series)
            peaks[key] = total
            db.execute(f"UPDATE hours SET duration_ms = ? {_OF_SERIES}", (total, *key))


_OF_SERIES = "WHERE client = ? AND hour = ? AND series = ?"


def _sum_durations(
    db: sqlite3.Connection, client: int, hour: int, series: list[int]
) -> list[tuple[int, float]]:
    """Add up the durations that there are of some series in an hour."""
    return db.execute(
        f"""SELECT series, total(min(CAST(duration_ms AS REAL), {DURATION_MS_MAX!r})) FROM sealed
        WHERE client = ? AND us >= ? AND us < ?
            AND series IN (SELECT value FROM json_each(?)) GROUP BY series""",
        (client, hour * US_PER_HOUR, (hour + 1) * US_PER_HOUR, json.dumps(series)),
    ).fetchall()


def mark_rest(db: sqlite3.Connection, client: int) -> None:
    """Have what was deleted of a client beside blocks leave the file too."""
    db.execute(_MARK, (client << CLIENT_SHIFT | WHOLE,))


def _mark_block(db: sqlite3.Connection, client: int, number: int) -> None:
    """Delete a block of which nothing is left; have any other packed anew."""
    id_ = client << CLIENT_SHIFT | number
    if _lines_left(db, id_):
        db.execute(_MARK, (id_,))
        return
    for table in ("blocks", "words", "durations", "stale"):
        db.execute(f"DELETE FROM {table} WHERE id = ?", (id_,))


def _lines_left(db: sqlite3.Connection, id_: int, limit: int = 1) -> list[int]:
    """Return the numbers of lines in a block that belong to a log, `limit` of them at most."""
    [lines] = db.execute(
        """SELECT json_group_array(line) FROM (
            SELECT place & :mask AS line FROM words w
            CROSS JOIN sealed l ON l.client = :client AND l.us BETWEEN w.first_us AND w.last_us
            WHERE w.id = :id AND place >> :bits = :number LIMIT :limit)""",
        {
            "id": id_,
            "client": id_ >> CLIENT_SHIFT,
            "number": id_ & WHOLE,
            "bits": BLOCK_BITS,
            "mask": BLOCK_LOGS - 1,
            "limit": limit,
        },
    ).fetchone()
    return msgspec.json.decode(lines, type=list[int])


def find_left(db: sqlite3.Connection, client: int, number: int) -> set[int] | None:
    """Return the lines of a block that are left; None where all are that are not empty."""
    id_ = client << CLIENT_SHIFT | number
    if not db.execute("SELECT 1 FROM stale WHERE id = ?", (id_,)).fetchone():
        return None
    return set(_lines_left(db, id_, BLOCK_LOGS))


def find_stale(db: sqlite3.Connection) -> dict[int, int]:
    """Return what is left to do after erasures: how many have changed each block, or the rest."""
    return dict(db.execute("SELECT id, erasures FROM stale ORDER BY id").fetchall())


def build_rewrite(db: sqlite3.Connection, day: int, id_: int, erasures: int) -> Rewrite | None:
    """Pack a block anew, with nothing in the place of erased logs; None if it has gone."""
    found = db.execute(
        "SELECT logs, packed FROM blocks LEFT JOIN durations USING (id) WHERE id = ?", (id_,)
    ).fetchone()
    if found is None:
        return None
    block = Lines(found[0])
    left = set(_lines_left(db, id_, BLOCK_LOGS))
    lines = [block[at] if at in left else b"" for at in range(len(block))]
    words = words_of(filter(None, lines))
    durations = None if found[1] is None else Durations.unpack(found[1]).only(left).pack()
    return Rewrite(0, day, id_, erasures, pack(lines, list(block.commit_nos)), words, durations)


def rewrite_block(db: sqlite3.Connection, rewrite: Rewrite) -> bool:
    """Put a block in the place of the old one in the caller's transaction.

    False, and nothing is done, if there was another erasure meanwhile.
    """
    done = db.execute(
        "DELETE FROM stale WHERE id = ? AND erasures = ?", (rewrite.id, rewrite.erasures)
    ).rowcount
    if not done:
        return False
    db.execute("UPDATE blocks SET logs = ? WHERE id = ?", (rewrite.logs, rewrite.id))
    db.execute("UPDATE words SET words = ? WHERE id = ?", (rewrite.words, rewrite.id))
    db.execute("UPDATE durations SET packed = ? WHERE id = ?", (rewrite.durations, rewrite.id))
    return True


def forget_series(db: sqlite3.Connection) -> None:
    """Delete the names that no log has any more, of clients of which something was erased."""
    for (id_,) in db.execute("SELECT id FROM stale").fetchall():
        if id_ & WHOLE == WHOLE:
            db.execute(
                """DELETE FROM series WHERE client = ?1
                    AND id NOT IN (SELECT series FROM hours WHERE client = ?1)
                    AND id NOT IN (SELECT series FROM logs WHERE client = ?1)""",
                (id_ >> CLIENT_SHIFT,),
            )


def give_back_pages(db: sqlite3.Connection) -> bool:
    """Give some pages that are free back to the system; False once there are none.

    In a file of version 1 they stay, but hold nothing: see DayFile.
    """
    if not db.execute("PRAGMA auto_vacuum").fetchone()[0]:
        return False
    if not db.execute("PRAGMA freelist_count").fetchone()[0]:
        return False
    db.execute(f"PRAGMA incremental_vacuum({SCRUB_PAGES})").fetchall()
    return True


def cut_off_writes(db: sqlite3.Connection) -> bool:
    """Fold the log of writes into the file and empty it; False while readers stand in the way."""
    [before] = db.execute("PRAGMA busy_timeout").fetchone()
    db.execute("PRAGMA busy_timeout = 0")
    try:
        return bool(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
    except sqlite3.OperationalError:  # locked
        return False
    finally:
        db.execute(f"PRAGMA busy_timeout = {before}")
