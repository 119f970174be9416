"""Writing one day file: batches in, receipts out, everything of a group in one transaction."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from app.logs.batch import (
    DAY_LETTER_BYTES_LEFT,
    DAY_LETTER_BYTES_MAX,
    DAY_LETTERS_LEFT,
    DAY_LETTERS_MAX,
    ROW_EXTERNAL_ID,
    ROW_SERIES,
    Batch,
    Receipt,
    Row,
    Series,
    StoredOutcome,
    UsageCounts,
    UsageKey,
    count_usage,
)
from app.logs.identity import format_id
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_BITS
from app.storage.sqlite.corruption import damage_named
from app.storage.sqlite.erasing import (
    Peaks,
    cut_off_writes,
    erase_logs,
    erase_the_rest,
    forget_series,
    give_back_pages,
    rewrite_block,
)
from app.storage.sqlite.expiring import expire, read_names
from app.storage.sqlite.lasting import START, UsagePlace, fold, read_step
from app.storage.sqlite.schema import (
    CACHE_TO_ASK,
    CACHE_TO_WRITE,
    CLIENT_SHIFT,
    COLUMNS,
    PRAGMAS,
    SCHEMA_VERSION,
    create_day,
    insert_sql,
)
from app.storage.sqlite.wire import Expire, Key, Name, Rewrite, Seal

IDEMPOTENCY_WINDOW_US = 24 * 3600 * 1_000_000
MS_PER_DAY = 24 * 3600 * 1000
# Beyond this many a names cache starts anew: it only saves look-ups. A series of longer texts
# together is looked up each time, since one of them may fill a body.
NAMES_MAX = 20_000
NAMES_LENGTH_MAX = 512
# Rows in one INSERT. Larger statements gain nothing and cost the statement cache.
CHUNK_ROWS = 100

# Pages given back to the system at a time, where so many are free and so large a part of the file:
# what a seal frees of logs of 2 KB. 1.5 ms.
VACUUM_PAGES = 256
FREE_PAGES_MAX = 1024
FREE_PART_MAX = 0.1

_SELECT_BY_EXTERNAL_ID = " UNION ALL ".join(
    f"""SELECT external_id, us, seq FROM {table}
    WHERE client = :client AND external_id IN (SELECT value FROM json_each(:asked))"""
    for table in ("logs", "sealed", "expired_ids")
)
_UPSERT_USAGE = """
    INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
        logs = logs + excluded.logs, bytes = bytes + excluded.bytes,
        rejected = rejected + excluded.rejected, denied = denied + excluded.denied"""


_ADD_HOUR = """
    INSERT INTO hours VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET logs = logs + excluded.logs,
        durations = durations + excluded.durations, duration_ms = duration_ms + excluded.duration_ms
