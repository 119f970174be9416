"""Tests of app.keys.aead."""

from hypothesis import given
from hypothesis import strategies as st

from app.keys.aead import KEY_BYTES, seal, unseal

KEY, OTHER = b"k" * KEY_BYTES, b"o" * KEY_BYTES


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_what_is_sealed_opens(content: bytes, name: bytes) -> None:
    """It opens under its key and name alone, and no two ciphertexts are the same."""
    sealed = seal(KEY, content, name)
    assert unseal(KEY, sealed, name) == content
    assert unseal(OTHER, sealed, name) is None
    assert unseal(KEY, sealed, name + b"x") is None
    assert sealed != seal(KEY, content, name)


@given(st.binary(max_size=60))
def test_what_was_not_sealed_does_not_open(sealed: bytes) -> None:
    """Whatever somebody wrote in its place is no content, and no fault."""
    assert unseal(KEY, sealed, b"") is None
