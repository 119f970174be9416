"""A migrated database of each kind that uses of keys are written to."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, delete

from app.activity.database import open_activity
from app.keys.database import embedded_url, open_engine, upgrade, writing
from app.keys.models import KeySource, KeyUse
from tests.support import postgresql


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """Give a database for all tests of a module."""
    directory = tmp_path_factory.mktemp("activity")
    if request.param == "sqlite":
        control = open_engine(embedded_url(directory))
        engine = open_activity(control)
        yield engine
        engine.dispose()
        control.dispose()
        return
    with postgresql() as engine:
        upgrade(engine)
        yield engine


@pytest.fixture
def engine(opened: Engine) -> Engine:
    """Give it empty."""
    with writing(opened) as session:
        session.execute(delete(KeyUse))
        session.execute(delete(KeySource))
    return opened
