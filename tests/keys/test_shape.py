"""What is noted of a credential that was refused: enough to explain it, nothing of its secret."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.keys import shape
from app.keys.shape import Presented, Proofs, shape_of
from app.keys.token import SECRET_LENGTH, TOKEN_LENGTH_MAX, mint

LIVE = mint("cl_live", "acme_corp")
OTHER = mint("pk", "acme_corp")


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (LIVE.text, Presented(shape.WELL_FORMED, LIVE.key_id, "live")),
        (OTHER.text, Presented(shape.WELL_FORMED, OTHER.key_id, None)),
        (LIVE.text[:-1] + "!", Presented(shape.MALFORMED, None, "live")),
        (LIVE.text[:-3], Presented(shape.TRUNCATED, None, "live")),
        (LIVE.text[:12], Presented(shape.TRUNCATED, None, "live")),
        (LIVE.text + "x", Presented(shape.TOO_LONG, None, "live")),
        (LIVE.text + "x" * TOKEN_LENGTH_MAX, Presented(shape.TOO_LONG, None, "live")),
        (LIVE.display, Presented(shape.SHOWN_FORM, None, "live")),
        (OTHER.text[:-3], Presented(shape.FOREIGN)),
        ("changeme", Presented(shape.FOREIGN)),
        (LIVE.text + "\u00e9", Presented(shape.NOT_ASCII)),
    ],
    ids=range(11),  # the keys are other ones in each process of the tests
)
def test_shapes(token: str, expected: Presented) -> None:
    """A text has the shape that a person would name, and an id only if it is well-formed."""
    assert shape_of(token) == expected


@pytest.mark.parametrize(("prefix", "name"), [("cl_test", "test"), ("cl_admin", "admin")])
def test_the_prefix_says_the_environment(prefix: str, name: str) -> None:
    """What stands before the body says where a key belongs."""
    assert shape_of(mint(prefix, None).text).environment == name


@given(st.integers(0, len(LIVE.text) - 1), st.characters(codec="ascii"))
def test_a_mistyped_key_is_never_well_formed(place: int, character: str) -> None:
    """One other character anywhere in a key leaves no well-formed one."""
    text = LIVE.text[:place] + character + LIVE.text[place + 1 :]
    assert (shape_of(text).shape == shape.WELL_FORMED) is (text == LIVE.text)


@given(st.text() | st.builds(lambda cut, end: LIVE.text[:cut] + end, st.integers(), st.text()))
def test_nothing_of_a_secret_is_noted(text: str) -> None:
    """Whatever was sent, what is noted holds no piece of a secret, and is found without a fault."""
    secret = LIVE.text[-6 - SECRET_LENGTH : -6]
    noted = repr(shape_of(text))
    assert not any(secret[at : at + 6] in noted for at in range(SECRET_LENGTH - 6))


def test_proofs_are_made_when_they_are_looked_at() -> None:
    """They cost nothing before that, are made once, and what they are made of is let go of."""
    made: list[str] = []

    def make(token: str) -> frozenset[str]:
        made.append(token)
        return frozenset({f"proof {len(made)}"})

    proofs = Proofs(partial(make, LIVE.text))
    presented = Presented(shape.WELL_FORMED, proofs=proofs)
    assert LIVE.text not in repr(presented)
    assert made == []
    assert "proof 1" in proofs
    assert (list(proofs), len(proofs)) == (["proof 1"], 1)
    assert made == [LIVE.text]
    assert proofs._make is None  # who knew the text
