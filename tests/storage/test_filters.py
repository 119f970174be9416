"""Every log store selects what the filter language says: checked against plain comparisons."""

import asyncio
import json
import re
from dataclasses import replace
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.logs.query import LogQuery, Order
from app.logs.search import Search, parse_exactly, parse_search
from app.logs.selection import FILTERS
from app.logs.store import LogStore
from app.logs.timestamp import parse_instant
from loadtests.records import Record
from tests.storage.batches import DAYS, INSTANTS, ORDERS, append, assert_same_logs, read_all, record
from tests.storage.conftest import Backend

pytestmark = pytest.mark.anyio

WORD = re.compile(r"[\w\u0300-\u036f]+")
VALUES: dict[str, tuple[str | None, ...]] = {
    "environment": ("production", "dev", "it's", "nul\x00a"),
    "status": ("SUCCESS", "FAILED", "%", "nul\x00b"),
    "level": (None, "INFO", "null", ""),
    "workflow": (None, "sync", 'a "b"', "nul\x00c", "nul\x00d"),
    "dataset": ("default", "orders"),
    "run_id": (None, "r1", "r2", "", "nul\x00e", "1"),
}
TEXTS: dict[str, tuple[Any, ...]] = {
    "message": (
        None,
        "disk full on db_1",
        "DISK\nFULL",
        "full disk \\n Straße",
        "e\u0301t\u00e9 \u212a1 nul\x00disk",
        "%disk% _full_",
    ),
    "error": (None, "disk", {"type": "Full", "frames": [{"disk": "a"}, "hidden full disk", 1.5]}),
    "metadata": (
        {},
        {"host": "db_1", "n": 3, "full": True},
        {"host": ["db_1", "disk"], "a": {"b": "x", "n": 1.50}, "a.b": "y"},
        {"disk": None, "host": "STRASSE", "n": "3", "text": 'quoted "disk" full'},
    ),
    "duration_ms": (None, 0, 3, 2.5, 10**400, 0.1 + 0.2),
}
# Questions with the words that the test looks for by other means: see `_searched`.
QUESTIONS = (
    "disk",
    "DISK",
    "disk full",
    '"disk full"',
    "-disk",
    '-"full disk"',
    "full -host",
    "strasse",
    "db_1",
    "db",
    "\u00e9t\u00e9",
    "k1",
    "1.5",
    "true",
    "null",
    "_full_",
    "frames",
)
METADATA = ("host=db_1", "n=3", "a.b=x", "a.b=y", "a.n=1.5", "full=true", "disk=null")


def _present(name: str) -> list[str]:
    return [value for value in VALUES[name] if value is not None]


some_records = st.lists(
    st.tuples(
        st.sampled_from(DAYS),
        st.fixed_dictionaries(
            {"executed_at": st.sampled_from(INSTANTS)}
            | {name: st.sampled_from(values) for name, values in (VALUES | TEXTS).items()}
        ),
    ),
    max_size=25,
)
some_filters = st.dictionaries(
    st.sampled_from(FILTERS),
    st.just(()),
    max_size=3,
).flatmap(
    lambda chosen: st.fixed_dictionaries(
        {
            name: st.lists(
                st.sampled_from([*_present(name), "absent"]),
                min_size=1,
                max_size=3,
            ).map(tuple)
            for name in chosen
        }
    )
)
a_bound = st.none() | st.sampled_from(INSTANTS).map(parse_instant)
# Written out since it is what a filter means, in as few words as there are.
Sent = list[tuple[int, Record]]


def _matching(sent: Sent, query: LogQuery) -> list[Record]:
    return [
        one
        for _, one in sent
        if (query.start is None or parse_instant(one["executed_at"]) >= query.start)
        and (query.end is None or parse_instant(one["executed_at"]) < query.end)
        and all(one[name] in accepted for name, accepted in query.filters.items())
        and (query.min_duration_ms is None or _lasted(one, query.min_duration_ms))
        and (query.search is None or _searched(one, query.search))
        and all(_has(one["metadata"], *wanted) for wanted in query.metadata.items())
    ]


def _lasted(one: Record, least: float) -> bool:
    return one["duration_ms"] is not None and one["duration_ms"] >= least


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [] if value is None else [value if isinstance(value, str) else json.dumps(value)]


def _searched(one: Record, search: Search) -> bool:
    # Each text with single spaces between its words, and at its ends: a phrase is a substring.
    texts = [
        f" {' '.join(re.findall(WORD, normalize('NFKC', text).casefold()))} "
        for text in _texts([one["message"], one["error"], one["metadata"]])
    ]
    return all(
        any(f" {' '.join(term.words)} " in text for text in texts) is not term.negated
        for term in search.terms
    )


