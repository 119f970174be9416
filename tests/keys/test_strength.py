"""How hard keys are to guess, and their verifiers."""

from zlib import crc32

import pytest

from app.keys.strength import is_weak, make_verifier, strength_bits
from app.keys.token import base62, mint
from app.keys.verifier import Peppers, is_argon2


def _of_our_form(secret: str) -> str:
    text = f"cl_live_acme_{'a' * 12}{secret}"
    return text + base62(crc32(text.encode()), 6)


@pytest.mark.parametrize(
    "secret",
    [
        "0" * 43,
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg",
        "abcabcabcabcabcabcabcabcabcabcabcabcabcabca",
        "Xk29dkPq1ZzXk29dkPq1ZzXk29dkPq1ZzXk29dkPq1Z",
    ],
)
def test_our_form_alone_makes_no_strong_key(peppers: Peppers, secret: str) -> None:
    """A key that was made up to look like ours is weak, and gets argon2id."""
    token = _of_our_form(secret)
    assert is_weak(token)
    verifier, lookup_tag = make_verifier(peppers, token, "auto")
    assert is_argon2(verifier)
    assert lookup_tag == peppers.lookup_tag(token)


def test_a_key_made_here_is_strong() -> None:
    """No key of ours is taken for a weak one, and every key of another form is."""
    assert not any(is_weak(mint("cl_live", "acme").text) for _ in range(2_000))
    for token in ("hunter2", "x" * 512, mint("cl_live", "acme").text[:-1], ""):
        assert is_weak(token)
    assert strength_bits("") == 0
