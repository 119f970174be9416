"""Sums of usage, from the day files and from the lasting one.

What the day files say counts, and of other days alone what is in the lasting file: so a day is
never counted twice, nor missed, wherever a crash falls between its fold and its unlink.
"""

import json
from collections.abc import Iterable
from typing import Any

from app.logs.query import MINUTES, UsageQuery, UsageRow
from app.sqlite import sqlite3

_GROUP = {"key": "key_id", "dataset": "dataset"}


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
