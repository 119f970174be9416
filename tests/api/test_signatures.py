"""Signed requests through the real application: on every route, and through the life of a key."""

import asyncio
import itertools
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.edge.body import INLINE_BYTES_MAX
from tests.api.management import CLIENTS, CURRENT, KEYS, ask
from tests.api.test_denials import denial
from tests.api.test_tail import Stream, post
from tests.edge.test_prompt import FakeExchange, take
from tests.signing import Headers, Signer, unique
from tests.support import (
    LOGS,
    NDJSON,
    HeldBody,
    Json,
    Service,
    gzipped,
    key_id_of,
    ndjson,
    problem,
    record,
    running,
)

NUMBERS = itertools.count()
REQUIRED, INVALID = "Signature required", "Invalid signature"
HMAC: Json = {"algorithm": "hmac-sha256"}
ONE = json.dumps(record()).encode()
QUERY = "/api/v1/query"
# Method, path, query and body; and headers that say what the body is.
Route = tuple[str, str, str, bytes, Headers]
ROUTES: list[Route] = [
    ("POST", LOGS, "", ONE, {}),
    ("POST", LOGS, "", gzipped(ndjson([record()] * 3)), {"content-encoding": "gzip"}),
    ("GET", LOGS, "limit=1&q=%22a%20b%22", b"", {}),
    ("HEAD", LOGS, "", b"", {}),
    ("GET", f"{LOGS}/export", "", b"", {}),
    ("POST", QUERY, "", b'{"metrics": ["count"]}', {}),
    ("GET", CURRENT, "", b"", {}),
    ("GET", KEYS, "", b"", {}),
    ("PATCH", f"{CLIENTS}/CLIENT", "", b'{"name": "signed"}', {}),
]
MANAGING = {7, 8}


def named(client_id: str, route: Route) -> Route:
    """Name a client in a route's path."""
    method, path, *rest = route
    return (method, path.replace("CLIENT", client_id), *rest)  # type: ignore[return-value]


def send(service: Service, key: str, route: Route, signature: Headers) -> httpx.Response:
    """Send a request with these headers of a signature."""
    method, path, query, body, headers = route
    kind = NDJSON if headers else "application/json"
    url = f"{path}?{query}" if query else path
    return service.request(
        method,
        url,
        key,
        content=body,
        headers={"content-type": kind, **headers, **signature},
    )


def sign(signer: Signer, route: Route, **options: Any) -> Headers:
    """Sign a request."""
    method, path, query, body, _ = route
    return signer.request(method, path, body, query=query, **options)


def make(
    service: Service, admin: str, client_id: str | None, **properties: Any
) -> tuple[str, Signer]:
    """Make a key that must sign, through the API."""
    wanted = {"name": "signs", "client_id": client_id, "require_signature": True, "signing": HMAC}
    made = ask(service, "POST", KEYS, admin, wanted | properties)
    assert made.status_code == 201, made.text
    return made.json()["key"], Signer(made.json().get("signing_secret", ""))


@pytest.fixture
def signed_key(service: Service, admin: str, client_id: str) -> tuple[str, Signer]:
    """Make an owner's key that must sign."""
    return make(service, admin, client_id, role="owner")


@pytest.mark.parametrize("algorithm", ["hmac-sha256", "ed25519"])
def test_on_each_route(service: Service, admin: str, client_id: str, algorithm: str) -> None:
    """A signed request passes once; unsigned it is refused, and so is its repetition."""
    key, signer = make(service, admin, client_id, role="owner")
    if algorithm == "ed25519":
        signer = Signer.ed25519()
        signing = {"algorithm": algorithm, "public_key": signer.public_key}
        key, _ = make(service, admin, client_id, role="owner", signing=signing)
    for route in (named(client_id, route) for route in ROUTES):
        headers = sign(signer, route, more=[f'keyid="{key_id_of(key)}"', f'alg="{algorithm}"'])
        first = send(service, key, route, headers)
        assert first.status_code in {200, 201}, first.text
        again, unsigned = send(service, key, route, headers), send(service, key, route, {})
        assert (again.status_code, unsigned.status_code) == (403, 403)
        if route[0] != "HEAD":
            problem(again, 403, INVALID)
            problem(unsigned, 403, REQUIRED)
    assert len(service.logs(service.key(client_id))) == 4


