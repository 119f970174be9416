"""Tests of app.storage.sqlite.sealing: which logs make a block, and that nothing else changes."""

import time
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import pytest

from app.logs.identity import ArrivalClock, parse_id
from app.logs.query import LogQuery
from app.logs.search import parse_search
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_BYTES_MAX, BLOCK_LOGS, Lines
from app.storage.sqlite.day import FREE_PAGES_MAX, VACUUM_PAGES, DayFile
from app.storage.sqlite.durations import Durations
from app.storage.sqlite.reader import SqliteReader
from app.storage.sqlite.schema import CLIENT_SHIFT, day_path
from app.storage.sqlite.sealing import (
    SEAL_BYTES,
    SEAL_LOGS,
    WAITING_LOGS,
    WAITING_STRAYS,
    Client,
    build_seals,
    find_full,
    find_span,
)
from app.storage.sqlite.wire import Seal
from loadtests.records import Record, records
from tests.storage.batches import ORDERS, make_batch, record

DAY = 20_000
ACME = Client(1, "acme")
SECOND_US = 1_000_000


class Day:
    """A day file, written and read as the processes do it, without them."""

    def __init__(self, directory: Path) -> None:
        self.path = day_path(directory, DAY)
        self.file = DayFile(self.path, DAY, lambda _: [])
        self.db = sqlite3.connect(self.path, isolation_level=None)
        self.reader = SqliteReader(directory)
        self._clock = ArrivalClock()

    def store(self, *sent: Record, client: str = "acme") -> None:
        """Commit logs."""
        self.file.commit([make_batch(self._clock, client, sent, day=DAY)])

    def seals(self, client: Client = ACME, span_us_max: float = inf) -> list[Seal]:
        """Make all that there is to make now."""
        return list(build_seals(self.db, DAY, client, span_us_max))

    def seal(self, client: Client = ACME) -> int:
        """Seal what waits; give the number of seals."""
        made = self.seals(client)
        assert all(self.file.seal(one) for one in made)
        return len(made)

    def count(self, table: str) -> int:
        """Count rows."""
        return int(self.ask(f"SELECT count(*) FROM {table}")[0][0])

    def ask(self, sql: str) -> list[Any]:
        """Ask the file itself."""
        return self.db.execute(sql).fetchall()

    def read(self, query: LogQuery) -> list[str]:
        """Read pages to the end; give each as it is rendered."""
        pages = []
        while True:
            page = self.reader.page(query, time.monotonic() + 60)
            pages.append(page.logs)
            if page.last_id is None:
                return pages
            query = replace(query, after=parse_id(page.last_id))

    def close(self) -> None:
        """Let go of the file."""
        self.reader.close()
        self.db.close()
        self.file.close()


@pytest.fixture
def day(tmp_path: Path) -> Iterator[Day]:
    """Give an empty day."""
    opened = Day(tmp_path)
    yield opened
    opened.close()


def _at(second: float) -> float:
    return 1_780_272_000 + second


def _logs(count: int, **fields: Any) -> list[Record]:
    return [record(executed_at=_at(n / 8), message=f"log {n}", **fields) for n in range(count)]


def test_a_client_is_full_with_so_many_logs(day: Day) -> None:
    """Whose logs wait in such a number is found, and nobody else."""
    day.store(*_logs(5))
    day.store(*_logs(4), client="other")
    assert find_full(day.db, 6) == []
    assert find_full(day.db, 5) == [ACME]
    assert find_full(day.db, 1) == [ACME, Client(2, "other")]
    day.seal()
    assert find_full(day.db, 1) == [Client(2, "other")]


