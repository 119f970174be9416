"""Ids: they name a place, sort as logs do, and are never the same twice."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.logs.identity import (
    ARRIVAL_MASK,
    ID_LENGTH,
    SLOT_BITS,
    ArrivalClock,
    Position,
    format_id,
    parse_id,
    received_us,
)
from app.logs.timestamp import MAX_US, MIN_US, US_PER_DAY

positions = st.builds(
    Position,
    st.integers(MIN_US, MAX_US),
    st.integers(0, 999),
    st.integers(0, 65_535),
    st.integers(0, ARRIVAL_MASK),
)


def text_of(position: Position) -> str:
    """Write a place as an id."""
    return format_id(position.us, position.day, position.seq)


@given(positions)
def test_an_id_names_its_place(position: Position) -> None:
    """An id has one length and reads back as the place that it was made of."""
    text = text_of(position)
    assert len(text) == ID_LENGTH
    assert parse_id(text) == position
    assert received_us(position.day, position.seq) // US_PER_DAY >= position.day


@given(positions, positions)
def test_ids_sort_as_their_places(one: Position, other: Position) -> None:
    """Texts of ids compare as (executed_at, arrival) do: paging depends on it."""
    assert (text_of(one) < text_of(other)) == (one < other)


@given(st.text(max_size=40) | st.text("0123456789abcdefxX_+- ", min_size=36, max_size=36))
@example("0x3132eee415000000512a0242af0429a3b5")
@example("0e3132eee415000000512a0x42af0429a3b5")
@example("0e3132eee415000000512a 242af0429a3b5")
@example("0" * 15 + "3e8" + "0" * 18)
def test_a_text_is_an_id_in_one_way_only(text: str) -> None:
    """What is no id is none, and no second text names the same log."""
    position = parse_id(text)
    assert position is None or text_of(position) == text


def test_an_arrival_is_never_given_twice() -> None:
    """Runs of arrivals neither overlap nor go back, and stay apart from other slots' ones."""
    clock = ArrivalClock(slot=5)
    last = (0, 0)
    for count in [1, 1000, 1, 1, 50_000, 1]:
        day, arrival = clock.take(count)
        assert (day, arrival) > last
        assert arrival & ((1 << SLOT_BITS) - 1) == 5
        last = (day, arrival + ((count - 1) << SLOT_BITS))
        assert last[1] <= ARRIVAL_MASK


@pytest.mark.parametrize("count", [1, 7])
def test_an_arrival_tells_when(count: int) -> None:
    """The moment of arrival is in the arrival itself."""
    day, arrival = ArrivalClock().take(count)
    moment = received_us(day, arrival)
    assert moment // US_PER_DAY == day
    assert moment % US_PER_DAY == arrival >> SLOT_BITS
