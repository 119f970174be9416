"""Verifiers: what is stored instead of a key, and how a key is held against it.

Two classes, each saying in its text what it is:

    $blake2b-keyed$p=<pepper id>$<base64>   keys minted here, 256 random bits
    $argon2id$v=19$m=19456,t=2,p=1$...      imported, static and otherwise guessable keys

A random 256-bit key cannot be guessed, so a slow hash would buy nothing and cost 36 ms of each
first use; the keyed hash makes a stolen database useless without the server's secret as well.
"""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Sequence
from typing import NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import error_to_str

KEYED = "$blake2b-keyed$"
ARGON2ID = "$argon2id$"
PEPPER_BYTES = 32
PEPPER_ID_BYTES = 4
TAG_BYTES = 2

# OWASP's password storage cheat sheet: argon2id with 19 MiB, 2 passes, 1 lane.
_hasher = PasswordHasher(memory_cost=19456, time_cost=2, parallelism=1)
_NO_MEMORY = error_to_str(-22)  # ARGON2_MEMORY_ALLOCATION_ERROR of argon2.h


# Of a secret of the server, in characters: what can be guessed protects nothing.
SECRET_LENGTH_MIN = 16


class _Pepper(NamedTuple):
    id: str
    key: bytes
    tag_key: bytes


class Peppers:
    """The server's peppers: the first makes new verifiers, all of them verify.

    Rotation = a new secret in front of the old one. The pepper's id is derived from the secret like
    the pepper itself, by HKDF under another label, so it may stand beside the hash.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        if not secrets:
            raise ValueError("at least one secret is needed")
        self._all = tuple(_derive(secret) for secret in secrets)
        self._by_id = {pepper.id: pepper for pepper in self._all}
        self._current = self._all[0]

    @property
    def marks(self) -> list[tuple[str, str]]:
        """Give how the verifiers and the lookup tags begin that were made under each of these."""
        return [(f"{KEYED}p={pepper.id}$", f"{pepper.id}.") for pepper in self._all]

    def make_keyed(self, token: str) -> str:
        """Make the verifier of a key that cannot be guessed."""
        return _keyed(self._current, token)

    def make_argon2id(self, token: str) -> str:
        """Make the verifier of a key that may be guessable; takes 36 ms and 19 MiB."""
        return _hasher.hash(token)

    def verify(self, verifier: str, token: str) -> bool:
        """Say whether this is the key, in a time that does not depend on where it differs.

        Raises MemoryError if argon2 found no memory, which says nothing about the key.
        """
        if verifier.startswith(KEYED):
            pepper = self._by_id.get(verifier[len(KEYED) :].partition("$")[0].removeprefix("p="))
            if pepper is None:
                return False
            return hmac.compare_digest(_keyed(pepper, token).encode(), verifier.encode())
        try:
            return _hasher.verify(verifier, token)
        except (InvalidHashError, UnicodeEncodeError):
            return False
        except VerificationError as error:
            if str(error) == _NO_MEMORY:
                raise MemoryError from error
            return False

    def is_current(self, verifier: str) -> bool:
        """Say whether the verifier needs no rewriting under the current pepper."""
        # An argon2id verifier carries no pepper; only its lookup tag does.
        return is_argon2(verifier) or verifier.startswith(f"{KEYED}p={self._current.id}$")

    def proofs(self, token: str) -> frozenset[str]:
        """Give all that may be stored of a key, to be compared: its keyed verifiers and its tags.

        For a key that failed, whose row is read later: its text need not be kept for that.
        """
        keyed = (_keyed(pepper, token) for pepper in self._all)
        return frozenset((*keyed, *self.lookup_tags(token)))

    def lookup_tags(self, token: str) -> tuple[str, ...]:
        """Give the tags by which an argon2-class key is found, the current pepper's first.

        A key that is not of our format names no row, so its row must be found by something
        computed from the key. A long hash would undo argon2: who has the database and the secret
        could test guesses against it at a million a second. No tag at all would let every garbage
        key cost an argon2 (36 ms, 19 MiB) per such row. Sixteen bits lie between: of n rows'
        worth of garbage only n in 65,536 reach argon2; without the secret the tag is a random
        number; and with the secret and the database in hand it spares an attacker at most 16 bits
        of guessing, the rest still at argon2's price.
        """
        raw = token.encode("utf-8", "surrogatepass")
        return tuple(_tag(pepper, raw) for pepper in self._all)

    def lookup_tag(self, token: str) -> str:
        """Give the tag to store with a new argon2-class verifier."""
        return _tag(self._current, token.encode("utf-8", "surrogatepass"))


def is_argon2(verifier: str) -> bool:
    """Say whether this verifier costs argon2, and so a place in its pool."""
    return verifier.startswith(ARGON2ID)


def _keyed(pepper: _Pepper, token: str) -> str:
    raw = token.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(raw, key=pepper.key, digest_size=32).digest()
    return f"{KEYED}p={pepper.id}${b64encode(digest).decode()}"


def _tag(pepper: _Pepper, raw: bytes) -> str:
    tag = hashlib.blake2b(raw, key=pepper.tag_key, digest_size=TAG_BYTES).hexdigest()
    return f"{pepper.id}.{tag}"


def _derive(secret: str) -> _Pepper:
    raw = secret.encode()
    return _Pepper(
        id=hkdf_sha256(raw, b"central-logger pepper id", PEPPER_ID_BYTES).hex(),
        key=hkdf_sha256(raw, b"central-logger pepper", PEPPER_BYTES),
        tag_key=hkdf_sha256(raw, b"central-logger lookup tag", PEPPER_BYTES),
    )


def hkdf_sha256(secret: bytes, info: bytes, length: int) -> bytes:
    """Derive up to 32 bytes by HKDF (RFC 5869) with an empty salt.

    One block of output is one HMAC: not worth the 10 MB that importing `cryptography` costs each
    worker. A test holds the two equal.
    """
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")[:length]
