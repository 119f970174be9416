"""The map from errors to HTTP: what no reply may hold."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.edge.problem import problem_body
from app.journal import REDACTED
from tests.support import LOGS, Service, record, running

KEYS = "/api/v1/api-keys"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give the real application."""
    with running(tmp_path_factory.mktemp("problems")) as service:
        yield service


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    """Make the key that is put in wrong places."""
    return service.key("acme", role="owner")


def check_redacted(response: httpx.Response, status: int, key: str) -> None:
    """Check that a reply refuses something, shows that a key was there, and not which."""
    assert response.status_code == status, response.text
    assert key[-49:] not in response.text
    assert REDACTED in response.text


def test_a_key_as_a_dataset(service: Service, key: str) -> None:
    """What is said of a dataset that can't be one does not repeat the key that stands there."""
    for body in ({"allowed_datasets": [key]}, {"allowed_datasets": [f"a {key}\n{key} b"]}):
        check_redacted(service.request("POST", KEYS, key, json=body), 422, key)
    narrow = service.key("acme", allowed_datasets=["orders"], name="narrow")
    check_redacted(service.get(LOGS, narrow, params={"dataset": key}), 403, key)


def test_a_key_in_a_record(service: Service, key: str) -> None:
    """A rejected record's fault does not repeat one either, nor does it when it is replayed."""
    narrow = service.key("acme", allowed_datasets=["orders"], name="one")
    # The shape of a key, in the letters that a dataset may have.
    shaped = "k_" + "0123456789abcdef" * 3 + "0" * 13
    records = [record(dataset=shaped), record(dataset=key), record(executed_at=key)]
    for _ in range(2):
        answer = service.post(records, narrow, idempotency_key="once")
        check_redacted(answer, 422, key)
        assert shaped not in answer.text
    check_redacted(service.post(record(dataset=shaped), narrow), 403, key)


def test_a_key_as_a_name(service: Service, key: str) -> None:
    """An unknown field or parameter is named, but for a key."""
    check_redacted(service.request("POST", KEYS, key, json={key: 1}), 422, key)
    check_redacted(service.request("POST", KEYS, key, json={"limits": {key: 1}}), 422, key)
    check_redacted(service.get(f"{KEYS}?{key}=1", key), 422, key)
    check_redacted(service.get(f"{LOGS}?{key}=1", key), 422, key)


def test_a_key_as_a_content_type(service: Service, key: str) -> None:
    """A header that is repeated to the caller, in lower case, is shown without the key in it."""
    answer = service.post(b"{}", key, content_type=f"text/{key}")
    assert answer.status_code == 415
    assert key[-49:].lower() not in answer.text
    assert REDACTED in answer.text


def test_members_at_any_depth() -> None:
    """Keys are taken out of every text of a problem, wherever it stands; all else stays."""
    key = "cl_live_acme_" + "a" * 61
    members: dict[str, Any] = {
        "errors": [{"index": 0, "field": f"x.{key}", "detail": f"{key}, {key}"}],
        "supported": ["application/json", key],
        "code": None,
        "limit": 5,
    }
    body = problem_body(422, f"no '{key}'", "id", members)
    assert key.encode() not in body
    assert b'"field":"x.[key redacted]","detail":"[key redacted], [key redacted]"' in body
    assert b'"supported":["application/json","[key redacted]"],"code":null,"limit":5' in body
    assert b'"detail":"no \'[key redacted]\'"' in body
