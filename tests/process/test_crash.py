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


def test_reads_go_on_while_the_writer_is_down(tmp_path: Path) -> None:
    """Pages, single logs, tables, exports and usage are answered as before, by the files alone."""
    key = make_key(tmp_path, CLIENT, role="owner")
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    log = {"environment": "dev", "executed_at": 0, "status": "OK", "duration_ms": 5}
    table = {"metrics": ["count", "p95_duration_ms"], "dimensions": ["status"]}
    with start_product(tmp_path) as server:
        body = json.dumps([log | {"message": f"number {n}"} for n in range(50)]).encode()
        assert ask(server.port, "POST", "/api/v1/logs", body, headers)[0] == 201

        def answers() -> list[tuple[int, bytes]]:
            page = ask(server.port, "GET", "/api/v1/logs?limit=10&q=number", headers=headers)
            log_id = json.loads(page[2])["logs"][0]["id"]
            export = ask(server.port, "GET", "/api/v1/logs/export?format=csv", headers=headers)
            one = ask(server.port, "GET", f"/api/v1/logs/{log_id}", headers=headers)
            question = json.dumps(table).encode()
            rows = ask(server.port, "POST", "/api/v1/query", question, headers)
            found = [page, one, export, rows, usage(server.port, headers)]
            return [(reply[0], reply[2]) for reply in found]

        before = answers()
        assert {status for status, _ in before} == {200}
        writer = the_writer_in(server)
        writer.suspend()
        try:
            assert answers() == before
        finally:
            writer.resume()


def usage(port: int, headers: dict[str, str]) -> Reply:
    """Ask for all usage, by dataset."""
    return ask(port, "GET", "/api/v1/usage?group_by=dataset", headers=headers)


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
