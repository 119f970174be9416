"""POST /api/v1/query: tables of the caller's own logs, in JSON and CSV."""

import csv
import io
from typing import Any

import httpx
import pytest

from app.api.body import UNKEPT
from tests.support import Json, Service, problem, record

PATH = "/api/v1/query"


def ask(service: Service, key: str, body: Any, **arguments: Any) -> httpx.Response:
    """Send a question."""
    return service.request("POST", PATH, key, json=body, **arguments)


def table(service: Service, key: str, body: Json, **arguments: Any) -> Json:
    """Give the answer to a question that is one."""
    response = ask(service, key, body, **arguments)
    assert response.status_code == 200, response.text
    found: Json = response.json()
    return found


@pytest.fixture
def key(service: Service, client_id: str) -> str:
    """Make a key that may write, read and query."""
    return service.key(client_id, scopes=["logs:write", "logs:read", "logs:query"], role="owner")


@pytest.fixture
def sent(service: Service, key: str) -> None:
    """Store a few logs of two workflows and datasets."""
    logs = [
        record(workflow="sync", status="FAILED", duration_ms=10, executed_at=at, run_id="r1")
        for at in ("2026-06-01T10:00:00Z", "2026-06-01T10:59:59Z", "2026-06-01T11:00:00Z")
    ]
    logs += [
        record(workflow="=sync()", duration_ms=30, executed_at="2026-06-01T10:30:00Z"),
        record(workflow=None, dataset="orders", executed_at="2026-06-01T10:30:00Z"),
    ]
    service.post(logs, key)


# 200


def test_a_table(service: Service, key: str, sent: None) -> None:
    """Columns are the dimensions, then the metrics; a row's time is the start of its hour."""
    body = {
        "metrics": ["count", "error_rate", "p95_duration_ms", "distinct_runs"],
        "dimensions": ["time:1h", "workflow"],
        "from": "2026-06-01T00:00:00Z",
    }
    assert table(service, key, body) == {
        "columns": ["time", "workflow", *body["metrics"]],
        "rows": [
            ["2026-06-01T10:00:00Z", None, 1, 0.0, None, 0],
            ["2026-06-01T10:00:00Z", "=sync()", 1, 0.0, 30.0, 0],
            ["2026-06-01T10:00:00Z", "sync", 2, 1.0, 10.0, 1],
            ["2026-06-01T11:00:00Z", "sync", 1, 1.0, 10.0, 1],
        ],
    }


def test_the_shortest_question(service: Service, key: str, sent: None) -> None:
    """Asked for nothing in particular, it counts; a filter takes a text or a list of them."""
    assert table(service, key, {}) == {"columns": ["count"], "rows": [[5]]}
    for filters, count in (
        ({"workflow": "sync"}, 3),
        ({"workflow": ["sync", "=sync()"]}, 4),
        ({"min_duration_ms": 20}, 1),
        ({"q": "absent"}, 0),
    ):
        assert table(service, key, {"filters": filters})["rows"] == [[count]]
    assert table(service, key, {"dataset": "orders"})["rows"] == [[1]]


