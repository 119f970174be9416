"""Exact percentiles, of many values without sorting them all. Pure."""

from collections.abc import Sequence
from math import floor, inf

# Fewer are sorted in less time than it takes to pick from them.
PICKED_FROM = 5_000
_SAMPLE = 1_000
# On either side of the place in the sample: three standard errors of it are 47 places at the most.
_MARGIN = 50


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Interpolate between the two nearest values, as PERCENTILE_CONT of SQL does; None of none."""
    if not values:
        return None
    at = (len(values) - 1) * percent / 100
    rank = floor(at)
    low, high = _two_from(values, rank)
    return low + (high - low) * (at - rank)


def _two_from(values: Sequence[float], rank: int) -> tuple[float, float]:
    """Return the value of a rank, counted from 0, and the next one; the last one twice."""
    if len(values) < PICKED_FROM:
        return _at(sorted(values), rank)
    # A sample tells about where they are: what lies below is counted, what may be it is sorted.
    sample = sorted(values[:: len(values) // _SAMPLE])
    place = rank * len(sample) // len(values)
    least = sample[place - _MARGIN] if place >= _MARGIN else -inf
    most = sample[place + _MARGIN] if place + _MARGIN < len(sample) else inf
    upper = [value for value in values if value >= least]  # few, of a high percentile
    below = len(values) - len(upper)
    band = sorted([value for value in upper if value <= most])
    is_last = rank == len(values) - 1
    if below <= rank and rank + 1 - is_last < below + len(band):
        return _at(band, rank - below)
    return _at(sorted(values), rank)  # they come in an order that misled the sample


def _at(ordered: Sequence[float], rank: int) -> tuple[float, float]:
    return ordered[rank], ordered[min(rank + 1, len(ordered) - 1)]
