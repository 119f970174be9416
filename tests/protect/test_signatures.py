"""Signatures of requests, held against RFC 9421 and RFC 9530."""

from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidSignature
from app.keys.signing import ED25519, HMAC_SHA256, SigningKey
from app.protect.public_keys import parse_public_key
from app.protect.signatures import (
    AGE_S_MAX,
    FIELD_BYTES_MAX,
    SIGNATURES_MAX,
    SKEW_S,
    Message,
    Unconfirmed,
    check_digest,
    holds,
    signatures,
    verify,
)
from tests.signing import Signer, content_digest

# RFC 9421, B.1.4, B.1.5 and B.2: the keys and the message of its examples.
RFC_ED25519 = """\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=
-----END PUBLIC KEY-----
"""
RFC_SECRET = (
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
)
RFC_FIELDS = {
    "host": "example.com",
    "date": "Tue, 20 Apr 2021 02:07:55 GMT",
    "content-type": "application/json",
    "content-digest": "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm"
    "+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:",
    "content-length": "18",
}
RFC_BODY = b'{"hello": "world"}'
VECTORS = {
    "B.2.5": (
        SigningKey(HMAC_SHA256, b64decode(RFC_SECRET)),
        (
            'sig-b25=("date" "@authority" "content-type");created=1618884473'
            ';keyid="test-shared-secret"'
        ),
        "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:",
    ),
    "B.2.6": (
        SigningKey(ED25519, parse_public_key(RFC_ED25519)),
        (
            'sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length")'
            ';created=1618884473;keyid="test-key-ed25519"'
        ),
        (
            "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1"
            "u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:"
        ),
    ),
}

SIGNER = Signer("c2VjcmV0IG9mIHRlc3RzLCAzMiBieXRlcyBsb25nISE=")
KEY = SigningKey(HMAC_SHA256, b64decode(SIGNER.secret))
NOW_S = 1_800_000_000
BODY = b'{"status": "SUCCESS"}'
NONCE = "a nonce of 24 characters"
COVERED = {
    "@method": "POST",
    "@path": "/api/v1/logs",
    "@query": "?client_id=acme",
    "content-digest": content_digest(BODY),
    "content-type": "application/json",
}
PARAMETERS = {"created": str(NOW_S), "nonce": f'"{NONCE}"'}


def message(**changes: Any) -> Message:
    """Give a request; `fields` replaces or adds some of its header."""
    fields = changes.pop("fields", {})
    sent = {
        "host": "logs.example.com",
        "content-digest": COVERED["content-digest"],
        "content-type": COVERED["content-type"],
    }
    plain = Message("POST", "https", sent["host"], "/api/v1/logs", "client_id=acme", (), True)
    pairs = tuple((k.encode(), v.encode("latin-1")) for k, v in (sent | fields).items())
    return plain._replace(fields=pairs, **changes)


def signed(
    covered: dict[str, str] | None = None, parameters: dict[str, str] | None = None, **changes: Any
) -> Message:
    """Give a request that is signed over these components, with these parameters."""
    told = PARAMETERS if parameters is None else parameters
    lines = [f"{name}={value}" for name, value in told.items()]
    headers = SIGNER.headers(COVERED if covered is None else covered, lines)
    return message(fields=headers | changes.pop("fields", {}), **changes)


def check(one: Message, key: SigningKey = KEY, now_s: float = NOW_S) -> Unconfirmed:
    """Verify a request of key_id `abc`."""
    return verify(one, key, "abc", now_s)


@pytest.mark.parametrize("name", VECTORS)
def test_examples_of_the_rfc(name: str) -> None:
    """The signatures that RFC 9421 prints hold, and not for another method, path or key."""
    key, signature_input, signature = VECTORS[name]
    fields = RFC_FIELDS | {"signature-input": signature_input, "signature": signature}
    pairs = [(k.encode(), v.encode()) for k, v in fields.items()]
    sent = Message("POST", "https", "example.com", "/foo", "param=Value&Pet=dog", pairs)
    [found] = signatures(pairs)
    assert holds(key, found.base(sent), found.value)
    assert not holds(key, found.base(sent._replace(host="example.org")), found.value)
    assert not holds(key._replace(material=bytes(32)), found.base(sent), found.value)
    check_digest(RFC_FIELDS["content-digest"], RFC_BODY)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("@method", "POST"),
        ("@target-uri", "https://www.example.com/path?param=value"),
        ("@authority", "www.example.com"),
        ("@scheme", "https"),
        ("@request-target", "/path?param=value"),
        ("@path", "/path"),
        ("@query", "?param=value"),
        ("x-ows", "Leading and trailing whitespace."),
        ("x-twice", "one, two"),
        ("x-empty", ""),
    ],
)
def test_components_of_the_rfc(name: str, value: str) -> None:
    """Components have the values that RFC 9421 (2.1, 2.2) gives them."""
    fields = [
        (b"x-ows", b"  Leading and trailing whitespace. \t"),
        (b"x-twice", b"one "),
        (b"x-empty", b""),
        (b"x-twice", b" two"),
    ]
    sent = Message("POST", "https", "WWW.example.com:443", "/path", "param=value", fields)
    assert sent.component(name) == value


