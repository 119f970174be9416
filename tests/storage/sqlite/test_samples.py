"""Tests of app.storage.sqlite.samples: packed durations and rows tell the same, to the last bit."""

import json
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.logs.aggregation import Cell, parse_aggregation
from app.logs.identity import ArrivalClock, parse_id
from app.logs.query import LogQuery
from app.storage.sqlite.erasing import WHOLE, build_rewrite, find_stale
from app.storage.sqlite.samples import STEP_BLOCKS
from app.storage.sqlite.schema import CLIENT_SHIFT, upgrade_day
from app.storage.sqlite.sealing import Client
from loadtests.records import Record, records
from tests.storage.batches import make_batch, record
from tests.storage.sqlite.test_sealing import ACME, DAY, Day

NOW_US = 1_800_000_000_000_000
METRICS = ["p50_duration_ms", "p95_duration_ms", "p99_duration_ms"]
# Some within one microsecond, for which the bounds of blocks are too coarse.
TIMES = (
    "0001-01-01T00:00:00Z",
    "2026-06-01T12:00:00Z",
    "2026-06-01T12:00:00.000000001Z",
    "2026-06-01T12:00:00.000000999Z",
    "2026-06-01T12:00:00.000001Z",
    "2026-06-02T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
)
DURATIONS = (None, 0, 1, 2.5, 0.1 + 0.2, 1 / 3, 2**53 + 1, 2**63, 10**400, 1e300, 1.7e308, 5e-324)

Table = list[list[Cell]]


def _logs_at(times: Sequence[str]) -> st.SearchStrategy[list[Record]]:
    fields = st.fixed_dictionaries(
        {
            "executed_at": st.sampled_from(times),
            "duration_ms": st.sampled_from(DURATIONS),
            "status": st.sampled_from(["SUCCESS", "FAILED"]),
            "workflow": st.sampled_from([None, "sync"]),
        }
    )
    return st.lists(fields.map(lambda one: record(**one)), max_size=8)


# Of few neighbouring times, so that blocks begin and end where questions do.
some_logs = st.tuples(st.integers(0, len(TIMES) - 2), st.integers(1, 3)).flatmap(
    lambda span: _logs_at(TIMES[span[0] : sum(span)])
)
some_questions = st.fixed_dictionaries(
    {
        "metrics": st.sampled_from([METRICS, ["count", "p95_duration_ms"]]),
        "dimensions": st.sampled_from([[], ["status"], ["workflow", "dataset"]]),
    },
    optional={
        "from": st.sampled_from(TIMES),
        "to": st.sampled_from(TIMES),
        "filters": st.sampled_from(
            [
                {"status": "FAILED"},
                *({"min_duration_ms": least} for least in ("0.3", "1", "1e300", "1.1e300")),
            ]
        ),
    },
)


@pytest.fixture
def day(tmp_path: Path) -> Iterator[Day]:
    """Give an empty day."""
    opened = Day(tmp_path)
    yield opened
    opened.close()


def _table(day: Day, client: str, question: dict[str, Any]) -> Table:
    asked = parse_aggregation(client, question, NOW_US)
    return day.reader.table(asked, time.monotonic() + 60)


def _by_rows(day: Day, client: Client, question: dict[str, Any]) -> Table:
    """Ask where the client's blocks tell nothing, as those of an earlier version do."""
    of_client = f"FROM durations WHERE id >> {CLIENT_SHIFT} = {client.number}"
    day.ask(f"CREATE TEMP TABLE kept AS SELECT * {of_client}")
    day.ask(f"DELETE {of_client}")
    try:
        return _table(day, client.client_id, question)
    finally:
        day.ask("INSERT INTO durations SELECT * FROM kept")
        day.ask("DROP TABLE kept")


def _rewrite(day: Day) -> None:
    """Pack blocks anew, as the sealer does after an erasure."""
    for id_, erasures in find_stale(day.db).items():
        if id_ & WHOLE != WHOLE:
            made = build_rewrite(day.db, DAY, id_, erasures)
            assert made is not None
            assert day.file.rewrite(made)


def _erase(day: Day, client: str, chosen: list[bool]) -> None:
    [logs] = day.read(LogQuery(client, limit=1000, order="asc"))
    places = [parse_id(log["id"]) for log in json.loads(f"[{logs}]")]
    pairs = zip(places, chosen, strict=False)
    day.file.erase(client, [(one.us, one.seq) for one, is_chosen in pairs if one and is_chosen])