def test_blocks_are_bounded_in_logs(day: Day) -> None:
    """A block holds so many logs, a seal so many blocks, and the rest is the last of them."""
    day.store(*_logs(SEAL_LOGS + BLOCK_LOGS + 3))
    sizes = [[len(block.heads) for block in seal.blocks] for seal in day.seals()]
    assert sizes == [[BLOCK_LOGS] * (SEAL_LOGS // BLOCK_LOGS), [BLOCK_LOGS, 3]]


def test_logs_of_a_series_lie_together(day: Day) -> None:
    """Within a seal the logs are parted by series, and read in their order all the same."""
    count = 2 * BLOCK_LOGS
    day.store(*(one | {"status": f"S{n % 2}"} for n, one in enumerate(_logs(count))))
    before = day.read(LogQuery("acme"))
    [seal] = day.seals()
    assert [len({head[2] for head in block.heads}) for block in seal.blocks] == [1, 1]
    assert day.file.seal(seal)
    assert day.read(LogQuery("acme")) == before


def test_the_rest_waits_for_more(day: Day) -> None:
    """What would make a small block is left, unless all is to be sealed."""
    day.store(*_logs(BLOCK_LOGS + 3))
    [seal] = build_seals(day.db, DAY, ACME, with_rest=False)
    assert [len(block.heads) for block in seal.blocks] == [BLOCK_LOGS]
    assert day.file.seal(seal)
    assert list(build_seals(day.db, DAY, ACME, with_rest=False)) == []
    assert len(day.seals()[0].blocks[0].heads) == 3


def test_blocks_are_bounded_in_bytes(day: Day) -> None:
    """Large logs make blocks of few, though one log is always let in, and seals of few blocks."""
    random = Random(1)
    sizes = (400_000, 400_000, 400_000, BLOCK_BYTES_MAX + 1, 10, 700_000, 700_000)
    day.store(
        *(
            record(executed_at=_at(n), message=random.randbytes(size // 2).hex())
            for n, size in enumerate(sizes)
        )
    )
    seals = day.seals()
    blocks = [block for seal in seals for block in seal.blocks]
    assert [len(block.heads) for block in blocks] == [2, 1, 1, 2, 1]
    # Hexadecimal digits compress to a half: of two blocks, no third one fits.
    for seal in seals:
        *others, _ = seal.blocks
        assert sum(len(block.logs) for block in others) < SEAL_BYTES
    assert len(seals) > 1
    before = day.read(LogQuery("acme"))
    assert all(day.file.seal(seal) for seal in seals)
    assert day.read(LogQuery("acme")) == before
    assert day.count("logs") == 0


def test_what_is_in_a_block(day: Day) -> None:
    """It holds the lines of a page, and beside it the columns, commits and times of its logs."""
    day.store(*_logs(2, run_id="r", duration_ms=1.5))
    day.store(record(executed_at=_at(9), id="own"))
    [seal] = day.seals()
    [block] = seal.blocks
    lines = Lines(block.logs)
    assert b",".join(lines).decode() == day.read(LogQuery("acme", order="asc"))[0]
    assert (seal.day, seal.client) == (DAY, ACME.number)
    first, last = (number for (number,) in day.ask("SELECT DISTINCT commit_no FROM logs"))
    assert list(lines.commit_nos) == [first, first, last]
    assert (block.first_commit_no, block.last_commit_no) == (first, last)
    assert [head[3] for head in block.heads] == [1.5, 1.5, None]
    assert [head[5] for head in block.heads] == [None, None, "own"]
    assert list(Durations.unpack(block.durations).lines()) == [(1, 1.5), (1, 1.5), (1, None)]
    day.seal()
    for table in ("words", "durations"):
        assert day.ask(f"SELECT id, first_us, last_us FROM {table}") == [
            (ACME.number << CLIENT_SHIFT, _at(0) * SECOND_US, _at(9) * SECOND_US)
        ]


def test_blocks_are_numbered_on(day: Day) -> None:
    """Each client's blocks are numbered from 0, whenever they are made."""
    other = Client(2, "other")
    for _ in range(3):
        day.store(*_logs(3))
        day.store(*_logs(3), client="other")
        day.seal()
        day.seal(other)
    first = [client.number << CLIENT_SHIFT for client in (ACME, other)]
    want = [(one + n,) for one in first for n in range(3)]
    assert day.ask("SELECT id FROM blocks ORDER BY id") == want
    assert day.ask("SELECT id FROM words ORDER BY id") == want


def test_strays_wait(day: Day) -> None:
    """Logs far from the others are left, until there are so many that they make blocks as good."""
    strays = [record(executed_at=_at(-86_400 * n), message="stray") for n in range(1, 100)]
    day.store(*_logs(WAITING_LOGS), *strays)
    span_us = find_span(day.db, ACME)
    assert BLOCK_LOGS / 8 * SECOND_US <= span_us < 86_400 * SECOND_US
    for seal in day.seals(span_us_max=span_us):
        assert day.file.seal(seal)
    waiting = day.ask("SELECT message, count(*) FROM logs GROUP BY message = 'stray'")
    assert dict(waiting)["stray"] == len(strays)
    assert day.count("logs") < len(strays) + BLOCK_LOGS
    # Their own like make the rule once they are most of what waits.
    day.store(*(record(executed_at=_at(-86_400 * n - 1)) for n in range(WAITING_STRAYS)))
    assert find_span(day.db, ACME) == inf


def test_a_span_where_logs_have_gone(day: Day) -> None:
    """Of fewer logs than a block there is no rule to be made."""
    assert find_span(day.db, ACME) == inf
    day.store(*_logs(BLOCK_LOGS - 1))
    assert find_span(day.db, ACME) == inf
    day.store(record(executed_at=_at(-1)))
    assert 0 < find_span(day.db, ACME) < inf


def _queries(order: Any, limit: int) -> list[LogQuery]:
    base = LogQuery("acme", order=order, limit=limit)
    return [
        base,
        replace(base, filters={"status": ("FAILED", "RUNNING"), "environment": ("production",)}),
        replace(base, search=parse_search("gave up")),
        replace(base, search=parse_search('"orders to warehouse" -orders_7')),
        replace(base, search=parse_search("m\u00fcller")),
        replace(base, metadata={"engine": ("n8n", "airflow"), "step": ("1",)}),
        replace(base, metadata={"counts.in": ("4959", "3894")}),
        replace(base, min_duration_ms=5000.0),
        replace(base, start=(int(_at(20)) * SECOND_US, 0), end=(int(_at(90)) * SECOND_US, 0)),
    ]


def test_sealing_changes_no_answer(day: Day) -> None:
    """Before, while and after blocks are made of them, the same logs are on the same pages."""
    sent = [one for _, one in records(7, ["acme"], 1200)]
    for at in range(0, len(sent), 100):
        day.store(*sent[at : at + 100])
    queries = [one for order in ORDERS for limit in (7, 1000) for one in _queries(order, limit)]
    before = [day.read(query) for query in queries]
    assert all(pages != [""] for pages in before[: len(before) // 4])
    for seal in day.seals():
        assert day.file.seal(seal)
        assert [day.read(query) for query in queries] == before
    assert day.count("logs") == 0
    assert day.count("sealed") == len(sent)


def test_hours_are_summed_once(day: Day) -> None:
    """Each sealed log counts in its hour, with its duration if it has one, over all seals."""
    for second, duration in ((0, 1), (3599, None), (3600, 2.5), (-1, 10**400)):
        day.store(record(executed_at=_at(second), duration_ms=duration))
        day.seal()
    day.store(record(executed_at=_at(1), duration_ms=0.1 + 0.2, status="FAILED"))
    day.store(record(executed_at=_at(2), duration_ms=7))
    day.seal()
    hour = int(_at(0)) // 3600
    found = day.ask("SELECT hour, series, logs, durations, duration_ms FROM hours ORDER BY 1, 2")
    assert found == [
        (hour - 1, 1, 1, 1, 1e300),
        (hour, 1, 3, 2, 8.0),
        (hour, 2, 1, 1, 0.1 + 0.2),
        (hour + 1, 1, 1, 1, 2.5),
    ]


def _dump(day: Day) -> list[list[Any]]:
    tables = ("logs", "sealed", "blocks", "words", "durations", "hours")
    return [day.ask(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


def test_a_seal_of_erased_logs_is_refused_whole(day: Day) -> None:
    """If one of its logs has gone meanwhile, nothing of a seal is done, and nothing comes back."""
    day.store(*_logs(2 * BLOCK_LOGS))
    [seal] = day.seals()
    assert len(seal.blocks) == 2
    day.ask("DELETE FROM logs WHERE message = 'log 300'")
    before = _dump(day)
    assert not day.file.seal(seal)
    assert _dump(day) == before
    assert day.seal() == 1
    assert day.count("sealed") == 2 * BLOCK_LOGS - 1


def test_a_seal_counts_once(day: Day) -> None:
    """Of two sealers with the same logs, the second is refused."""
    day.store(*_logs(3))
    [one], [other] = day.seals(), day.seals()
    assert day.file.seal(one)
    before = _dump(day)
    assert not day.file.seal(other)
    assert _dump(day) == before


def test_room_is_given_back(day: Day) -> None:
    """Of what the logs took, most goes back to the system: some pages after each seal."""
    for _ in range(4):
        day.store(*_logs(8000, metadata={"text": "the same for all of them " * 20}))
    [(before,)] = day.ask("PRAGMA page_count")
    day.seal()
    [(after,)] = day.ask("PRAGMA page_count")
    [(free,)] = day.ask("PRAGMA freelist_count")
    assert free <= FREE_PAGES_MAX + VACUUM_PAGES
    assert after < before / 2
    assert day.ask("PRAGMA integrity_check") == [("ok",)]
