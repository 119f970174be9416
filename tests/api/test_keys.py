"""/api/v1/api-keys: the life of a key through the API, grouped by what is asked."""

import asyncio
import json
from base64 import urlsafe_b64encode
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.keys.objects import RotationPolicy
from app.sqlite import sqlite3
from tests.api.management import CLIENTS, CURRENT, KEYS, ask
from tests.support import Json, Service, eventually, key_id_of, problem, record, running


@pytest.fixture
def owner(service: Service, client_id: str) -> str:
    """Make the key of a client's own administrator."""
    return service.key(client_id, role="owner", name="owner")


def make(service: Service, asker: str, **properties: Any) -> Json:
    """Make a key through the API."""
    response = ask(service, "POST", KEYS, asker, properties)
    assert response.status_code == 201, response.text
    made: Json = response.json()
    return made


def works(service: Service, key: str) -> bool:
    """Say whether a key is accepted."""
    return bool(service.get(CURRENT, key).status_code == 200)


def later(days: float) -> str:
    """Write a moment from now as RFC 3339."""
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


# Creation.


def test_201_with_the_key_this_once(service: Service, admin: str, client_id: str) -> None:
    """A new key has what was asked for, works, and is shown in this reply alone."""
    end = later(3)
    made = make(
        service,
        admin,
        client_id=client_id,
        name="etl",
        description="nightly",
        environment="test",
        role="ingest",
        allowed_datasets=["orders", "billing"],
        limits={"requests_per_minute": 7, "logs_per_minute": 0},
        metadata={"team": "data"},
        expires_at=end,
    )
    assert made["key"].startswith(f"cl_test_{client_id}_{made['key_id']}")
    assert made["key_prefix"] == f"cl_test_{client_id}_{made['key_id']}***"
    assert made["scopes"] == ["logs:write"]
    assert made["allowed_datasets"] == ["billing", "orders"]
    assert made["limits"] == {
        "requests_per_minute": 7,
        "logs_per_minute": 0,
        "bytes_per_minute": None,
    }
    assert (made["metadata"], made["is_admin"], made["is_active"]) == (
        {"team": "data"},
        False,
        True,
    )
    assert datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(end) < timedelta(
        milliseconds=1
    )
    assert service.post(record(dataset="orders"), made["key"]).status_code == 201
    shown = ask(service, "GET", f"{KEYS}/{made['key_id']}", admin)
    assert shown.status_code == 200
    assert made["key"] not in shown.text
    assert "key" not in shown.json()
    assert ask(service, "GET", f"{KEYS}/{made['id']}", admin).json() == shown.json()


def test_201_a_platform_key(service: Service, admin: str) -> None:
    """Only role admin has no client, and only a platform key makes one."""
    made = make(service, admin, role="admin", name="second")
    assert (made["is_admin"], made["client_id"]) == (True, None)
    assert made["key"].startswith(f"cl_admin_{made['key_id']}")
    problem(ask(service, "POST", KEYS, admin, {"name": "of whom"}), 422)


def test_201_prefix(service: Service, admin: str, client_id: str) -> None:
    """A prefix of one's own stands before the client, and the key works."""
    made = make(service, admin, client_id=client_id, prefix="pk")
    assert made["key"].startswith(f"pk_{client_id}_")
    assert works(service, made["key"])


def test_201_repeated_by_its_idempotency_key(service: Service, admin: str, client_id: str) -> None:
    """A repeat makes no second key and shows the first without its text; another body is 422."""
    body = {"client_id": client_id, "name": "once"}
    name = {"idempotency-key": f"make-{client_id}"}
    first = ask(service, "POST", KEYS, admin, body, **name)
    again = ask(service, "POST", KEYS, admin, body, **name)
    assert (first.status_code, again.status_code) == (201, 201)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert "key" not in again.json()
    assert again.json()["id"] == first.json()["id"]
    problem(ask(service, "POST", KEYS, admin, body | {"name": "other"}, **name), 422)
    listed = ask(service, "GET", f"{KEYS}?client_id={client_id}", admin).json()["api_keys"]
    assert len(listed) == 1


