"""The lasting file of usage: what days counted whose file is gone.

`usage.db` gets a day's rows, step by step, before its file is unlinked.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
