"""The README's tour, pasted into a shell beside a running server."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.server import start_product

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TOUR = README.partition("## A tour in 60 seconds")[2].partition("## What it promises")[0]
BLOCKS = re.findall(r"```sh\n(.*?)```", TOUR, re.DOTALL)

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a server on a fresh directory; give the environment that the tour sets up."""
    data_dir = tmp_path_factory.mktemp("data")
    server = start_product(data_dir)
    key = re.search(r"cl_live_demo_\w+", server.log_tail(40))
    assert key is not None
    bin_dir = Path(sys.executable).parent
    try:
        yield {
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            "DATA_DIR": str(data_dir),
            "LOGGER_API_URL": f"http://127.0.0.1:{server.port}",
            "LOGGER_API_KEY": key[0],
        }
    finally:
        server.stop()


def _paste(block: str, environment: dict[str, str]) -> str:
    # The virtual environment is the one that runs this test.
    commands = block.replace(". .venv/bin/activate\n", "")
    done = subprocess.run(
        ["sh", "-eu"],
        input=commands,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tour(environment: dict[str, str]) -> None:
    """Each block of the tour does what the text beside it says."""
    _, one, many, read, keys = BLOCKS
    assert json.loads(_paste(one, environment))["client_id"] == "demo"

    stored = json.loads(_paste(many, environment))
    assert (stored["accepted"], stored["rejected"]) == (1, 1)
    assert stored["errors"][0]["field"] == "executed_at"

    page, usage = (json.loads(line) for line in _paste_lines(read, environment))
    assert [log["external_id"] for log in page["logs"]] == ["run-1"]
    assert usage["totals"]["logs"] == 2

    generate, listing, revoke = keys.replace(". .venv/bin/activate\n", "").splitlines()
    assert "cl_live_acme_corp_" in _paste(generate, environment)
    key_id = re.search(r"cl_live_acme_corp_(\w{12})\*", _paste(listing, environment))
    assert key_id is not None
    assert key_id[1] in _paste(f"{revoke.replace('KEY_ID', key_id[1])} --yes", environment)


def _paste_lines(block: str, environment: dict[str, str]) -> list[str]:
    return [_paste(line, environment) for line in block.splitlines()]


def test_every_command_of_make_exists() -> None:
    """The README names only make targets that the Makefile has."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets
