"""Signatures of requests by RFC 9421, and digests of their bodies by RFC 9530. Pure.

A signature is over a text, its base: the values of the components that it names, and its own
parameters. What it does not name may be changed on the way, so some have to be among them; when it
was made and a nonce have to be as well, so that it is good once.

Structured fields (RFC 9651) are http-sf's. The library http-message-signatures is not used: it
insists on a `keyid`, which the API key makes superfluous here.
"""

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import http_sf

from app.errors import InvalidSignature
from app.keys.signing import ED25519, HMAC_SHA256, SigningKey

AGE_S_MAX = 300
# The most that AGE_S_MAX may be set to.
AGE_S_BOUND = 3_600
# How far a sender's clock may be ahead.
SKEW_S = 30
NONCE_LENGTH_MIN, NONCE_LENGTH_MAX = 16, 128
# Of Signature-Input and of Signature: one has 400 bytes, and whoever has no more than the API key
# may have this much parsed, in 0.5 ms, as often as they like.
FIELD_BYTES_MAX = 2_048
# Proxies may add signatures of their own; each that is tried costs 0.1 ms.
SIGNATURES_MAX = 4
DIGESTS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
_PORTS = {"http": ":80", "https": ":443"}

Fields = Sequence[tuple[bytes, bytes]]


class Message(NamedTuple):
    """A request as its sender wrote it: the path is not decoded, `query` has no question mark.

    `has_body` says whether its head announces a body.
    """

    method: str
    scheme: str
    host: str
    path: str
    query: str
    fields: Fields  # names in lower case
    has_body: bool = False

    def component(self, name: str) -> str:
        """Give the value of a component (RFC 9421, 2); InvalidSignature if there is none."""
        path = self.path or "/"
        question = f"?{self.query}"
        target = path + question if self.query else path
        host = self.host.lower().removesuffix(_PORTS.get(self.scheme, ":"))
        derived = {
            "@method": self.method,
            "@target-uri": f"{self.scheme}://{host}{target}",
            "@authority": host,
            "@scheme": self.scheme,
            "@request-target": target,
            "@path": path,
            "@query": question,
        }
        value = derived.get(name) if name.startswith("@") else field(self.fields, name)
        if value is None:
            raise InvalidSignature(f"it covers {name}, which is not there or not supported")
        return value


class Signature(NamedTuple):
    """A signature as it was sent, and what it says of itself; nothing of it is checked."""

    components: list[str]
    parameters: dict[str, Any]
    line: str  # of its parameters, as the base ends with
    value: bytes

    def base(self, message: Message) -> bytes:
        """Give what was signed, if it is this message."""
        lines = [f'"{name}": {message.component(name)}' for name in self.components]
        return "\n".join([*lines, f'"@signature-params": {self.line}']).encode("latin-1", "replace")


class Unconfirmed(NamedTuple):
    """What is left to check of signatures that hold: the body's digest, and their nonces.

    Each of the nonces has to be used up, lest the request is let in again with another one of its
    signatures. `created_s` is of the latest; `digest` is the field Content-Digest, None where no
    signature covers it.
    """

    nonces: tuple[str, ...]
    created_s: int
    digest: str | None


def field(fields: Fields, name: str) -> str | None:
    """Give a field's value, repeated ones joined (RFC 9421, 2.1); None if there is none."""
    wanted = name.encode("latin-1", "replace")
    values = [value.strip(b" \t") for one, value in fields if one == wanted]
    return b", ".join(values).decode("latin-1") if values else None


def is_signed(fields: Fields) -> bool:
    """Say whether there is anything of a signature."""
    return any(name in {b"signature", b"signature-input"} for name, _ in fields)


def signatures(fields: Fields) -> Iterator[Signature]:
    """Give the signatures that were sent; raise InvalidSignature if they can't be read."""
    inputs, values = _dictionary(fields, "signature-input"), _dictionary(fields, "signature")
    if not inputs or inputs.keys() != values.keys():
        raise InvalidSignature("Signature-Input and Signature do not name the same signatures")
    if len(inputs) > SIGNATURES_MAX:
        raise InvalidSignature(f"there are more than {SIGNATURES_MAX} signatures")
    for label, (items, parameters) in inputs.items():
        value = values[label][0]
        if not isinstance(items, list) or not isinstance(value, bytes):
            raise InvalidSignature("Signature-Input or Signature is not of RFC 9421")
        line = http_sf.ser([(items, parameters)])
        yield Signature([_name(*item) for item in items], parameters, line, value)


def verify(
    message: Message, key: SigningKey, key_id: str, now_s: float, age_s_max: int = AGE_S_MAX
) -> Unconfirmed:
    """Return what is left to check of the signatures that hold; InvalidSignature if none does."""
    fault: InvalidSignature | None = None
    held: list[Unconfirmed] = []
    for one in signatures(message.fields):
        try:
            held.append(_unconfirmed(message, one, key, key_id, now_s, age_s_max))
        except InvalidSignature as error:
            fault = fault or error
    if not held:
        raise fault or InvalidSignature("there is none")
    return Unconfirmed(
        tuple(dict.fromkeys(nonce for one in held for nonce in one.nonces)),
        max(one.created_s for one in held),
        next((one.digest for one in held if one.digest is not None), None),
    )


