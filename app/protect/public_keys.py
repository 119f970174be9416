"""Public keys of ed25519 as they are pasted. Pure."""

from base64 import b64decode

PUBLIC_KEY_BYTES = 32
# PEM has 113 characters.
TEXT_LENGTH_MAX = 1_024

# A SubjectPublicKeyInfo of ed25519 (RFC 8410, 4) is this and the key.
_SPKI = bytes.fromhex("302a300506032b6570032100")
_BEGIN, _END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
# Points of small order, with or without the sign bit: under these anybody can sign anything.
_SMALL_ORDER = frozenset(
    int(text, 16).to_bytes(PUBLIC_KEY_BYTES, "little")
    for text in (
        "0",
        "1",
        "7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd83d3d706a17c7",
        "05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826",
        "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffec",
        "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffed",
        "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffee",
    )
)


def parse_public_key(text: str) -> bytes:
    """Read a public key of ed25519: PEM, or base64 of its 32 bytes or of its DER.

    Raises ValueError with what is wrong, which repeats nothing of the text: it may be the private
    key.
    """
    if len(text) > TEXT_LENGTH_MAX:
        raise ValueError(f"must have at most {TEXT_LENGTH_MAX} characters")
    if "PRIVATE KEY" in text:
        raise ValueError("is a private key, which nobody but its owner may have: take another")
    bare = "".join(text.split())
    begin, end = "".join(_BEGIN.split()), "".join(_END.split())
    if bare.startswith(begin) and bare.endswith(end):
        bare = bare.removeprefix(begin).removesuffix(end)
    try:
        raw = b64decode(bare, validate=True)
    except ValueError:
        raise ValueError("must be PEM or base64") from None
    if len(raw) == len(_SPKI) + PUBLIC_KEY_BYTES and raw.startswith(_SPKI):
        raw = raw[len(_SPKI) :]
    if len(raw) != PUBLIC_KEY_BYTES:
        raise ValueError("is no public key of ed25519")
    if raw[:-1] + bytes([raw[-1] & 0x7F]) in _SMALL_ORDER:
        raise ValueError("is a key under which anybody could sign")
    return raw