def _has(metadata: Any, path: str, accepted: tuple[str, ...]) -> bool:
    nested = metadata
    for name in path.split("."):
        nested = nested.get(name, ...) if isinstance(nested, dict) else ...
    found = [value for value in (metadata.get(path, ...), nested) if value is not ...]
    texts = [one if isinstance(one, str) else json.dumps(one) for one in found]
    return any(text in accepted for text in texts)


async def _check_filters(store: LogStore, client: str, sent: Sent, query: LogQuery) -> None:
    for day, one in sent:
        await append(store, client, one, day=day)
    logs = await read_all(store, replace(query, client_id=client))
    matching = _matching(sent, query)
    assert_same_logs(logs, matching)
    instants = [parse_instant(log["executed_at"]) for log in logs]
    assert instants == sorted(instants, reverse=query.order == "desc")
    # A tail looks at each log by itself.
    everything = await read_all(store, LogQuery(client, order=query.order))
    assert logs == [one for one in everything if query.matches(parse_exactly(json.dumps(one)))]


def test_filters_do_what_they_say(backend: Backend, hypothesis_clients: list[str]) -> None:
    """Each filter, alone and with others, selects what a plain comparison does, in order."""
    with asyncio.Runner() as runner:
        store = runner.run(backend.open())

        @settings(
            max_examples=120,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(
            sent=some_records,
            filters=some_filters,
            question=st.none() | st.sampled_from(QUESTIONS),
            metadata=st.none() | st.sampled_from(METADATA),
            min_duration_ms=st.none() | st.sampled_from([0, 2.5, 3, 1e300]),
            start=a_bound,
            end=a_bound,
            order=st.sampled_from(ORDERS),
            limit=st.sampled_from([1, 2, 5, 100]),
        )
        def check(
            sent: list[tuple[int, dict[str, Any]]],
            filters: dict[str, tuple[str, ...]],
            question: str | None,
            metadata: str | None,
            min_duration_ms: float | None,
            start: tuple[int, int] | None,
            end: tuple[int, int] | None,
            order: Order,
            limit: int,
        ) -> None:
            whole = [(day, record(**fields)) for day, fields in sent]
            name, _, value = (metadata or "").partition("=")
            query = LogQuery(
                "",
                start=start,
                end=end,
                filters=filters,
                search=None if question is None else parse_search(question),
                metadata={} if metadata is None else {name: (value,)},
                min_duration_ms=min_duration_ms,
                order=order,
                limit=limit,
            )
            runner.run(_check_filters(store, hypothesis_clients.pop(), whole, query))

        check()
        runner.run(store.aclose())


async def test_each_filter_alone(store: LogStore) -> None:
    """A filter gives the logs that have the value, for every value, and none for another."""
    for name, values in VALUES.items():
        sent = [record(**{name: value, "message": str(n)}) for n, value in enumerate(values * 2)]
        for day, one in enumerate(sent):
            await append(store, name, one, day=20_000 + day % 3)
        for value in _present(name):
            logs = await read_all(store, LogQuery(name, filters={name: (value,)}))
            assert_same_logs(logs, [one for one in sent if one[name] == value])
            assert len(logs) == 2
        assert await read_all(store, LogQuery(name, filters={name: ("absent",)})) == []
        assert await read_all(store, LogQuery(name, filters={name: ()})) == []


async def test_bounds_are_half_open_to_the_nanosecond(store: LogStore) -> None:
    """`start` is within the range, `end` is not."""
    for at in INSTANTS:
        await append(store, "acme", record(executed_at=at))
    ordered = sorted(map(parse_instant, INSTANTS))
    for low in range(len(ordered)):
        for high in range(low, len(ordered)):
            query = LogQuery("acme", start=ordered[low], end=ordered[high], order="asc")
            logs = await read_all(store, query)
            assert [parse_instant(log["executed_at"]) for log in logs] == ordered[low:high]


async def test_a_duration_of_any_size_is_found_by_itself(store: LogStore) -> None:
    """Integers beyond 64 bits are compared as the floats nearest to them, as the filter is read."""
    durations = [62602373352786453519546789920811769, 2**64 + 1, 2**63 - 1, 5]
    await append(store, "acme", *(record(duration_ms=one) for one in durations))
    for one in durations:
        query = LogQuery("acme", min_duration_ms=float(str(one)))
        found = await read_all(store, query)
        assert len(found) == sum(float(other) >= float(one) for other in durations)
