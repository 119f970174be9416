"""Servers under load are started, awaited and ended by this project's own hand."""

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from loadtests.echo import BODY
from loadtests.http_client import Plan, build_request, run_in_process
from loadtests.server import ServerError, start_asgi


def test_the_echo_answers_and_ends() -> None:
    """The baseline reads each body, answers 201 with its constant, and stops when told."""
    with start_asgi() as server:
        request = build_request("POST", "/api/v1/logs", b"x" * 300_000)
        result = run_in_process(Plan(server.port, (request,), 4, count=20)).require(201)
        pid = server.process.pid
        assert result.samples[201] == BODY
        assert 110 <= len(BODY) <= 130
        assert server.start_s > 0
        assert server.rss_bytes() > 0
        assert server.cpu_s() > 0
    assert not psutil.pid_exists(pid)


def test_a_server_that_does_not_start_is_an_error_with_its_output() -> None:
    """What the server said on its way out is in the error."""
    with pytest.raises(ServerError, match="no_such_attribute"):
        start_asgi("loadtests.echo:no_such_attribute")
