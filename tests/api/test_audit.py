"""GET /api/v1/audit, and the record of what is done through the API; grouped by status."""

from typing import Any

import pytest

from app.activity.database import open_activity
from app.audit.book import Book
from app.audit.chain import ACTIVITY, CONTROL
from app.audit.trail import append
from app.audit.verify import Checker
from app.keys.bootstrap import open_secrets
from app.keys.database import writing
from app.keys.sealing import chain_keys
from app.keys.verifier import Peppers
from tests.api.management import CLIENTS, KEYS, ask
from tests.audit.books import event
from tests.support import (
    Json,
    Service,
    create_claim,
    eventually,
    key_id_of,
    problem,
    record,
    running,
)

AUDIT = "/api/v1/audit"
MEMBERS = {
    *("at", "action", "actor", "client_id", "target", "source_ip", "user_agent", "request_id"),
    *("detail", "chain", "seq"),
}


@pytest.fixture
def owner(service: Service, client_id: str) -> str:
    """Make a key of this test's client that reads its audit."""
    return service.key(client_id, role="owner", name="owner")


def events(service: Service, key: str, **params: Any) -> list[Json]:
    """Read a page of events."""
    response = service.get(AUDIT, key, params=params)
    assert response.status_code == 200, response.text
    found: list[Json] = response.json()["events"]
    assert all(one.keys() == MEMBERS for one in found)
    return found


# --- 200 -----------------------------------------------------------------------------------------


def test_200_who_did_what_from_where(service: Service, owner: str, client_id: str) -> None:
    """A change through the API names key, address, user agent and request, before and after."""
    made = ask(service, "POST", KEYS, owner, {"name": "nightly"}).json()
    path = f"{KEYS}/{made['key_id']}"
    agent = {"user-agent": "terraform/1.9"}
    changed = ask(service, "PATCH", path, owner, {"name": "hourly"}, **agent)
    rotated = ask(service, "POST", f"{path}/rotate", owner, {}).json()
    ask(service, "DELETE", f"{KEYS}/{rotated['key_id']}", owner)
    deleted, rotation, update, creation, *before = events(service, owner)
    assert [one["action"] for one in before] == ["key.created", "client.created"]
    assert [one["action"] for one in (deleted, rotation, update, creation)] == [
        *("key.deleted", "key.rotated", "key.updated", "key.created")
    ]
    assert update.pop("at") <= rotation["at"]
    assert update == {
        "action": "key.updated",
        "actor": key_id_of(owner),
        "client_id": client_id,
        "target": made["key_id"],
        "source_ip": "127.0.0.1",
        "user_agent": "terraform/1.9",
        "request_id": changed.headers["x-request-id"],
        "detail": {"name": ["nightly", "hourly"]},
        "chain": client_id,
        "seq": 4,
    }
    assert rotation["detail"]["rotated_to"] == [None, rotated["key_id"]]
    assert {one["actor"] for one in before} == {"a test"}


def test_200_clients_erasures_and_links(service: Service, admin: str, client_id: str) -> None:
    """What the platform does to a client stands in that client's chain."""
    ask(service, "POST", CLIENTS, admin, {"client_id": client_id})
    ask(service, "PATCH", f"{CLIENTS}/{client_id}", admin, {"retention_days": 7})
    ask(service, "PATCH", f"{CLIENTS}/{client_id}", admin, {"is_active": False})
    ask(service, "PATCH", f"{CLIENTS}/{client_id}", admin, {"is_active": True})
    key = service.key(client_id)
    service.post([record(), record()], key)
    path = f"{CLIENTS}/{client_id}/logs"
    receipt = service.request("DELETE", path, admin, params={"status": "SUCCESS"}).json()
    found = events(service, admin, client_id=client_id)
    by_action = {one["action"]: one for one in found}
    erased, started = found[:2]
    assert (started["action"], erased["action"]) == ("logs.erasure_started", "logs.erased")
    assert erased["detail"] == receipt
    assert "SUCCESS" in str(started["detail"]["filters"])
    assert by_action["client.updated"]["detail"] == {"retention_days": [None, 7]}
    assert {"client.created", "client.deactivated", "client.activated"} <= by_action.keys()
    assert {one["client_id"] for one in found} == {client_id}


def test_200_pages_of_both_books(service: Service, owner: str) -> None:
    """Page by page nothing is skipped or repeated, refusals among the changes, newest first."""
    for number in range(3):
        ask(service, "POST", KEYS, owner, {"name": f"key {number}"})
        problem(service.get("/metrics", owner), 403)
    eventually(
        lambda: [one["action"] for one in events(service, owner)], lambda found: "denied" in found
    )
    whole = events(service, owner)
    assert sorted((one["at"] for one in whole), reverse=True) == [one["at"] for one in whole]
    paged: list[Json] = []
    params: Json = {"limit": 2, "from": "-1h"}
    while True:
        answer = service.get(AUDIT, owner, params=params).json()
        paged += answer["events"]
        if answer["next_cursor"] is None:
            break
        params["cursor"] = answer["next_cursor"]
    assert paged == whole


