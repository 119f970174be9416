"""Each test of a command has a data directory of its own."""

from pathlib import Path

import pytest

from tests.scripts.runner import Runner


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Give a runner on a data directory that does not exist yet."""
    return Runner(tmp_path)
