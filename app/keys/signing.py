"""What a key signs its requests with, as far as the register knows: names and columns.

The secrets behind the columns are opened elsewhere: see app/protect/signing_keys.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

# The algorithms of RFC 9421 (3.3) that are taken, named as there.
HMAC_SHA256, ED25519 = "hmac-sha256", "ed25519"
ALGORITHMS = (HMAC_SHA256, ED25519)

# The columns of a key that signs nothing.
NO_SIGNING_KEY: dict[str, Any] = {"signature_algorithm": None, "signing_key": None}


@dataclass(frozen=True, slots=True)
class Signing:
    """The signing key of a principal, and whether each of its requests has to be signed.

    `stored` is a public key in base64, or a secret that only the server opens. None where a
    signature is asked for that nothing can be held against: then no request passes.
    """

    algorithm: str | None
    stored: str | None
    is_required: bool


class SigningKey(NamedTuple):
    """What signatures are held against: a secret, or a public key of 32 bytes."""

    algorithm: str
    material: bytes


class NewSigningKey(NamedTuple):
    """A signing key to be stored; `secret` is shown to its owner, this once, and is base64."""

    algorithm: str
    stored: str
    secret: str | None = None

    def columns(self) -> dict[str, Any]:
        """Give the columns of its key."""
        return {"signature_algorithm": self.algorithm, "signing_key": self.stored}


# Makes a signing secret.
NewSecret = Callable[[], NewSigningKey]


def public_key(algorithm: str | None, stored: str | None) -> str | None:
    """Give what may be shown of a signing key: the public key of ed25519."""
    return stored if algorithm == ED25519 else None
