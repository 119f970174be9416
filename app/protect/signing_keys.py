"""Signing keys of API keys: made, stored and opened.

A public key is stored as it is. A signing secret can't be hashed, since it is what signatures are
made anew from; it is stored under AES-256-GCM, whose key is derived from SECRET_KEY:

    $aes256gcm$s=<secret id>$<base64 of nonce and ciphertext>
"""

import os
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Engine, select, update
from sqlmodel import col

from app.errors import Invalid
from app.keys.aead import KEY_BYTES, seal, unseal
from app.keys.database import reading, writing
from app.keys.models import ApiKey
from app.keys.signing import ALGORITHMS, ED25519, HMAC_SHA256, NewSigningKey, Signing, SigningKey
from app.keys.verifier import hkdf_sha256
from app.protect.public_keys import parse_public_key

SEALED = "$aes256gcm$"
SECRET_BYTES = 32
# Opened secrets that are kept; past this they are opened anew, 20 us each.
OPENED_MAX = 10_000

_ID_BYTES = 4


class _Seal(NamedTuple):
    id: str
    key: bytes


class SigningKeys:
    """Makes signing keys and opens them: the first secret seals, all of them open."""

    def __init__(self, secrets: Sequence[str]) -> None:
        seals = [_seal_of(secret.encode()) for secret in secrets]
        self._current = seals[0]
        self._seals = {one.id: one for one in seals}
        self._opened: dict[str, SigningKey] = {}

    def make(self, algorithm: str, public_key: str | None) -> NewSigningKey:
        """Make what is asked for; raise Invalid, naming the fault."""
        if algorithm == HMAC_SHA256:
            if public_key is not None:
                raise Invalid.parameter("signing.public_key", f"is none of {HMAC_SHA256}'s")
            return self.new_secret()
        if algorithm != ED25519:
            raise Invalid.parameter("signing.algorithm", f"must be one of {', '.join(ALGORITHMS)}")
        if public_key is None:
            raise Invalid.parameter("signing.public_key", f"is required with {ED25519}")
        try:
            raw = parse_public_key(public_key)
        except ValueError as error:
            raise Invalid.parameter("signing.public_key", str(error)) from None
        return NewSigningKey(ED25519, b64encode(raw).decode())

    def new_secret(self) -> NewSigningKey:
        """Make a signing secret."""
        secret = os.urandom(SECRET_BYTES)
        return NewSigningKey(HMAC_SHA256, self._sealed(secret), b64encode(secret).decode())

    def open(self, signing: Signing) -> SigningKey | None:
        """Give what a key's signatures are held against; None if there is nothing to use."""
        if signing.stored is None:
            return None
        if signing.algorithm == ED25519:
            return _of_public_key(signing.stored)
        if signing.algorithm != HMAC_SHA256:
            return None
        opened = self._opened.get(signing.stored)
        if opened is None:
            secret = self._unsealed(signing.stored)
            if secret is None:
                return None
            if len(self._opened) >= OPENED_MAX:
                self._opened.clear()
            opened = self._opened[signing.stored] = SigningKey(HMAC_SHA256, secret)
        return opened

    def reseal_all(self, engine: Engine) -> int:
        """Seal anew what is stored under a former SECRET_KEY, and say how many there were.

        To be done at each start, which is when a secret is new. What none of the secrets opens
        stays as it is: the secret may come back.
        """
        stored = col(ApiKey.signing_key)
        sealed = select(stored).where(stored.startswith(SEALED))
        former = sealed.where(~stored.startswith(f"{SEALED}s={self._current.id}$"))
        with reading(engine) as session:
            found = [one for one in session.scalars(former) if one is not None]
        resealed = {one: self._sealed(secret) for one in found if (secret := self._unsealed(one))}
        if not resealed:
            return 0
        with writing(engine) as session:
            for old, new in resealed.items():
                # Not by the row: its key may have been given another one meanwhile.
                session.execute(update(ApiKey).where(stored == old).values(signing_key=new))
        return len(resealed)

    def _sealed(self, secret: bytes) -> str:
        current = self._current
        content = b64encode(seal(current.key, secret, current.id.encode())).decode()
        return f"{SEALED}s={current.id}${content}"

    def _unsealed(self, stored: str) -> bytes | None:
        secret_id, _, text = stored.removeprefix(f"{SEALED}s=").partition("$")
        sealed_by = self._seals.get(secret_id)
        if sealed_by is None:
            return None
        try:
            sealed = b64decode(text, validate=True)
        except ValueError:  # somebody changed the row
            return None
        return unseal(sealed_by.key, sealed, sealed_by.id.encode())


def _of_public_key(stored: str) -> SigningKey | None:
    try:
        return SigningKey(ED25519, parse_public_key(stored))
    except ValueError:  # somebody wrote it past the checks
        return None


def _seal_of(secret: bytes) -> _Seal:
    return _Seal(
        id=hkdf_sha256(secret, b"central-logger signing keys id", _ID_BYTES).hex(),
        key=hkdf_sha256(secret, b"central-logger signing keys", KEY_BYTES),
    )