@pytest.mark.parametrize("number", [0, 1, 2, 5, 8])
def test_each_refusal(
    service: Service, client_id: str, signed_key: tuple[str, Signer], number: int
) -> None:
    """A request that is not the one that was signed is refused, without its nonce being used up."""
    key, signer = signed_key
    route = named(client_id, ROUTES[number])
    method, path, query, body, kind = route
    nonce = unique()
    good = sign(signer, route, nonce=nonce)
    changed = {
        "method": ("PUT" if method == "POST" else "POST", path, query, body, kind),
        "path": (method, f"{path}x", query, body, kind),
        "query": (method, path, f"{query}&limit=2".lstrip("&"), body, kind),
        "body": (method, path, query, body + b" ", kind),
    }
    for name, other in changed.items():
        refused = send(service, key, route, sign(signer, other, nonce=nonce))
        problem(refused, 403, INVALID)
        if name == "body" and body:  # the digest is right, and the body another one
            problem(send(service, key, other, good), 403, INVALID)
    bad = {
        "none of the signature": {n: v for n, v in good.items() if n != "signature"},
        "none of its input": {n: v for n, v in good.items() if n != "signature-input"},
        "another's": sign(Signer(Signer.secret_of_nobody()), route, nonce=nonce),
        "too old": sign(signer, route, nonce=nonce, age_s=302),
        "too early": sign(signer, route, nonce=nonce, age_s=-60),
        "expired": sign(signer, route, nonce=nonce, more=["expires=1"]),
        "short nonce": sign(signer, route, nonce="n" * 15),
        "another key's": sign(signer, route, nonce=nonce, more=['keyid="other"']),
    }
    for name, headers in bad.items():
        response = send(service, key, route, headers)
        assert response.status_code == 403, name
        problem(response, 403, INVALID)
    assert send(service, key, route, good).status_code in {200, 201}


