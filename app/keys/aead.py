"""AES-256-GCM, each ciphertext behind a nonce of its own.

`cryptography` is imported where it is needed: it takes 10 MB, and most workers never need it.
"""

import os

KEY_BYTES = 32
_NONCE_BYTES = 12


def seal(key: bytes, content: bytes, name: bytes) -> bytes:
    """Seal a content under a key of KEY_BYTES; it opens under the same `name` alone."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, name)


def unseal(key: bytes, sealed: bytes, name: bytes) -> bytes | None:
    """Open what was sealed; None if it was not, or somebody has changed it."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name)
    except (InvalidTag, ValueError):
        return None
