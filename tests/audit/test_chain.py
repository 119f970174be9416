"""Seals and the texts that are sealed."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audit.chain import ACTIVITY, GENESIS, Event, detail_text, epoch_us
from app.keys.sealing import chain_keys, signers
from app.keys.token import mint
from tests.audit.books import SECRETS, event

KEYS = chain_keys(SECRETS)

texts = st.text(max_size=8)
events = st.builds(
    Event,
    st.datetimes(timezones=st.just(UTC)),
    *(texts, texts, st.none() | texts, texts, texts, texts, texts, texts),
)


@given(events, events, st.integers(1), st.integers(1), texts, texts)
def test_what_differs_has_another_seal(
    one: Event, other: Event, seq: int, other_seq: int, chain: str, other_chain: str
) -> None:
    """Two places have one seal only if everything about them is the same."""
    is_same = (one, seq, chain) == (other, other_seq, other_chain)
    first = KEYS.seal(KEYS.current, GENESIS, chain, seq, one)
    second = KEYS.seal(KEYS.current, GENESIS, other_chain, other_seq, other)
    assert (first == second) is is_same


@given(st.datetimes(timezones=st.just(UTC)), st.integers(1, 3))
def test_neighbouring_moments_differ(at: datetime, apart_us: int) -> None:
    """Not a microsecond of a moment can be changed unseen."""
    later = at + timedelta(microseconds=apart_us) if at.year < 9999 else at
    assert epoch_us(later) - epoch_us(at) == (apart_us if at.year < 9999 else 0)


def test_each_book_secret_and_purpose_has_its_own_seals() -> None:
    """What is sealed for one book, under one secret, as an event, is none of the others."""
    one = event(1)
    seals = {
        keys.seal(keys.current, before, "acme", 1, one)
        for keys in (KEYS, chain_keys(SECRETS, ACTIVITY), chain_keys(SECRETS[1:]))
        for before in (GENESIS, bytes([1] * 32))
    }
    seals |= {KEYS.seal_head(KEYS.current, "acme", 1, GENESIS), KEYS.seal_file(KEYS.current, b"x")}
    assert len(seals) == 8
    assert len({one.public_key for one in signers(SECRETS)}) == 2


def test_a_secret_that_is_not_here_seals_nothing() -> None:
    """The id of another secret is not known."""
    assert not KEYS.has("00000000")
    with pytest.raises(KeyError):
        KEYS.seal("00000000", GENESIS, "acme", 1, event(1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(st.dictionaries(texts, json_values, max_size=3))
def test_details_come_back(detail: dict[str, Any]) -> None:
    """A detail is JSON in ASCII, which any database takes, and says what was put in."""
    text = detail_text(detail)
    assert text.isascii()
    assert "\0" not in text
    assert json.loads(text) == detail


def test_a_detail_holds_no_key() -> None:
    """A key that somebody wrote into a description, or used as a name, is not kept."""
    key = mint("cl_live", "acme").text
    text = detail_text({"description": [f"was\n{key}", [{key: key}]]})
    assert key[-49:] not in text
    assert json.loads(text)["description"][0] == "was\n[key redacted]"