def test_201_an_idempotency_key_is_its_clients_own(
    service: Service, owner: str, client_id: str
) -> None:
    """Two clients that use one Idempotency-Key each get a key of their own."""
    other = service.key(f"{client_id}-other", role="owner")
    name = {"idempotency-key": "same"}
    made = [ask(service, "POST", KEYS, key, {"name": "x"}, **name).json() for key in (owner, other)]
    assert {one["client_id"] for one in made} == {client_id, f"{client_id}-other"}
    assert all("key" in one for one in made)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"client_id": "No Slug"}, "client_id"),
        ({"client_id": 5}, "client_id"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": None}, "name"),
        ({"environment": "staging"}, "environment"),
        ({"role": "king"}, "role"),
        ({"role": "admin"}, "role"),
        ({"scopes": ["logs:burn"]}, "scopes"),
        ({"scopes": "logs:read"}, "scopes"),
        ({"allowed_datasets": []}, "allowed_datasets"),
        ({"allowed_datasets": ["A B"]}, "allowed_datasets"),
        ({"limits": {"requests_per_minute": -1}}, "limits.requests_per_minute"),
        ({"limits": {"requests": 1}}, "limits.requests"),
        ({"limits": {"logs_per_minute": 1 << 63}}, "limits.logs_per_minute"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata"),
        ({"metadata": {"a": json.loads("[" * 20 + "]" * 20)}}, "metadata"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"prefix": "UPPER"}, "prefix"),
        ({"allowed_cidrs": ["10.0.0.0/33"]}, "allowed_cidrs"),
        ({"allowed_cidrs": []}, "allowed_cidrs"),
        ({"allowed_cidrs": "10.0.0.0/8"}, "allowed_cidrs"),
        ({"allowed_countries": ["DE"]}, "allowed_countries"),  # without GEOIP_DATABASE
        ({"allowed_hours": {"start": "09:00"}}, "allowed_hours"),
        ({"allowed_hours": {"start": "09:00", "end": "09:00"}}, "allowed_hours"),
        ({"allowed_hours": []}, "allowed_hours"),
        ({"restrictions_mode": "off"}, "restrictions_mode"),
        ({"require_signature": True}, "signing"),
        ({"signing": {"algorithm": "rsa"}}, "signing.algorithm"),
        ({"signing": {"algorithm": "ed25519"}}, "signing.public_key"),
        ({"signing": {"algorithm": "ed25519", "public_key": "AAAA"}}, "signing.public_key"),
        ({"signing": {"algorithm": "hmac-sha256", "public_key": "AAAA"}}, "signing.public_key"),
        ({"expires": "2099-01-01T00:00:00Z"}, "expires"),
    ],
)
def test_422_names_the_field(
    service: Service, admin: str, client_id: str, body: Json, field: str
) -> None:
    """A bad property is refused by its name, and nothing is made."""
    response = ask(service, "POST", KEYS, admin, {"client_id": client_id} | body)
    assert [one["field"] for one in problem(response, 422)["errors"]] == [field]
    assert ask(service, "GET", f"{CLIENTS}/{client_id}", admin).status_code == 404


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"\xff", {}, 400),
        (b"", {}, 400),
        (b"[]", {}, 422),
        (b"null", {}, 422),
        (b"[" * 100_000, {}, 400),
        (b'{"name":"%b"}' % (b"x" * 200_000), {}, 413),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-encoding": "gzip"}, 415),
    ],
)
def test_a_bad_body(
    service: Service, owner: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    """What is no JSON object of a moderate size has its status on every route that reads one."""
    for method, path in (("POST", KEYS), ("PATCH", f"{KEYS}/x"), ("PATCH", f"{CLIENTS}/x")):
        sent = {"content-type": "application/json"} | headers
        response = service.request(method, path, owner, content=content, headers=sent)
        problem(response, status)


def test_201_repeated_after_its_key_has_ended(service: Service, owner: str) -> None:
    """A repeat gets the first reply also when the same request would be refused by now."""
    name = {"idempotency-key": "ended"}
    body = {"name": "short", "expires_at": later(1 / 86_400)}
    first = ask(service, "POST", KEYS, owner, body, **name).json()
    eventually(lambda: works(service, first["key"]), lambda working: not working)
    again = ask(service, "POST", KEYS, owner, body, **name)
    assert (again.status_code, again.json()["id"]) == (201, first["id"])


def test_201_what_is_left_open_is_narrowed(service: Service, client_id: str) -> None:
    """Without a role a key gets of the usual scopes those that its maker has."""
    asker = service.key(client_id, role="owner", scopes=["keys:manage", "logs:read"], name="few")
    assert make(service, asker)["scopes"] == ["logs:read"]
    none = service.key(client_id, role="owner", scopes=["keys:manage"], name="none")
    assert ask(service, "POST", KEYS, none, {}).status_code == 403


def test_the_end_of_time(service: Service, client_id: str) -> None:
    """An expiry at the end of the calendar is taken or refused, and rotated, without a fault."""
    asker = service.key(
        client_id, role="owner", expires_at=datetime.max.replace(tzinfo=UTC), name="for ever"
    )
    beyond = {"expires_at": "9999-12-31T23:59:59-14:00"}
    problem(ask(service, "POST", KEYS, asker, beyond), 422)
    made = make(service, asker, expires_at="9999-12-31T23:59:59Z")
    assert make(service, asker)["expires_at"].startswith("9999-12-31")
    rotated = ask(service, "POST", f"{KEYS}/{made['id']}/rotate", asker)
    assert rotated.json()["expires_at"].startswith("9999-12-31")
    for place in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        cursor = urlsafe_b64encode(f"{place} {made['id']}".encode()).decode()
        problem(ask(service, "GET", f"{KEYS}?cursor={cursor}", asker), 422)


# What a key may give.


def test_403_what_the_asker_has_not(service: Service, client_id: str) -> None:
    """No scope, dataset, limit or life beyond the asker's own is given away."""
    asker = service.key(
        client_id,
        role="owner",
        scopes=["keys:manage", "logs:write", "usage:read"],
        allowed_datasets=["orders"],
        limits={"requests_per_minute": 100},
        expires_at=datetime.now(UTC) + timedelta(days=2),
    )
    wide: list[tuple[Json, str]] = [
        ({"role": "client"}, "Requires scope 'logs:read'"),
        ({"role": "owner"}, "Requires scope 'audit:read'"),
        (
            {"role": "ingest", "allowed_datasets": ["billing"]},
            "Not authorized for dataset 'billing'",
        ),
        ({"role": "ingest", "limits": {"requests_per_minute": 101}}, "more requests_per_minute"),
        ({"role": "ingest", "limits": {"requests_per_minute": 0}}, "more requests_per_minute"),
        ({"role": "ingest", "expires_at": later(3)}, "outlive"),
        ({"role": "admin"}, "Admin key required"),
        ({"role": "ingest", "scopes": ["logs:query"]}, "Requires scope 'logs:query'"),
    ]
    for body, detail in wide:
        assert detail in problem(ask(service, "POST", KEYS, asker, body), 403)["detail"]
    narrowed = make(service, asker, role="ingest")
    assert narrowed["allowed_datasets"] == ["orders"]
    assert narrowed["limits"]["requests_per_minute"] == 100
    assert narrowed["expires_at"] is not None
    own = make(service, asker, role="ingest", limits={"requests_per_minute": 3})
    for change, _ in wide:
        if "role" in change and len(change) > 1:
            del change["role"]
        assert ask(service, "PATCH", f"{KEYS}/{own['id']}", asker, change).status_code == 403
    for undoing in ({"allowed_datasets": None}, {"expires_at": None}, {"limits": None}):
        assert ask(service, "PATCH", f"{KEYS}/{own['id']}", asker, undoing).status_code == 403


def test_403_a_wider_key_is_not_handed_out(service: Service, client_id: str, owner: str) -> None:
    """A key that may do more than the asker can be switched off by it, but not rotated or on."""
    asker = service.key(client_id, role="owner", scopes=["keys:manage"], name="narrow")
    wide = make(service, owner, role="client")
    path = f"{KEYS}/{wide['id']}"
    assert ask(service, "POST", f"{path}/rotate", asker).status_code == 403
    assert ask(service, "PATCH", path, asker, {"scopes": ["logs:query"]}).status_code == 403
    assert ask(service, "PATCH", path, asker, {"scopes": None}).status_code == 200  # as it was
    assert ask(service, "PATCH", path, asker, {"name": "renamed"}).status_code == 200
    assert ask(service, "POST", f"{path}/deactivate", asker).status_code == 200
    assert ask(service, "POST", f"{path}/activate", asker).status_code == 403
    assert ask(service, "PATCH", path, asker, {"is_active": True}).status_code == 403
    assert ask(service, "POST", f"{path}/activate", owner).status_code == 200


WIDE: Json = {"role": "owner", "scopes": ["logs:write"]}


@pytest.mark.parametrize(
    ("asker", "target", "change"),
    [
        # A part of it is within the asker, the whole is not.
        ({"allowed_datasets": ["a"]}, {"role": "ingest"}, {"scopes": ["logs:read"]}),
        ({"scopes": ["keys:manage"]}, {"allowed_datasets": ["a"]}, {"allowed_datasets": None}),
        ({"scopes": ["keys:manage"]}, {"expires_at": later(1)}, {"expires_at": None}),
        ({"scopes": ["keys:manage"]}, {"limits": {"logs_per_minute": 5}}, {"limits": None}),
        ({"allowed_datasets": ["a"]}, {"role": "ingest"}, {"role": "client"}),
        ({"expires_at": later(1)}, {"role": "ingest"}, {"scopes": ["logs:read"]}),
        ({"limits": {"logs_per_minute": 5}}, {"role": "ingest"}, {"role": "viewer"}),
        # The role behind explicit scopes.
        ({"role": "viewer", "scopes": ["keys:manage", "logs:write"]}, WIDE, {"expires_at": None}),
        ({"role": "viewer", "scopes": ["keys:manage"]}, {"scopes": []}, {"role": "owner"}),
    ],
)
def test_403_the_whole_key_counts(
    service: Service, owner: str, client_id: str, asker: Json, target: Json, change: Json
) -> None:
    """Whoever adds to a key gives all that the key then has; who takes away gives nothing."""
    if "expires_at" in asker:
        asker = asker | {"expires_at": datetime.fromisoformat(asker["expires_at"])}
    asking = service.key(client_id, **{"role": "owner", **asker})
    if target is WIDE:
        target = target | {"expires_at": later(1)}
    path = f"{KEYS}/{make(service, owner, **target)['id']}"
    problem(ask(service, "PATCH", path, asking, change), 403)
    taken = {"scopes": [], "limits": {"logs_per_minute": 1}, "allowed_datasets": ["a"]}
    for less in (taken, {"expires_at": later(1 / 24)}, {"name": "x"}, {"is_active": False}):
        assert ask(service, "PATCH", path, asking, less).status_code == 200


def test_403_no_role_beyond_ones_own(service: Service, client_id: str) -> None:
    """A key does not make itself an owner behind its explicit scopes."""
    asker = service.key(client_id, role="client", scopes=["keys:manage"])
    path = f"{KEYS}/{make_id(service, asker)}"
    refused = problem(ask(service, "PATCH", path, asker, {"role": "owner"}), 403)
    assert refused["detail"] == "Requires scope 'audit:read'"
    assert ask(service, "PATCH", path, asker, {"role": "ingest"}).status_code == 200


def test_403_a_grace_hides_no_longer_life(service: Service, admin: str, client_id: str) -> None:
    """In its grace a key can't put its own expiry off: the rotation may yet be undone."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    ending = service.key(client_id, role="owner", expires_at=soon)
    path = f"{KEYS}/{make_id(service, ending)}"
    assert ask(service, "POST", f"{path}/rotate", admin, {"grace_seconds": 600}).status_code == 201
    for expires_at in (None, later(1)):
        problem(ask(service, "PATCH", path, ending, {"expires_at": expires_at}), 403)
    earlier = (soon - timedelta(minutes=30)).isoformat()
    assert ask(service, "PATCH", path, ending, {"expires_at": earlier}).status_code == 200


def test_403_no_key_that_ended_is_revived(service: Service, client_id: str) -> None:
    """A key whose time is over comes back only by one that has all of it, without an end itself."""
    ended = service.key(
        client_id, role="owner", expires_at=datetime.now(UTC) + timedelta(seconds=1)
    )
    path = f"{KEYS}/{make_id(service, ended)}"
    few = service.key(client_id, role="owner", scopes=["keys:manage", "logs:read"])
    soon = datetime.now(UTC) + timedelta(days=2)
    passing = service.key(client_id, role="owner", expires_at=soon)
    eventually(lambda: works(service, ended), lambda working: not working)
    for asker, change in (
        (few, {"expires_at": None}),
        (few, {"expires_at": later(1)}),
        (few, {"expires_at": later(1), "is_active": True}),
        (passing, {"expires_at": None}),
        (passing, {"expires_at": later(3)}),
    ):
        problem(ask(service, "PATCH", path, asker, change), 403)
    assert ask(service, "PATCH", path, passing, {"expires_at": later(1)}).status_code == 200
    assert works(service, ended)


@pytest.mark.parametrize("is_platform", [False, True])
def test_403_nothing_that_outlives_the_asker(
    service: Service, admin: str, client_id: str, is_platform: bool
) -> None:
    """A key that ends changes and switches off one that does not, and gives it to nobody."""
    owner_id = None if is_platform else client_id
    role = None if is_platform else "owner"
    soon = datetime.now(UTC) + timedelta(days=2)
    passing = service.key(owner_id, role=role, name="passing", expires_at=soon)
    endless = service.key(owner_id, role=role, name="endless")
    asker_path, path = (f"{KEYS}/{make_id(service, key)}" for key in (passing, endless))
    assert ask(service, "PATCH", path, passing, {"name": "renamed"}).status_code == 200
    assert ask(service, "PATCH", path, passing, {"expires_at": later(1)}).status_code == 200
    assert ask(service, "PATCH", path, passing, {"expires_at": None}).status_code == 403
    assert ask(service, "PATCH", path, admin, {"expires_at": None}).status_code == 200
    for grace in (0, 60):
        body = {"grace_seconds": grace}
        refused = problem(ask(service, "POST", f"{path}/rotate", passing, body), 403)
        assert refused["detail"] == "Not authorized to outlive the key that asks"
    assert ask(service, "POST", f"{path}/deactivate", passing).status_code == 200
    assert ask(service, "POST", f"{path}/activate", passing).status_code == 403
    assert ask(service, "POST", f"{path}/activate", endless).status_code == 401
    assert ask(service, "POST", f"{path}/activate", admin).status_code == 200
    # One without an end is not hindered.
    assert ask(service, "POST", f"{asker_path}/rotate", endless).status_code == 201
    assert ask(service, "POST", f"{path}/rotate", endless).json()["expires_at"] is None


@pytest.mark.parametrize("is_platform", [False, True])
def test_no_rotation_prolongs_the_asker(
    service: Service, client_id: str, is_platform: bool
) -> None:
    """A key that rotates itself, or one that ends before it, gets no day more than it had."""
    owner_id = None if is_platform else client_id
    role = None if is_platform else "owner"
    soon = datetime.now(UTC) + timedelta(days=2)
    key = service.key(owner_id, role=role, name="passing", expires_at=soon)
    first = service.get(CURRENT, key).json()["expires_at"]
    for _ in range(2):
        path = f"{KEYS}/{make_id(service, key)}/rotate"
        rotated = ask(service, "POST", path, key, {"grace_seconds": 60})
        assert rotated.status_code == 201, rotated.text
        assert rotated.json()["expires_at"] == first
        # In its grace the old one can't take over from its successor.
        problem(ask(service, "POST", f"{KEYS}/{rotated.json()['id']}/rotate", key), 403)
        problem(ask(service, "POST", path, key), 409)
        key = rotated.json()["key"]
    other = make(service, key, client_id=client_id, expires_at=later(1.5))
    path = f"{KEYS}/{other['id']}/rotate"
    assert ask(service, "POST", path, key).json()["expires_at"] <= first


def test_grace_ends_with_an_earlier_expiry(service: Service, owner: str) -> None:
    """Who brings a rotated key's expiry forward ends its grace then too."""
    made = make(service, owner)
    path = f"{KEYS}/{made['id']}"
    ask(service, "POST", f"{path}/rotate", owner, {"grace_seconds": 3600})
    shown = ask(service, "PATCH", path, owner, {"expires_at": later(1 / 1440)}).json()
    assert shown["grace_until"] == shown["expires_at"]


def test_409_repeated_after_its_key_was_deleted(service: Service, owner: str) -> None:
    """A repeat of a creation whose key is deleted neither shows what is gone nor makes another."""
    name = {"idempotency-key": "deleted"}
    first = ask(service, "POST", KEYS, owner, {"name": "short"}, **name).json()
    assert ask(service, "DELETE", f"{KEYS}/{first['id']}", owner).status_code == 200
    again = problem(ask(service, "POST", KEYS, owner, {"name": "short"}, **name), 409)
    assert "has been deleted" in again["detail"]


def test_404_what_is_another_clients(service: Service, owner: str, client_id: str) -> None:
    """Keys of another client and of the platform are as absent as those that never were."""
    foreign = service.key(f"{client_id}-other")
    platform = service.key(None, name="platform")
    for key in (foreign, platform):
        key_id = key.rpartition("_")[2][:12]
        for name in (key_id, make_id(service, key)):
            path = f"{KEYS}/{name}"
            for method, target, body in (
                ("GET", path, None),
                ("PATCH", path, {"name": "mine"}),
                ("DELETE", path, None),
                ("POST", f"{path}/deactivate", None),
                ("POST", f"{path}/activate", None),
                ("POST", f"{path}/rotate", {"grace_seconds": 0}),
            ):
                problem(ask(service, method, target, owner, body), 404, "Not found")
    problem(ask(service, "POST", KEYS, owner, {"client_id": f"{client_id}-other"}), 404)
    problem(ask(service, "GET", f"{KEYS}?client_id={client_id}-other", owner), 404)
    assert works(service, foreign)
    for name in ("nope", "0" * 12, "00000000-0000-0000-0000-000000000000", "%00", "x" * 500):
        problem(ask(service, "GET", f"{KEYS}/{name}", owner), 404, "Not found")


def make_id(service: Service, key: str) -> str:
    """Give the UUID of a key."""
    found: str = service.get(CURRENT, key).json()["id"]
    return found


# Changes.


def test_patch_absent_is_not_null(service: Service, owner: str) -> None:
    """What is not named stays; null sets the default; limits are set one by one."""
    made = make(
        service,
        owner,
        name="first",
        description="text",
        allowed_datasets=["orders"],
        limits={"requests_per_minute": 5, "logs_per_minute": 6},
        metadata={"a": 1},
        expires_at=later(5),
    )
    path = f"{KEYS}/{made['id']}"
    changed = ask(service, "PATCH", path, owner, {"name": "second"}).json()
    same = made.keys() - {"key", "name"}
    assert {name: changed[name] for name in same} == {name: made[name] for name in same}
    changed = ask(
        service,
        "PATCH",
        path,
        owner,
        {
            "limits": {"logs_per_minute": None},
            "allowed_datasets": None,
            "expires_at": None,
            "metadata": {},
            "role": "viewer",
        },
    ).json()
    assert changed["limits"] == {
        "requests_per_minute": 5,
        "logs_per_minute": None,
        "bytes_per_minute": None,
    }
    assert (changed["allowed_datasets"], changed["expires_at"], changed["metadata"]) == (
        None,
        None,
        {},
    )
    assert changed["scopes"] == ["logs:read"]
    assert ask(service, "PATCH", path, owner, {}).json()["name"] == "second"
    problem(service.post(record(), made["key"]), 403, "Requires scope 'logs:write'")


@pytest.mark.parametrize(
    "change",
    [
        {"name": None},
        {"role": None},
        {"client_id": "other"},
        {"is_active": "no"},
        {"created_by": "me"},
        {"key_id": "x"},
        {"expires_at": "2001-01-01T00:00:00Z"},
        {"environment": "test"},
    ],
)
def test_422_patch(service: Service, owner: str, change: Json) -> None:
    """What can't be changed, or not to this, is refused and changes nothing."""
    made = make(service, owner)
    problem(ask(service, "PATCH", f"{KEYS}/{made['id']}", owner, change), 422)
    assert works(service, made["key"])


def test_a_change_holds_from_the_next_request(service: Service, owner: str) -> None:
    """Narrowed datasets, limits and scopes bind the very next request of a key in use."""
    made = make(service, owner)
    path = f"{KEYS}/{made['id']}"
    assert service.post(record(dataset="orders"), made["key"]).status_code == 201
    ask(service, "PATCH", path, owner, {"allowed_datasets": ["billing"]})
    problem(
        service.post(record(dataset="orders"), made["key"]),
        403,
        "Not authorized for dataset 'orders'",
    )
    ask(service, "PATCH", path, owner, {"allowed_datasets": None, "limits": {"logs_per_minute": 1}})
    assert service.post(record(), made["key"]).status_code == 429
    ask(service, "PATCH", path, owner, {"scopes": ["logs:read"], "limits": None})
    problem(service.post(record(), made["key"]), 403, "Requires scope 'logs:write'")


# Off, on, gone.


@pytest.mark.parametrize("how", ["deactivate", "delete", "patch"])
def test_off_at_once_with_a_receipt(service: Service, owner: str, how: str) -> None:
    """A key that is switched off fails on the next request, and the reply says since when."""
    made = make(service, owner)
    assert works(service, made["key"])
    path = f"{KEYS}/{made['id']}"
    before = datetime.now(UTC)
    response = {
        "deactivate": lambda: ask(service, "POST", f"{path}/deactivate", owner),
        "delete": lambda: ask(service, "DELETE", path, owner),
        "patch": lambda: ask(service, "PATCH", path, owner, {"is_active": False}),
    }[how]()
    assert response.status_code == 200, response.text
    reply = response.json()
    assert reply["is_active"] is False
    assert reply["workers"] == 1
    assert reply["ms"] >= 0
    effective_at = datetime.fromisoformat(reply["effective_at"])
    assert effective_at >= before.replace(microsecond=before.microsecond // 1000 * 1000)
    problem(service.get(CURRENT, made["key"]), 401, "Invalid API key")


def test_off_and_on_again(service: Service, owner: str) -> None:
    """A deactivated key is kept and can be switched on again, either as often as one likes."""
    made = make(service, owner)
    path = f"{KEYS}/{made['id']}"
    for _ in range(2):
        assert ask(service, "POST", f"{path}/deactivate", owner).status_code == 200
    assert not works(service, made["key"])
    assert ask(service, "GET", path, owner).json()["is_active"] is False
    for _ in range(2):
        assert ask(service, "POST", f"{path}/activate", owner).json()["is_active"] is True
    assert works(service, made["key"])


def test_deleted_is_gone(service: Service, owner: str) -> None:
    """A deleted key is found by nobody, comes back by nothing, and its verifier is wiped."""
    made = make(service, owner)
    path = f"{KEYS}/{made['id']}"
    assert ask(service, "DELETE", path, owner).status_code == 200
    for method, target in (
        ("GET", path),
        ("DELETE", path),
        ("POST", f"{path}/activate"),
        ("POST", f"{path}/rotate"),
    ):
        problem(ask(service, method, target, owner), 404, "Not found")
    listed = ask(service, "GET", f"{KEYS}?include_inactive=true", owner).json()["api_keys"]
    assert made["id"] not in [key["id"] for key in listed]
    with service.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT verifier, lookup_tag, key_id FROM api_keys WHERE key_id = ?", (made["key_id"],)
        ).all()
    assert rows == [(None, None, made["key_id"])]


def test_expiry(service: Service, owner: str) -> None:
    """A key ends by itself at its time, and no switch brings it back."""
    made = make(service, owner, expires_at=later(2 / 86_400))
    assert works(service, made["key"])
    eventually(lambda: works(service, made["key"]), lambda working: not working)
    path = f"{KEYS}/{made['id']}"
    problem(ask(service, "POST", f"{path}/activate", owner), 409)
    problem(ask(service, "POST", f"{path}/rotate", owner), 409)
    assert ask(service, "PATCH", path, owner, {"expires_at": later(1)}).status_code == 200
    assert works(service, made["key"])


def test_off_although_uses_cannot_be_read(tmp_path: Path) -> None:
    """A broken activity.db hides what keys were used for, and stops no revocation."""
    with running(tmp_path) as service:
        admin, key = service.key(None, name="admin"), service.key("acme")
        key_id = service.get(CURRENT, key).json()["key_id"]
        with closing(sqlite3.connect(tmp_path / "activity.db", isolation_level=None)) as broken:
            broken.execute("DROP TABLE key_uses")
        shown = ask(service, "GET", f"{KEYS}/{key_id}", admin).json()
        assert (shown["total_requests"], shown["sources"]) == (None, [])
        listed = ask(service, "GET", KEYS, admin).json()["api_keys"]
        assert [key["total_requests"] for key in listed] == [None] * len(listed)
        reply = ask(service, "POST", f"{KEYS}/{key_id}/deactivate", admin)
        assert reply.status_code == 200
        assert reply.json()["is_active"] is False
        assert not works(service, key)


def test_409_too_many_keys(tmp_path: Path) -> None:
    """A client has so many keys in use and no more, whoever asks; each may still be replaced."""
    with running(tmp_path, keys_per_client_max=3) as service:
        admin, owner = service.key(None, name="admin"), service.key("acme", role="owner")
        one, two = make(service, owner), make(service, admin, client_id="acme")
        ended = {"name": "x", "expires_at": later(1 / 86_400)}
        for asker in (owner, admin):
            refused = ask(service, "POST", KEYS, asker, ended | {"client_id": "acme"})
            assert "no more than 3" in problem(refused, 409)["detail"]
        make(service, admin, client_id="other")
        # Off it is not counted, and on again it is.
        path = f"{KEYS}/{one['key_id']}"
        assert ask(service, "POST", f"{path}/deactivate", owner).status_code == 200
        brief = make(service, owner, **ended)
        for how in (("POST", f"{path}/activate", None), ("PATCH", path, {"is_active": True})):
            problem(ask(service, how[0], how[1], owner, how[2]), 409)
        eventually(lambda: works(service, brief["key"]), lambda working: not working)
        assert ask(service, "POST", f"{path}/activate", owner).status_code == 200
        # Its end put later would be one more.
        path = f"{KEYS}/{brief['key_id']}"
        problem(ask(service, "PATCH", path, owner, {"expires_at": None}), 409)
        # A chain of rotations is as long as the list of keys, each with its grace.
        newest = two["key_id"]
        for _ in range(3):
            answer = ask(service, "POST", f"{KEYS}/{newest}/rotate", owner)
            assert answer.status_code == 201, answer.text
            newest = answer.json()["key_id"]
        refused = ask(service, "POST", f"{KEYS}/{newest}/rotate", owner)
        assert "grace" in problem(refused, 409)["detail"]
        at_once = {"grace_seconds": 0}
        assert ask(service, "POST", f"{KEYS}/{newest}/rotate", owner, at_once).status_code == 201
        service.key("acme")  # the operator is not bound


# Rotation.


def test_rotation_with_grace(service: Service, owner: str) -> None:
    """Both keys work until the grace is over; the chain is visible; what the key may do stays."""
    made = make(service, owner, role="ingest", name="etl", allowed_datasets=["orders"])
    rotated = ask(service, "POST", f"{KEYS}/{made['id']}/rotate", owner, {"grace_seconds": 3})
    assert rotated.status_code == 201, rotated.text
    new = rotated.json()
    assert new["rotated_from"] == made["id"]
    assert (new["name"], new["role"], new["allowed_datasets"]) == ("etl", "ingest", ["orders"])
    assert new["old_key_id"] == made["key_id"]
    assert works(service, made["key"])
    assert works(service, new["key"])
    old = ask(service, "GET", f"{KEYS}/{made['id']}", owner).json()
    assert old["rotated_to"] == new["id"]
    assert old["grace_until"] == new["grace_until"]
    eventually(lambda: works(service, made["key"]), lambda working: not working)
    assert works(service, new["key"])


def test_rotation_at_once(service: Service, owner: str) -> None:
    """Without grace the old key is over with the reply, which says since when."""
    made = make(service, owner)
    path = f"{KEYS}/{made['id']}/rotate"
    new = ask(service, "POST", path, owner, {"grace_seconds": 0}).json()
    assert not works(service, made["key"])
    assert works(service, new["key"])
    assert (new["workers"], new["unconfirmed"]) == (1, 0)
    assert new["ms"] >= 0
    assert new["effective_at"] is not None
    again = ask(service, "POST", f"{KEYS}/{new['id']}/rotate", owner, {"grace_seconds": 9}).json()
    assert "effective_at" not in again


def test_409_rotated_already(service: Service, owner: str) -> None:
    """A key is rotated once; an inactive one not at all."""
    made = make(service, owner)
    path = f"{KEYS}/{made['id']}/rotate"
    assert ask(service, "POST", path, owner).status_code == 201
    problem(ask(service, "POST", path, owner), 409)
    other = make(service, owner)
    ask(service, "POST", f"{KEYS}/{other['id']}/deactivate", owner)
    problem(ask(service, "POST", f"{KEYS}/{other['id']}/rotate", owner), 409)


def test_grace_ends_with_the_key(service: Service, owner: str) -> None:
    """The grace of a rotation is never longer than what was left of the old key's own life."""
    end = later(1)
    made = make(service, owner, expires_at=end)
    path = f"{KEYS}/{made['id']}/rotate"
    new = ask(service, "POST", path, owner, {"grace_seconds": 10 * 86_400}).json()
    assert new["grace_until"] == made["expires_at"]
    lives = datetime.fromisoformat(new["expires_at"]) - datetime.fromisoformat(new["created_at"])
    assert timedelta(hours=23) < lives <= timedelta(days=1)


@pytest.mark.parametrize("grace", [-1, 1.5, "1", 90 * 86_400 + 1])
def test_422_grace(service: Service, owner: str, grace: Any) -> None:
    """A grace that is none is refused, and the key is not rotated."""
    made = make(service, owner)
    path = f"{KEYS}/{made['id']}/rotate"
    problem(ask(service, "POST", path, owner, {"grace_seconds": grace}), 422)
    assert ask(service, "POST", path, owner).status_code == 201


# Lists.


def test_pages_of_keys(service: Service, admin: str, client_id: str) -> None:
    """Pages give each key once, oldest first, while others come and go."""
    made = [make(service, admin, client_id=client_id, name=f"k{n}")["id"] for n in range(7)]
    seen: list[str] = []
    cursor = ""
    while True:
        query = f"{KEYS}?client_id={client_id}&limit=3" + (f"&cursor={cursor}" if cursor else "")
        page = ask(service, "GET", query, admin).json()
        seen += [key["id"] for key in page["api_keys"]]
        if page["next_cursor"] is None:
            break
        cursor = page["next_cursor"]
    assert seen == made


def test_filters_of_keys(service: Service, owner: str, client_id: str) -> None:
    """Inactive keys are listed on request; `due` leaves those that end or are to be rotated."""
    kept, off = make(service, owner, name="kept"), make(service, owner, name="off")
    make(service, owner, name="ending", expires_at=later(5))
    ask(service, "POST", f"{KEYS}/{off['id']}/deactivate", owner)

    def names(query: str) -> set[str]:
        return {key["name"] for key in ask(service, "GET", KEYS + query, owner).json()["api_keys"]}

    assert names("") == {"owner", "kept", "ending"}
    assert names("?include_inactive=true") == {"owner", "kept", "ending", "off"}
    assert names(f"?client_id={client_id}&due=4") == set()
    assert names("?due=6") == {"ending"}
    assert names("?due=91") == {"owner", "kept", "ending"}
    assert kept["rotation_due_at"] is not None


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=x",
        "cursor=",
        "who=1",
        "due=-1",
        "limit=1&limit=2",
    ],
)
def test_422_list(service: Service, owner: str, query: str) -> None:
    """A parameter that is unknown, doubled or out of range is refused."""
    problem(ask(service, "GET", f"{KEYS}?{query}", owner), 422)