def test_components_of_a_bare_request() -> None:
    """Without path and query there still are both components, by RFC 9421 (2.2.6, 2.2.7)."""
    sent = Message("GET", "http", "example.com:8000", "", "", ())
    values = [sent.component(name) for name in ("@path", "@query", "@target-uri")]
    assert values == ["/", "?", "http://example.com:8000/"]


def test_what_is_left_to_check() -> None:
    """A signature that holds leaves its nonce and the digest of the body."""
    assert check(signed()) == Unconfirmed((NONCE,), NOW_S, COVERED["content-digest"])
    by_uri = {
        "@method": "GET",
        "@target-uri": "https://logs.example.com/api/v1/logs?client_id=acme",
    }
    plain = signed(by_uri, method="GET", has_body=False)
    assert check(plain) == Unconfirmed((NONCE,), NOW_S, None)


@given(st.data())
def test_one_changed_byte(data: st.DataObject) -> None:
    """Whatever byte of a covered part changes, the signature holds no more."""
    one = signed()
    parts = {name: getattr(one, name).encode() for name in ("method", "path", "query")}
    fields = {name.decode(): value for name, value in one.fields}
    parts |= {name: fields[name] for name in (*list(COVERED)[3:], "signature-input")}
    name = data.draw(st.sampled_from(list(parts)))
    text = parts[name]
    place = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.integers(0x21, 0x7E).filter(lambda byte: byte != text[place]))
    changed = (text[:place] + bytes([byte]) + text[place + 1 :]).decode()
    other = signed(**({"fields": {name: changed}} if name in fields else {name: changed}))
    with pytest.raises(InvalidSignature):
        check(other)


@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_one_changed_byte_of_the_body(place: int, flips: int) -> None:
    """Whatever byte of the body changes, its digest is another one."""
    changed = bytearray(BODY)
    changed[place] ^= flips
    for name in ("sha-256", "sha-512"):
        check_digest(content_digest(BODY, name), BODY)
        with pytest.raises(InvalidSignature):
            check_digest(content_digest(BODY, name), bytes(changed))


def without(name: str) -> dict[str, str]:
    """Give all components but one."""
    return {one: value for one, value in COVERED.items() if one != name}


@pytest.mark.parametrize(
    ("one", "cause"),
    [
        (signed(without("@method")), "@method"),
        (signed(without("@path")), "@path"),
        (signed(without("@query")), "@query"),
        (signed(without("content-digest")), "content-digest"),
        (signed(COVERED | {"x-absent": "1"}), "x-absent"),
        (signed(COVERED | {"@status": "200"}), "@status"),
        (signed(COVERED | {'@query-param";name="client_id': "acme"}), "not supported"),
        (signed(COVERED | {"Content-Type": "application/json"}), "lower case"),
        (signed(parameters=PARAMETERS | {"created": "1.5"}), "created"),
        (signed(parameters={"nonce": '"0123456789abcdef"'}), "created"),
        (signed(parameters={"created": str(NOW_S)}), "nonce"),
        (signed(parameters=PARAMETERS | {"nonce": '"fifteen letters"'}), "nonce"),
        (signed(parameters=PARAMETERS | {"nonce": f'"{"n" * 129}"'}), "nonce"),
        (signed(parameters=PARAMETERS | {"nonce": "a-token-of-24-characters"}), "nonce"),
        (signed(parameters=PARAMETERS | {"keyid": '"abd"'}), "keyid"),
        (signed(parameters=PARAMETERS | {"keyid": "abc"}), "keyid"),
        (signed(parameters=PARAMETERS | {"alg": '"ed25519"'}), "alg"),
        (signed(parameters=PARAMETERS | {"expires": str(NOW_S - 1)}), "expired"),
        (signed(parameters=PARAMETERS | {"expires": '"never"'}), "expired"),
        (signed(parameters=PARAMETERS | {"created": str(NOW_S - AGE_S_MAX - 1)}), "ago"),
        (signed(parameters=PARAMETERS | {"created": str(NOW_S + SKEW_S + 1)}), "future"),
        (signed(fields={"signature": "sig=:AAAA:"}), "not the hmac-sha256"),
        (signed(fields={"signature": "other=:AAAA:"}), "same signatures"),
        (signed(fields={"signature": "sig=1"}), "RFC 9421"),
        (signed(fields={"signature-input": "sig=1"}), "RFC 9421"),
        (signed(fields={"signature-input": 'sig=("@method"'}), "RFC 9651"),
        (signed(fields={"signature": "sig=:AAAA:, sig=:AAAA:"}), "twice"),
        (signed(fields={"signature": f"sig=:{'A' * FIELD_BYTES_MAX}:"}), "bytes"),
    ],
)
def test_each_fault(one: Message, cause: str) -> None:
    """What is wrong with a signature is told to those who look after the key, and to no caller."""
    with pytest.raises(InvalidSignature) as raised:
        check(one)
    assert cause in raised.value.cause
    assert raised.value.detail == "Invalid signature"
    assert raised.value.members == {}


