"""Tests of app.logs.aggregation: what a table may hold; what it counts, the stores' tests tell."""

from array import array

import pytest

from app.errors import Invalid
from app.logs.aggregation import GROUPS_MAX, VALUES_MAX, Aggregation, Groups, Sums

QUERY = Aggregation("acme", metrics=("p50_duration_ms",), dimensions=("workflow",))


def test_more_durations_than_memory_may_hold() -> None:
    """Percentiles of too many logs are refused by name, however many parts they come in."""
    groups = Groups(QUERY)
    groups.add(("a",), Sums(values_ms=array("d", [1.0]) * (VALUES_MAX // 2)))
    groups.add(("b",), Sums(values_ms=array("d", [1.0]) * (VALUES_MAX // 2)))
    with pytest.raises(Invalid) as refused:
        groups.add(("a",), Sums(values_ms=array("d", [1.0])))
    [fault] = refused.value.members["errors"]
    assert (fault["field"], str(VALUES_MAX) in fault["detail"]) == ("metrics", True)


def test_more_runs_than_memory_may_hold() -> None:
    """Runs count as durations do."""
    groups = Groups(QUERY)
    groups.add(("a",), Sums(values_ms=array("d", [1.0]) * VALUES_MAX))
    with pytest.raises(Invalid):
        groups.add(("a",), Sums(runs={1}))


def test_more_groups_than_a_table_may_have() -> None:
    """The last group that fits is taken and the next one refused, by name."""
    groups = Groups(QUERY)
    for number in range(GROUPS_MAX):
        groups.add((number,), Sums(1))
    groups.add((0,), Sums(1))
    with pytest.raises(Invalid) as refused:
        groups.add((GROUPS_MAX,), Sums(1))
    [fault] = refused.value.members["errors"]
    assert fault["field"] == "dimensions"