def test_csv(service: Service, key: str, sent: None) -> None:
    """CSV has the same cells, and none that a spreadsheet takes for a formula."""
    body = {"dimensions": ["workflow"], "metrics": ["count", "avg_duration_ms"]}
    response = ask(service, key, body, headers={"Accept": "text/csv;q=0.9, */*;q=0.1"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.reader(io.StringIO(response.text))) == [
        ["workflow", "count", "avg_duration_ms"],
        ["", "1", ""],
        ["'=sync()", "1", "30.0"],
        ["sync", "3", "10.0"],
    ]
    both = ask(service, key, body, headers={"Accept": "application/json, text/csv"})
    assert both.headers["content-type"] == "application/json"


def test_all_clients(service: Service, admin: str, key: str, client_id: str, sent: None) -> None:
    """The platform asks about one client, or with `*` about all, and sees whose is whose."""
    for arguments in ({"params": {"client_id": client_id}}, {}):
        body = {} if arguments else {"client_id": client_id}
        assert table(service, admin, body, **arguments)["rows"] == [[5]]
    rows = table(service, admin, {"client_id": "*", "dimensions": ["client_id"]})["rows"]
    assert [client_id, 5] in rows


def test_only_allowed_datasets(service: Service, key: str, client_id: str, sent: None) -> None:
    """A key of some datasets counts these alone."""
    narrow = service.key(client_id, role="analyst", allowed_datasets=["orders"])
    assert table(service, narrow, {})["rows"] == [[1]]


# 403, 404


def test_what_is_not_allowed(service: Service, key: str, client_id: str, sent: None) -> None:
    """Another dataset and a key without the scope are refused, another client is not found."""
    narrow = service.key(client_id, role="analyst", allowed_datasets=["orders"])
    response = ask(service, narrow, {"dataset": "default"})
    problem(response, 403, "Not authorized for dataset 'default'")
    viewer = service.key(client_id, role="viewer")
    problem(ask(service, viewer, {}), 403, "Requires scope 'logs:query'")
    for other in ("acme-of-another", "*"):
        analyst = service.key(client_id, role="analyst")
        problem(ask(service, analyst, {"client_id": other}), 404)


# 422


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"metrics": ["median"], "dimensions": ["day"]}, ["dimensions", "metrics"]),
        ({"metrics": ["count", "count"]}, ["metrics"]),
        ({"metrics": "count"}, ["metrics"]),
        ({"dimensions": ["time:7h"]}, ["dimensions"]),
        ({"dimensions": ["time:0m"]}, ["dimensions"]),
        ({"dimensions": ["time:1h", "time:5m"]}, ["dimensions"]),
        ({"dimensions": ["client_id"]}, ["dimensions"]),
        ({"filters": {"colour": "red"}}, ["colour"]),
        ({"filters": {"status": None}}, ["filters.status"]),
        ({"filters": []}, ["filters"]),
        ({"filters": ["status"]}, ["filters"]),
        ({"filters": {"from": "-1h"}}, ["filters.from"]),
        ({"filters": {"dataset": "a"}, "dataset": "b"}, ["dataset"]),
        ({"filters": {"q": '"'}}, ["q"]),
        ({"from": "yesterday", "to": 5}, ["from", "to"]),
        ({"order": "status"}, ["order"]),
        ({"limit": 0}, ["limit"]),
        ({"limit": True}, ["limit"]),
        ({"limit": 10_001}, ["limit"]),
        ({"colour": "red"}, ["colour"]),
        ({"client_id": 5}, ["client_id"]),
    ],
)
def test_what_is_not_a_question(
    service: Service, client_id: str, body: Json, fields: list[str]
) -> None:
    """Each bad member is named, all at once."""
    analyst = service.key(client_id, role="analyst")
    found = problem(ask(service, analyst, body), 422)
    assert sorted(one["field"] for one in found["errors"]) == fields


def test_a_body_that_is_no_object(service: Service, client_id: str) -> None:
    """A list is refused as a question, and half an object as JSON."""
    analyst = service.key(client_id, role="analyst")
    problem(ask(service, analyst, []), 422)
    problem(service.request("POST", PATH, analyst, content=b"{"), 400)


@pytest.mark.parametrize("half", [b"\\ud800", b"\\udc00", b"\\ud800\\u0041", b"\xed\xa0\x80"])
def test_half_a_surrogate_pair_is_422_as_in_other_bodies(
    service: Service, key: str, half: bytes
) -> None:
    """Text that is none is told as such wherever in the body it stands, and is no bad JSON."""
    for body in (b'{"metrics": ["%b"]}', b'{"filters": {"%b": "x"}}', b'{"%b": 1}'):
        refused = problem(service.post(body % half, key, path=PATH), 422)
        assert [one["detail"] for one in refused["errors"]] == [UNKEPT]