def test_a_component_covered_twice() -> None:
    """A component is covered once, by RFC 9421 (2.5)."""
    one = signed()
    doubled = dict(one.fields)[b"signature-input"].replace(b'"@path"', b'"@path" "@path"')
    with pytest.raises(InvalidSignature, match="Invalid signature") as raised:
        check(message(fields={"signature-input": doubled.decode(), "signature": "sig=:AAAA:"}))
    assert "twice" in raised.value.cause


@pytest.mark.parametrize(
    "parameters",
    [
        {"keyid": '"abc"', "alg": '"hmac-sha256"', "tag": '"app"'},
        {"expires": str(NOW_S)},
        {"created": str(NOW_S - AGE_S_MAX)},
        {"created": str(NOW_S + SKEW_S)},
        {"nonce": f'"{"n" * 16}"'},
        {"nonce": f'"{"n" * 128}"'},
    ],
)
def test_what_is_allowed(parameters: dict[str, str]) -> None:
    """Up to their bounds parameters are fine."""
    check(signed(parameters=PARAMETERS | parameters))


def test_another_signature_beside_it() -> None:
    """A signature that a proxy has added does not hide the client's; of too many none counts."""
    one = signed()
    fields = dict(one.fields)
    for count in range(1, SIGNATURES_MAX + 1):
        inputs = [f'proxy{number}=("date")' for number in range(count)]
        values = [f"proxy{number}=:AAAA:" for number in range(count)]
        beside = message(
            fields={
                "signature-input": ", ".join([*inputs, fields[b"signature-input"].decode()]),
                "signature": ", ".join([*values, fields[b"signature"].decode()]),
            }
        )
        if count < SIGNATURES_MAX:
            assert check(beside).nonces == (NONCE,)
        else:
            with pytest.raises(InvalidSignature):
                check(beside)


def test_ed25519() -> None:
    """A signature of a private key holds against its public key, and against no other."""
    signer, other = Signer.ed25519(), Signer.ed25519()
    lines = [f"{name}={value}" for name, value in PARAMETERS.items()]
    one = message(fields=signer.headers(COVERED, [*lines, 'alg="ed25519"']))
    check(one, SigningKey(ED25519, parse_public_key(signer.public_key)))
    with pytest.raises(InvalidSignature):
        check(one, SigningKey(ED25519, parse_public_key(other.public_key)))
    with pytest.raises(InvalidSignature):  # the public key is known to all
        check(one, SigningKey(HMAC_SHA256, parse_public_key(signer.public_key)))


@pytest.mark.parametrize(
    "digest",
    ["md5=:AAAA:", "sha-256=1", "sha-256=:AAAA:", "sha-256", "", "sha-256=:AAAA:, sha-256=:AAAA:"],
)
def test_digests_that_are_none(digest: str) -> None:
    """A Content-Digest without a digest that is known proves nothing, and one of two can't lie."""
    with pytest.raises(InvalidSignature):
        check_digest(digest, BODY)
    both = f"{content_digest(BODY)}, {content_digest(b'another', 'sha-512')}"
    with pytest.raises(InvalidSignature):
        check_digest(both, BODY)


@given(st.text(st.characters(max_codepoint=255), max_size=60), st.sampled_from(["", "sig="]))
def test_any_text_in_the_headers(text: str, start: str) -> None:
    """No text in the two headers, or in Content-Digest, does anything but to be refused."""
    fields = [(b"signature-input", (start + text).encode("latin-1"))]
    with pytest.raises(InvalidSignature):
        list(signatures([*fields, (b"signature", b"sig=:AAAA:, a=:AAAA:")]))
    with pytest.raises(InvalidSignature):
        check_digest(text, BODY)
