"""The running service against its own OpenAPI description, with bodies and parameters made up."""

from collections.abc import Iterator
from typing import Any

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
from loadtests.server import make_key, start_product

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


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Start the product; give its address and a key."""
    data_dir = tmp_path_factory.mktemp("conformance")
    with start_product(data_dir) as server:
        yield f"http://127.0.0.1:{server.port}", make_key(data_dir, "acme")


@schema.parametrize()
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_answers_are_as_described(case: Case[Any], target: tuple[str, str]) -> None:
    """Whatever the description allows or forbids, the answer is one that it promises, never 5xx."""
    url, key = target
    case.call_and_validate(base_url=url, headers={"X-API-Key": key}, checks=CHECKS)
