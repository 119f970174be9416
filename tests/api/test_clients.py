"""/api/v1/clients: tenants, as the platform and their own administrators see them."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.api.management import CLIENTS, ask
from tests.support import Json, Service, problem, record


def test_201_as_it_was_asked_for(service: Service, admin: str, client_id: str) -> None:
    """A new client has what was asked for, and is found again."""
    asked = {
        "client_id": client_id,
        "name": "Acme",
        "contact_email": "ops@acme.example",
        "retention_days": 30,
        "dataset_retention_days": {"orders": 7},
        "limits": {"logs_per_minute": 5},
        "metadata": {"plan": "gold"},
    }
    response = ask(service, "POST", CLIENTS, admin, asked)
    assert response.status_code == 201, response.text
    made = response.json()
    assert {name: made[name] for name in asked if name != "limits"} == {
        name: value for name, value in asked.items() if name != "limits"
    }
    assert made["limits"]["logs_per_minute"] == 5
    assert made["is_active"] is True
    assert ask(service, "GET", f"{CLIENTS}/{client_id}", admin).json() == made
    problem(ask(service, "POST", CLIENTS, admin, {"client_id": client_id}), 409)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "client_id"),
        ({"client_id": "No Slug"}, "client_id"),
        ({"client_id": "*"}, "client_id"),
        ({"client_id": "x", "contact_email": "a@b\nBcc: c@d"}, "contact_email"),
        ({"client_id": "x", "contact_email": "nobody"}, "contact_email"),
        ({"client_id": "x", "name": "a\r\nb"}, "name"),
        ({"client_id": "x", "retention_days": 0}, "retention_days"),
        ({"client_id": "x", "dataset_retention_days": {"A": 1}}, "dataset_retention_days"),
        ({"client_id": "x", "dataset_retention_days": {"a": 0}}, "dataset_retention_days"),
        ({"client_id": "x", "limits": {"logs": 1}}, "limits.logs"),
        ({"client_id": "x", "plan": "gold"}, "plan"),
    ],
)
def test_422_names_the_field(service: Service, admin: str, body: Json, field: str) -> None:
    """A bad property is refused by its name."""
    response = ask(service, "POST", CLIENTS, admin, body)
    assert [one["field"] for one in problem(response, 422)["errors"]] == [field]


def test_an_owner_sees_to_its_own(service: Service, admin: str, client_id: str) -> None:
    """A client's administrator sees its own client and changes name and address, nothing else."""
    owner = service.key(client_id, role="owner")
    path = f"{CLIENTS}/{client_id}"
    assert ask(service, "GET", path, owner).json()["client_id"] == client_id
    listed = ask(service, "GET", CLIENTS, owner).json()
    assert [client["client_id"] for client in listed["clients"]] == [client_id]
    changed = ask(service, "PATCH", path, owner, {"name": "New", "contact_email": "a@b.example"})
    assert (changed.json()["name"], changed.json()["contact_email"]) == ("New", "a@b.example")
    refused: list[Json] = [
        {"is_active": False},
        {"limits": {"logs_per_minute": 0}},
        {"retention_days": 1},
        {"metadata": {}},
    ]
    for change in refused:
        problem(ask(service, "PATCH", path, owner, change), 403, "Admin key required")
    problem(ask(service, "POST", CLIENTS, owner, {"client_id": "x"}), 403, "Admin key required")
    other = f"{client_id}-other"
    service.key(other)
    for method, body in (("GET", None), ("PATCH", {"name": "Mine"}), ("PATCH", {"limits": {}})):
        problem(ask(service, method, f"{CLIENTS}/{other}", owner, body), 404, "Not found")
    assert ask(service, "GET", f"{CLIENTS}/{other}", admin).json()["name"] == other


def test_an_inactive_client_has_no_working_key(
    service: Service, admin: str, client_id: str
) -> None:
    """Switching a client off stops all its keys with the reply; on again, they work again."""
    keys = [service.key(client_id), service.key(client_id, role="owner")]
    for key in keys:
        service.post(record(), key)
    path = f"{CLIENTS}/{client_id}"
    reply = ask(service, "PATCH", path, admin, {"is_active": False}).json()
    assert (reply["is_active"], reply["workers"]) == (False, 1)
    assert reply["effective_at"] is not None
    for key in keys:
        problem(service.get("/api/v1/logs", key), 401, "Invalid API key")
    ask(service, "PATCH", path, admin, {"is_active": True})
    assert service.get("/api/v1/logs", keys[0]).status_code == 200


def test_limits_of_a_client_bind_its_keys(service: Service, admin: str, client_id: str) -> None:
    """A client's limit holds for all its keys together, from the next request on."""
    keys = [service.key(client_id, limits={"logs_per_minute": 100}) for _ in range(2)]
    ask(service, "PATCH", f"{CLIENTS}/{client_id}", admin, {"limits": {"logs_per_minute": 1}})
    assert service.post(record(), keys[0]).status_code == 201
    assert service.post(record(), keys[1]).status_code == 429


def test_pages_of_clients(service: Service, admin: str, client_id: str) -> None:
    """Pages give each client once, by client_id."""
    made = [f"{client_id}-p{n}" for n in range(5)]
    for name in made:
        ask(service, "POST", CLIENTS, admin, {"client_id": name})
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = f"?limit=2&cursor={cursor}" if cursor else "?limit=2"
        page = ask(service, "GET", CLIENTS + query, admin).json()
        seen += [client["client_id"] for client in page["clients"]]
        cursor = page["next_cursor"]
    assert seen == sorted(set(seen))
    assert [name for name in seen if name in made] == made
    problem(ask(service, "GET", f"{CLIENTS}?limit=0", admin), 422)


def test_404_unknown(service: Service, admin: str) -> None:
    """A client that never was is not found, to read or to change."""
    problem(ask(service, "GET", f"{CLIENTS}/nobody", admin), 404, "Not found")
    problem(ask(service, "PATCH", f"{CLIENTS}/nobody", admin, {"name": "x"}), 404, "Not found")


def test_403_an_admin_that_ends_revives_no_client(
    service: Service, admin: str, client_id: str
) -> None:
    """The keys of a client may live beyond such an admin, so that it only switches off."""
    service.key(client_id)
    soon = datetime.now(UTC) + timedelta(hours=1)
    ending = service.key(None, name="ending", expires_at=soon)
    path = f"{CLIENTS}/{client_id}"
    assert ask(service, "PATCH", path, ending, {"is_active": True}).status_code == 200
    assert ask(service, "PATCH", path, ending, {"is_active": False}).status_code == 200
    problem(ask(service, "PATCH", path, ending, {"is_active": True}), 403)
    assert ask(service, "PATCH", path, admin, {"is_active": True}).status_code == 200
