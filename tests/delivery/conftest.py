"""A key in the control database, and a certificate."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.keys.models import ApiKey
from app.keys.registry import create_key
from app.keys.verifier import Peppers
from tests.delivery.mail_sink import make_certificate
from tests.support import BY


@pytest.fixture
def made(engine: Engine) -> tuple[ApiKey, str]:
    """Make a key of client `acme`; give it with its text."""
    peppers = Peppers(["the secret of this test suite"])
    return create_key(engine, peppers, by=BY, create_client=True, client_id="acme", name="test")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate that no authority of the system vouches for."""
    return make_certificate(tmp_path_factory.mktemp("tls"))
