"""The summary of the load test."""

import pytest

from loadtests.run import percentile_ms, print_summary


def test_the_summary_counts_every_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """Failures of all kinds of request add up, and each kind has its line."""
    entries = [
        {"name": "POST", "num_requests": 4, "num_failures": 1, "response_times": {"2": 3, "9": 1}},
        {"name": "GET", "num_requests": 2, "num_failures": 2, "response_times": {"5": 2}},
    ]
    assert print_summary(entries, seconds=2) == 3
    _, post, get, _ = capsys.readouterr().out.splitlines()
    assert post.split() == ["POST", "4", "2", "2", "9", "9", "1"]
    assert get.split() == ["GET", "2", "1", "5", "5", "5", "2"]


def test_a_run_without_requests_is_not_a_success() -> None:
    """Nothing sent is nothing shown."""
    assert print_summary([], seconds=1) == -1


def test_percentiles_of_a_histogram() -> None:
    """The percentile is the smallest value that enough requests did not exceed."""
    counts = {1.0: 50, 3.0: 45, 20.0: 5}
    assert [percentile_ms(counts, share) for share in (0.5, 0.95, 0.99)] == [1.0, 3.0, 20.0]
    assert percentile_ms({}, 0.5) == 0.0