def test_current_shows_the_key_that_asks(service: Service, client_id: str) -> None:
    """Any key sees its own object, whatever its role, with its use and without its text."""
    key = service.key(client_id, role="ingest", name="self")
    service.request("POST", "/api/v1/logs", key, content=b"{}", headers={"user-agent": "shipper/1"})

    def shown() -> Json:
        found: Json = service.get(CURRENT, key, headers={"user-agent": "shipper/1"}).json()
        service.run(_pause())
        return found

    current = eventually(shown, lambda own: own["total_requests"] > 0)
    assert (current["name"], current["client_id"]) == ("self", client_id)
    assert current["last_used_at"] is not None
    assert (current["last_source_ip"], current["last_user_agent"]) == ("127.0.0.1", "shipper/1")
    assert [source["user_agent"] for source in current["sources"]] == ["shipper/1"]
    assert key not in json.dumps(current)


async def _pause() -> None:

    await asyncio.sleep(0.2)


def test_current_of_a_key_of_the_settings(tmp_path: Any) -> None:
    """A static key sees itself too, though it has no row."""
    with running(tmp_path, api_keys={"a-static-key-of-some-length": "acme"}) as service:
        current = service.get(CURRENT, "a-static-key-of-some-length").json()
    assert (current["client_id"], current["role"]) == ("acme", "client")
    assert current["created_by"] == "settings"


