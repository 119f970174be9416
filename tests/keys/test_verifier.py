"""What is stored instead of a key."""

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from app.keys.token import mint
from app.keys.verifier import Peppers, hkdf_sha256, is_argon2
from tests.keys.conftest import OLD_SECRET, SECRET

TOKEN = mint("cl_live", "acme").text


def test_a_keyed_verifier_knows_its_key_alone() -> None:
    """The keyed verifier accepts the key and nothing that differs in one character."""
    peppers = Peppers([SECRET])
    verifier = peppers.make_keyed(TOKEN)
    assert verifier.startswith("$blake2b-keyed$p=")
    assert TOKEN[-49:-6] not in verifier
    assert peppers.verify(verifier, TOKEN)
    assert not peppers.verify(verifier, TOKEN[:-1] + "~")
    assert not peppers.verify(verifier, TOKEN.replace("acme", "evil"))


def test_an_argon2id_verifier_has_the_documented_cost() -> None:
    """Guessable keys get argon2id with 19 MiB, two passes and one lane."""
    peppers = Peppers([SECRET])
    verifier = peppers.make_argon2id("hunter2")
    assert verifier.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert is_argon2(verifier)
    assert peppers.verify(verifier, "hunter2")
    assert not peppers.verify(verifier, "hunter3")


def test_an_old_pepper_still_verifies_and_is_known_as_old() -> None:
    """After a rotation of the secret old verifiers hold, and ask to be rewritten."""
    verifier = Peppers([OLD_SECRET]).make_keyed(TOKEN)
    rotated = Peppers([SECRET, OLD_SECRET])
    assert rotated.verify(verifier, TOKEN)
    assert not rotated.is_current(verifier)
    assert rotated.is_current(rotated.make_keyed(TOKEN))


def test_an_unknown_pepper_verifies_nothing() -> None:
    """Without the secret that made it a verifier is worthless."""
    assert not Peppers([SECRET]).verify(Peppers([OLD_SECRET]).make_keyed(TOKEN), TOKEN)


@given(st.text(max_size=80))
def test_no_verifier_surprises(verifier: str) -> None:
    """Whatever stands in the database, it verifies nothing rather than fail."""
    assert not Peppers([SECRET]).verify(verifier, TOKEN)
    assert not Peppers([SECRET]).verify(f"$argon2id${verifier}", TOKEN)
    assert not Peppers([SECRET]).verify(f"$blake2b-keyed${verifier}", TOKEN)


def test_lookup_tags_are_short_and_one_for_each_pepper() -> None:
    """A tag has 16 bits, says its pepper, and is found under every pepper in use."""
    old, rotated = Peppers([OLD_SECRET]), Peppers([SECRET, OLD_SECRET])
    tags = rotated.lookup_tags("weak")
    assert tags == (rotated.lookup_tag("weak"), old.lookup_tag("weak"))
    assert all(len(tag.split(".")[1]) == 4 for tag in tags)


def test_no_secret_is_an_error() -> None:
    """Verifiers without a pepper are never made."""
    with pytest.raises(ValueError, match="at least one secret"):
        Peppers([])


@given(st.binary(min_size=1, max_size=100), st.binary(max_size=40))
def test_the_derivation_is_hkdf(secret: bytes, info: bytes) -> None:
    """The short derivation equals the library's HKDF-SHA256."""
    assert hkdf_sha256(secret, info, 32) == HKDF(SHA256(), 32, None, info).derive(secret)
