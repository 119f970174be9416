"""DELETE /api/v1/clients/{client_id}/logs: gone from every answer, and nothing else is."""

from hashlib import sha256
from typing import Any

import pytest

from tests.support import USAGE, Json, Service, problem, record

CLIENTS = "/api/v1/clients"


def erase(service: Service, key: str, client_id: str, **params: Any) -> Json:
    """Erase, and give the reply."""
    response = service.request("DELETE", f"{CLIENTS}/{client_id}/logs", key, params=params)
    assert response.status_code == 200, response.text
    found: Json = response.json()
    return found


# --- 200 -----------------------------------------------------------------------------------------


def test_all_of_a_client(service: Service, admin: str, client_id: str, key: str) -> None:
    """The reply tells how many logs, of when and which; usage still counts them."""
    times = ["2026-06-01T12:00:00Z", "2026-06-01T12:00:00.000000001Z", "2026-06-02T00:00:00Z"]
    service.post([record(executed_at=time) for time in times] + [{"status": 7}], key)
    ids = sorted(log["id"] for log in service.logs(key))
    reply = erase(service, admin, client_id)
    assert reply.pop("erased_at") > "2026-11-"
    assert reply == {
        "erased": 3,
        "from": times[0],
        "to": times[-1],
        "digest": sha256("\n".join(ids).encode()).hexdigest(),
    }
    assert service.logs(key) == []
    assert service.get(f"/api/v1/logs/{ids[0]}", key).status_code == 404
    assert service.get("/api/v1/logs/rejected", key).json()["rejected"] == []
    totals = service.get(USAGE, key).json()["totals"]
    assert (totals["logs"], totals["rejected"]) == (3, 1)


def test_what_filters_choose(service: Service, admin: str, client_id: str, key: str) -> None:
    """Filters are those of GET /api/v1/logs, together."""
    for n, status in enumerate(("FAILED", "SUCCESS", "FAILED")):
        service.post(record(status=status, message=f"m{n} text", id=str(n)), key)
    reply = erase(service, admin, client_id, status=["FAILED", "LOST"], q="text -m0")
    assert reply["erased"] == 1
    assert sorted(log["message"] for log in service.logs(key)) == ["m0 text", "m1 text"]
    assert service.logs(key, q="m2") == []
    again = service.post(record(id="2"), key).json()
    assert "duplicate" not in again
    assert erase(service, admin, client_id, q="missing")["from"] is None


def test_an_inactive_client(service: Service, admin: str, client_id: str, key: str) -> None:
    """The logs of a client that was switched off can be erased."""
    service.post(record(), key)
    change = {"is_active": False}
    service.request("PATCH", f"{CLIENTS}/{client_id}", admin, json=change)
    assert erase(service, admin, client_id)["erased"] == 1


# --- 403, 404, 422 -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["owner", "client"])
def test_only_the_platform(service: Service, client_id: str, key: str, role: str) -> None:
    """No key of the client's own erases logs, its administrator's neither."""
    service.post(record(), key)
    own = service.key(client_id, role=role)
    response = service.request("DELETE", f"{CLIENTS}/{client_id}/logs", own)
    problem(response, 403, "Admin key required")
    assert len(service.logs(key)) == 1


def test_an_unknown_client(service: Service, admin: str) -> None:
    """A client that was never made is not found."""
    problem(service.request("DELETE", f"{CLIENTS}/never-made/logs", admin), 404, "Not found")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=", "status"),
        ("status=FAILED&status=", "status"),
        ("workflow=%20", "workflow"),
        ("q=", "q"),
        ("q=...", "q"),
        ("from=", "from"),
        ("metadata.a=", "metadata.a"),
        ("state=FAILED", "state"),
        ("limit=1", "limit"),
        ("cursor=x", "cursor"),
        ("order=asc", "order"),
        ("client_id=acme", "client_id"),
        ("to=soon", "to"),
    ],
)
def test_bad_filters(  # fixtures and parameters
    service: Service, admin: str, client_id: str, key: str, query: str, field: str
) -> None:
    """An unknown, empty or unreadable filter is refused: it must not erase more than was meant."""
    service.post(record(), key)
    response = service.request("DELETE", f"{CLIENTS}/{client_id}/logs?{query}", admin)
    [fault] = problem(response, 422)["errors"]
    assert fault["field"] == field
    assert len(service.logs(key)) == 1


def test_a_filter_without_a_sign(service: Service, admin: str, client_id: str, key: str) -> None:
    """A query string that is a name alone, or no pair at all, erases nothing."""
    service.post(record(), key)
    for query in ("status", "&&status", "x;y"):
        response = service.request("DELETE", f"{CLIENTS}/{client_id}/logs?{query}", admin)
        problem(response, 422)
    assert len(service.logs(key)) == 1


def test_a_key_of_some_datasets(service: Service, client_id: str, key: str) -> None:
    """An admin of some datasets erases in these alone, and is refused another by name."""
    service.post([record(dataset="orders"), record(dataset="payroll")], key)
    narrow = service.key(None, name="narrow", allowed_datasets=["orders"])
    path = f"{CLIENTS}/{client_id}/logs"
    problem(service.request("DELETE", path, narrow, params={"dataset": "payroll"}), 403)
    assert erase(service, narrow, client_id)["erased"] == 1
    assert [log["dataset"] for log in service.logs(key)] == ["payroll"]