"""
# Those beyond the newest that may be left.
_DROP_OLDEST_LETTERS = f"""
    DELETE FROM rejected WHERE client = ? AND seq <= (
        SELECT max(seq) FROM (
            SELECT seq, row_number() OVER newest AS n, sum(size) OVER newest AS bytes
            FROM rejected WHERE client = ?
            WINDOW newest AS (ORDER BY seq DESC ROWS UNBOUNDED PRECEDING))
        WHERE n > {DAY_LETTERS_LEFT} OR bytes > {DAY_LETTER_BYTES_LEFT})"""


class _GoneError(Exception):
    """A log that was to be sealed is not there any more."""


class DayFile:
    """The one writing connection to a day file. Any error leaves nothing of the group behind."""

    def __init__(self, path: Path, day: int, around: Callable[[int], Sequence["DayFile"]]) -> None:
        """Open or create the file; days `around` it are asked for record ids already stored."""
        if not path.exists():
            create_day(path)
        self.day = day
        self._around = around
        self._inode = path.stat().st_ino
        self._db = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        self._clients: dict[str, int] = {}
        self._series: dict[tuple[int, Series], int] = {}
        self._letters: dict[int, tuple[int, int]] = {}  # of a client: how many, and their bytes
        self._peaks: Peaks = {}
        self._folded: UsagePlace | None = START  # how far its usage is in the lasting file
        self._written = False
        try:
            with damage_named(day, self._inode):
                for pragma in PRAGMAS:
                    self._db.execute(pragma)
                if not self._db.execute("PRAGMA auto_vacuum").fetchone()[0]:
                    # Of version 1: it can't give back its free pages, so nothing may stay in them.
                    self._db.execute("PRAGMA secure_delete = ON").fetchall()
                [(self._has_external_ids, self._commit_no)] = self._db.execute(
                    """SELECT EXISTS (SELECT 1 FROM logs WHERE external_id IS NOT NULL)
                        OR EXISTS (SELECT 1 FROM sealed WHERE external_id IS NOT NULL)
                        OR EXISTS (SELECT 1 FROM expired_ids),
                    max(coalesce((SELECT max(commit_no) FROM logs), 0),
                        coalesce((SELECT max(last_commit_no) FROM words), 0))"""
                ).fetchall()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Fold the log of writes into the file and let go of it."""
        self._db.close()

    def rest(self) -> None:
        """Give back the memory that only a file being written needs."""
        if self._written:
            self._db.execute(CACHE_TO_ASK)
            self._written = False

    def try_write(self) -> None:
        """Commit a write that changes nothing; raise sqlite3.Error if the disk takes none."""
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def commit(self, batches: Sequence[Batch]) -> list[Receipt]:
        """Store a group of batches in one transaction with one fsync.

        Raises sqlite3.Error; then nothing of the group is stored.
        """
        with self._transaction():
            # Of the clock, in ms of the day: never one again of which the logs have been erased.
            now = time.time_ns() // 10**6 - self.day * MS_PER_DAY
            self._commit_no = max(self._commit_no + 1, now)
            self._folded = START
            return self._store(batches)

    def seal(self, seal: Seal) -> bool:
        """Replace logs by blocks of them; False, and nothing is done, if one has gone meanwhile.

        Raises sqlite3.Error; then nothing is done either.
        """
        try:
            with self._transaction():
                self._seal(seal)
        except _GoneError:
            return False
        self._give_back()
        return True

    def erase(self, client_id: str, places: Sequence[Key]) -> list[Key]:
        """Delete the logs at these places; return those that there were. Raises sqlite3.Error."""
        with self._transaction():
            client = self._client_if_known(client_id)
            return [] if client is None else erase_logs(self._db, client, places, self._peaks)

    def erase_the_rest(self, client_id: str) -> bool:
        """Delete dead letters and idempotency rows; say whether more follow."""
        with self._transaction():
            client = self._client_if_known(client_id)
            self._letters.clear()
            return client is not None and erase_the_rest(self._db, client)

    def expire(self, asked: Expire) -> tuple[list[Key], bool]:
        """Delete what has expired; return the places of logs, and whether more ids follow."""
        with self._transaction():
            client = self._client_if_known(asked.client_id)
            self._letters.clear()
            return ([], False) if client is None else expire(self._db, client, asked, self._peaks)

    def names(self) -> list[Name]:
        """Tell whose logs and rejected records there may be."""
        with damage_named(self.day, self._inode):
            return read_names(self._db)

    def fold(self, directory: Path) -> bool:
        """Copy some of the usage to the lasting file; say whether all of it is there."""
        if self._folded is not None:
            with damage_named(self.day, self._inode):
                rows = read_step(self._db, self._folded)
            self._folded = fold(directory, self.day, rows)
        return self._folded is None

    def rewrite(self, rewrite: Rewrite) -> bool:
        """Put a block in the place of an old one; False if that has changed meanwhile."""
        with self._transaction():
            return rewrite_block(self._db, rewrite)

    def scrub(self, stale: dict[int, int]) -> bool:
        """Do one step of what is left of erasures when the blocks are done; say if it was the last.

        It isn't while readers need the log of writes.
        """
        if give_back_pages(self._db):
            return False
        with self._transaction():
            self._series.clear()
            forget_series(self._db)
        if not cut_off_writes(self._db):
            return False
        with self._transaction():
            self._db.executemany(
                "DELETE FROM stale WHERE id = ? AND erasures = ?", list(stale.items())
            )
        return True

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if not self._written:
            self._db.execute(CACHE_TO_WRITE)
            self._written = True
        try:
            with damage_named(self.day, self._inode):
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
        except BaseException:
            self._clients.clear()  # the ids given in this transaction go with it
            self._series.clear()
            self._letters.clear()
            self._peaks.clear()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _seal(self, seal: Seal) -> None:
        client, first = seal.client, seal.client << CLIENT_SHIFT
        found = self._db.execute(
            "SELECT max(id) FROM blocks WHERE id BETWEEN ? AND ?",
            (first, first | (1 << CLIENT_SHIFT) - 1),
        ).fetchone()
        number = 0 if found[0] is None else found[0] - first + 1
        before = self._db.total_changes
        self._db.executemany(
            "DELETE FROM logs WHERE client = ? AND us = ? AND seq = ?",
            [(client, head[0], head[1]) for block in seal.blocks for head in block.heads],
        )
        if self._db.total_changes - before != sum(len(block.heads) for block in seal.blocks):
            raise _GoneError
        for at, block in enumerate(seal.blocks, number):
            heads, id_ = block.heads, first | at
            self._db.executemany(
                "INSERT INTO sealed VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(client, *head, at << BLOCK_BITS | line) for line, head in enumerate(heads)],
            )
            self._db.execute("INSERT INTO blocks VALUES (?, ?)", (id_, block.logs))
            times = (min(head[0] for head in heads), max(head[0] for head in heads))
            self._db.execute(
                "INSERT INTO words VALUES (?, ?, ?, ?, ?, ?)",
                (id_, *times, block.last_commit_no, block.words, block.first_commit_no),
            )
            self._db.execute(
                "INSERT INTO durations VALUES (?, ?, ?, ?)", (id_, *times, block.durations)
            )
        self._db.executemany(_ADD_HOUR, [(client, *hour) for hour in seal.hours])

    def _give_back(self) -> None:
        """Give the system some of the pages that are free, if they are many."""
        free = self._db.execute("PRAGMA freelist_count").fetchone()[0]
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        if free > max(FREE_PAGES_MAX, FREE_PART_MAX * pages):
            self._db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()

    def _store(self, batches: Sequence[Batch]) -> list[Receipt]:
        receipts = []
        flat: list[Any] = []
        usage: dict[UsageKey, UsageCounts] = {}
        # Ids of this group whose rows are still in `flat`, where SQL can't see them.
        fresh: dict[tuple[int, str], str] = {}
        for batch in batches:
            client = self._client(batch.client_id)
            rows, receipt = self._without_duplicates(client, batch, fresh)
            series = [self._series_id(client, one) for one in batch.series]
            for row in rows:
                flat.append(client)
                flat += row
                flat.append(self._commit_no)
            # Each row brought its batch's own number of the series, at a fixed stride.
            start, stride = len(flat) - len(rows) * len(COLUMNS) + 1 + ROW_SERIES, len(COLUMNS)
            flat[start::stride] = [series[place] for place in flat[start::stride]]
            count_usage(usage, batch, rows)
            if batch.idempotency is not None:
                self._remember(client, batch, receipt)
            if batch.dead_letters:
                self._keep(client, batch)
            receipts.append(receipt)
        self._insert(flat)
        self._db.executemany(
            _UPSERT_USAGE,
            [
                (self._client(client_id), minute, key_id, dataset, *counts)
                for (minute, client_id, key_id, dataset), counts in usage.items()
            ],
        )
        return receipts

    def _insert(self, flat: list[Any]) -> None:
        width = CHUNK_ROWS * len(COLUMNS)
        whole = len(flat) - len(flat) % width
        for at in range(0, whole, width):
            self._db.execute(insert_sql(CHUNK_ROWS), flat[at : at + width])
        if whole < len(flat):
            self._db.execute(insert_sql((len(flat) - whole) // len(COLUMNS)), flat[whole:])

    def _without_duplicates(
        self, client: int, batch: Batch, fresh: dict[tuple[int, str], str]
    ) -> tuple[list[Row], Receipt]:
        sent = {row[ROW_EXTERNAL_ID] for row in batch.rows}
        sent.discard(None)
        if not sent:
            return batch.rows, Receipt()
        asked = msgspec.json.encode(list(sent)).decode()
        stored = dict(
            chain.from_iterable(
                day.find_external_ids(batch.client_id, asked)
                for day in (*self._around(self.day), self)
            )
        )
        self._has_external_ids = True
        kept = []
        duplicate_id = None
        for row in batch.rows:
            external_id = row[ROW_EXTERNAL_ID]
            if external_id is not None:
                known = stored.get(external_id) or fresh.get((client, external_id))
                if known is not None:
                    duplicate_id = duplicate_id or known
                    continue
                fresh[client, external_id] = format_id(row[0], batch.day, row[1])
            kept.append(row)
        return kept, Receipt(len(batch.rows) - len(kept), duplicate_id)

    def find_external_ids(self, client_id: str, asked: str) -> list[tuple[str, str]]:
        """Return (external_id, id) of those of a JSON array of ids that this day holds."""
        if not self._has_external_ids:
            return []
        client = self._client_if_known(client_id)
        if client is None:
            return []
        values = {"client": client, "asked": asked}
        with damage_named(self.day, self._inode):
            found = self._db.execute(_SELECT_BY_EXTERNAL_ID, values).fetchall()
        return [(external_id, format_id(us, self.day, seq)) for external_id, us, seq in found]

    def find_outcome(self, client_id: str, key: str) -> StoredOutcome | None:
        """Return what an Idempotency-Key led to in the last 24 h."""
        client = self._client_if_known(client_id)
        with damage_named(self.day, self._inode):
            found = self._db.execute(
                """SELECT digest, outcome, duplicates, duplicate_id FROM idempotency
                WHERE client = ? AND key = ? AND created_us > ?""",
                (client, _key_digest(key), time.time_ns() // 1000 - IDEMPOTENCY_WINDOW_US),
            ).fetchone()
        if found is None:
            return None
        return StoredOutcome(found[0], found[1], Receipt(found[2], found[3]))

    def _remember(self, client: int, batch: Batch, receipt: Receipt) -> None:
        assert batch.idempotency is not None  # noqa: S101
        self._db.execute(
            "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                client,
                _key_digest(batch.idempotency.key),
                time.time_ns() // 1000,
                batch.idempotency.digest,
                batch.idempotency.outcome,
                receipt.duplicates,
                receipt.duplicate_id,
            ),
        )

    def _keep(self, client: int, batch: Batch) -> None:
        """Keep rejected records; of too many, the oldest go."""
        rows = [
            (
                *(client, one.arrival, len(one.record.encode()), one.dataset, batch.key_id),
                *(one.index, one.field, one.detail, one.record),
            )
            for one in batch.dead_letters
        ]
        letters, size = (
            self._letters.get(client)
            or self._db.execute(
                "SELECT count(*), coalesce(sum(size), 0) FROM rejected WHERE client = ?", (client,)
            ).fetchone()
        )
        self._db.executemany("INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        letters, size = letters + len(rows), size + sum(row[2] for row in rows)
        if letters > DAY_LETTERS_MAX or size > DAY_LETTER_BYTES_MAX:
            self._db.execute(_DROP_OLDEST_LETTERS, (client, client))
            self._letters.pop(client, None)
            return
        if len(self._letters) >= NAMES_MAX:
            self._letters.clear()
        self._letters[client] = (letters, size)

    def _client_if_known(self, client_id: str) -> int | None:
        known = self._clients.get(client_id)
        if known is None:
            found = self._db.execute(
                "SELECT id FROM clients WHERE client_id = ?", (client_id,)
            ).fetchone()
            if found is None:
                return None
            if len(self._clients) >= NAMES_MAX:
                self._clients.clear()
            known = self._clients[client_id] = int(found[0])
        return known

    def _client(self, client_id: str) -> int:
        known = self._client_if_known(client_id)
        if known is None:
            made = self._db.execute("INSERT INTO clients (client_id) VALUES (?)", (client_id,))
            known = self._clients[client_id] = int(made.lastrowid or 0)
        return known

    def _series_id(self, client: int, series: Series) -> int:
        key = (client, series)
        known = self._series.get(key)
        if known is None:
            dataset, environment, status, level, workflow = series
            values = (client, workflow, environment, status, level, dataset)
            found = self._db.execute(
                """SELECT id FROM series WHERE client = ? AND workflow IS ? AND environment = ?
                AND status = ? AND level IS ? AND dataset = ?""",
                values,
            ).fetchone()
            if found is None:
                made = self._db.execute(
                    """INSERT INTO series (client, workflow, environment, status, level, dataset)
                    VALUES (?, ?, ?, ?, ?, ?)""",
                    values,
                )
                known = int(made.lastrowid or 0)
            else:
                known = int(found[0])
            if sum(len(text or "") for text in series) <= NAMES_LENGTH_MAX:
                if len(self._series) >= NAMES_MAX:
                    self._series.clear()
                self._series[key] = known
        return known


def _key_digest(key: str) -> str:
    """Give what is stored of an Idempotency-Key: some clients put an API key there."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
