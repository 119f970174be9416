"""What all tests share: no developer's own environment, and real servers on free ports."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Engine

from app.keys.database import embedded_url, open_engine, upgrade
from app.settings import Settings

# The same examples on every run: a failure that comes and goes helps nobody.
hypothesis_settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis_settings.load_profile("repeatable")

_SETTINGS = {name.upper() for name in Settings.model_fields}


@pytest.fixture(autouse=True)
def clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Keep the developer's settings and `.env` out of every test."""
    for name in _SETTINGS & set(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Give a migrated control database."""
    engine = open_engine(embedded_url(tmp_path))
    upgrade(engine)
    yield engine
    engine.dispose()
