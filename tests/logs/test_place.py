"""Places: nothing between two of them is lost, and their texts are of use to nobody else."""

from base64 import urlsafe_b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.logs.place import START, Mark, Place, Places, end_of_commit

marks = st.builds(Mark, st.integers(-1, 3), st.integers(-2, 2), st.integers(0, 2))
places = st.builds(Place, st.integers(10, 14), marks, marks)
logs = st.tuples(st.integers(8, 16), marks)
secrets = Places(b"secret")


@given(place=places, one=logs)
def test_a_log_that_was_passed_is_seen(place: Place, one: tuple[int, Mark]) -> None:
    """Behind a log it has been seen, and what was seen before still is."""
    if place.has(*one):
        return
    after = place.at(*one)
    assert after.has(*one)
    day, mark = one
    if day <= place.day + 1:  # else a whole day lies between, in which nothing more will come
        assert after.has(place.day, place.mark)
    assert not after.has(day, Mark(mark.commit_no + 1, 0, 0))
    tomorrow = (day + 1, Mark(0, 0, 0))
    assert after.has(*tomorrow) is place.has(*tomorrow)


@given(one=places, other=places, log=logs)
def test_the_earliest_of_two_places_misses_nothing(
    one: Place, other: Place, log: tuple[int, Mark]
) -> None:
    """What either has not seen, nobody has seen from the earliest of both."""
    if not one.has(*log) or not other.has(*log):
        # A day that is over for one of them is over.
        if log[0] < max(one.day, other.day) - 1:
            return
        assert not one.earliest(other).has(*log)


def test_a_day_that_is_over_has_nothing_more() -> None:
    """Of days before yesterday all is seen, of later ones nothing."""
    place = Place(10, end_of_commit(5), START)
    assert place.has(8, end_of_commit(9))
    assert not place.has(9, Mark(0, 0, 0))
    assert place.has(10, Mark(5, 2**62, 2**62))
    assert not place.has(10, Mark(6, 0, 0))
    assert not place.has(11, Mark(0, 0, 0))


@given(place=places)
def test_an_id_opens_as_the_place_that_was_sealed(place: Place) -> None:
    """An id leads back to its place, and is a text that fits a header."""
    text = secrets.seal("acme", place)
    assert secrets.open("acme", text) == place
    assert text.isascii()
    assert text.isprintable()


@given(place=places, at=st.integers(0, 200))
def test_an_id_that_was_changed_is_refused(place: Place, at: int) -> None:
    """No id but the service's own opens, and none of another client's."""
    text = secrets.seal("acme", place)
    at %= len(text)
    changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    for client_id, forged in (("other", text), ("acme", changed), ("acme", text[:-3])):
        if (
            urlsafe_b64decode(forged + "=" * (-len(forged) % 4))
            == urlsafe_b64decode(text + "=" * (-len(text) % 4))
            and client_id == "acme"
        ):
            continue  # bits that no byte takes up
        with pytest.raises(ValueError, match="is not the id"):
            secrets.open(client_id, forged)


@pytest.mark.parametrize("text", ["", "x", "é", "a b", "=" * 9, "A" * 5000])
def test_any_other_text_is_refused(text: str) -> None:
    """What is no id is refused in one way."""
    with pytest.raises(ValueError, match="is not the id of an event of this client"):
        secrets.open("acme", text)
