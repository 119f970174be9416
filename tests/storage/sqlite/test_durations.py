"""Tests of app.storage.sqlite.durations: what goes into the column comes out, line by line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.storage.sqlite.block import BLOCK_LOGS, DamagedBlock
from app.storage.sqlite.durations import GONE, Durations

Line = tuple[int, float | None]
lines = st.tuples(
    st.sampled_from([1, 2, 3, 2**31 - 1]),
    st.none() | st.floats(min_value=0, allow_nan=False, allow_infinity=False),
)
some_lines = st.lists(lines, min_size=1, max_size=BLOCK_LOGS)


@given(some_lines)
def test_lines_come_back(sent: list[Line]) -> None:
    """Each line has its series and its duration to the last bit, or none."""
    assert list(Durations.unpack(Durations.of(sent).pack()).lines()) == sent


@given(some_lines, st.sets(st.integers(0, BLOCK_LOGS)))
def test_only_some_lines(sent: list[Line], kept: set[int]) -> None:
    """What is taken out leaves every other line in its place."""
    want = [line if at in kept else (GONE, None) for at, line in enumerate(sent)]
    assert list(Durations.of(sent).only(kept).lines()) == want


def test_a_run_is_of_any_length() -> None:
    """A whole block of one series is one run, with or without durations."""
    for duration, count in ((7.0, BLOCK_LOGS), (None, 0)):
        made = Durations.unpack(Durations.of([(3, duration)] * BLOCK_LOGS).pack())
        assert [list(column) for column in made[:2]] == [[6 + bool(count)], [BLOCK_LOGS]]
        assert list(made.values) == [duration] * count


def test_damage_is_noticed() -> None:
    """What is cut off, or a bit that has turned, is an error, not another duration."""
    packed = Durations.of([(1, 2.5), (2, None)]).pack()
    for damaged in (packed[:-1], packed[:-9] + bytes([packed[-9] ^ 1]) + packed[-8:], b""):
        with pytest.raises(DamagedBlock):
            Durations.unpack(damaged)
