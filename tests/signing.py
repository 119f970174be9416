"""Signing requests as a client does, written down from RFC 9421 and not from the service's code."""

import hashlib
import hmac
import secrets
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

Headers = dict[str, str]


def content_digest(body: bytes, name: str = "sha-256") -> str:
    """Give the Content-Digest of a body."""
    digest = hashlib.new(name.replace("-", ""), body).digest()
    return f"{name}=:{b64encode(digest).decode()}:"


def unique() -> str:
    """Give a nonce that nobody has used."""
    return secrets.token_hex(16)


class Signer(NamedTuple):
    """Signs with a secret in base64, or with a private key."""

    secret: str = ""
    private_key: Ed25519PrivateKey | None = None

    @classmethod
    def ed25519(cls, seed: bytes | None = None) -> "Signer":
        """Make one with a private key of its own."""
        # A seed where what is parametrized needs the same key in every process of the suite.
        if seed is not None:
            return cls(private_key=Ed25519PrivateKey.from_private_bytes(seed))
        return cls(private_key=Ed25519PrivateKey.generate())

    @staticmethod
    def secret_of_nobody() -> str:
        """Give a secret that no key has."""
        return b64encode(secrets.token_bytes(32)).decode()

    @property
    def public_key(self) -> str:
        """Give its public key in PEM."""
        assert self.private_key is not None
        public = self.private_key.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, base: str) -> bytes:
        """Sign a text."""
        if self.private_key is not None:
            return self.private_key.sign(base.encode("latin-1"))
        return hmac.digest(b64decode(self.secret), base.encode("latin-1"), "sha256")

    def headers(
        self, values: Mapping[str, str], parameters: Iterable[str] = (), label: str = "sig"
    ) -> Headers:
        """Give the two headers of a signature over components with their values."""
        names = " ".join(f'"{name}"' for name in values)
        line = ";".join([f"({names})", *parameters])
        base = "".join(f'"{name}": {value}\n' for name, value in values.items())
        value = self.sign(f'{base}"@signature-params": {line}')
        return {
            "signature-input": f"{label}={line}",
            "signature": f"{label}=:{b64encode(value).decode()}:",
        }

    def request(  # what a request is
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        query: str = "",
        age_s: int = 0,
        nonce: str | None = None,
        more: Iterable[str] = (),
        label: str = "sig",
    ) -> Headers:
        """Give all headers that sign a request; `more` are further parameters."""
        values = {"@method": method, "@path": path}
        extra: Headers = {}
        if query:
            values["@query"] = f"?{query}"
        if body:
            extra["content-digest"] = values["content-digest"] = content_digest(body)
        created = int(time.time()) - age_s
        nonce = unique() if nonce is None else nonce
        parameters = [f"created={created}", f'nonce="{nonce}"', *more]
        return extra | self.headers(values, parameters, label)