def test_a_body_of_unknown_length(
    service: Service, signed_key: tuple[str, Signer], client_id: str
) -> None:
    """A body in chunks has to be covered as any other, be it small or long."""
    key, signer = signed_key
    long = json.dumps([record(message="long" * 1000)] * (INLINE_BYTES_MAX // 3000)).encode()
    for body in (ONE, long):

        async def parts(body: bytes = body) -> AsyncIterator[bytes]:
            yield body

        headers = {"x-api-key": key, "content-type": "application/json"}
        uncovered = headers | signer.request("POST", LOGS)
        problem(service.run(service.http.post(LOGS, content=parts(), headers=uncovered)), 403)
        unannounced = service.http.build_request("POST", LOGS, content=parts(), headers=uncovered)
        del unannounced.headers["transfer-encoding"]
        problem(service.run(service.http.send(unannounced)), 403, INVALID)
        lying = headers | signer.request("POST", LOGS, body[:-1])
        problem(service.run(service.http.post(LOGS, content=parts(), headers=lying)), 403)
        covered = headers | signer.request("POST", LOGS, body)
        stored = service.run(service.http.post(LOGS, content=parts(), headers=covered))
        assert stored.status_code == 201, stored.text
    assert len(service.logs(service.key(client_id), limit=1000)) == 1 + INLINE_BYTES_MAX // 3000


@pytest.mark.parametrize("path", [LOGS, QUERY, KEYS])
def test_a_bad_head_is_refused_unread(
    service: Service, signed_key: tuple[str, Signer], path: str
) -> None:
    """Nothing of a body is read whose request is not signed, or not by its key."""
    key, _ = signed_key
    for signature, detail in (
        ({}, REQUIRED),
        (Signer(Signer.secret_of_nobody()).request("POST", path, ONE), INVALID),
    ):
        held = HeldBody()
        headers = {"x-api-key": key, "content-type": "application/json", **signature}
        response = service.run(service.http.post(path, content=held, headers=headers))
        problem(response, 403, detail)
        assert not held.started.is_set()


def test_no_other_refusal_uses_a_nonce_up(service: Service, admin: str, client_id: str) -> None:
    """What a key may not do costs it no nonce, signed or not."""
    key, signer = make(service, admin, client_id, role="viewer")
    nonce = unique()
    for route in (ROUTES[0], ROUTES[5], ROUTES[7]):
        refused = send(service, key, route, sign(signer, route, nonce=nonce))
        assert "Requires scope" in problem(refused, 403)["detail"]
    assert send(service, key, ROUTES[2], sign(signer, ROUTES[2], nonce=nonce)).status_code == 200


def test_nonces_are_each_keys_own(service: Service, admin: str, client_id: str) -> None:
    """A nonce that one key has used is new for another; not so one for the same public key."""
    nonce = unique()
    route = ROUTES[2]
    for key, signer in (make(service, admin, client_id), make(service, admin, client_id)):
        assert send(service, key, route, sign(signer, route, nonce=nonce)).status_code == 200
    shared = Signer.ed25519()
    signing = {"algorithm": "ed25519", "public_key": shared.public_key}
    one, other = (make(service, admin, client_id, signing=signing)[0] for _ in range(2))
    headers = sign(shared, route)
    assert send(service, one, route, headers).status_code == 200
    problem(send(service, other, route, headers), 403, INVALID)


def test_not_taken_at_a_glance(
    service: Service, signed_key: tuple[str, Signer], client_id: str
) -> None:
    """A single log that arrives whole is taken no shorter way than by its signature."""
    key, signer = signed_key
    assert send(service, key, ROUTES[2], sign(signer, ROUTES[2])).status_code == 200
    prompt = service.app.prompt
    assert prompt is not None
    assert take(service, prompt, FakeExchange(key)) == [False]


def test_the_cause_is_for_those_who_look_after_the_key(
    service: Service, signed_key: tuple[str, Signer], client_id: str
) -> None:
    """The record of a refusal tells what was wrong with a signature; the reply does not."""
    key, signer = signed_key
    owner = service.key(client_id, role="owner")
    # Of its own address: of many refusals of one place within a second some are only counted.
    http = service.client("192.0.2.77")
    for method in ("POST", "GET"):
        headers = {"x-api-key": key, **signer.request(method, LOGS, age_s=400)}
        refused = service.run(http.request(method, LOGS, headers=headers))
        assert "ago" not in json.dumps(problem(refused, 403, INVALID))
        told = denial(service, owner, refused)
        assert (told["reason"], told["key_id"]) == ("signature_invalid", key_id_of(key))
        assert "created is more than 300 s ago" in told["explanation"]
    service.run(http.aclose())


def test_unsigned_requests_use_nothing_up(service: Service, admin: str, client_id: str) -> None:
    """Whoever has no more than the key uses up no limit of it, and leaves no trace of use."""
    key, signer = make(service, admin, client_id, limits={"requests_per_minute": 1})
    for _ in range(3):
        problem(send(service, key, ROUTES[0], {}), 403, REQUIRED)
        problem(send(service, key, ROUTES[2], {}), 403, REQUIRED)
    assert send(service, key, ROUTES[2], sign(signer, ROUTES[2])).status_code == 200
    problem(send(service, key, ROUTES[2], sign(signer, ROUTES[2])), 429)


def test_without_activity_nothing_is_let_in(tmp_path: Path) -> None:
    """While nonces can't be written a signed request gets 503, and the same one passes after it."""
    with running(tmp_path) as service:
        key, signer = make(service, service.key(None), "acme", role="owner")
        requests = [(route, sign(signer, named("acme", route))) for route in ROUTES]
        with sqlite3.connect(tmp_path / "activity.db") as activity:
            activity.execute("ALTER TABLE nonces RENAME TO away")
        for route, headers in requests:
            response = send(service, key, named("acme", route), headers)
            assert response.status_code == 503
        assert not service.logs(service.key("acme"))
        with sqlite3.connect(tmp_path / "activity.db") as activity:
            activity.execute("ALTER TABLE away RENAME TO nonces")
        for route, headers in requests:
            response = send(service, key, named("acme", route), headers)
            assert response.status_code in {200, 201}, response.text


def test_a_change_while_a_body_is_awaited(service: Service, admin: str, client_id: str) -> None:
    """A key that has to sign, or is revoked, by the time its body is here has to have done so."""
    signing = {"signing": HMAC, "require_signature": True}

    async def send_slowly(
        method: str, path: str, key: str, change: Json, headers: Headers
    ) -> httpx.Response:
        held = HeldBody()
        sent = {"x-api-key": key, "content-type": "application/json", **headers}
        answer = service.http.request(method, path, content=held, headers=sent)
        request = asyncio.create_task(answer)
        await held.started.wait()
        patch = f"{KEYS}/{key_id_of(key)}"
        changed = await service.http.patch(patch, json=change, headers={"x-api-key": admin})
        assert changed.status_code == 200, changed.text
        held.send(ONE if path == LOGS else b'{"metrics": ["count"]}')
        held.send(None)
        return await request

    for method, path in (("POST", LOGS), ("POST", QUERY), ("GET", LOGS)):
        body = ONE if path == LOGS else b'{"metrics": ["count"]}'
        if method == "POST":  # nobody awaits the body of a GET that need not be signed
            key = service.key(client_id, role="owner")
            response = service.run(send_slowly(method, path, key, signing, {}))
            problem(response, 403, REQUIRED)
        for change, status in (({"signing": HMAC}, 403), ({"is_active": False}, 401)):
            key, signer = make(service, admin, client_id, role="owner")
            headers = signer.request(method, path, body)
            problem(service.run(send_slowly(method, path, key, change, headers)), status)


def _has(message: str, stream: Stream) -> bool:
    return message in stream.messages


def test_a_signed_tail_goes_on(
    service: Service, signed_key: tuple[str, Signer], client_id: str, monkeypatch: Any
) -> None:
    """A stream is signed once, at its beginning, and ends when its key's signing key changes."""
    monkeypatch.setattr("app.api.tail.KEY_CHECK_FULL_S", 0.0)
    key, signer = signed_key
    writer = service.key(client_id)

    async def scenario() -> Stream:
        def signed_app(scope: Any, receive: Any, send: Any) -> Any:
            headers = signer.request("GET", f"{LOGS}/tail").items()
            more = [(name.encode(), value.encode()) for name, value in headers]
            return service.app({**scope, "headers": scope["headers"] + more}, receive, send)

        stream = Stream(signed_app, key)
        await stream.until(lambda one: one.text)
        for message in ("first", "second"):
            await post(service, writer, message)
            await stream.until(partial(_has, message))
        patch = f"{KEYS}/{key_id_of(key)}"
        admin = service.key(None)
        await service.http.patch(patch, json={"signing": HMAC}, headers={"x-api-key": admin})
        await stream.end()
        return stream

    assert "key revoked" in service.run(scenario()).text


def test_the_life_of_a_signing_key(service: Service, admin: str, client_id: str) -> None:
    """A signing key is set, replaced, rotated and taken away, each in force on the next request."""
    key = service.key(client_id)
    path, route = f"{KEYS}/{key_id_of(key)}", ROUTES[2]

    def change(**changes: Any) -> Json:
        answer = ask(service, "PATCH", path, admin, changes)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    def status(signer: Signer | None, of: str = key) -> int:
        headers = {} if signer is None else sign(signer, route)
        return send(service, of, route, headers).status_code

    refused = ask(service, "PATCH", path, admin, {"require_signature": True})
    assert [one["field"] for one in problem(refused, 422)["errors"]] == ["signing"]
    first = Signer(change(signing=HMAC)["signing_secret"])
    assert status(None) == 200
    shown = change(require_signature=True)
    assert (shown["signing"], shown["require_signature"]) == (HMAC | {"public_key": None}, True)
    assert "signing_secret" not in shown
    assert (status(None), status(first)) == (403, 200)
    second = Signer(change(signing=HMAC)["signing_secret"])
    assert (status(first), status(second)) == (403, 200)

    rotated = ask(service, "POST", f"{path}/rotate", admin, {"grace_seconds": 60}).json()
    third, heir = Signer(rotated["signing_secret"]), rotated["key"]
    assert (status(second), status(third), status(None)) == (200, 403, 403)
    assert (status(second, heir), status(third, heir), status(None, heir)) == (403, 200, 403)

    own = Signer.ed25519()
    public = {"algorithm": "ed25519", "public_key": own.public_key}
    assert "signing_secret" not in change(signing=public)
    assert (status(second), status(own)) == (403, 200)
    refused = ask(service, "PATCH", path, admin, {"signing": None})
    assert [one["field"] for one in problem(refused, 422)["errors"]] == ["signing"]
    assert change(signing=None, require_signature=False)["signing"] is None
    assert status(None) == 200

    kept, _ = make(service, admin, client_id, signing=public)
    heir = ask(service, "POST", f"{KEYS}/{key_id_of(kept)}/rotate", admin, {}).json()
    assert "signing_secret" not in heir
    assert status(own, heir["key"]) == 200


def test_a_secret_is_shown_once(service: Service, admin: str, client_id: str) -> None:
    """No reply after the first, and no record, holds a signing secret or what is stored of it."""
    body = {"client_id": client_id, "name": "signs", "require_signature": True, "signing": HMAC}
    once = {"idempotency-key": unique()}
    made = ask(service, "POST", KEYS, admin, body, **once).json()
    secret, path = made["signing_secret"].rstrip("="), f"{KEYS}/{made['key_id']}"
    again = ask(service, "POST", KEYS, admin, body, **once)
    assert again.headers["idempotent-replayed"] == "true"
    replaced = ask(service, "PATCH", path, admin, {"signing": HMAC}).json()["signing_secret"]
    shown = "".join(
        service.get(one, admin).text
        for one in (path, f"{KEYS}?client_id={client_id}", f"/api/v1/audit?client_id={client_id}")
    )
    assert '"signing_key":["set","replaced"]' in shown.replace(" ", "")
    for hidden in (secret, replaced.rstrip("="), "aes256gcm", "signing_secret"):
        assert hidden not in shown + again.text


def test_no_key_gives_what_it_has_not(
    service: Service, admin: str, signed_key: tuple[str, Signer]
) -> None:
    """Who must sign makes keys that must sign, and lets no key of the client off it."""
    key, signer = signed_key

    def try_(method: str, path: str, body: Json) -> httpx.Response:
        text = json.dumps(body).encode()
        return send(service, key, (method, path, "", text, {}), signer.request(method, path, text))

    wanted = {"name": "heir", "role": "viewer"}
    unsigned = try_("POST", KEYS, wanted | {"require_signature": False})
    problem(unsigned, 403, "Not authorized for keys that need no signature")
    [told] = problem(try_("POST", KEYS, wanted), 422)["errors"]
    assert told["field"] == "signing"
    made = try_("POST", KEYS, wanted | {"signing": HMAC})
    assert made.status_code == 201
    assert made.json()["require_signature"] is True
    for key_id in (key_id_of(key), made.json()["key_id"]):
        path = f"{KEYS}/{key_id}"
        let_off = try_("PATCH", path, {"require_signature": False, "signing": None})
        problem(let_off, 403)
        assert try_("PATCH", path, {"description": "signs"}).status_code == 200


def test_a_narrow_key_takes_none_over(service: Service, client_id: str) -> None:
    """Who replaces a signing key has to have all that its key may do."""
    narrow = service.key(client_id, role="owner", allowed_datasets=["orders"])
    wide, own = service.key(client_id), service.key(client_id, allowed_datasets=["orders"])
    for key in (wide, own):
        path = f"{KEYS}/{key_id_of(key)}"
        assert ask(service, "PATCH", path, narrow, {"signing": HMAC}).status_code == 200
        again = ask(service, "PATCH", path, narrow, {"signing": HMAC})
        assert again.status_code == (403 if key == wide else 200), again.text


def test_management_alone(tmp_path: Path) -> None:
    """With SIGN_MANAGEMENT a key that has a signing key manages keys signed, and logs as before."""
    with running(tmp_path, sign_management=True) as service:
        admin = service.key(None)
        key, signer = make(service, admin, "acme", role="owner", require_signature=False)
        for number, route in enumerate(ROUTES):
            manages = number in MANAGING
            sent = named("acme", route)
            assert (send(service, key, sent, {}).status_code == 403) is manages, route
            headers = sign(signer, sent)
            assert send(service, key, sent, headers).status_code in {200, 201}
            assert (send(service, key, sent, headers).status_code == 403) is manages
        # A key without a signing key has nothing to sign with.
        assert ask(service, "GET", KEYS, admin).status_code == 200
        for body, status in (
            ({"name": "heir", "role": "owner"}, 403),
            ({"name": "heir", "role": "owner", "signing": HMAC}, 201),
            ({"name": "heir", "role": "viewer"}, 201),
        ):
            text = json.dumps(body).encode()
            route = ("POST", KEYS, "", text, {})
            assert send(service, key, route, sign(signer, route)).status_code == status
        text = b'{"signing": null}'
        route = ("PATCH", f"{KEYS}/{key_id_of(key)}", "", text, {})
        problem(send(service, key, route, sign(signer, route)), 403)


def test_behind_a_proxy(tmp_path: Path) -> None:
    """What a client signs of the address that PUBLIC_URL names holds behind the proxy there."""
    with running(tmp_path, public_url="https://Logs.example.com/logger") as service:
        key, signer = make(service, service.key(None), "acme")
        created = [f"created={int(time.time())}"]
        for host, values in (
            ("logs.example.com", {"@target-uri": f"https://logs.example.com/logger{LOGS}?limit=1"}),
            ("logs.example.com", {"@path": f"/logger{LOGS}", "@query": "?limit=1"}),
            ("logger:8000", {"@target-uri": f"http://logger:8000{LOGS}?limit=1"}),
            ("logger:8000", {"@path": LOGS, "@query": "?limit=1", "@authority": "logger:8000"}),
        ):
            covered = {"@method": "GET", **values}
            parameters = [*created, f'nonce="{unique()}"']
            headers = {"host": host, **signer.headers(covered, parameters)}
            response = service.get(f"{LOGS}?limit=1", key, headers=headers)
            assert response.status_code == 200, (host, values)


def test_a_row_that_can_not_be_signed_for(service: Service, client_id: str) -> None:
    """A key that must sign and has nothing to sign with is let in by no signature."""
    key = service.key(client_id)
    with sqlite3.connect(service.settings.data_dir / "control.db") as control:
        control.execute(
            "UPDATE api_keys SET require_signature = 1 WHERE key_id = ?", (key_id_of(key),)
        )
    problem(send(service, key, ROUTES[2], {}), 403, REQUIRED)
    signed = sign(Signer(Signer.secret_of_nobody()), ROUTES[2])
    problem(send(service, key, ROUTES[2], signed), 403, INVALID)
