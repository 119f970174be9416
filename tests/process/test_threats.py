"""Threats to whole servers: one alert of two workers, told once, and a block in both of them."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies

from app.keys.token import mint
from loadtests.server import make_admin_key, make_key, start_product
from tests.delivery.mail_sink import HOST, running_sink
from tests.process.service import PATH, Reply, ask, kill_all, wait_until, workers_in
from tests.protect.receiver import HOLD, running_receiver

LOG = b'{"environment":"dev","executed_at":0,"status":"OK"}'
FAILURES = 40
BLOCKED_S_MAX = 2.0
# Less than the 20 s that a mail server has for an answer.
STOP_S_MAX = 10.0


@contextmanager
def alone(worker: psutil.Process, workers: list[psutil.Process]) -> Iterator[None]:
    """Have one worker take every request, for less than their supervisor waits for the others."""
    assert len(workers) == 2
    others = [one for one in workers if one != worker]
    for one in others:
        one.suspend()
    try:
        yield
    finally:
        for one in others:
            one.resume()


def test_two_workers_one_alert(tmp_path: Path) -> None:
    """Both workers refuse, one tells; both block; and a kill at any moment tells nothing twice."""
    data_dir = tmp_path / "data"
    admin, key = make_admin_key(data_dir), make_key(data_dir, "acme")
    wrong = mint("cl_live", "acme").text
    with running_receiver() as receiver:
        env = {
            "ALERT_ACTIONS": "failed_attempts:block",
            "ALERT_WEBHOOK_URL": receiver.url,
            "AUTH_FAILURES_PER_MINUTE": "0",
            "MANAGEMENT_REQUESTS_PER_MINUTE": "100000",
        }

        def post(port: int, sent: str) -> Reply:
            headers = {"X-API-Key": sent, "Content-Type": "application/json"}
            return ask(port, "POST", PATH, LOG, headers)

        def alerts(port: int) -> list[dict[str, object]]:
            body = ask(port, "GET", "/api/v1/alerts", headers={"X-API-Key": admin})[2]
            found: list[dict[str, object]] = json.loads(body)["alerts"]
            return found

        receiver.answers = [HOLD]
        with start_product(data_dir, env, workers=2) as server:
            workers = workers_in(server)
            for one in workers:
                with alone(one, workers):
                    for _ in range(FAILURES // 2):
                        assert post(server.port, wrong)[0] in {401, 429}
            wait_until(lambda: post(server.port, wrong)[0] == 429, "a block")
            blocked_s = time.monotonic()
            while time.monotonic() < blocked_s + BLOCKED_S_MAX:
                post(server.port, wrong)
            for one in workers:
                with alone(one, workers):
                    assert [post(server.port, wrong)[0] for _ in range(10)] == [429] * 10
                    assert post(server.port, key)[0] == 201
            wait_until(lambda: receiver.bodies, "a webhook, which gets no answer")
            kill_all(server)
        unanswered = len(receiver.bodies)
        receiver.answers = [200]
        with start_product(data_dir, env, workers=2) as server:
            # It was blocked before, and is from the start.
            wait_until(lambda: post(server.port, wrong)[0] == 429, "a block after the restart")
            wait_until(lambda: alerts(server.port)[0]["told"] == "told", "who was told")
            (alert,) = alerts(server.port)
            assert (alert["rule"], alert["source_ip"]) == ("failed_attempts", "127.0.0.1")
            assert isinstance(alert["count"], int)
            assert alert["count"] >= FAILURES
        assert len({json.loads(body)["id"] for body in receiver.bodies}) == 1
        assert len(receiver.bodies) == unanswered + 1


def test_a_stop_waits_for_no_mail_server(tmp_path: Path) -> None:
    """While a mail server takes its time for an answer, the service ends as soon as ever."""
    data_dir = tmp_path / "data"
    make_key(data_dir, "acme")
    wrong = mint("cl_live", "acme").text
    with running_sink() as sink:
        sink.is_holding = threading.Event()
        env = {
            "ALERT_FAILURES_PER_ADDRESS": "1",
            "ALERT_MAIL_TO": "ops@example.com",
            "MAIL_FROM": "logger@example.com",
            "SMTP_URL": f"smtp://{HOST}:{sink.port}",
        }
        with start_product(data_dir, env) as server:
            assert ask(server.port, "POST", PATH, LOG, {"X-API-Key": wrong})[0] == 401
            wait_until(sink.is_holding.is_set, "a mail")
            server.process.terminate()
            assert server.process.wait(STOP_S_MAX) == 0
