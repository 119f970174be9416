"""The application as a whole: its description, its public paths, its errors."""

from typing import Any

import pytest

from app.errors import LoggerError
from app.logs.selection import FILTERS
from tests.support import LOGS, USAGE, Json, Service, problem

PUBLIC = {"/health/live", "/health/ready", "/docs", "/redoc", "/openapi.json", "/claim/{token}"}
ROUTES = {
    (LOGS, "get"),
    (LOGS, "post"),
    (f"{LOGS}/{{log_id}}", "get"),
    (USAGE, "get"),
    ("/health/live", "get"),
    ("/health/ready", "get"),
    ("/metrics", "get"),
}


@pytest.fixture(scope="module")
def described(service: Service) -> Json:
    """Give the OpenAPI description."""
    found: Json = service.get("/openapi.json").json()
    return found


def operations(described: Json) -> dict[tuple[str, str], Json]:
    """Give each operation by path and method."""
    return {
        (path, method): operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def test_every_route_is_described(described: Json) -> None:
    """The description holds every route there is, ingestion included, each with a summary."""
    found = operations(described)
    assert set(found) >= ROUTES
    assert all(operation["summary"] for operation in found.values())
    assert len({operation["operationId"] for operation in found.values()}) == len(found)


def test_every_error_of_a_route_is_described(described: Json) -> None:
    """Faults are problems in the description too, and what needs a key says so."""
    for (path, _), operation in operations(described).items():
        assert operation["security"] or path in PUBLIC
        for status, response in operation["responses"].items():
            if status >= "400" and not path.startswith("/claim"):  # those are pages, for people
                assert list(response["content"]) == ["application/problem+json"]
        if operation["security"]:
            assert {"401", "429", "503"} <= set(operation["responses"])


def test_ingestion_is_described(described: Json) -> None:
    """The route that bypasses the framework has its bodies, its headers and all its answers."""
    operation = described["paths"][LOGS]["post"]
    bodies = operation["requestBody"]["content"]
    assert set(bodies) == {"application/json", "application/x-ndjson", "application/jsonl"}
    statuses = {"201", "400", "401", "403", "404", "409", "413", "415", "422", "429", "503"}
    assert set(operation["responses"]) == statuses
    assert {"Idempotency-Key", "client_id"} == {one["name"] for one in operation["parameters"]}
    fields = described["components"]["schemas"]["LogRecord"]
    assert fields["required"] == ["environment", "executed_at", "status"]


def test_filters_are_described(described: Json) -> None:
    """Every parameter of the list is in the description."""
    names = {one["name"] for one in described["paths"][LOGS]["get"]["parameters"]}
    content = {"q", "min_duration_ms", "metadata"}
    paging = {"order", "limit", "cursor"}
    assert names == {*FILTERS, *content, *paging, "from", "to", "client_id"}


def test_all_references_lead_somewhere(described: Json) -> None:
    """No `$ref` of the description points to nothing."""

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*map(references, node.values()))
        return set[str]().union(*map(references, node)) if isinstance(node, list) else set()

    for reference in references(described):
        _, *path = reference.split("/")
        node = described
        for step in path:
            node = node[step]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_are_there(service: Service, path: str) -> None:
    """The description can be read in a browser, without a key."""
    response = service.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in response.text


def test_nothing_else_answers_without_a_key(service: Service, described: Json) -> None:
    """Without a key only the public paths answer; all others say that a key is missing."""
    for path, method in operations(described):
        response = service.request(method.upper(), path.replace("{log_id}", "0" * 36))
        if path in PUBLIC:
            assert response.status_code == (404 if path.startswith("/claim") else 200)
        else:
            problem(response, 401, "API key required")
    for path in ("/docs/oauth2-redirect", "/", "/api", "/api/v1", "/admin", "/.env", "/static/x"):
        problem(service.get(path), 404, "Not found")


@pytest.mark.parametrize(
    "path", ["/", "/api/v1/nope", f"{LOGS}/", f"{LOGS}/a/b", f"{LOGS}//", "/API/V1/LOGS", "/%00"]
)
def test_404_is_a_problem(service: Service, key: str, path: str) -> None:
    """A path that is not there is not found, whatever the method."""
    for method in ("GET", "POST", "DELETE"):
        problem(service.request(method, path, key), 404, "Not found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", LOGS, {"GET", "POST"}),
        ("POST", USAGE, {"GET"}),
        ("DELETE", f"{LOGS}/{'0' * 36}", {"GET"}),
        ("POST", "/health/live", {"GET"}),
    ],
)
def test_405_is_a_problem(
    service: Service, key: str, method: str, path: str, allowed: set[str]
) -> None:
    """A method that is not there is refused with those that are."""
    response = service.request(method, path, key)
    problem(response, 405, "Method Not Allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


def test_request_ids_are_never_the_same(service: Service, key: str) -> None:
    """Each answer of either plane has an id of its own, and a caller's own is not taken over."""
    ids = set()
    for _ in range(5):
        for response in (
            service.get(LOGS, key, headers={"X-Request-ID": "mine"}),
            service.post([], key, x_request_id="mine"),
            service.get("/nope"),
        ):
            ids.add(response.headers["x-request-id"])
    assert len(ids) == 15
    assert "mine" not in ids


def test_every_error_has_its_status() -> None:
    """No error of the tree is without a place in the map to HTTP."""
    from app.edge.problem import status_of  # noqa: PLC0415

    def leaves(kind: type[LoggerError]) -> list[type[LoggerError]]:
        below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
        return below or [kind]

    for kind in leaves(LoggerError):
        error = kind.__new__(kind)
        assert 400 <= status_of(error) <= 503


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/docs"])
def test_head_is_get_without_a_body(service: Service, path: str) -> None:
    """A HEAD answers as a GET does: monitors ask so."""
    assert service.request("HEAD", path).status_code == 200
