"""Signing keys: what is stored of them, and who can open that."""

from base64 import b64decode, b64encode
from typing import Any

import pytest
from sqlalchemy import Engine

from app.errors import Invalid
from app.keys.lifecycle import delete_key
from app.keys.models import ApiKey
from app.keys.registry import create_key, get_key
from app.keys.signing import ED25519, HMAC_SHA256, NewSigningKey, Signing
from app.keys.verifier import Peppers
from app.protect.public_keys import parse_public_key
from app.protect.signing_keys import SigningKeys
from tests.signing import Signer
from tests.support import BY

OLD, NEW = "an old secret of this suite", "a new secret of this suite"
PEM = Signer.ed25519(bytes(range(32))).public_key
RAW = parse_public_key(PEM)
DER = b64decode("".join(PEM.splitlines()[1:-1]))


def opened(keys: SigningKeys, algorithm: str | None, stored: str | None) -> bytes | None:
    """Open what is stored; None if that can't be done."""
    key = keys.open(Signing(algorithm, stored, is_required=True))
    return None if key is None else key.material


def make_key(engine: Engine, signing: NewSigningKey | None, **properties: Any) -> ApiKey:
    """Make a key that signs."""
    key, _ = create_key(
        engine,
        Peppers([OLD]),
        by=BY,
        create_client=True,
        client_id="acme",
        name="test",
        signing=signing,
        **properties,
    )
    return key


def test_a_secret_is_stored_sealed() -> None:
    """A secret has 32 bytes, is never the same, and can't be read where it is stored."""
    keys = SigningKeys([OLD])
    made, other = keys.new_secret(), keys.new_secret()
    assert made.secret is not None
    assert len(b64decode(made.secret)) == 32
    assert made.secret != other.secret
    assert made.secret.rstrip("=") not in made.stored
    assert opened(keys, made.algorithm, made.stored) == b64decode(made.secret)
    assert opened(SigningKeys([NEW, OLD]), made.algorithm, made.stored) == b64decode(made.secret)


def test_what_can_not_be_opened() -> None:
    """What was sealed under another secret, or changed since, opens to nothing."""
    made = SigningKeys([OLD]).new_secret()
    head, _, text = made.stored.rpartition("$")
    sealed = bytearray(b64decode(text))
    sealed[-1] ^= 1
    assert opened(SigningKeys([NEW]), HMAC_SHA256, made.stored) is None
    keys = SigningKeys([OLD])
    for stored in (f"{head}${b64encode(sealed).decode()}", f"{head}$", f"{head}$?", "", PEM, None):
        assert opened(keys, HMAC_SHA256, stored) is None
    assert opened(keys, ED25519, made.stored) is None
    assert opened(keys, None, made.stored) is None
    assert opened(keys, "none", made.stored) is None


def test_a_new_secret_key_seals_all_anew(engine: Engine) -> None:
    """The first start under a new SECRET_KEY leaves nothing that the old one is needed for."""
    made = SigningKeys([OLD]).new_secret()
    public = SigningKeys([OLD]).make(ED25519, PEM)
    lost = SigningKeys(["a secret that is gone for good"]).new_secret()
    key, other, third = (make_key(engine, one) for one in (made, public, lost))
    assert SigningKeys([NEW, OLD]).reseal_all(engine) == 1
    assert SigningKeys([NEW, OLD]).reseal_all(engine) == 0
    assert made.secret is not None
    stored = get_key(engine, key.key_id).signing_key
    assert opened(SigningKeys([NEW]), HMAC_SHA256, stored) == b64decode(made.secret)
    assert get_key(engine, other.key_id).signing_key == public.stored
    assert get_key(engine, third.key_id).signing_key == lost.stored


def test_a_deleted_key_leaves_no_secret(engine: Engine) -> None:
    """The row of a deleted key holds nothing that signs."""
    key = make_key(engine, SigningKeys([OLD]).new_secret(), require_signature=True)
    assert delete_key(engine, key.key_id, by=BY).key.signing_key is None


@pytest.mark.parametrize(
    "text",
    [PEM, PEM.replace("\n", "\r\n"), b64encode(DER).decode(), b64encode(RAW).decode()],
)
def test_forms_of_a_public_key(text: str) -> None:
    """PEM, and base64 of DER or of the bare key, are one key."""
    made = SigningKeys([OLD]).make(ED25519, text)
    assert made == NewSigningKey(ED25519, b64encode(RAW).decode())
    assert opened(SigningKeys([OLD]), ED25519, made.stored) == RAW


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (PEM.replace("PUBLIC", "PRIVATE"), "private key"),
        (PEM.replace("PUBLIC KEY", "CERTIFICATE"), "PEM or base64"),
        ("?", "PEM or base64"),
        ("", "no public key"),
        (b64encode(RAW[:31]).decode(), "no public key"),
        (b64encode(bytes(12) + RAW).decode(), "no public key"),
        ("A" * 2_000, "1024"),
        (b64encode(bytes(32)).decode(), "anybody"),
        (b64encode(bytes(31) + b"\x80").decode(), "anybody"),
        (b64encode(b"\xec" + b"\xff" * 30 + b"\x7f").decode(), "anybody"),
    ],
)
def test_what_is_no_public_key(text: str, fault: str) -> None:
    """What can't be a public key is refused with the reason, and not repeated."""
    with pytest.raises(Invalid) as raised:
        SigningKeys([OLD]).make(ED25519, text)
    [told] = raised.value.members["errors"]
    assert told["field"] == "signing.public_key"
    assert fault in told["detail"]
    assert len(text) < 2 or text not in told["detail"]
