"""Tests of app.logs.percentile."""

import statistics
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.logs.percentile import PICKED_FROM, percentile

PERCENTS = (50, 95, 99)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def _expected(values: list[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def test_nothing_has_no_percentile() -> None:
    """Of no values there is none."""
    assert percentile([], 50) is None


@given(st.lists(finite, min_size=1, max_size=300), st.sampled_from(PERCENTS))
def test_few_values(values: list[float], percent: int) -> None:
    """It is what the standard library interpolates."""
    assert percentile(values, percent) == pytest.approx(_expected(values, percent))


def _made(kind: str, count: int, random: Random) -> list[float]:
    step = count // 1_000
    match kind:
        case "even":
            return [random.random() for _ in range(count)]
        case "skewed":
            return [random.paretovariate(0.5) for _ in range(count)]
        case "few":
            return [float(random.randrange(3)) for _ in range(count)]
        case "periodic":  # each value that a sample of every n-th sees is the largest
            return [1e9 if n % step == 0 else float(n % step) for n in range(count)]
        case _:
            return [float(number) for number in range(count)]


@given(
    st.integers(0, 1000),
    st.integers(PICKED_FROM, 4 * PICKED_FROM),
    st.sampled_from(["even", "skewed", "few", "periodic", "sorted"]),
    st.sampled_from(PERCENTS),
)
@settings(max_examples=60)
def test_many_values_are_picked_exactly(seed: int, count: int, kind: str, percent: int) -> None:
    """However they are spread and ordered, picking gives what sorting would, and changes none."""
    values = _made(kind, count, Random(seed))
    before = list(values)
    assert percentile(values, percent) == pytest.approx(_expected(values, percent))
    assert values == before
