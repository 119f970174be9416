"""One service for the tests of a module; each makes a client of its own."""

import itertools
from collections.abc import Iterator

import pytest

from tests.support import Service, running

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give the real application with its writer process."""
    with running(tmp_path_factory.mktemp("api")) as service:
        yield service


@pytest.fixture(scope="module")
def admin(service: Service) -> str:
    """Make a key of the platform."""
    return service.key(None, name="admin")


@pytest.fixture
def client_id() -> str:
    """Name a client that no other test has."""
    return f"reader-{next(_NUMBERS)}"


@pytest.fixture
def key(service: Service, client_id: str) -> str:
    """Make a key of this test's client."""
    return service.key(client_id)
