"""Usage of a commit: the sums are those of what was sent, whatever the datasets."""

from hypothesis import given
from hypothesis import strategies as st

from app.logs.batch import Batch, Row, Series, UsageCounts, UsageKey, count_usage

datasets = st.sampled_from(["default", "orders", "refunds"])


def row(series: int) -> Row:
    """Make a row of a series."""
    return (0, 0, series, None, None, None, None, None, None)


batches = st.builds(
    lambda names, picks, size, rejected, denied, minute: Batch(
        "acme",
        "key1",
        0,
        minute,
        rows=[row(pick % len(names)) for pick in picks] if names else [],
        series=[(name, "e", str(i), None, None) for i, name in enumerate(names)],
        requests=1,
        bytes=size,
        rejected=rejected,
        denied=denied,
    ),
    st.lists(datasets, max_size=5),
    st.lists(st.integers(0, 100), max_size=20),
    st.integers(0, 10_000),
    st.integers(0, 9),
    st.integers(0, 3),
    st.integers(5, 6),
)


@given(st.lists(st.tuples(batches, st.data()), max_size=4))
def test_sums_are_exact(sent: list[tuple[Batch, st.DataObject]]) -> None:
    """Over all datasets, requests, bytes, rejected and denied add up, and logs are those stored."""
    totals: dict[UsageKey, UsageCounts] = {}
    stored_logs = 0
    for batch, data in sent:
        stored = [one for one in batch.rows if data.draw(st.booleans())]
        stored_logs += len(stored)
        before = {key: list(counts) for key, counts in totals.items()}
        count_usage(totals, batch, stored)
        for key, counts in totals.items():
            assert all(a >= b for a, b in zip(counts, before.get(key, [0] * 5), strict=True))
            logs = sum(batch.series[one[2]][0] == key[3] for one in stored)
            if key[0] == batch.minute:
                assert counts[1] - before.get(key, [0] * 5)[1] == logs
    sums = [sum(column) for column in zip(*totals.values(), strict=True)] or [0] * 5
    assert sums == [
        len(sent),
        stored_logs,
        sum(batch.bytes for batch, _ in sent),
        sum(batch.rejected for batch, _ in sent),
        sum(batch.denied for batch, _ in sent),
    ]


def test_usage_is_kept_apart_by_minute_client_key_and_dataset() -> None:
    """Counts of different minutes, clients, keys or datasets never mix."""
    totals: dict[UsageKey, UsageCounts] = {}
    for client, key, minute in [("a", "k", 1), ("a", "k", 2), ("a", "l", 1), ("b", "k", 1)]:
        series: list[Series] = [(name, "e", "s", None, None) for name in ("x", "y")]
        batch = Batch(client, key, 0, minute, [row(0), row(1)], series, requests=1, bytes=11)
        count_usage(totals, batch, batch.rows)
    assert len(totals) == 8
    assert totals[1, "a", "k", "x"] == [1, 1, 6, 0, 0]
    assert totals[1, "a", "k", "y"] == [0, 1, 5, 0, 0]


def test_usage_without_rows_goes_to_the_default_dataset() -> None:
    """A refused request has no dataset of its own."""
    totals: dict[UsageKey, UsageCounts] = {}
    count_usage(totals, Batch("a", "k", 0, 1, requests=2, denied=3), [])
    assert totals == {(1, "a", "k", "default"): [2, 0, 0, 0, 3]}
