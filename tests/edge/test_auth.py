"""Credentials: every carrier of a key is understood, and guessing is slow."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.edge.auth import credential
from app.errors import InvalidKey, KeyRequired, Unauthenticated
from tests.support import LOGS, Service, problem, record, running

KEY = "cl_live_acme_" + "A" * 61
OTHER = "cl_live_acme_" + "B" * 61
HINT = "send the key as 'X-API-Key: <key>' or 'Authorization: Bearer <key>'"


def base64(text: str) -> str:
    """Encode as HTTP and Elasticsearch clients do."""
    return b64encode(text.encode()).decode()


def asked(*headers: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    """Write headers as a server passes them on."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]


CARRIERS = [
    ("X-API-Key", KEY),
    ("X-API-Key", f"  {KEY}\t"),
    ("Authorization", f"Api-Key {KEY}"),
    ("Authorization", f"ApiKey {KEY}"),
    ("Authorization", f"APIKEY   {KEY} "),
    ("Authorization", f"ApiKey {base64('some-id:' + KEY)}"),
    ("Authorization", f"ApiKey {base64(':' + KEY)}"),
    ("Authorization", f"Api-Key {base64('some-id:' + KEY)}"),
    ("Authorization", f"Bearer {KEY}"),
    ("Authorization", f"bearer {KEY}"),
    ("Authorization", f"Basic {base64('anyone:' + KEY)}"),
    ("Authorization", f"Basic {base64(':' + KEY)}"),
]


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier[1][:12])
def test_every_carrier_is_understood(carrier: tuple[str, str]) -> None:
    """A key may come in any of the ways that clients have for it."""
    assert credential(asked(("Host", "x"), carrier)) == KEY


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier[1][:12])
def test_two_that_agree_are_one_and_two_that_differ_are_none(carrier: tuple[str, str]) -> None:
    """The same key twice is no fault; two keys are, since either could be the one meant."""
    assert credential(asked(carrier, ("X-API-Key", KEY))) == KEY
    for other in (("X-API-Key", OTHER), ("Authorization", f"Bearer {OTHER}")):
        for pair in ((carrier, other), (other, carrier)):
            with pytest.raises(InvalidKey):
                credential(asked(*pair))


def test_a_key_that_is_base64_is_not_taken_for_a_pair() -> None:
    """Random bytes in base64 stand for themselves, though one of them may be a colon."""
    raw = b64encode(b"\x8f\x02:" + bytes(range(0x80, 0xA1))).decode()
    for scheme in ("ApiKey", "Api-Key"):
        assert credential(asked(("Authorization", f"{scheme} {raw}"))) == raw


def test_no_credential_is_none() -> None:
    """Without a header that could carry a key there is none, and no complaint yet."""
    assert credential(asked(("Host", "x"))) is None
    assert credential(asked(("X-API-Key", ""))) is None
    assert credential(asked(("X-API-Key", "  "))) is None


@pytest.mark.parametrize(
    "value",
    [
        *(KEY, "", "\xff", "Bearer", "Bearer ", "Basic", "Basic !!!", f"Basic {KEY}", "ApiKey"),
        *(f"Basic {base64('no colon')}", f"Basic {base64('user:')}", f"ApiKey {base64('id:')}"),
        "Digest abc",
    ],
)
def test_an_authorization_not_understood_gets_a_hint(value: str) -> None:
    """A caller that came close, as with a bare key, is told how to send it."""
    with pytest.raises(KeyRequired) as caught:
        credential(asked(("Authorization", value)))
    assert caught.value.members == {"hint": HINT}
    assert credential(asked(("Authorization", value), ("X-API-Key", KEY))) == KEY