def check_digest(digest: str, body: bytes) -> None:
    """Raise InvalidSignature unless a Content-Digest (RFC 9530) is that of a body."""
    found = _parsed(digest, "Content-Digest")
    known = [name for name in DIGESTS if name in found]
    if not known:
        raise InvalidSignature(f"Content-Digest has none of {', '.join(DIGESTS)}")
    for name in known:
        told = found[name][0]
        if not isinstance(told, bytes) or told != DIGESTS[name](body).digest():
            raise InvalidSignature(f"Content-Digest: {name} is not that of the body")


def holds(key: SigningKey, base: bytes, value: bytes) -> bool:
    """Say whether a signature is that of a base."""
    if key.algorithm == HMAC_SHA256:
        return hmac.compare_digest(hmac.digest(key.material, base, "sha256"), value)
    from cryptography.exceptions import InvalidSignature as Refuted  # noqa: PLC0415  # 10 MB
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PublicKey,
    )

    assert key.algorithm == ED25519  # noqa: S101  # SigningKeys opens no other
    try:
        Ed25519PublicKey.from_public_bytes(key.material).verify(value, base)
    except (Refuted, ValueError):
        return False
    return True


def _unconfirmed(  # noqa: PLR0913, PLR0917  # see verify
    message: Message,
    signature: Signature,
    key: SigningKey,
    key_id: str,
    now_s: float,
    age_s_max: int,
) -> Unconfirmed:
    _check_covered(message, signature.components)
    parameters = signature.parameters
    created_s = _check_time(parameters, now_s, age_s_max)
    nonce = parameters.get("nonce")
    if type(nonce) is not str or not NONCE_LENGTH_MIN <= len(nonce) <= NONCE_LENGTH_MAX:
        length = f"{NONCE_LENGTH_MIN} to {NONCE_LENGTH_MAX} characters"
        raise InvalidSignature(f"nonce must be a text of {length}")
    for name, value in (("keyid", key_id), ("alg", key.algorithm)):
        told = parameters.get(name, value)
        if type(told) is not str or told != value:
            raise InvalidSignature(f"{name} is not {value}")
    if not holds(key, signature.base(message), signature.value):
        raise InvalidSignature(f"it is not the {key.algorithm} signature of what it covers")
    is_digested = "content-digest" in signature.components
    digest = field(message.fields, "content-digest") if is_digested else None
    return Unconfirmed((nonce,), created_s, digest)


def _check_covered(message: Message, components: list[str]) -> None:
    if len(set(components)) < len(components):
        raise InvalidSignature("it covers a component twice")
    needed = ["@method"]
    if "@target-uri" not in components:  # which is path and query, and more
        needed += ["@path", "@query"] if message.query else ["@path"]
    if message.has_body:
        needed.append("content-digest")
    missing = [name for name in needed if name not in components]
    if missing:
        raise InvalidSignature(f"it does not cover {', '.join(missing)}")


def _check_time(parameters: dict[str, Any], now_s: float, age_s_max: int) -> int:
    created_s = parameters.get("created")
    if type(created_s) is not int:
        raise InvalidSignature("created must be a whole number of seconds")
    if created_s > now_s + SKEW_S:
        raise InvalidSignature(f"created is more than {SKEW_S} s in the future")
    if created_s < now_s - age_s_max:
        raise InvalidSignature(f"created is more than {age_s_max} s ago")
    if "expires" in parameters:
        expires_s = parameters["expires"]
        if type(expires_s) is not int or expires_s < now_s:
            raise InvalidSignature("it has expired")
    return created_s


def _name(value: Any, parameters: dict[str, Any]) -> str:
    """Read the identifier of a component."""
    if type(value) is not str or value != value.lower():
        raise InvalidSignature("a component is not named by a text in lower case")
    if parameters:
        raise InvalidSignature(f"parameters of components are not supported: {value}")
    return value


def _dictionary(fields: Fields, name: str) -> dict[str, Any]:
    text = field(fields, name)
    return {} if text is None else _parsed(text, name)


def _parsed(text: str, name: str) -> dict[str, Any]:
    """Parse a dictionary; each member is a value and its parameters."""
    if len(text) > FIELD_BYTES_MAX:
        raise InvalidSignature(f"{name} has more than {FIELD_BYTES_MAX} bytes")
    try:
        parsed = http_sf.parse(
            text.encode("latin-1"), tltype="dictionary", on_duplicate_key=_refuse_twice
        )
    except http_sf.StructuredFieldError as error:
        raise InvalidSignature(f"{name} is not a dictionary of RFC 9651: {error}") from None
    assert isinstance(parsed, dict)  # noqa: S101  # as asked for
    return {
        key: member if isinstance(member, tuple) else (member, {}) for key, member in parsed.items()
    }


def _refuse_twice(name: str, kind: str) -> None:
    # RFC 9651 lets the last one win: what one reads and another signs had better be the same.
    raise InvalidSignature(f"the {kind} {name} is given twice")
