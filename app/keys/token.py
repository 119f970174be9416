"""The text of a key: `{prefix}_{client_id}_{body}`, or `{prefix}_{body}` for the platform's own.

The body is 61 base62 characters (0-9A-Za-z, big-endian, zero-padded):

    12  key_id     public: shown, logged, searched for
    43  secret     32 bytes from the system's random source
     6  checksum   CRC32 of everything before it

A key is read from its right end: what stands before the body helps people and secret scanners, and
is never trusted. The checksum is no secret; it lets a typing error be answered without a look at
any store, and tells this service's keys from anyone else's.
"""

import re
import secrets
from typing import NamedTuple
from zlib import crc32

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEY_ID_LENGTH = 12
SECRET_LENGTH = 43
CHECKSUM_LENGTH = 6
BODY_LENGTH = KEY_ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH
SECRET_BYTES = 32
# A header that carries more is refused before it is looked at: see keyring.
TOKEN_LENGTH_MAX = 512

PREFIX_LIVE = "cl_live"
PREFIX_TEST = "cl_test"
PREFIX_ADMIN = "cl_admin"
ENVIRONMENTS = {"live": PREFIX_LIVE, "test": PREFIX_TEST}

PREFIX_PATTERN = re.compile(r"[a-z0-9][a-z0-9_]{0,31}")
CLIENT_ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

_SECRET_END = KEY_ID_LENGTH + SECRET_LENGTH


class MalformedToken(ValueError):
    """Of this service's form, but not a key it can have made: mistyped or cut."""


class Token(NamedTuple):
    """A new key: `text` is handed out once, the rest may be stored and shown."""

    text: str
    key_id: str
    display: str


class ParsedToken(NamedTuple):
    """What a well-formed key says of itself; only a verifier can say whether it is true."""

    key_id: str
    secret: str


def base62(number: int, length: int) -> str:
    """Write a number that is known to fit in `length` digits, big-endian, zero-padded."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


# The alphabet is in ASCII order, so fixed-length numbers compare as their texts do.
_SECRET_TEXT_MAX = base62((1 << (8 * SECRET_BYTES)) - 1, SECRET_LENGTH)


def mint(prefix: str, client_id: str | None) -> Token:
    """Make a key of 256 random bits; raise ValueError for a prefix or client_id out of form."""
    if not PREFIX_PATTERN.fullmatch(prefix):
        raise ValueError(f"not a key prefix ({PREFIX_PATTERN.pattern}): {prefix!r}")
    if client_id is not None and not CLIENT_ID_PATTERN.fullmatch(client_id):
        raise ValueError(f"not a client_id ({CLIENT_ID_PATTERN.pattern}): {client_id!r}")
    head = f"{prefix}_" if client_id is None else f"{prefix}_{client_id}_"
    key_id = random_key_id()
    secret = base62(int.from_bytes(secrets.token_bytes(SECRET_BYTES)), SECRET_LENGTH)
    signed = f"{head}{key_id}{secret}"
    return Token(f"{signed}{_checksum(signed)}", key_id, f"{head}{key_id}***")


def random_key_id() -> str:
    """Make a public id; 71 random bits, so that two alike never meet in one database."""
    return "".join(secrets.choice(ALPHABET) for _ in range(KEY_ID_LENGTH))


def display(text: str) -> str:
    """Give the form of a key of ours that may be shown: all but the secret and the checksum."""
    return f"{text[: -SECRET_LENGTH - CHECKSUM_LENGTH]}***"


def parse(text: str) -> ParsedToken | None:
    """Read a key; None if it is not of this form at all.

    Raises MalformedToken for what looks like a key of ours (its last `_`-separated part is 61
    base62 characters) and fails its checksum, or carries more than 256 bits of secret.
    """
    head, _, body = text.rpartition("_")
    if not head or len(body) != BODY_LENGTH or not (text.isascii() and body.isalnum()):
        return None
    secret = body[KEY_ID_LENGTH:_SECRET_END]
    if secret > _SECRET_TEXT_MAX or body[_SECRET_END:] != _checksum(text[:-CHECKSUM_LENGTH]):
        raise MalformedToken("the key's checksum does not match")
    return ParsedToken(body[:KEY_ID_LENGTH], secret)


def token_fault(token: str) -> str | None:
    """Say why a text could never be accepted as a key."""
    if not token.isascii() or not token.isprintable() or token.strip() != token:
        return "must be printable ASCII without surrounding spaces"
    if not 0 < len(token) <= TOKEN_LENGTH_MAX:
        return f"must have 1 to {TOKEN_LENGTH_MAX} characters"
    try:
        parse(token)
    except MalformedToken as error:
        return f"is mistyped: {error}"
    return None


def _checksum(signed: str) -> str:
    # Unrolled, since every parse pays for it: 6 digits hold any 32-bit number.
    rest, a = divmod(crc32(signed.encode("ascii")), 62)
    rest, b = divmod(rest, 62)
    rest, c = divmod(rest, 62)
    rest, d = divmod(rest, 62)
    f, e = divmod(rest, 62)
    return ALPHABET[f] + ALPHABET[e] + ALPHABET[d] + ALPHABET[c] + ALPHABET[b] + ALPHABET[a]