def test_200_pages_of_one_moment(service: Service, owner: str, client_id: str) -> None:
    """Events of one moment in both databases are each on one page, with any length of it."""
    secrets = open_secrets(service.settings.data_dir, ())
    activity = open_activity(service.engine)
    for engine, book in ((service.engine, CONTROL), (activity, ACTIVITY)):
        with writing(engine) as session:
            some = [event(0, client_id)._replace(actor=f"{book} {n}") for n in range(3)]
            append(session, chain_keys(secrets, book), some)
    activity.dispose()
    for limit in (1, 2, 4):
        params: Json = {"limit": limit, "action": "key.updated"}
        actors: list[str] = []
        while len(actors) < 20:
            answer = service.get(AUDIT, owner, params=params).json()
            actors += [one["actor"] for one in answer["events"]]
            if answer["next_cursor"] is None:
                break
            params["cursor"] = answer["next_cursor"]
        assert sorted(actors) == [f"{book} {n}" for book in (ACTIVITY, CONTROL) for n in range(3)]


def test_200_filters(service: Service, admin: str, owner: str, client_id: str) -> None:
    """By action, by time half open, and for the platform by client."""
    ask(service, "POST", KEYS, owner, {"name": "one"})
    made = events(service, owner, action="key.created")
    assert [one["action"] for one in made] == ["key.created"] * 2
    assert made == events(service, admin, action="key.created", client_id=client_id)
    newest = made[0]["at"]
    assert newest not in [one["at"] for one in events(service, owner, to=newest)]
    assert newest in [one["at"] for one in events(service, owner, **{"from": newest})]
    assert events(service, owner, to="-1d") == []


def test_200_all_clients_for_the_platform(service: Service, admin: str, client_id: str) -> None:
    """An admin key reads every chain, the platform's own among them, `*` or nothing named."""
    service.key(client_id)
    for params in ({"client_id": "*"}, {}):
        found = events(service, admin, limit=1000, **params)
        assert {"*", client_id} <= {one["chain"] for one in found}


def test_200_what_a_link_led_to(service: Service, admin: str, client_id: str) -> None:
    """Who opens a link has no key, but an address."""
    from app.keys.registry import get_key  # noqa: PLC0415

    text = service.key(client_id)
    key = get_key(service.engine, key_id_of(text))
    token = create_claim(service.engine, key, text, "https://x.example", by=service.by)
    assert service.request("POST", f"/claim/{token}").status_code == 200
    opened = events(service, admin, client_id=client_id, action="claim.opened")
    assert [(one["actor"], one["source_ip"]) for one in opened] == [("claim link", "127.0.0.1")]
    assert token[-49:] not in str(events(service, admin, client_id=client_id))


def test_200_every_seal_holds(service: Service) -> None:
    """All that the tests of this module did stands in chains that hold."""
    secrets = open_secrets(service.settings.data_dir, ())
    chains = Book(CONTROL, service.engine).sections()
    assert list(Checker(lambda _: chain_keys(secrets), []).check(chains)) == []


# --- 403, 404, 422 -------------------------------------------------------------------------------


def test_403_without_the_scope(service: Service, client_id: str) -> None:
    """A key without audit:read reads none of it."""
    problem(service.get(AUDIT, service.key(client_id)), 403, "Requires scope 'audit:read'")


def test_404_another_client(service: Service, admin: str, owner: str) -> None:
    """Another client's audit, and that of none, does not exist."""
    service.key("someone-else")
    for params in ({"client_id": "someone-else"}, {"client_id": "never-made"}):
        problem(service.get(AUDIT, owner, params=params), 404)
    problem(service.get(AUDIT, admin, params={"client_id": "never-made"}), 404)


def test_nothing_of_another_client(service: Service, owner: str, client_id: str) -> None:
    """An owner is shown its own client's chain alone, whatever the filters."""
    service.key("someone-else")
    for params in ({}, {"action": "key.created"}, {"client_id": client_id}, {"limit": 1000}):
        assert {one["chain"] for one in events(service, owner, **params)} == {client_id}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("from=soon", "from"),
        ("to=", "to"),
        ("action=", "action"),
        ("cursor=x", "cursor"),
        ("cursor=AAAA", "cursor"),
        ("until=-1h", "until"),
        ("limit=1&limit=2", "limit"),
    ],
)
def test_422_bad_parameters(service: Service, owner: str, query: str, field: str) -> None:
    """An unknown or unreadable parameter is named."""
    (fault,) = problem(service.get(f"{AUDIT}?{query}", owner), 422)["errors"]
    assert fault["field"] == field


def test_422_a_cursor_of_another_list(service: Service, admin: str, owner: str) -> None:
    """A cursor goes on with its own list: not another client's, nor with other filters."""
    ask(service, "POST", KEYS, owner, {"name": "one"})
    cursor = service.get(AUDIT, owner, params={"limit": 1}).json()["next_cursor"]
    assert service.get(AUDIT, owner, params={"cursor": cursor}).status_code == 200
    for key, params in ((admin, {}), (owner, {"action": "key.created"}), (owner, {"to": "-1s"})):
        problem(service.get(AUDIT, key, params={**params, "cursor": cursor}), 422)


# --- the rest ------------------------------------------------------------------------------------


def test_429_by_key(tmp_path: Any) -> None:
    """The route has the limit of all management."""
    with running(tmp_path, management_requests_per_minute=3) as service:
        owner = service.key("acme", role="owner")
        assert [service.get(AUDIT, owner).status_code for _ in range(4)] == [200] * 3 + [429]


def test_a_refused_change_is_no_change(service: Service, owner: str) -> None:
    """What was forbidden leaves no event of being done."""
    before = [one["seq"] for one in events(service, owner, action="key.created")]
    problem(ask(service, "POST", KEYS, owner, {"name": "x", "role": "admin"}), 403)
    problem(ask(service, "POST", KEYS, owner, {"name": "x", "limits": {"nope": 1}}), 422)
    assert [one["seq"] for one in events(service, owner, action="key.created")] == before
    assert isinstance(service.peppers, Peppers)