@pytest.mark.parametrize("header", [("X-API-Key", "schlüssel"), ("Authorization", "Bearer \xe9")])
def test_a_key_that_is_not_ascii_is_invalid(header: tuple[str, str]) -> None:
    """Bytes beyond ASCII can't be a key and are no fault of the server."""
    with pytest.raises(InvalidKey):
        credential(asked(header))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"x-api-key", b"authorization"]),
            st.binary(max_size=30) | st.binary(max_size=9).map(lambda b: b"Basic " + b64encode(b)),
        ),
        max_size=3,
    )
)
def test_any_headers_give_a_key_or_a_401(headers: list[tuple[bytes, bytes]]) -> None:
    """No header value does worse than failing to authenticate."""
    try:
        token = credential(headers)
    except Unauthenticated:
        return
    assert token is None or (token and token.isascii())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give a service that allows three failures a minute and trusts one proxy."""
    path: Path = tmp_path_factory.mktemp("auth")
    with running(path, auth_failures_per_minute=3, trusted_proxies="10.0.0.1") as service:
        yield service


def try_from(service: Service, address: str, key: str, **headers: str) -> httpx.Response:
    """Ask with a key from an address, on either plane in turn."""

    async def scenario() -> httpx.Response:
        async with service.client(address) as client:
            return await client.get(LOGS, headers={"X-API-Key": key, **headers})

    return service.run(scenario())


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier[1][:12])
def test_every_carrier_opens_both_planes(service: Service, carrier: tuple[str, str]) -> None:
    """Writing and reading take a key in the same ways."""
    key = service.key()
    name, value = carrier
    for encoded in {base64("some-id:" + KEY), base64(":" + KEY), base64("anyone:" + KEY)}:
        if encoded in value:
            user = {base64("some-id:" + KEY): "some-id", base64("anyone:" + KEY): "anyone"}
            value = value.replace(encoded, base64(f"{user.get(encoded, '')}:{key}"))
    headers = {name: value.replace(KEY, key).strip()}
    assert service.post(record(), **headers).status_code == 201
    assert service.request("GET", LOGS, headers=headers).status_code == 200


def test_a_key_in_use_does_not_hide_another(service: Service) -> None:
    """Two keys that differ are refused although the first has been verified, on both planes."""
    key, other = service.key(), service.key()
    assert service.post(record(), key).status_code == 201
    both = {"authorization": f"Bearer {other}"}
    refused = service.post(record(), key, **both)
    problem(refused, 401, "Invalid API key")
    assert "ratelimit" not in refused.headers  # refused before it is counted, and read
    headers = {"X-API-Key": key, **both}
    problem(service.request("GET", LOGS, headers=headers), 401, "Invalid API key")
    assert service.post(record(), key).status_code == 201


def test_failures_are_limited_by_address(service: Service) -> None:
    """After its share of failures an address is told to wait; others are not, nor is a good key."""
    bad = service.key()[:-1] + "!"
    for _ in range(3):
        problem(try_from(service, "203.0.113.1", bad), 401, "Invalid API key")
    body = problem(try_from(service, "203.0.113.1", bad), 429, "Rate limit exceeded")
    assert body["violated"] == ["auth_failures"]
    problem(try_from(service, "203.0.113.2", bad), 401, "Invalid API key")
    assert try_from(service, "203.0.113.1", service.key()).status_code == 200


def test_malformed_keys_are_failures_too(service: Service) -> None:
    """A key with a wrong checksum says so, and counts."""
    good = service.key()
    mistyped = good[:-1] + ("a" if good[-1] != "a" else "b")
    for _ in range(3):
        body = problem(try_from(service, "203.0.113.3", mistyped), 401, "Invalid API key")
        assert body["code"] == "malformed_key"
    refused = try_from(service, "203.0.113.3", mistyped)
    problem(refused, 429, "Rate limit exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_a_missing_key_is_no_failure(service: Service) -> None:
    """Who sends no key guesses nothing, and is never told to wait."""

    async def scenario() -> list[int]:
        async with service.client("203.0.113.4") as client:
            return [(await client.get(LOGS)).status_code for _ in range(5)]

    assert service.run(scenario()) == [401] * 5


def test_a_v6_party_is_one(service: Service) -> None:
    """All addresses of a /64 share one count, and another /64 has its own."""
    for n in range(3):
        problem(try_from(service, f"2001:db8:0:1::{n + 1}", "wrong"), 401)
    problem(try_from(service, "2001:db8:0:1:ffff::1", "wrong"), 429)
    problem(try_from(service, "2001:db8:0:2::1", "wrong"), 401)


def test_forwarded_addresses_count_from_trusted_proxies_only(service: Service) -> None:
    """Behind our proxy each party has its own count; a header of one's own helps nobody."""
    for n in range(3):
        problem(try_from(service, "203.0.113.5", "wrong", **{"X-Forwarded-For": f"1.1.1.{n}"}), 401)
    problem(try_from(service, "203.0.113.5", "wrong", **{"X-Forwarded-For": "1.1.1.9"}), 429)
    for n in range(5):
        problem(try_from(service, "10.0.0.1", "wrong", **{"X-Forwarded-For": f"1.1.2.{n}"}), 401)
    for _ in range(3):
        problem(
            try_from(service, "10.0.0.1", "wrong", **{"X-Forwarded-For": "9.9.9.9, 1.1.3.1"}), 401
        )
    problem(try_from(service, "10.0.0.1", "wrong", **{"X-Forwarded-For": "8.8.8.8, 1.1.3.1"}), 429)
