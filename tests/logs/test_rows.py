"""Records to rows: the last rules, the order, and what a key may write to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from app.logs.decode import Decoded
from app.logs.identity import ARRIVAL_BITS, SLOT_BITS
from app.logs.record import LogRecord, Rejection
from app.logs.rows import build_rows


def log(executed_at: str | float = 1, **fields: object) -> LogRecord:
    """Make a record that keeps every rule, with `fields` over it."""
    known = {"environment": "production", "executed_at": executed_at, "status": "SUCCESS"}
    return LogRecord(**{**known, **fields})  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1e9), max_size=20))
def test_rows_are_sorted_and_each_has_its_own_arrival(times: list[float]) -> None:
    """Rows come in the order in which they are stored, and no two at the same place."""
    rows = build_rows([log(time) for time in times], None, 7).rows
    places = [row[:2] for row in rows]
    assert places == sorted(set(places))
    arrivals = {seq & ((1 << ARRIVAL_BITS) - 1) for _, seq in places}
    assert arrivals == {7 + (index << SLOT_BITS) for index in range(len(times))}


def test_series_are_shared() -> None:
    """What many records have in common is said once, and each row points to its own."""
    records: list[Decoded] = [
        log(time, status=status, dataset=dataset)
        for time, (status, dataset) in enumerate(
            [("a", None), ("b", "x"), ("a", "default"), ("b", "x")]
        )
    ]
    built = build_rows(records, None, 0)
    assert built.series == [
        ("default", "production", "a", None, None),
        ("x", "production", "b", None, None),
    ]
    assert [row[2] for row in built.rows] == [0, 1, 0, 1]


def test_rejections_keep_their_place_among_the_records() -> None:
    """A rejection goes by the index that its record had in the request."""
    records: list[Decoded] = [Rejection(None, "bad"), log(), log("never"), log(2)]
    built = build_rows(records, None, 0)
    assert [index for index, _ in built.rejections] == [0, 2]
    assert built.rejections[1][1].field == "executed_at"
    assert len(built.rows) == 2


@pytest.mark.parametrize(
    ("fields", "field", "detail"),
    [
        ({"duration_ms": -1}, "duration_ms", "must be a number of at least 0"),
        ({"duration_ms": -0.1}, "duration_ms", "must be a number of at least 0"),
        ({"duration_ms": float("inf")}, "duration_ms", "must be a number of at least 0"),
        ({"duration_ms": float("nan")}, "duration_ms", "must be a number of at least 0"),
        ({"error": Raw(b"5")}, "error", "must be a string or an object"),
        ({"error": Raw(b'["a"]')}, "error", "must be a string or an object"),
        ({"metadata": Raw(b'"a"')}, "metadata", "must be an object"),
        ({"metadata": Raw(b'{"a":"\xff"}')}, None, "is not valid UTF-8"),
        ({"dataset": "A B"}, "dataset", "must match [a-z0-9][a-z0-9_-]{0,62}"),
        ({"dataset": ""}, "dataset", "must match [a-z0-9][a-z0-9_-]{0,62}"),
        ({"dataset": "a" * 64}, "dataset", "must match [a-z0-9][a-z0-9_-]{0,62}"),
        ({"dataset": "orders\n"}, "dataset", "must match [a-z0-9][a-z0-9_-]{0,62}"),
        ({"dataset": "orders"}, "dataset", "Not authorized for dataset 'orders'"),
        ({"executed_at": "2026-06-01"}, "executed_at", "must be an RFC 3339 time with an offset"),
        ({"executed_at": 1e30}, "executed_at", "is outside the years 0001 to 9999"),
    ],
)
def test_each_rule_names_its_field(
    fields: dict[str, object], field: str | None, detail: str
) -> None:
    """A record that breaks a rule is refused with the field and the rule."""
    built = build_rows([log(**fields), log()], {"default"}, 0)  # type: ignore[arg-type]
    ((index, rejection),) = built.rejections
    assert (index, rejection.field) == (0, field)
    assert rejection.detail.startswith(detail)
    assert rejection.dataset == ("orders" if "authorized" in detail else None)
    assert len(built.rows) == 1


def test_a_fault_that_is_not_authorization_says_so() -> None:
    """Only a record without any other fault counts as one that the key may not write."""
    records: list[Decoded] = [log(dataset="NO"), log("never", dataset="default")]
    built = build_rows(records, {"default"}, 0)
    assert [one.dataset for _, one in built.rejections] == [None, None]


def test_null_is_the_same_as_absent() -> None:
    """A member sent as null leaves no trace."""
    built = build_rows([log(error=Raw(b"null"), metadata=Raw(b"null"))], None, 0)
    assert built.rows[0][3:] == (None,) * 6


def test_an_empty_id_is_the_same_as_none() -> None:
    """It identifies nothing, so two records that have it are no duplicates."""
    built = build_rows([log(id=""), log(id="a"), log()], None, 0)
    assert {row[5] for row in built.rows} == {None, "a"}


@pytest.mark.parametrize(
    ("duration", "stored"),
    [(0, 0), (0.1, 0.1), (2**63 - 1, 2**63 - 1), (2**63, str(2**63)), (0.1 + 0.2, repr(0.1 + 0.2))],
)
def test_durations_are_stored_exactly(duration: float, stored: object) -> None:
    """A number that a store would round is stored as its text."""
    row = build_rows([log(duration_ms=duration)], None, 0).rows[0]
    assert row[4] == stored
    assert type(row[4]) is type(stored)


def test_json_is_stored_on_one_line() -> None:
    """Line breaks between members go, everything inside strings stays."""
    raw = Raw(b'{\n  "a": "x\\ny",\r\n  "b": 12345678901234567890123\n}')
    row = build_rows([log(metadata=raw, error=raw)], None, 0).rows[0]
    assert row[7] == row[8] == '{"a":"x\\ny","b":12345678901234567890123}'