# Limits of the routes.


ROUTES = [
    ("POST", KEYS),
    ("GET", KEYS),
    ("GET", CURRENT),
    ("GET", f"{KEYS}/x"),
    ("PATCH", f"{KEYS}/x"),
    ("DELETE", f"{KEYS}/x"),
    ("POST", f"{KEYS}/x/deactivate"),
    ("POST", f"{KEYS}/x/activate"),
    ("POST", f"{KEYS}/x/rotate"),
    ("POST", CLIENTS),
    ("GET", CLIENTS),
    ("GET", f"{CLIENTS}/x"),
    ("PATCH", f"{CLIENTS}/x"),
]


def test_429_on_every_route(tmp_path: Any) -> None:
    """Each route refuses a key's fourth request of three a minute, also one that was no good."""
    with running(tmp_path, management_requests_per_minute=3) as service:
        admin, other = service.key(None, name="one"), service.key(None, name="two")
        for method, path in ROUTES:
            statuses = [ask(service, method, path, admin, {"no": 1}).status_code for _ in range(3)]
            assert 429 not in statuses, (method, path)
            refused = problem(ask(service, method, path, admin, {"no": 1}), 429)
            assert refused["detail"] == "Rate limit exceeded"
            assert ask(service, method, path, other, {"no": 1}).status_code != 429


