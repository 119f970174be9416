"""The pages of claim links, grouped by status."""

import asyncio
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.app import create_control_app
from app.api.claims import PAGES_PER_MINUTE, PATH
from app.api.openapi import describe
from app.keys.registry import create_key
from app.keys.signing import ED25519, HMAC_SHA256, NewSigningKey
from app.keys.token import mint
from app.protect.signing_keys import SigningKeys
from tests.api.management import without_tables
from tests.delivery.mail_sink import texts_by_id
from tests.signing import Signer
from tests.support import Service, create_claim, key_id_of, problem, record, running

URL = "https://logs.example.com"


def _claim(
    service: Service,
    client_id: str,
    url: str = URL,
    signing: NewSigningKey | None = None,
    **how: Any,
) -> tuple[str, str]:
    """Make a key behind a link, that must sign if it can; give the link's path and the key."""
    key, text = create_key(
        service.engine,
        service.peppers,
        by=service.by,
        create_client=True,
        client_id=client_id,
        name="claimed",
        require_signature=signing is not None,
        signing=signing,
    )
    token = create_claim(service.engine, key, text, url, by=service.by, **how)
    return f"/claim/{token}", text


def _check_page(response: httpx.Response, status: int) -> None:
    """Check what every page of a link has, good or bad."""
    assert response.status_code == status, response.text
    headers = response.headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "noindex" in headers["x-robots-tag"]
    assert headers["x-request-id"]
    policy = dict(
        one.strip().split(" ", 1) for one in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    # The style in the page is the one that the policy lets in, and there is no script.
    style = response.text.partition("<style>")[2].partition("</style>")[0]
    assert style
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert policy["style-src"] == f"'sha256-{digest}'"
    assert "<script" not in response.text


def test_200_the_page_only_asks(service: Service, client_id: str) -> None:
    """GET and HEAD show a button that POSTs to the same address, no key, and use nothing up."""
    path, key = _claim(service, client_id)
    for _ in range(3):
        page = service.get(path)
        _check_page(page, 200)
        assert '<form method="post">' in page.text
        assert key not in page.text
        assert key_id_of(key) not in page.text
        head = service.request("HEAD", path)
        assert head.status_code == 200
    assert service.request("POST", path).status_code == 200


def test_200_the_key_is_shown_once(service: Service, client_id: str) -> None:
    """POST shows client id, key id, the lines of .env and a curl, once; the key works."""
    path, key = _claim(service, client_id)
    page = service.request("POST", path)
    _check_page(page, 200)
    shown = texts_by_id(page.text)
    assert shown["client_id"] == client_id
    assert shown["key_id"] == key_id_of(key)
    assert shown["env"] == f"LOGGER_API_URL={URL}\nLOGGER_API_KEY={key}"
    assert '-H "X-API-Key: $LOGGER_API_KEY"' in shown["curl"]
    assert service.post(record(), key).status_code == 201
    for method in ("GET", "POST", "HEAD", "POST"):
        again = service.request(method, path)
        _check_page(again, 410) if method != "HEAD" else None
        assert again.status_code == 410
        assert key not in again.text


@pytest.mark.parametrize("algorithm", [HMAC_SHA256, ED25519])
def test_200_a_key_that_must_sign(service: Service, client_id: str, algorithm: str) -> None:
    """Such a key is shown without a curl, which would be refused, but with what has to be done."""
    public_key = Signer.ed25519().public_key if algorithm == ED25519 else None
    signing = SigningKeys(["a secret"]).make(algorithm, public_key)
    path, key = _claim(service, client_id, signing=signing)
    page = service.request("POST", path)
    _check_page(page, 200)
    shown = texts_by_id(page.text)
    assert shown["env"] == f"LOGGER_API_URL={URL}\nLOGGER_API_KEY={key}"
    assert "without a signature it is refused" in page.text
    assert "curl" not in page.text
    assert ("LOGGER_SIGNING_SECRET" in page.text) is (algorithm == HMAC_SHA256)


def test_200_needs_no_key_and_takes_any(service: Service, client_id: str) -> None:
    """A link works without a key, and is not troubled by a wrong one."""
    path, _ = _claim(service, client_id)
    assert service.get(path, "wrong").status_code == 200
    assert service.request("POST", path, "wrong").status_code == 200


def test_200_what_is_shown_is_escaped(service: Service, client_id: str) -> None:
    """What a page shows of the provider's settings is text, never markup."""
    path, _ = _claim(service, client_id, url="https://x/<script>&")
    page = service.request("POST", path)
    _check_page(page, 200)
    assert texts_by_id(page.text)["env"].startswith("LOGGER_API_URL=https://x/<script>&\n")


def test_404_what_is_no_link(service: Service, client_id: str) -> None:
    """An unknown or mistyped link, and a key in place of one, get a page for people."""
    path, key = _claim(service, client_id)
    mistyped = path[:-1] + ("0" if path[-1] != "0" else "1")
    for bad in ("/claim/x", "/claim/%00", "/claim/%ff%fe", mistyped, f"/claim/{key}"):
        for method in ("GET", "POST"):
            page = service.request(method, bad)
            _check_page(page, 404)
            assert "Not found" in page.text
    assert service.get(path).status_code == 200


def test_404_beside_the_pages(service: Service, client_id: str) -> None:
    """A path under a link is no page of it, and PUT and DELETE are not allowed."""
    path, _ = _claim(service, client_id)
    problem(service.get(f"{path}/more"), 404, "Not found")
    for method in ("PUT", "DELETE", "PATCH"):
        problem(service.request(method, path), 405)
    assert service.get(path).status_code == 200


def test_410_an_expired_link(service: Service, client_id: str) -> None:
    """A link whose time is over says so, and shows nothing."""
    path, key = _claim(service, client_id, ttl_s=-1)
    for method in ("GET", "POST"):
        page = service.request(method, path)
        _check_page(page, 410)
        assert "no longer works" in page.text
        assert key not in page.text


def test_410_a_revoked_key(service: Service, client_id: str) -> None:
    """The link of a revoked key shows nothing."""
    path, key = _claim(service, client_id)
    service.revoke(key)
    for method in ("GET", "POST"):
        _check_page(service.request(method, path), 410)


def test_410_for_all_but_one_of_a_race(service: Service, client_id: str) -> None:
    """Of presses of the button at the same moment one shows the key."""
    path, key = _claim(service, client_id)

    async def race() -> list[httpx.Response]:
        return await asyncio.gather(*(service.http.post(path) for _ in range(8)))

    answers = service.run(race())
    assert sorted(one.status_code for one in answers) == [200] + [410] * 7
    assert sum(key in one.text for one in answers) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_429_by_address(tmp_path: Path, method: str) -> None:
    """Whoever makes up many links is stopped, by a page for people; nobody else is."""
    with running(tmp_path) as service:
        path, key = _claim(service, "acme")
        made_up = [f"/claim/{mint('cl_claim', None).text}" for _ in range(PAGES_PER_MINUTE)]
        assert {service.request(method, one).status_code for one in made_up} == {404}
        refused = service.request(method, path)
        _check_page(refused, 429)
        assert refused.headers["retry-after"] == "60"
        assert "in\n60 seconds:" in refused.text
        assert key not in refused.text
        elsewhere = service.run(service.client("127.0.0.2").request(method, path))
        assert elsewhere.status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_429_not_for_a_good_link(tmp_path: Path, method: str) -> None:
    """What can't be a link is limited by itself: it keeps no link of that address from its page."""
    with running(tmp_path) as service:
        path, _ = _claim(service, "acme")
        bad = [f"/claim/x{n}" for n in range(PAGES_PER_MINUTE)]
        assert {service.request(method, one).status_code for one in bad} == {404}
        _check_page(service.request(method, "/claim/x"), 429)
        assert service.request(method, path).status_code == 200


def test_503_is_a_page(tmp_path: Path) -> None:
    """While the database is away the page says so, and the link is as good as before."""
    with running(tmp_path) as service:
        path, _ = _claim(service, "acme")
        with without_tables(service, "claims"):
            for method in ("GET", "POST"):
                page = service.request(method, path)
                _check_page(page, 503)
                assert "in\n1 second:" in page.text
                assert page.headers["retry-after"] == "1"
        assert service.request("POST", path).status_code == 200


def test_no_log_holds_a_token(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At the most talkative level nothing that the service writes holds a link's token or key."""
    with running(tmp_path, log_level="debug") as service:
        path, key = _claim(service, "acme")
        with without_tables(service, "claims"):
            service.get(path)
        service.request("POST", path)
        service.get(path)
    written = "".join(capfd.readouterr())
    assert "storage unavailable" in written
    token = path.removeprefix("/claim/")
    for secret in (token, token[-49:], key, key[-49:]):
        assert secret not in written


def test_the_pages_are_described() -> None:
    """OpenAPI has both, without a key, each answer of theirs a page."""
    paths = describe(create_control_app())["paths"][PATH]
    assert set(paths) == {"get", "post"}
    for operation in paths.values():
        assert operation["security"] == []
        assert {"200", "404", "410", "429", "503"} <= set(operation["responses"])
        for status in ("200", "404", "410", "429", "503"):
            assert "text/html" in operation["responses"][status]["content"]
