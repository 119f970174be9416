"""Why a request was refused, by real requests; and what keys did."""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlmodel import Session, select

from app.activity import reasons
from app.audit.models import AuditEvent
from app.columns import utc_now
from app.keys import shape
from app.keys.clients import update_client
from app.keys.database import writing
from app.keys.imports import import_key
from app.keys.lifecycle import delete_key, update_key
from app.keys.models import ApiKey
from app.keys.registry import find_key
from app.keys.token import KEY_ID_LENGTH, mint
from app.keys.verifier import Peppers
from tests.support import (
    LOGS,
    Json,
    Service,
    eventually,
    key_id_of,
    problem,
    record,
    rotate_key,
    running,
)

DENIALS = "/api/v1/audit/denials"
ACCESS = "/api/v1/audit/access"
IMPORTED = "an-old-key-of-another-service-1"
# Keys of the settings, of a form of their own and of the service's.
STATIC = {"a-static-key-of-the-settings": "static", mint("pk", "x").text: "static-ours"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give a service of this module's own: here keys fail all the time."""
    settings: dict[str, Any] = {
        "auth_failures_per_minute": 0,
        "management_requests_per_minute": 100_000,
        "api_keys": json.dumps(STATIC),
    }
    with running(tmp_path_factory.mktemp("denials"), **settings) as service:
        yield service


@pytest.fixture(scope="module")
def admin(service: Service) -> str:
    """Make a key of the platform."""
    return service.key(None, name="admin")


def denial(service: Service, admin: str, response: httpx.Response) -> Json:
    """Give what is told of a refusal once it is written, which is soon."""
    service.run(service.app._control.state.services.denials.flush())  # noqa: SLF001
    path = f"{DENIALS}/{response.headers['x-request-id']}"
    found = eventually(lambda: service.get(path, admin), lambda one: one.status_code != 404)
    assert found.status_code == 200, found.text
    told: Json = found.json()
    return told


def expired(service: Service, key: str) -> None:
    """Have a key end now."""
    with writing(service.engine) as session:
        find_key(session, key_id_of(key)).expires_at = utc_now()


def rotated(service: Service, key: str) -> None:
    """Have a key rotated without grace."""
    rotate_key(service.engine, service.peppers, key_id_of(key), by=service.by, grace_s=0)


def client_off(service: Service, key: str) -> None:
    """Switch the key's client off."""
    with Session(service.engine) as session:
        client_id = session.exec(select(ApiKey.client_id).filter_by(key_id=key_id_of(key))).one()
    update_client(service.engine, str(client_id), {"is_active": False}, by=service.by)


def quarantined(service: Service, key: str) -> None:
    """Have a key quarantined."""
    with writing(service.engine) as session:
        row = find_key(session, key_id_of(key))
        row.is_active, row.quarantined_at = False, utc_now()


def other_secret(service: Service, key: str) -> None:
    """Put in place of a key's verifier one that was made under a secret that is gone."""
    with writing(service.engine) as session:
        row = find_key(session, key_id_of(key))
        row.verifier = Peppers(["a secret that is gone"]).make_keyed(key)


ENDS: dict[str, Callable[[Service, str], object]] = {
    "deactivated": Service.revoke,
    "deleted": lambda service, key: delete_key(service.engine, key_id_of(key), by=service.by),
    "expired": expired,
    "grace_over": rotated,
    "client_deactivated": client_off,
    "quarantined": quarantined,
    "secret_key_changed": other_secret,
}


@pytest.mark.parametrize("reason", ENDS)
def test_why_a_key_stopped(service: Service, admin: str, reason: str) -> None:
    """The exact end of a key is told, and the caller gets the one body for all."""
    client_id = f"ended-{reason.replace('_', '-')}"
    key = service.key(client_id)
    assert service.post(record(), key).status_code == 201
    ENDS[reason](service, key)
    response = service.post(record(), key, user_agent="n8n/1.0")
    body = problem(response, 401, "Invalid API key")
    assert set(body) == {"type", "title", "status", "detail", "request_id"}
    told = denial(service, admin, response)
    assert told | {"at": None} == {
        "request_id": body["request_id"],
        "at": None,
        "status": 401,
        "reason": reason,
        "explanation": reasons.EXPLANATIONS[reason],
        "client_id": client_id,
        "key_id": key_id_of(key),
        "endpoint": "POST /api/v1/logs",
        "source_ip": "127.0.0.1",
        "user_agent": "n8n/1.0",
    }


def with_other_secret(key: str) -> str:
    """Give a well-formed key with the id of another."""
    made = mint("cl_live", "acme").text
    swapped = made[:-61] + key_id_of(key) + made[-61 + KEY_ID_LENGTH :]
    return _sealed(swapped)


def _sealed(text: str) -> str:
    from app.keys.token import _checksum  # noqa: PLC0415  # as mint does

    return text[:-6] + _checksum(text[:-6])


TEXTS: dict[str, Callable[[str], dict[str, str]]] = {
    "wrong_secret": lambda key: {"X-API-Key": with_other_secret(key)},
    "unknown_key": lambda _: {"X-API-Key": mint("cl_live", "acme").text},
    "test_key_unknown": lambda _: {"X-API-Key": mint("cl_test", "acme").text},
    shape.MALFORMED: lambda key: {"X-API-Key": key[:-1] + ("a" if key[-1] != "a" else "b")},
    shape.TRUNCATED: lambda key: {"X-API-Key": key[:-9]},
    shape.TOO_LONG: lambda key: {"X-API-Key": key + "xx"},
    shape.SHOWN_FORM: lambda key: {"X-API-Key": key[:-49] + "***"},
    shape.FOREIGN: lambda _: {"X-API-Key": "sk-somebody-elses"},
    shape.NOT_ASCII: lambda key: {"X-API-Key": key + "é"},
    shape.TWO: lambda key: {"X-API-Key": key, "Authorization": "Bearer other"},
    shape.NOT_UNDERSTOOD: lambda _: {"Authorization": "key"},
    shape.NONE: lambda _: {},
}


@pytest.mark.parametrize("path", [LOGS, "/api/v1/usage"])
@pytest.mark.parametrize("reason", TEXTS)
def test_why_a_credential_is_none(service: Service, admin: str, reason: str, path: str) -> None:
    """What is wrong with a credential is told on both planes, and nothing of it is kept."""
    key = service.key("texts")
    headers = {name: text.encode() for name, text in TEXTS[reason](key).items()}
    method = "POST" if path == LOGS else "GET"
    response = service.request(method, path, headers=headers)
    problem(response, 401)
    told = denial(service, admin, response)
    assert (told["reason"], told["endpoint"]) == (reason, f"{method} {path}")
    is_ours = reason == "wrong_secret"
    assert (told["client_id"], told["key_id"] == key_id_of(key)) == (
        *("texts" if is_ours else None, is_ours),
    )
    secrets = [text[-49:-6] for text in (*TEXTS[reason](key).values(), key) if len(text) > 60]
    assert not any(secret in json.dumps(told) for secret in secrets)


def test_an_imported_key_is_known_by_its_tag(service: Service, admin: str) -> None:
    """Of a key without an id in its text the end is told as well, and whose it was."""
    row = import_key(
        service.engine,
        service.peppers,
        token=IMPORTED,
        client_id="imported",
        name="old",
        by=service.by,
        create_client=True,
    )
    update_key(service.engine, row.key_id, {"is_active": False}, by=service.by)
    told = denial(service, admin, service.post(record(), IMPORTED))
    assert (told["reason"], told["key_id"], told["client_id"]) == (
        *("deactivated", row.key_id, "imported"),
    )


@pytest.mark.parametrize(("static", "client_id"), STATIC.items(), ids=STATIC.values())
def test_a_key_of_the_settings_is_known(
    service: Service, admin: str, static: str, client_id: str
) -> None:
    """A key of the settings has no row, and the end of its client is told all the same."""
    assert service.post(record(), static).status_code == 201
    update_client(service.engine, client_id, {"is_active": False}, by=service.by)
    told = denial(service, admin, service.post(record(), static))
    assert (told["reason"], told["client_id"]) == ("client_deactivated", client_id)
    assert told["key_id"].startswith("static_")


def test_why_a_caller_may_not(service: Service, admin: str) -> None:
    """A 403 and a 429 are told with the key that was refused, and with what it was told."""
    viewer = service.key("may-not", role="viewer")
    narrow = service.key("may-not", allowed_datasets=["orders"])
    slow = service.key("may-not", limits={"requests_per_minute": 1})
    placed = service.key("may-not", allowed_cidrs=["192.0.2.0/24"])
    assert service.post(record(), slow).status_code == 201
    refused = {
        "scope_missing": service.post(record(), viewer),
        "dataset_not_allowed": service.post(record(dataset="other"), narrow),
        "rate_limit_requests": service.post(record(), slow),
        "address_not_allowed": service.post(record(), placed),
        "admin_key_required": service.get("/metrics", viewer),
    }
    for reason, response in refused.items():
        told = denial(service, admin, response)
        assert (told["reason"], told["status"]) == (reason, response.status_code)
        assert told["client_id"] == "may-not"
        if response.status_code == 403:
            assert told["explanation"].endswith(f"({response.json()['detail']})")


def test_a_batch_that_is_refused_in_part(service: Service, admin: str) -> None:
    """One good record hides no probing of datasets: the batch is told of, once."""
    key = service.key("part", allowed_datasets=["default"])
    response = service.post([record(), *(record(dataset=f"d{n}") for n in range(3))], key)
    assert (response.status_code, response.json()["rejected"]) == (201, 3)
    told = denial(service, admin, response)
    assert (told["reason"], told["client_id"]) == ("dataset_not_allowed", "part")
    assert "'d0'" in told["explanation"]


def test_what_is_another_client_s(service: Service, admin: str) -> None:
    """Whoever asks for what is another client's is told of nothing, and is told of."""
    key, other = service.key("prober", role="owner"), service.key("probed")
    for method, path in (
        ("GET", f"/api/v1/api-keys/{key_id_of(other)}"),
        ("DELETE", f"/api/v1/api-keys/{key_id_of(other)}"),
        ("GET", f"{LOGS}?client_id=probed"),
        ("GET", "/api/v1/clients/probed"),
    ):
        response = service.request(method, path, key)
        problem(response, 404, "Not found")
        told = denial(service, admin, response)
        assert (told["reason"], told["client_id"]) == ("other_client", "prober")


def test_nothing_tells_which_keys_are_there(service: Service, admin: str) -> None:
    """A key of another client, a deleted one and one made up are refused and told of alike."""
    owner, other, deleted = (
        service.key(name, role="owner") for name in ("looker", "looked-for", "looked-for")
    )
    probed, gone = key_id_of(other), key_id_of(deleted)
    with Session(service.engine) as session:
        id_ = str(find_key(session, probed).id)
    assert service.request("DELETE", f"/api/v1/api-keys/{gone}", admin).status_code == 200
    absent = (gone, "0" * 12, str(uuid4()), "f" * 36, "x")
    told = set()
    for method, end in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
        for name in (probed, id_, key_id_of(admin), *absent):
            body: Json | None = None if method == "GET" else {}
            response = service.request(method, f"/api/v1/api-keys/{name}{end}", owner, json=body)
            problem(response, 404, "Not found")
            own = denial(service, owner, response)
            told.add((own["reason"], own["explanation"], own["client_id"], own["key_id"]))
    [(reason, _, client_id, key_id)] = told
    assert (reason, client_id, key_id) == ("other_client", "looker", key_id_of(owner))
    # To the platform all keys are its own, and what is not there is no more than that.
    response = service.get(f"/api/v1/api-keys/{'0' * 12}", admin)
    problem(response, 404, "Not found")
    later = service.get("/api/v1/api-keys/x", owner)
    denial(service, admin, later)
    problem(service.get(f"{DENIALS}/{response.headers['x-request-id']}", admin), 404)


def test_too_many_failures(tmp_path: Path) -> None:
    """A refusal for too many failures says so, and whose key was tried."""
    with running(tmp_path, auth_failures_per_minute=1) as service:
        admin, key = service.key(None), service.key("tried")
        wrong = with_other_secret(key)
        first, second = service.post(record(), wrong), service.get(LOGS, wrong)
        assert denial(service, admin, first)["reason"] == "wrong_secret"
        told = denial(service, admin, second)
    assert (told["status"], told["reason"]) == (429, "too_many_failures")
    assert (told["client_id"], told["key_id"]) == ("tried", key_id_of(key))


def test_whose_denials_are_found(service: Service, admin: str) -> None:
    """An owner finds what concerns its client; all else is not found, nor is what was let in."""
    owner, other = service.key("mine", role="owner"), service.key("theirs", role="owner")
    mine = service.post(record(), with_other_secret(owner))
    nobodys = service.post(record(), "x")
    denial(service, admin, nobodys)
    path = f"{DENIALS}/{mine.headers['x-request-id']}"
    assert service.get(path, owner).json()["reason"] == "wrong_secret"
    problem(service.get(path, other), 404)
    problem(service.get(f"{DENIALS}/{nobodys.headers['x-request-id']}", owner), 404)
    for other_id in ("0" * 24, "x" * 100):
        problem(service.get(f"{DENIALS}/{other_id}", admin), 404)
    problem(service.get(path, service.key("mine")), 403, "Requires scope 'audit:read'")


def test_denials_stand_in_the_audit(service: Service, admin: str) -> None:
    """A denial is an event of its client's chain, repeats are counted, and others are not there."""
    key = service.key("audited")
    responses = [service.post(record(), with_other_secret(key)) for _ in range(3)]
    for response in responses:
        denial(service, admin, response)
    with Session(service.app._control.state.services.activity) as session:  # noqa: SLF001
        events = session.exec(select(AuditEvent).where(AuditEvent.chain == "audited")).all()
    told = [event for event in events if event.action == "denied"]
    assert {event.actor for event in told} == {key_id_of(key)}
    assert {event.target for event in told} == {"POST /api/v1/logs"}
    detail = json.loads(told[0].detail)
    assert (detail["reason"], detail["authenticated"]) == ("wrong_secret", False)
    assert detail["first_request_id"] == told[0].request_id == responses[0].json()["request_id"]


def accesses(service: Service, key: str, **params: Any) -> list[Json]:
    """Read a page of accesses."""
    response = service.get(ACCESS, key, params=params)
    assert response.status_code == 200, response.text
    rows: list[Json] = response.json()["access"]
    return rows


def test_accesses_are_listed(service: Service) -> None:
    """A key's requests stand in rows by endpoint, dataset and outcome, for its own client alone."""
    owner, key = service.key("seen", role="owner"), service.key("seen", role="analyst")
    writer = service.key("seen", role="ingest")
    agent = {"user_agent": "n8n/1.0"}
    assert service.post(record(), writer, **agent).status_code == 201
    batch = [record(dataset="orders"), record(dataset="returns"), record(dataset="orders")]
    assert service.post(batch, writer, **agent).status_code == 201
    assert service.post(b"{", writer, **agent).status_code == 400
    assert service.get(LOGS, key).status_code == 200
    assert service.get(LOGS, key, params={"dataset": "orders"}).status_code == 200
    query = json.dumps({"dataset": "returns"}).encode()
    json_type = {"content-type": "application/json"}
    done = service.request("POST", "/api/v1/query", key, content=query, headers=json_type)
    assert done.status_code == 200
    problem(service.post(record(), key), 403)

    def seen(key_id: str) -> set[tuple[str, str, str, int]]:
        return {
            (row["endpoint"], row["dataset"], row["outcome"], row["requests"])
            for row in accesses(service, owner, key_id=key_id)
        }

    stored = "POST /api/v1/logs"
    service.run(service.app._control.state.services.accesses.flush())  # noqa: SLF001
    assert eventually(lambda: seen(key_id_of(writer)), lambda rows: len(rows) == 4) == {
        (stored, "default", "201", 1),
        (stored, "orders", "201", 1),
        (stored, "returns", "201", 1),
        (stored, "", "400", 1),
    }
    assert eventually(lambda: seen(key_id_of(key)), lambda rows: len(rows) == 4) == {
        ("GET /api/v1/logs", "*", "200", 1),
        ("GET /api/v1/logs", "orders", "200", 1),
        ("POST /api/v1/query", "returns", "200", 1),
        (stored, "", "403", 1),
    }
    row = accesses(service, owner, key_id=key_id_of(writer))[0]
    assert (row["source_ip"], row["user_agent"]) == ("127.0.0.1", "n8n/1.0")
    other = service.key("unseen", role="owner")
    assert accesses(service, other) == []
    problem(service.get(ACCESS, other, params={"key_id": key_id_of(key)}), 404)


def test_accesses_are_paged(service: Service, admin: str) -> None:
    """Pages neither skip nor repeat a row, times bound them, and a made-up cursor is refused."""
    owner = service.key("paged", role="owner")
    for number in range(7):
        service.get(LOGS, owner, headers={"User-Agent": f"agent/{number}"})
    service.run(service.app._control.state.services.accesses.flush())  # noqa: SLF001
    eventually(lambda: accesses(service, owner), lambda rows: len(rows) >= 7)
    agents: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": 3, "key_id": key_id_of(owner)} | ({"cursor": cursor} if cursor else {})
        page = service.get(ACCESS, owner, params=params).json()
        agents += [row["user_agent"] for row in page["access"] if "agent/" in row["user_agent"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(agents) == [f"agent/{number}" for number in range(7)]
    now = utc_now()
    later = (now + timedelta(minutes=2)).isoformat()
    assert accesses(service, owner, **{"from": later}) == []
    assert len(accesses(service, owner, **{"from": "-1h", "to": later})) >= 7
    assert len(accesses(service, admin, limit=1)) == 1
    far = b'["k",9223372036854775808,"","","","",""]'
    for bad in ("x", "é", *(base64.urlsafe_b64encode(one).decode() for one in (b"[1]", far))):
        problem(service.get(ACCESS, owner, params={"cursor": bad}), 422)
    problem(service.get(ACCESS, owner, params={"from": "yesterday"}), 422)
    problem(service.get(ACCESS, owner, params={"limit": "0"}), 422)