# Races.


def test_of_two_rotations_one_wins(service: Service, owner: str) -> None:
    """Of rotations at one time one makes a key, the others find the key rotated."""
    made = make(service, owner)

    async def scenario() -> list[int]:

        posts = [
            service.http.post(f"{KEYS}/{made['id']}/rotate", headers={"X-API-Key": owner})
            for _ in range(8)
        ]
        return sorted(one.status_code for one in await asyncio.gather(*posts))

    assert service.run(scenario()) == [201] + [409] * 7


def test_of_two_creations_with_one_name_one_makes(service: Service, owner: str) -> None:
    """Creations at one time with one Idempotency-Key make one key and show its text once."""

    async def scenario() -> list[Json]:

        headers = {"X-API-Key": owner, "Idempotency-Key": "race"}
        posts = [service.http.post(KEYS, headers=headers, json={"name": "x"}) for _ in range(8)]
        return [one.json() for one in await asyncio.gather(*posts)]

    replies = service.run(scenario())
    assert len({one["id"] for one in replies}) == 1
    assert sum("key" in one for one in replies) == 1


def test_a_dry_run_takes_restrictions(service: Service, admin: str) -> None:
    """A key without restrictions can't be made ready to ignore the first ones that it gets."""
    made = service.post({"client_id": "acme", "name": "k"}, admin, path=KEYS).json()
    path = f"{KEYS}/{made['key_id']}"

    def patch(**changes: Any) -> httpx.Response:
        return service.request("PATCH", path, admin, json=changes)

    body = problem(patch(restrictions_mode="report"), 422)
    assert body["errors"][0]["field"] == "restrictions_mode"
    assert patch(restrictions_mode="report", allowed_cidrs=["10.0.0.0/8"]).status_code == 200
    assert patch(allowed_cidrs=None).json()["restrictions_mode"] == "enforce"
    assert patch(allowed_cidrs=["10.0.0.0/8"]).json()["restrictions_mode"] == "enforce"


def test_what_cannot_be_shown_is_not_made(tmp_path: Path) -> None:
    """A fault in showing a new key comes before the commit: none is there that nobody has."""
    with running(tmp_path) as service:
        admin, key = service.key(None), service.key("acme")
        before = _rows(tmp_path)
        state = service.app._control.state  # noqa: SLF001  # its name
        opened = state.services
        state.services = replace(opened, rotation_policy=RotationPolicy(10**7, 0))  # days
        path = f"{KEYS}/{key_id_of(key)}/rotate"
        new = {"client_id": "acme", "name": "new"}
        for path_asked, body in ((path, {"grace_seconds": 0}), (path, {}), (KEYS, new)):
            with pytest.raises(OverflowError):
                ask(service, "POST", path_asked, admin, body)
        assert _rows(tmp_path) == before
        state.services = opened
        assert works(service, key)


def _rows(data_dir: Path) -> Any:
    with closing(sqlite3.connect(data_dir / "control.db")) as database:
        return database.execute("SELECT key_id, rotated_to, grace_until FROM api_keys").fetchall()
