"""Probes and metrics."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.management import without_tables
from tests.support import LOGS, Service, key_id_of, problem, record, running


def samples(text: str) -> dict[str, float]:
    """Give the sum of each of our own counters."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_probes_answer_without_a_key(service: Service, path: str) -> None:
    """A probe needs no key, and has a request id like every answer."""
    response = service.get(path)
    assert response.json() == {"status": "ok"}
    assert response.headers["x-request-id"]


def test_metrics_are_the_providers_own(service: Service, key: str) -> None:
    """Metrics need an admin key, in any carrier; a client's key is not enough."""
    admin = service.key(None)
    problem(service.get("/metrics"), 401, "API key required")
    problem(service.get("/metrics", "wrong"), 401, "Invalid API key")
    problem(service.get("/metrics", key), 403, "Admin key required")
    assert service.get("/metrics", admin).status_code == 200
    bearer = service.get("/metrics", headers={"Authorization": f"Bearer {admin}"})
    assert bearer.headers["content-type"].startswith("text/plain")


def test_metrics_count_and_name_nobody(service: Service, key: str, client_id: str) -> None:
    """Counters tell what happened, and no label tells whose key or client it was."""
    admin = service.key(None)
    before = samples(service.get("/metrics", admin).text)
    service.post([record(id="a"), record(id="a"), record(), {}], key)
    service.get(LOGS, key)
    text = service.get("/metrics", admin).text
    after = samples(text)
    for name, count in (("accepted", 2), ("rejected", 1), ("duplicate", 1)):
        metric = f"central_logger_logs_{name}_total"
        assert after[metric] - before[metric] == count
    requests = "central_logger_requests_total"
    assert after[requests] - before[requests] >= 2
    for secret in (client_id, key, key_id_of(key), key_id_of(admin)):
        assert secret not in text


def test_metrics_may_be_public(tmp_path: Path) -> None:
    """METRICS_PUBLIC=true opens the metrics, and nothing else."""
    with running(tmp_path, metrics_public=True) as service:
        assert service.get("/metrics").status_code == 200
        problem(service.get(LOGS), 401, "API key required")


def test_ready_tells_when_the_keys_are_away(tmp_path: Path) -> None:
    """Without the control database the service is alive but not ready."""
    with running(tmp_path) as service:
        with without_tables(service, "api_keys", "clients"):
            problem(service.get("/health/ready"), 503, "Storage unavailable")
            assert service.get("/health/live").status_code == 200
        assert service.get("/health/ready").status_code == 200
