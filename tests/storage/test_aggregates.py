"""Every log store counts and measures what the logs say: checked against plain Python."""

import asyncio
import statistics
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import Invalid
from app.logs.aggregation import METRICS, Aggregation, Cell, parse_aggregation
from app.logs.store import LogStore
from app.logs.timestamp import format_instant, parse_instant
from loadtests.records import Record
from tests.storage.batches import DAYS, append, record
from tests.storage.conftest import Backend

pytestmark = pytest.mark.anyio

# Some of them at the edges of hours, which are summed up beforehand.
TIMES = (
    "2026-06-01T11:59:59.999999999Z",
    "2026-06-01T12:00:00Z",
    "2026-06-01T12:00:00.000000001Z",
    "2026-06-01T12:30:00Z",
    "2026-06-01T13:00:00Z",
    "2026-06-02T00:00:00Z",
    "1969-12-31T23:30:00Z",
)
BOUNDS = (*TIMES, "2026-06-01T12:10:00Z", "2030-01-01T00:00:00Z")
FIELDS: dict[str, tuple[Any, ...]] = {
    "executed_at": TIMES,
    "status": ("SUCCESS", "FAILED", "FAILURE", "ERROR", "error"),
    "environment": ("production", "dev"),
    "level": (None, "INFO", ""),
    "workflow": (None, "sync", "it's"),
    "dataset": ("default", "orders"),
    "run_id": (None, "r1", "r2", "r3", ""),
    "duration_ms": (None, 0, 1, 2.5, 100, 0.1 + 0.2, 10**20, 10**400),
    "message": ("disk full", "all well"),
}
DIMENSIONS = ("status", "workflow", "environment", "level", "dataset", "time:1h", "time:15m")
FILTERS: dict[str, Any] = {
    "status": ["FAILED", "error"],
    "workflow": "sync",
    "run_id": ["r1", ""],
    "min_duration_ms": 1,
    "q": "disk",
}
MINUTES = {"time:1h": 60, "time:15m": 15}
NOW_US = 1_800_000_000_000_000

Sent = list[tuple[str, int, Record]]

some_logs = st.lists(
    st.tuples(
        st.sampled_from(["one", "two"]),
        st.sampled_from(DAYS),
        st.fixed_dictionaries(
            {name: st.sampled_from(values) for name, values in FIELDS.items()}
        ).map(lambda fields: record(**fields)),
    ),
    max_size=30,
)
some_questions = st.fixed_dictionaries(
    {},
    optional={
        "metrics": st.lists(st.sampled_from(list(METRICS)), min_size=1, unique=True),
        "dimensions": st.lists(
            st.sampled_from(DIMENSIONS), max_size=3, unique_by=lambda name: name[:4]
        ),
        "from": st.sampled_from(BOUNDS),
        "to": st.sampled_from(BOUNDS),
        "filters": st.lists(st.sampled_from(list(FILTERS)), unique=True, max_size=2).map(
            lambda names: {name: FILTERS[name] for name in names}
        ),
    },
)


def _is_meant(one: Record, question: dict[str, Any]) -> bool:
    at = parse_instant(one["executed_at"])
    filters = question.get("filters", {})
    return (
        ("from" not in question or at >= parse_instant(question["from"]))
        and ("to" not in question or at < parse_instant(question["to"]))
        and one["status"] in filters.get("status", [one["status"]])
        and one["workflow"] == filters.get("workflow", one["workflow"])
        and one["run_id"] in filters.get("run_id", [one["run_id"]])
        and ("min_duration_ms" not in filters or (one["duration_ms"] or 0) >= 1)
        and ("q" not in filters or "disk" in one["message"])
    )


def _dimension(one: Record, name: str) -> Cell:
    if name in MINUTES:
        us, _ = parse_instant(one["executed_at"])
        return format_instant(us - us % (MINUTES[name] * 60_000_000))
    value: Cell = one[name]
    return value


def _measure(logs: list[Record], metric: str) -> Cell:
    durations = [
        float(min(one["duration_ms"], 10**300)) for one in logs if one["duration_ms"] is not None
    ]
    errors = sum(one["status"] in {"FAILED", "FAILURE", "ERROR"} for one in logs)
    by_name: dict[str, Cell] = {
        "count": len(logs),
        "error_count": errors,
        "error_rate": errors / len(logs) if logs else None,
        "distinct_runs": len({one["run_id"] for one in logs} - {None}),
        "avg_duration_ms": statistics.fmean(durations) if durations else None,
    }
    if metric in by_name or not durations:
        return by_name.get(metric)
    cuts = statistics.quantiles([*durations, *durations[:1]], n=100, method="inclusive")
    if len(durations) > 1:
        cuts = statistics.quantiles(durations, n=100, method="inclusive")
    return cuts[int(metric[1:3]) - 1]


def _expected(logs: list[Record], asked: Aggregation, question: dict[str, Any]) -> list[list[Cell]]:
    dimensions = question.get("dimensions", [])
    groups: dict[tuple[Cell, ...], list[Record]] = defaultdict(list)
    if not dimensions:
        groups[()] = []
    for one in logs:
        if _is_meant(one, question):
            groups[tuple(_dimension(one, name) for name in dimensions)].append(one)
    ordered = sorted(groups, key=lambda key: [(cell is not None, cell) for cell in key])
    return [[*key, *(_measure(groups[key], metric) for metric in asked.metrics)] for key in ordered]


def _rounded(cell: Cell) -> Cell:
    """Forget the last digits, which depend on the order of summing."""
    return float(f"{cell:.9e}") if isinstance(cell, int | float) else cell


