"""The filter language, and cursors that are good for one query of one client."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Invalid
from app.logs.identity import Position, format_id
from app.logs.query import Cursors, LogQuery, parse_log_query
from app.logs.selection import FILTERS, parse_bound
from app.logs.timestamp import MAX_US, MIN_US, US_PER_S, BadTime

CURSORS = Cursors(b"the secret of this test")
NOW_US = 1_780_272_000 * US_PER_S
QUERY = LogQuery("acme", filters={"status": ("FAILED",)}, start=(5, 6), order="asc")
LAST = Position(1, 2, 3, 4)
LAST_ID = format_id(LAST.us, LAST.day, LAST.seq)

instants = st.none() | st.tuples(st.integers(MIN_US, MAX_US), st.integers(0, 999))
queries = st.builds(
    LogQuery,
    client_id=st.sampled_from(["acme", "other"]),
    start=instants,
    end=instants,
    filters=st.dictionaries(
        st.sampled_from(FILTERS), st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple)
    ),
    order=st.sampled_from(["desc", "asc"]),
    limit=st.integers(1, 1000),
)


def parse(*params: tuple[str, str], client_id: str = "acme") -> LogQuery:
    """Parse a query string that is cut into its parameters."""
    return parse_log_query(client_id, params, NOW_US, CURSORS)


def faults(*params: tuple[str, str]) -> dict[str, str]:
    """Give what is wrong with parameters, by name."""
    with pytest.raises(Invalid) as caught:
        parse(*params)
    errors: list[dict[str, Any]] = caught.value.members["errors"]
    assert all(error["index"] == 0 for error in errors)
    return {error["field"]: error["detail"] for error in errors}


@given(queries)
def test_a_cursor_continues_its_query(query: LogQuery) -> None:
    """Opened with its own query a cursor gives the place, and the bounds that the query had."""
    cursor = CURSORS.seal(query, LAST_ID)
    moved = replace(query, start=(1, 1), end=(2, 2))
    assert CURSORS.open(moved, cursor) == replace(query, after=LAST)


@given(queries, queries)
def test_a_cursor_is_of_no_use_to_another_query(query: LogQuery, other: LogQuery) -> None:
    """Another client, filter or order makes it no cursor; only the limit may change."""
    same = [query.client_id, query.filters, query.order]
    cursor = CURSORS.seal(query, LAST_ID)
    if same == [other.client_id, other.filters, other.order]:
        assert CURSORS.open(other, cursor).after == LAST
        return
    with pytest.raises(Invalid):
        CURSORS.open(other, cursor)


@pytest.mark.parametrize(
    "other",
    [
        replace(QUERY, client_id="acme2"),
        replace(QUERY, order="desc"),
        replace(QUERY, filters={}),
        replace(QUERY, filters={"status": ("FAILED", "OK")}),
        replace(QUERY, filters={"level": ("FAILED",)}),
    ],
)
def test_a_cursor_is_bound_to_client_filters_and_order(other: LogQuery) -> None:
    """Each part of what a cursor is bound to is checked."""
    with pytest.raises(Invalid):
        CURSORS.open(other, CURSORS.seal(QUERY, LAST_ID))


@given(st.data())
def test_a_cursor_that_was_touched_is_none(data: st.DataObject) -> None:
    """One character changed, cut or added, and a cursor is refused, not read."""
    cursor = CURSORS.seal(QUERY, LAST_ID)
    at = data.draw(st.integers(0, len(cursor) - 2))
    letter = data.draw(st.sampled_from("ABCabc019-_"))
    for touched in (cursor[:at] + letter + cursor[at + 1 :], cursor[:at]):
        if touched != cursor:
            with pytest.raises(Invalid):
                CURSORS.open(QUERY, touched)


@given(st.text(max_size=80))
def test_any_other_text_is_no_cursor(text: str) -> None:
    """What we did not write is refused as a bad parameter, never worse."""
    assert set(faults(("cursor", text))) == {"cursor"}


def test_a_cursor_of_another_secret_is_none() -> None:
    """Another installation's cursor says nothing here."""
    with pytest.raises(Invalid):
        CURSORS.open(QUERY, Cursors(b"another secret").seal(QUERY, LAST_ID))


def test_filters_are_read() -> None:
    """Each parameter has its place in the query; a repeated filter means any of its values."""
    query = parse(
        ("status", "FAILED"),
        ("status", "ERROR"),
        ("workflow", ""),
        ("run_id", "7"),
        ("from", "-1h"),
        ("to", "2026-06-01T02:00:00.000000001+02:00"),
        ("order", "asc"),
        ("limit", "7"),
    )
    assert query == LogQuery(
        "acme",
        start=(NOW_US - 3600 * US_PER_S, 0),
        end=(NOW_US, 1),
        filters={"status": ("FAILED", "ERROR"), "workflow": ("",), "run_id": ("7",)},
        order="asc",
        limit=7,
    )
    assert parse() == LogQuery("acme", order="desc", limit=100)


def test_all_faults_are_named_at_once() -> None:
    """A caller learns of every bad parameter in one answer."""
    found = faults(
        ("from", "yesterday"),
        ("to", "-1y"),
        ("order", "up"),
        ("limit", "0"),
        ("stauts", "FAILED"),
        ("limit", "5"),
    )
    assert set(found) == {"from", "to", "order", "limit", "stauts"}
    assert found["stauts"] == "is not a known parameter"
    assert found["order"] == "must be desc or asc"


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "+5", "1.0", "", "ten", "٣", "9" * 30, " 5"])
def test_limits_out_of_bounds_are_refused(limit: str) -> None:
    """A page has 1 to 1000 logs, written in plain digits."""
    assert faults(("limit", limit)) == {"limit": "must be a number from 1 to 1000"}


@pytest.mark.parametrize("limit", [1, 1000])
def test_limits_within_bounds_are_taken(limit: int) -> None:
    """Both bounds of the limit are allowed."""
    assert parse(("limit", str(limit))).limit == limit


@pytest.mark.parametrize("name", ["from", "to", "order", "limit", "cursor"])
def test_what_is_single_may_not_be_given_twice(name: str) -> None:
    """Two values for what has one are refused: neither is taken silently."""
    assert faults((name, "x"), (name, "x"))[name] is not None


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2026-06-01T00:00:00Z", NOW_US),
        ("2026-06-01T02:00:00 02:00", NOW_US),  # what a `+` in a query string becomes
        ("2026-06-01 00:00:00Z", NOW_US),
        ("-90s", NOW_US - 90 * US_PER_S),
        ("-1m", NOW_US - 60 * US_PER_S),
        ("-2d", NOW_US - 2 * 86_400 * US_PER_S),
        ("-1w", NOW_US - 7 * 86_400 * US_PER_S),
        ("-999999999w", MIN_US),
    ],
)
def test_bounds_are_times_or_relative_to_now(text: str, us: int) -> None:
    """RFC 3339 and -1h, -7d and the like are understood; the far past is as far as it goes."""
    assert parse_bound(text, NOW_US) == (us, 0)


@given(st.text(max_size=30))
def test_any_other_bound_is_refused(text: str) -> None:
    """A bound is an instant or BadTime, never another fault."""
    try:
        us, ns = parse_bound(text, NOW_US)
    except BadTime:
        return
    assert MIN_US <= us <= MAX_US
    assert 0 <= ns <= 999
