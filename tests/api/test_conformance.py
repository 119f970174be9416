"""The running service against its own OpenAPI description, with bodies and parameters made up."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.api.app import create_control_app
from loadtests.server import make_admin_key, make_key, start_product

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/x-ndjson", "application/jsonl")
def _lines(_context: object, value: object) -> bytes:
    """Send the made-up text of a body as it is."""
    return str(value).encode("utf-8", "surrogatepass")


schema = schemathesis.openapi.from_dict(create_control_app(metrics_public=False).openapi())


class Target(NamedTuple):
    """A running product, and a key of each kind of caller."""

    url: str
    keys: dict[str, str]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Start the product."""
    data_dir = tmp_path_factory.mktemp("conformance")
    with start_product(data_dir, {"MANAGEMENT_REQUESTS_PER_MINUTE": "100000"}) as server:
        keys = {
            "client": make_key(data_dir, "acme"),
            "owner": make_key(data_dir, "acme", role="owner"),
            "admin": make_admin_key(data_dir),
        }
        yield Target(f"http://127.0.0.1:{server.port}", keys)


# A tail does not end by itself; test_tail.py holds it against what is described.
@pytest.mark.parametrize("caller", ["client", "owner", "admin"])
@schema.exclude(path="/api/v1/logs/tail").parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_answers_are_as_described(case: Case[Any], target: Target, caller: str) -> None:
    """Whatever the description allows or forbids, the answer is one that it promises, never 5xx."""
    headers = {"X-API-Key": target.keys[caller]}
    case.call_and_validate(base_url=target.url, headers=headers, checks=CHECKS)