def test_blocks_tell_what_rows_do(day: Day) -> None:
    """Whatever is asked of whichever logs, sealed, waiting or erased, both ways agree exactly."""
    numbers = count(1)

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        st.lists(some_logs, min_size=1, max_size=3),
        some_logs,
        some_questions,
        st.lists(st.booleans(), max_size=36) | st.just([True] * 36),
    )
    def check(
        sealed: list[list[Record]],
        waiting: list[Record],
        question: dict[str, Any],
        chosen: list[bool],
    ) -> None:
        name = f"client-{next(numbers)}"
        day.file.commit([make_batch(ArrivalClock(), name, [], day=DAY)])
        [(number,)] = day.ask(f"SELECT id FROM clients WHERE client_id = '{name}'")
        client = Client(number, name)
        for logs in sealed:
            day.store(*logs, client=name)
            day.seal(client)
        day.store(*waiting, client=name)
        assert _table(day, name, question) == _by_rows(day, client, question)
        _erase(day, name, chosen)
        assert day.ask("SELECT id FROM durations EXCEPT SELECT id FROM blocks") == []
        before = _table(day, name, question)
        assert before == _by_rows(day, client, question)
        _rewrite(day)
        assert _table(day, name, question) == before

    check()


def _blinded(day: Day) -> None:
    """Make the rows of sealed logs useless."""
    day.ask("UPDATE sealed SET duration_ms = 0")


CUT = {"from": "2026-06-01T12:10:00.5Z", "to": "2026-06-01T12:50:00Z"}


@pytest.mark.parametrize("bounds", [{}, CUT], ids=["all", "cut"])
def test_rows_of_sealed_logs_are_not_read(day: Day, bounds: dict[str, str]) -> None:
    """Blocks wholly or partly in the time asked for need no row to tell of them, however many."""
    sent = [one for _, one in records(7, ["acme"], 3000)]
    for n, one in enumerate(sent):
        one["executed_at"] = 1_780_315_200 + 0.5 * n  # 25 minutes, from 12:00 on
    day.store(*sent)
    day.seal(ACME)
    question = {"metrics": METRICS, "dimensions": ["workflow"], **bounds}
    want = _by_rows(day, ACME, question)
    assert len(want) > 1
    _blinded(day)
    assert _table(day, "acme", question) == want
    assert _by_rows(day, ACME, question) != want


def test_durations_beyond_all_that_are_told_apart(day: Day) -> None:
    """A filter by more than durations are counted as finds those that are longer, and no others."""
    day.store(*(record(duration_ms=one) for one in (1, 10**299, 10**301, 10**400)))
    day.seal(ACME)
    for least, want in (("1e299", 1e300), ("1e301", 1e300), ("1e302", 1e300)):
        filters = {"min_duration_ms": least}
        rows = _table(day, "acme", {"metrics": ["p99_duration_ms", "count"], "filters": filters})
        assert rows == [[want, {"1e299": 3, "1e301": 2, "1e302": 1}[least]]]


def test_more_blocks_than_a_step(day: Day) -> None:
    """Blocks are read some at a time, each once, and none of another client's."""
    count_ = STEP_BLOCKS + 2
    for n in range(count_):
        day.store(record(duration_ms=n))
        day.seal(ACME)
    for client in ("before", "acme", "behind"):
        day.store(record(duration_ms=10**6), client=client)
    for number, name in ((2, "before"), (3, "behind")):
        day.seal(Client(number, name))
    assert day.count("durations") == count_ + 2
    _blinded(day)
    assert _table(day, "acme", {"metrics": ["p50_duration_ms"]}) == [[count_ / 2]]


def test_an_upgraded_file_answers_the_same(tmp_path: Path) -> None:
    """Blocks from before there were packed durations count as ever, beside newer ones."""
    days = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        days.append(Day(tmp_path / name))
    question = {"metrics": METRICS, "dimensions": ["workflow"]}
    sent = [one for _, one in records(3, ["acme"], 900)]
    for at in (0, 300, 600):
        for day in days:
            day.store(*sent[at : at + 300])
            day.seal(ACME)
        if not at:
            days[0].ask("DROP TABLE durations")
            days[0].ask("PRAGMA user_version = 4")
            upgrade_day(days[0].path)
        old, new = (_table(day, "acme", question) for day in days)
        assert old == new
    assert days[0].count("durations") < days[0].count("words")
    for day in days:
        _erase(day, "acme", [n % 3 == 0 for n in range(900)])
        _rewrite(day)
    old, new = (_table(day, "acme", question) for day in days)
    assert old == new
    for day in days:
        day.close()
