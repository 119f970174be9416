"""The table of the benches, and the bodies that they send."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from app.sqlite import sqlite3
from loadtests.bench import MODULES
from loadtests.bench_logs import floor_workload
from loadtests.lab import BENCHES, Row, batch_body, ingest_request, render, write_results
from loadtests.records import START_NS
from loadtests.sqlite_floor import FloorError, Workload, commit_all

ROWS = [
    Row("one", "10 req/s", "20 req/s, echo", ">= 0.60", passed=False, ratio=0.5),
    Row("another one", "3 ms", "", "<= 5 ms", passed=True, detail={"n": 3}),
]


def test_every_promised_figure_has_a_bench() -> None:
    """Benches are registered under the names that --only takes."""
    assert len(MODULES) == 6
    assert set(BENCHES) - {"shared-limits"} == {  # which takes a Redis server
        *("single", "self-scan", "batch", "page", "memory", "start"),
        *("auth", "auth-restricted", "first-use", "many-keys", "garbage", "protection-idle"),
        *("export", "newest", "filtered", "rare-word", "common-word", "by-hour", "by-hour-all"),
        *("p95", "ingest-beside", "disk"),
    }


def test_the_table_is_aligned() -> None:
    """Columns start below their heads, and a missed goal stands out."""
    head, rule, first, second = render(ROWS).splitlines()
    assert set(rule) == {"-"}
    assert head.index("goal") == first.index(">= 0.60") == second.index("<= 5 ms")
    assert first.endswith("FAIL")
    assert second.endswith("pass")
    assert "0.50" in first


def test_results_are_written_as_json(tmp_path: Path) -> None:
    """The file holds every row with its detail, for whoever compares runs."""
    written = json.loads(write_results(ROWS, quick=True, directory=tmp_path / "r").read_text())
    assert [row["passed"] for row in written["rows"]] == [False, True]
    assert written["rows"][1]["detail"] == {"n": 3}
    assert written["quick"] is True


def test_batches_follow_each_other() -> None:
    """No two batches hold the same record, and each holds 1,000."""
    first, second = (batch_body(number, START_NS).splitlines() for number in range(2))
    assert len(first) == len(second) == 1000
    assert not set(first) & set(second)


def test_an_ingest_request_carries_key_type_and_length() -> None:
    """The request is what a client would send."""
    head, _, body = ingest_request("k", b"{}\n", lines=True).partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"POST /api/v1/logs HTTP/1.1"
    assert b"X-API-Key: k" in head.splitlines()
    assert b"Content-Type: application/x-ndjson" in head.splitlines()
    assert b"Content-Length: 3" in head.splitlines()
    assert body == b"{}\n"


def test_the_floor_commits_every_row_of_the_bench(tmp_path: Path) -> None:
    """The bare loop stores what the product makes of the same bodies, under its schema."""
    result = commit_all(tmp_path / "floor.db", floor_workload(3))
    assert result.logs == 3000
    assert result.logs_per_s > 0
    assert result.file_bytes > 3000 * 50


def test_the_floor_takes_any_schema(tmp_path: Path) -> None:
    """Rows go in whole whether or not they fill the last statement, one commit a batch."""

    def insert_sql(rows: int) -> str:
        return f"INSERT INTO t VALUES {','.join(['(?,?)'] * rows)}"

    batches = [[(i, str(i)) for i in range(start, start + 5)] for start in (0, 10)]
    create = ["CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)"]
    path = tmp_path / "t.db"
    result = commit_all(path, Workload([], create, insert_sql, batches, rows_per_statement=2))
    assert result.logs == 10
    with closing(sqlite3.connect(path)) as connection:
        stored = connection.execute("SELECT a, b FROM t ORDER BY a").fetchall()
    assert stored == [row for batch in batches for row in batch]
    with pytest.raises(FloorError, match="exists"):
        commit_all(path, Workload([], create, insert_sql, batches))