async def _check(store: LogStore, prefix: str, sent: Sent, question: dict[str, Any]) -> None:
    for client, day, one in sent:
        await append(store, prefix + client, one, day=day)
    for client in ("one", "two", "three"):
        asked = parse_aggregation(prefix + client, question, NOW_US)
        logs = [one for owner, _, one in sent if owner == client]
        rows = await store.aggregate(asked)
        expected = _expected(logs, asked, question)
        assert [list(map(_rounded, row)) for row in rows] == [
            list(map(_rounded, row)) for row in expected
        ]


def test_tables_say_what_the_logs_say(backend: Backend, hypothesis_clients: list[str]) -> None:
    """Each metric by each dimension, of any time and filter, is what counting by hand gives."""
    with asyncio.Runner() as runner:
        store = runner.run(backend.open())

        @settings(
            max_examples=120,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(sent=some_logs, question=some_questions)
        def check(sent: Sent, question: dict[str, Any]) -> None:
            runner.run(_check(store, hypothesis_clients.pop(), sent, question))

        check()
        runner.run(store.aclose())


async def test_all_clients_at_once(store: LogStore) -> None:
    """Without a client a table is of all of them, by client where that is asked for."""
    for client, status in (("acme", "FAILED"), ("acme", "SUCCESS"), ("globex", "SUCCESS")):
        for day in DAYS[:2]:
            await append(store, client, record(status=status), day=day)
    question = {"dimensions": ["client_id"], "metrics": ["error_rate", "count"]}
    rows = await store.aggregate(parse_aggregation(None, question, NOW_US))
    assert rows == [["acme", 0.5, 4], ["globex", 0.0, 2]]
    by_words = {**question, "filters": {"q": "absent"}}
    assert await store.aggregate(parse_aggregation(None, by_words, NOW_US)) == []
    assert await store.aggregate(parse_aggregation(None, {}, NOW_US)) == [[6]]


async def test_runs_of_one_name_are_each_client_s_own(store: LogStore) -> None:
    """Of all clients, a run is one of its client, however its logs are found."""
    for client, run_id in (("acme", "r1"), ("acme", "r1"), ("acme", "r2"), ("globex", "r1")):
        for day in DAYS[:2]:
            await append(store, client, record(run_id=run_id, message="disk"), day=day)
    for filters in ({}, {"q": "disk"}):
        question = {"metrics": ["distinct_runs"], "filters": filters}
        assert await store.aggregate(parse_aggregation(None, question, NOW_US)) == [[3]]
        assert await store.aggregate(parse_aggregation("acme", question, NOW_US)) == [[2]]


async def test_numbers_beyond_a_double_are_no_hindrance(store: LogStore) -> None:
    """Whatever numbers logs hold, those and all others are counted, by their words too."""
    digits = int("1" * 400)
    for field in ({"duration_ms": digits}, {"metadata": {"x": digits}}, {"duration_ms": 7}):
        await append(store, "acme", record(message="disk full", **field))
    question = {"metrics": ["count", "p50_duration_ms"], "filters": {"q": "disk"}}
    assert await store.aggregate(parse_aggregation("acme", question, NOW_US)) == [[3, 5e299]]


@pytest.mark.parametrize("bucket", ["time:7d", "time:30d", "time:1d"])
async def test_a_bucket_begins_no_earlier_than_time_does(store: LogStore, bucket: str) -> None:
    """A bucket in which the first year begins is shown from there on."""
    for executed_at in ("0001-01-01T00:00:00Z", "0001-01-02T00:00:00Z"):
        await append(store, "acme", record(executed_at=executed_at))
    question = {"dimensions": [bucket]}
    rows = await store.aggregate(parse_aggregation("acme", question, NOW_US))
    assert rows[0][0] == "0001-01-01T00:00:00Z"
    assert sum(int(row[1] or 0) for row in rows) == 2


async def test_a_table_of_long_names_is_refused(store: LogStore) -> None:
    """Names take no more memory than a table is worth, whatever its limit of rows."""
    for number in range(20):
        await append(store, "acme", record(workflow=f"{number}" + "x" * 1_000_000))
    question = {"dimensions": ["workflow"], "limit": 1}
    with pytest.raises(Invalid) as refused:
        await store.aggregate(parse_aggregation("acme", question, NOW_US))
    [fault] = refused.value.members["errors"]
    assert fault["field"] == "dimensions"


@pytest.mark.parametrize(
    ("order", "statuses"),
    [
        ("count", ["C", "B", "A"]),
        ("-count", ["A", "B", "C"]),
        ("count desc", ["A", "B", "C"]),
        ("desc", ["A", "B", "C"]),
        ("asc", ["C", "B", "A"]),
        (["avg_duration_ms", "-status"], ["C", "B", "A"]),
        (None, ["A", "B", "C"]),
    ],
)
async def test_order_and_limit(store: LogStore, order: Any, statuses: list[str]) -> None:
    """Rows come in the order asked for, null first, and no more than the limit."""
    for status, count, duration_ms in (("A", 3, 5), ("B", 2, 5), ("C", 1, None)):
        for _ in range(count):
            await append(store, "acme", record(status=status, duration_ms=duration_ms))
    question = {
        "dimensions": ["status"],
        "metrics": ["count", "avg_duration_ms"],
        "order": order,
    }
    for limit in (2, 3):
        asked = parse_aggregation("acme", {**question, "limit": limit}, NOW_US)
        assert [row[0] for row in await store.aggregate(asked)] == statuses[:limit]
