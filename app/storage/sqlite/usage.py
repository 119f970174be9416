"""Usage: counted in each day's file, and in a lasting one for days whose file is gone.

`usage.db` gets a day's rows, step by step, before its file is unlinked. Whoever sums up takes what
the day files say, and of other days alone what is there: so a day is never counted twice, nor
missed, wherever a crash falls in between.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from app.logs.query import MINUTES, UsageQuery, UsageRow
from app.sqlite import sqlite3
from app.storage.sqlite.schema import PRAGMAS, create_whole

LASTING_NAME = "usage.db"
# Of one step: 15 ms, for which the others wait.
FOLD_ROWS_MAX = 5000

_CREATE = """
    CREATE TABLE usage (
        day INTEGER NOT NULL, client_id TEXT NOT NULL, minute INTEGER NOT NULL,
        key_id TEXT NOT NULL, dataset TEXT NOT NULL, requests INTEGER NOT NULL,
        logs INTEGER NOT NULL, bytes INTEGER NOT NULL, rejected INTEGER NOT NULL,
        denied INTEGER NOT NULL, PRIMARY KEY (day, client_id, minute, key_id, dataset)
    ) WITHOUT ROWID"""
_COUNTS = "requests, logs, bytes, rejected, denied"
_STEP = f"""
    SELECT client, minute, key_id, dataset, client_id, {_COUNTS}
    FROM usage u JOIN clients c ON c.id = u.client
    WHERE (client, minute, key_id, dataset) > (?, ?, ?, ?)
    ORDER BY client, minute, key_id, dataset LIMIT {FOLD_ROWS_MAX}"""
_GROUP = {"key": "key_id", "dataset": "dataset"}

UsagePlace = tuple[int, int, str, str]
START: UsagePlace = (-1, 0, "", "")


def read_step(db: sqlite3.Connection, after: UsagePlace) -> list[tuple[Any, ...]]:
    """Return a day file's next rows after a place."""
    return db.execute(_STEP, after).fetchall()


def fold(directory: Path, day: int, rows: list[tuple[Any, ...]]) -> UsagePlace | None:
    """Write a step's rows into the lasting file, on disk; return where to go on, None at the end.

    Rows that are there already are replaced: they only ever grow.
    """
    if rows:
        _write(directory, [(day, row[4], *row[1:4], *row[5:]) for row in rows])
    return rows[-1][:4] if len(rows) == FOLD_ROWS_MAX else None


def _write(directory: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    path = directory / LASTING_NAME
    if not path.exists():
        create_whole(path, (_CREATE,))
    lasting = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in PRAGMAS:
            lasting.execute(pragma)
        lasting.execute("BEGIN IMMEDIATE")
        lasting.executemany("INSERT OR REPLACE INTO usage VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
        lasting.execute("COMMIT")
    finally:
        lasting.close()


class UsageSums:
    """Adds up what a query asks for, from one file after the other."""

    def __init__(self, query: UsageQuery) -> None:
        minutes = MINUTES.get(query.group_by)
        self._group = f"minute - minute % {minutes}" if minutes else _GROUP[query.group_by]
        where = ["1"]
        if query.client_id is not None:
            where.append("client_id = :client_id")
        if query.start_minute is not None:
            where.append("minute >= :start")
        if query.end_minute is not None:
            where.append("minute < :end")
        if query.datasets is not None:
            where.append("dataset IN (SELECT value FROM json_each(:datasets))")
        self._where = " AND ".join(where)
        self._values = {
            "client_id": query.client_id,
            "start": query.start_minute,
            "end": query.end_minute,
            "datasets": json.dumps(sorted(query.datasets or ())),
        }
        self._sums: dict[tuple[str, Any], list[int]] = {}

    def add_day(self, db: sqlite3.Connection) -> None:
        """Add what a day file counts."""
        self._add(db, "usage u JOIN clients c ON c.id = u.client", self._where)

    def add_lasting(self, db: sqlite3.Connection, days: Iterable[int]) -> None:
        """Add what the lasting file counts of other days than these."""
        self._values["days"] = json.dumps(list(days))
        others = "day NOT IN (SELECT value FROM json_each(:days))"
        self._add(db, "usage", f"{others} AND {self._where}")

    def _add(self, db: sqlite3.Connection, source: str, where: str) -> None:
        rows = db.execute(
            f"""SELECT client_id, {self._group}, sum(requests), sum(logs), sum(bytes),
                sum(rejected), sum(denied)
            FROM {source} WHERE {where} GROUP BY 1, 2""",
            self._values,
        )
        for client_id, name, *counts in rows.fetchall():
            total = self._sums.setdefault((client_id, name), [0] * len(counts))
            total[:] = [a + b for a, b in zip(total, counts, strict=True)]

    def rows(self) -> list[UsageRow]:
        """Return the sums, in the order of their groups."""
        return [UsageRow(*key, tuple(counts)) for key, counts in sorted(self._sums.items())]
