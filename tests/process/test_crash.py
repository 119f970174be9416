"""What is left after processes die: all that was acknowledged, exactly once."""

import json
from functools import partial
from pathlib import Path
from random import Random

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from loadtests.server import Server, make_key, start_product
from tests.process.service import (
    Load,
    Reply,
    ask,
    check_stored,
    is_up,
    kill_all,
    the_writer_in,
    wait_until,
    workers_in,
)

CLIENT = "acme"


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_of_everything_at_random_moments(tmp_path: Path, workers: int) -> None:
    """However often the whole service is killed under load, nothing acknowledged is lost."""
    random = Random(workers)
    key = make_key(tmp_path, CLIENT)
    loads: list[Load] = []
    for number in range(4):
        with start_product(tmp_path, workers=workers) as server:
            load = Load(server.port, key, f"round{number}")
            loads.append(load)
            with load.running():
                load.wait_for_more(random.randrange(1, 1500))
                kill_all(server)
        check_stored(tmp_path, CLIENT, *loads)
    assert all(load.acknowledged for load in loads)


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_of_the_writer(tmp_path: Path, workers: int) -> None:
    """While there is no writer the answer is 503 with Retry-After; then all goes on by itself."""
    key = make_key(tmp_path, CLIENT)
    with start_product(tmp_path, workers=workers) as server:
        load = Load(server.port, key, "load")
        with load.running():
            for _ in range(3):
                load.wait_for_more(300)
                refused = len(load.refusals)
                writer = the_writer_in(server)
                writer.kill()
                wait_until(partial(_more, load.refusals, refused), "a refusal")
                load.wait_for_more(300)
        for status, headers, body in load.refusals:
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            assert headers["content-type"] == "application/problem+json"
            assert b'"Storage unavailable"' in body
        assert load.statuses.keys() == {201, 503}
        assert is_up(server.port)
        assert server.stop() == 0
    check_stored(tmp_path, CLIENT, load)


def test_kill_9_of_a_worker(tmp_path: Path) -> None:
    """The other worker serves on, and a new one takes the dead one's place."""
    key = make_key(tmp_path, CLIENT)
    with start_product(tmp_path, workers=2) as server:
        load = Load(server.port, key, "load")
        with load.running():
            for _ in range(2):
                load.wait_for_more(300)
                before = workers_in(server)
                assert len(before) == 2
                before[0].kill()
                load.wait_for_more(300)
                wait_until(partial(_replaced, server, before[0]), "a new worker")
                load.wait_for_more(300)
        assert load.statuses.keys() <= {201, 503}
        assert server.stop() == 0
    check_stored(tmp_path, CLIENT, load)


def _more(things: list[Reply], count: int) -> bool:
    return len(things) > count


def _replaced(server: Server, dead: psutil.Process) -> bool:
    return len({*workers_in(server)} - {dead}) == 2


def test_a_restart_knows_what_was_there(tmp_path: Path) -> None:
    """After a kill the same records sent again are all duplicates."""
    key = make_key(tmp_path, CLIENT)
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    one = {"environment": "dev", "executed_at": "2026-06-01T00:00:00Z", "status": "OK"}
    body = json.dumps([one | {"id": f"own-{n}"} for n in range(500)]).encode()
    replies = []
    for _ in range(3):
        with start_product(tmp_path) as server:
            replies.append(ask(server.port, "POST", "/api/v1/logs", body, headers))
            once = headers | {"Idempotency-Key": "once"}
            replies.append(ask(server.port, "POST", "/api/v1/logs", body[:-1] + b" ]", once))
            kill_all(server)
    assert [status for status, _, _ in replies] == [201] * 6
    plain = [json.loads(body) for _, _, body in replies[::2]]
    assert [(one["accepted"], one["duplicates"]) for one in plain] == [(500, 0), (0, 500), (0, 500)]
    assert len({body for _, _, body in replies[1::2]}) == 1
    replayed = [headers.get("idempotent-replayed") for _, headers, _ in replies[1::2]]
    assert replayed == [None, "true", "true"]
