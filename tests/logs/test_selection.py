"""Tests of app.logs.selection: reading filters, all faults at once, and what filters match."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Invalid
from app.logs.search import leaves, parse_exactly, parse_search, words
from app.logs.selection import (
    FILTERS,
    METADATA_FILTERS_MAX,
    METADATA_NAME_LENGTH_MAX,
    Params,
    Selection,
    parse_bound,
    parse_selection,
)
from app.logs.timestamp import MIN_US, US_PER_S, BadTime

NOW_US = 1_780_272_000 * US_PER_S

texts = st.sampled_from(["disk", "Disk full", "caf\u00e9", "CAFE\u0301 db_1", "1.5", "\u212a", "-"])
logs = st.fixed_dictionaries(
    {
        "message": st.none() | texts,
        "error": st.none() | texts | st.fixed_dictionaries({"type": texts}),
        "metadata": st.dictionaries(
            st.sampled_from(["a", "b", "a.b", "b.a"]),
            texts
            | st.none()
            | st.booleans()
            | st.integers(0, 3)
            | st.lists(texts, max_size=2)
            | st.dictionaries(st.sampled_from(["a", "b"]), texts | st.integers(0, 3), max_size=2),
            max_size=3,
        ),
    }
)
questions = st.sampled_from(
    ["disk", "caf\u00e9", "disk -full", '"disk full"', "-caf\u00e9", "k", "DB_1 cafe\u0301", "full"]
).map(parse_search)
selections = st.builds(
    Selection,
    search=st.none() | questions,
    metadata=st.dictionaries(
        st.sampled_from(["a", "b", "a.b", "b.a"]),
        st.lists(texts | st.sampled_from(["true", "null", "1"]), min_size=1, max_size=2).map(tuple),
        max_size=2,
    ),
)


def parse(*params: tuple[str, str]) -> Selection:
    """Read a query string that is cut into its parameters."""
    return parse_selection(params, NOW_US)


def faults(params: Params) -> list[tuple[str, str]]:
    """Give what is wrong with parameters."""
    with pytest.raises(Invalid) as caught:
        parse_selection(params, NOW_US)
    errors: list[dict[str, Any]] = caught.value.members["errors"]
    assert all(error["index"] == 0 for error in errors)
    return [(error["field"], error["detail"]) for error in errors]


def test_nothing_asked_is_everything() -> None:
    """Without a filter all logs are meant, and none is looked into."""
    assert parse() == Selection()
    assert not parse().reads_content
    assert parse().required_words() == []


def test_every_filter() -> None:
    """Each parameter has its place, and those that may be repeated hold all their values."""
    selection = parse(
        ("from", "-1h"),
        ("to", "2026-06-01T00:00:00.5Z"),
        *((name, f"{name} {n}") for name in FILTERS for n in range(2)),
        ("min_duration_ms", "1.5e3"),
        ("q", "disk"),
        ("metadata.host", "a"),
        ("metadata.a.b", ""),
        ("metadata.host", "b"),
        ("metadata..", "dots"),
    )
    assert selection == Selection(
        start=(NOW_US - 3600 * US_PER_S, 0),
        end=(1_780_272_000_500_000, 0),
        filters={name: (f"{name} 0", f"{name} 1") for name in FILTERS},
        min_duration_ms=1500.0,
        search=parse_search("disk"),
        metadata={"host": ("a", "b"), "a.b": ("",), ".": ("dots",)},
    )
    assert selection.reads_content
    assert Selection(**selection.members()) == selection


@pytest.mark.parametrize(
    "name", ["stats", "metadata", "metadata.", "Q", "metadataa.b", "", "limit"]
)
def test_unknown_parameters(name: str) -> None:
    """What is not known is refused: a misspelt filter would show everything."""
    assert faults([(name, "x")]) == [(name, "is not a known parameter")]


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0.0), ("00", 0.0), ("2.50", 2.5), ("1e3", 1000.0), ("1E-2", 0.01), ("9" * 300, 1e300)],
)
def test_durations(text: str, number: float) -> None:
    """A least duration is any decimal number from 0."""
    assert parse(("min_duration_ms", text)).min_duration_ms == number


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", "1 ", ".5", "1.", "1_0", "nan", "inf", "1e999", "0x1", "\u0661", "9" * 301],
)
def test_durations_that_are_none(text: str) -> None:
    """Signs, names and numbers beyond all bounds are refused."""
    assert faults([("min_duration_ms", text)]) == [
        ("min_duration_ms", "must be a number of at least 0")
    ]


def test_all_faults_at_once() -> None:
    """All that is wrong is told together, once for each parameter."""
    found = faults(
        [
            ("from", "yesterday"),
            ("to", ""),
            ("min_duration_ms", "long"),
            ("q", '"'),
            ("q", "again"),
            ("stats", "FAILED"),
            ("status", "FAILED"),
            *((f"metadata.{n}", "x") for n in range(METADATA_FILTERS_MAX)),
            ("metadata." + "n" * (METADATA_NAME_LENGTH_MAX + 1), "x"),
        ]
    )
    time = "must be an RFC 3339 time, or relative like -1h or -7d"
    assert sorted(found) == [
        ("from", time),
        ("metadata", f"a name must be at most {METADATA_NAME_LENGTH_MAX} characters"),
        ("metadata", f"may be filtered by {METADATA_FILTERS_MAX} names at most"),
        ("min_duration_ms", "must be a number of at least 0"),
        ("q", "has a quote that is not closed"),
        ("q", "is given twice"),
        ("stats", "is not a known parameter"),
        ("to", time),
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("-0s", 0), ("-90s", 90), ("-2m", 120), ("-1h", 3600), ("-7d", 604_800), ("-2w", 1_209_600)],
)
def test_relative_bounds(text: str, seconds: int) -> None:
    """A bound may be so long before now."""
    assert parse_bound(text, NOW_US) == (NOW_US - seconds * US_PER_S, 0)


def test_bounds_of_other_forms() -> None:
    """Before the year 1 there is nothing, and a plus that became a space is one all the same."""
    assert parse_bound("-999999999w", NOW_US) == (MIN_US, 0)
    assert parse_bound("2026-06-01T02:00:00 02:00", NOW_US) == (NOW_US, 0)
    for text in ("1h", "-1y", "-h", "--1h", "-1.5h", "1780272000", "2026-06-01", "now"):
        with pytest.raises(BadTime):
            parse_bound(text, NOW_US)


METADATA: dict[str, Any] = {
    "host": "db_1",
    "n": 3,
    "on": True,
    "gone": None,
    "list": ["db_1"],
    "a": {"b": {"c": "deep"}, "b.c": "half", "": "empty"},
    "a.b": {"c": "other half"},
    "a.b.c": "whole",
}


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("host", "db_1", True),
        ("host", "DB_1", False),
        ("host", "db", False),
        ("n", "3", True),
        ("n", "3.0", False),
        ("on", "true", True),
        ("gone", "null", True),
        ("absent", "null", False),
        ("list", "db_1", False),
        ("a", "deep", False),
        *(("a.b.c", value, True) for value in ("deep", "half", "other half", "whole")),
        ("a.b.c", "hole", False),
        ("a.", "empty", True),
        ("host.x", "db_1", False),
        ("list.0", "db_1", False),
        (".", "x", False),
    ],
)
def test_metadata(name: str, value: str, found: bool) -> None:
    """A dot may belong to a name or part two; the value must be equal to the letter."""
    log = parse_exactly(json.dumps({"message": None, "error": None, "metadata": METADATA}))
    assert Selection(metadata={name: (value,)}).matches_content(log) is found
    assert Selection(metadata={name: ("no", value)}).matches_content(log) is found
    both = Selection(metadata={name: (value,), "absent": ("x",)})
    assert not both.matches_content(log)


@given(selection=selections, log=logs)
def test_a_log_that_matches_has_the_words_required(
    selection: Selection, log: dict[str, Any]
) -> None:
    """No log that is meant lacks the words by which others are passed over."""
    parsed = parse_exactly(json.dumps(log))
    if not selection.matches_content(parsed):
        return
    found = {word for leaf in leaves(list(parsed.values())) for word in words(leaf)} | {"null"}
    for either in selection.required_words():
        assert any(one <= found for one in either)


@given(selection=selections, log=logs)
def test_filters_of_content_hold_together(selection: Selection, log: dict[str, Any]) -> None:
    """A question and filters of metadata are met where each of them alone is."""
    parsed = parse_exactly(json.dumps(log))
    alone = [
        Selection(search=selection.search),
        *(Selection(metadata={name: accepted}) for name, accepted in selection.metadata.items()),
    ]
    assert selection.matches_content(parsed) is all(one.matches_content(parsed) for one in alone)
