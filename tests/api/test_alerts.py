"""GET /api/v1/alerts; grouped by status."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from app.activity.database import open_activity
from app.columns import utc_now
from app.keys.database import writing
from app.protect.models import Alert
from tests.support import Json, Service, problem, running

ALERTS = "/api/v1/alerts"
MEMBERS = {
    *("id", "at", "last_at", "count", "rule", "severity", "action", "client_id", "key_id"),
    *("source_ip", "detail", "told"),
}


@pytest.fixture(scope="module")
def activity(service: Service) -> Iterator[Engine]:
    """Give where the service keeps its alerts."""
    activity = open_activity(service.engine)
    yield activity
    activity.dispose()


@pytest.fixture
def owner(service: Service, client_id: str) -> str:
    """Make a key of this test's client that reads its alerts."""
    return service.key(client_id, role="owner", name="owner")


def add(activity: Engine, client_id: str | None, *, ago_s: float = 60, **changes: Any) -> None:
    """Store an alert."""
    at = utc_now() - timedelta(seconds=ago_s)
    columns: Json = {
        "at": at,
        "last_at": at,
        "count": 1,
        "rule": "spike",
        "severity": "medium",
        "action": "alert",
        "key_id": "Zk3Zk3Zk3Zk3",
        "source_ip": "203.0.113.7",
        "detail": json.dumps({"explanation": "Far more.", "seen": ["2026-01-01T00:00Z"]}),
    }
    with writing(activity) as session:
        session.add(Alert(**columns | changes, client_id=client_id))


def alerts(service: Service, key: str, **params: Any) -> list[Json]:
    """Read a page of alerts."""
    response = service.get(ALERTS, key, params=params)
    assert response.status_code == 200, response.text
    found: list[Json] = response.json()["alerts"]
    assert all(one.keys() == MEMBERS for one in found)
    return found


# --- 200 -----------------------------------------------------------------------------------------


def test_200_own_alerts_alone(
    service: Service, admin: str, owner: str, activity: Engine, client_id: str
) -> None:
    """A client's administrator reads of its own keys; the platform reads all, or one client's."""
    add(activity, client_id)
    add(activity, "another")
    add(activity, None, rule="failed_attempts", key_id=None)
    (found,) = alerts(service, owner)
    assert (found["client_id"], found["rule"], found["count"]) == (client_id, "spike", 1)
    assert found["detail"] == {"explanation": "Far more.", "seen": ["2026-01-01T00:00Z"]}
    assert alerts(service, owner, client_id=client_id) == [found]
    assert alerts(service, admin, client_id=client_id) == [found]
    for params in ({}, {"client_id": "*"}):
        everybodys = [one["client_id"] for one in alerts(service, admin, **params)]
        assert {client_id, "another", None} <= set(everybodys)


def test_200_filters(service: Service, owner: str, activity: Engine, client_id: str) -> None:
    """By rule, and by time half open."""
    add(activity, client_id, ago_s=7200, rule="dormant_key")
    add(activity, client_id, ago_s=60)
    new, old = alerts(service, owner)
    assert (new["rule"], old["rule"]) == ("spike", "dormant_key")
    assert alerts(service, owner, rule="dormant_key") == [old]
    assert alerts(service, owner, **{"from": "-1h"}) == [new]
    assert alerts(service, owner, to=new["at"]) == [old]
    assert alerts(service, owner, **{"from": new["at"]}) == [new]


def test_200_pages(service: Service, owner: str, activity: Engine, client_id: str) -> None:
    """Page by page nothing is skipped or repeated, also of one moment and while others come."""
    now = utc_now() - timedelta(minutes=5)
    for _ in range(5):
        add(activity, client_id, at=now, last_at=now)
    whole = alerts(service, owner)
    paged: list[Json] = []
    params: Json = {"limit": 2, "from": "-1h"}
    while True:
        answer = service.get(ALERTS, owner, params=params).json()
        paged += answer["alerts"]
        if answer["next_cursor"] is None:
            break
        params["cursor"] = answer["next_cursor"]
        add(activity, client_id, ago_s=0)
    assert paged == whole


# --- 403, 404, 422 -------------------------------------------------------------------------------


def test_403_without_the_scope(service: Service, key: str) -> None:
    """A key without audit:read reads no alert."""
    problem(service.get(ALERTS, key), 403, "Requires scope 'audit:read'")


def test_404_another_client(service: Service, admin: str, owner: str) -> None:
    """Another client's alerts, and those of none, do not exist."""
    service.key("someone-else")
    for params in ({"client_id": "someone-else"}, {"client_id": "never-made"}):
        problem(service.get(ALERTS, owner, params=params), 404)
    problem(service.get(ALERTS, admin, params={"client_id": "never-made"}), 404)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("from=soon", "from"),
        ("to=", "to"),
        ("rule=nope", "rule"),
        ("cursor=AAAA", "cursor"),
        ("severity=high", "severity"),
    ],
)
def test_422_bad_parameters(service: Service, owner: str, query: str, field: str) -> None:
    """An unknown or unreadable parameter is named."""
    (fault,) = problem(service.get(f"{ALERTS}?{query}", owner), 422)["errors"]
    assert fault["field"] == field


def test_422_a_cursor_of_another_list(
    service: Service, admin: str, owner: str, activity: Engine, client_id: str
) -> None:
    """A cursor goes on with its own list alone."""
    for _ in range(2):
        add(activity, client_id)
    cursor = service.get(ALERTS, owner, params={"limit": 1}).json()["next_cursor"]
    for key, params in ((admin, {}), (owner, {"rule": "spike"}), (owner, {"to": "-1s"})):
        problem(service.get(ALERTS, key, params={**params, "cursor": cursor}), 422)


# --- 429 -----------------------------------------------------------------------------------------


def test_429_by_key(tmp_path: Any) -> None:
    """The route has the limit of all management."""
    with running(tmp_path, management_requests_per_minute=3) as service:
        owner = service.key("acme", role="owner")
        assert [service.get(ALERTS, owner).status_code for _ in range(4)] == [200] * 3 + [429]
