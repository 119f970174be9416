"""The pages that people open: each limited by address."""

from pathlib import Path

import pytest

from tests.support import problem, running


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_each_page_is_limited_by_address(tmp_path: Path, path: str) -> None:
    """More requests of a page than a person makes get 429, and no other address with them."""
    with running(tmp_path) as service:
        statuses = [service.get(path).status_code for _ in range(120)]
        assert set(statuses) == {200}
        refused = service.get(path)
        problem(refused, 429, "Rate limit exceeded")
        assert refused.headers["retry-after"].isdigit()
        elsewhere = service.run(service.client("127.0.0.2").get(path))
        assert elsewhere.status_code == 200
