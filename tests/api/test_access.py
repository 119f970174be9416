"""The table of routes and scopes: every route of it, with every role and each of its scopes."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.api import access
from app.api.access import PUBLIC, RULES, Rule
from app.api.app import create_control_app
from app.edge import ingest
from app.keys.roles import ROLES
from tests.support import Service, problem, record, running

ADMIN = "admin"
CLOSED = [name for name, rule in RULES.items() if rule != PUBLIC]

# What stands for something in the path of a route.
NAMES = ("log_id", "id_or_key_id", "client_id", "request_id", "token")

# A role, and the one scope that is left of it; None: all of them.
Grant = tuple[str, str | None]
GRANTS: list[Grant] = [(role, one) for role in ROLES for one in (None, *sorted(ROLES[role]))]


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Give method and path of all that an application answers."""
    found: set[tuple[str, str]] = set()
    for context in iter_route_contexts(app.routes):
        route: Any = context.route
        found |= {(method, str(context.path)) for method in route.methods - {"HEAD"}}
    return found


def test_no_route_without_a_row() -> None:
    """Each route has its row, and each row a route: the hot path's own is the only other one."""
    served = routes_of(create_control_app()) | {("POST", ingest.PATH)}
    assert served == RULES.keys()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give a service of this module's own."""
    with running(tmp_path_factory.mktemp("access")) as service:
        yield service


@pytest.fixture(scope="module")
def keys(service: Service) -> dict[Grant, str]:
    """Make a key of each grant."""
    return {
        (role, scope): service.key(
            None if role == ADMIN else "walker",
            role=role,
            scopes=None if scope is None else [scope],
            name="of one grant",
        )
        for role, scope in GRANTS
    }


def expected(rule: Rule, role: str, scope: str | None) -> str | None:
    """Give the detail of the refusal that a grant gets, or None."""
    if rule.is_platform and role != ADMIN:
        return "Admin key required"
    if rule.scope is not None and rule.scope not in (ROLES[role] if scope is None else {scope}):
        return f"Requires scope '{rule.scope}'"
    return None


@pytest.mark.parametrize(("role", "scope"), GRANTS)
@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_every_route_with_every_role(
    service: Service, keys: dict[Grant, str], method: str, path: str, role: str, scope: str | None
) -> None:
    """A key gets through where its role's scopes, or the one left of them, are the table's."""
    # Names of nothing: who gets through finds nothing, or sends a body that is refused.
    target = path.format(log_id="0" * 36, id_or_key_id="0" * 12, client_id="nobody", request_id="0")
    # A tail has no end: only one that is refused for its filters can be asked for here.
    params = {"cursor": "x"} if path.endswith("/tail") else None
    response = service.request(method, target, keys[role, scope], content=b"{", params=params)
    refusal = expected(RULES[method, path], role, scope)
    if refusal is None:
        assert response.status_code not in {401, 403, 405, 500}, response.text
    else:
        problem(response, 403, refusal)


@pytest.mark.parametrize(("method", "path"), RULES)
def test_every_route_without_a_key(service: Service, method: str, path: str) -> None:
    """Without a key only the public routes answer, all others 401 before they read anything."""
    target = path.format(**dict.fromkeys(NAMES, "x"))
    response = service.request(method, target, content=b"{")
    if RULES[method, path] == PUBLIC:
        assert response.status_code not in {401, 403, 500}
    else:
        problem(response, 401, "API key required")


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_a_key_that_fails_is_401_everywhere(service: Service, method: str, path: str) -> None:
    """An unknown key is refused with one text on every route that asks for one."""
    target = path.format(**dict.fromkeys(NAMES, "x"))
    response = service.request(method, target, "nobody's", content=b"{")
    problem(response, 401, "Invalid API key")


def test_a_route_that_was_forgotten_answers_nobody(
    service: Service, keys: dict[Grant, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its row a route refuses everybody, the platform's keys among them."""
    monkeypatch.delitem(access.RULES, ("GET", "/api/v1/usage"))
    for key in keys.values():
        problem(service.get("/api/v1/usage", key), 403)


def test_management_is_never_open(tmp_path: Any) -> None:
    """With REQUIRE_API_KEY=false logs need no key, and keys and clients still do."""
    with running(tmp_path, require_api_key=False) as service:
        assert service.post(record()).status_code == 201
        for (method, path), rule in RULES.items():
            if rule.manages:
                target = path.format(id_or_key_id="x", client_id="default")
                problem(service.request(method, target, content=b"{}"), 401, "API key required")
