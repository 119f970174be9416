"""The command `central-logger` where nobody hears what it says."""

import os
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from loadtests.server import ROOT, free_port, product_env
from tests.process.service import is_up, wait_until

SECRET = {"SECRET_KEY": "a secret of this test"}


def _command(redirection: str, *arguments: str) -> list[str]:
    """Give a shell that becomes the command, with its outputs redirected."""
    command = [sys.executable, "-W", "error", "-m", "app", *arguments]
    return ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]


def _run(
    data_dir: Path, redirection: str, *arguments: str, stdout: int = subprocess.PIPE
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        _command(redirection, *arguments),
        cwd=ROOT,
        env=product_env(data_dir, SECRET),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", ["--version", "--help", "alerts secret", "migrate"])
@pytest.mark.parametrize(
    ("redirection", "told"),
    [(">&-", "standard output is closed"), (">/dev/full", "No space left on device")],
)
def test_output_that_fails_is_a_failure(
    tmp_path: Path, arguments: str, redirection: str, told: str
) -> None:
    """What nobody can read ends with 1 and one line; a closed output before anything is done."""
    done = _run(tmp_path, redirection, *arguments.split())
    [line] = [one for one in done.stderr.splitlines() if not one.startswith("prepared ")]
    assert (done.returncode, line.startswith("central-logger: ")) == (1, True)
    assert line.endswith(told)
    if redirection == ">&-":
        assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_left(tmp_path: Path) -> None:
    """Where the reader has gone the command ends without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = _run(tmp_path, "", "alerts", "secret", stdout=writer)
    os.close(writer)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) <= 1


def test_complaints_that_nobody_hears(tmp_path: Path) -> None:
    """A closed or full standard error changes nothing for standard output."""
    for redirection in ("2>&-", "2>/dev/full"):
        done = _run(tmp_path, redirection, "--version")
        assert (done.returncode, done.stdout[:15]) == (0, "central-logger ")
        done = _run(tmp_path, redirection, "bogus")
        assert (done.returncode in {1, 2}, done.stdout) == (True, "")


def test_the_service_can_do_without_its_output(tmp_path: Path) -> None:
    """A service that is started with its outputs closed serves, and stops with 0."""
    port = free_port()
    server = psutil.Popen(
        _command(">&- 2>&-", "serve", "--port", str(port)),
        cwd=ROOT,
        env=product_env(tmp_path, SECRET),
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: is_up(port), "the service")
    finally:
        server.terminate()
        assert server.wait(20) == 0
