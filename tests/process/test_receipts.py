"""The receipt of a revocation, and the evidence of use, of a server with two workers under load."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlmodel import select

from app.activity.database import open_activity
from app.activity.uses import read_sources, read_uses
from app.columns import utc_now
from app.keys.database import embedded_url, open_engine, reading
from app.keys.models import KeyUse, Worker
from loadtests.server import HOST, ROOT, Server, make_key, product_env, start_product
from tests.process.service import (
    PATH,
    WholeConnection,
    read_reply,
    wait_until,
    workers_in,
)
from tests.process.test_revocation import BODY, Senders

# Else the refusals of one address end in 429, which is not what is to be seen here.
ENV = {"AUTH_FAILURES_PER_MINUTE": "0"}


@contextmanager
def activity_in(data_dir: Path) -> Iterator[Engine]:
    """Open what the workers write."""
    control = open_engine(embedded_url(data_dir))
    engine = open_activity(control)
    try:
        yield engine
    finally:
        engine.dispose()
        control.dispose()


def revoke(data_dir: Path, key: str, *options: str) -> str:
    """Revoke a key by the script; give what it printed."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "revoke_api_key.py", key[-61:-49], "--yes", *options],
        cwd=ROOT,
        env=product_env(data_dir, ENV),
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.stdout


def moment_s(text: str) -> float:
    """Read a moment of a reply, in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def test_no_request_succeeds_after_the_receipts_moment(tmp_path: Path) -> None:
    """The receipt names both workers; no request that begins after its moment is let in."""
    key, kept = make_key(tmp_path, "acme"), make_key(tmp_path, "acme")
    with start_product(tmp_path, ENV, workers=2) as server:
        with activity_in(tmp_path) as activity:
            wait_until(lambda: len(_live(activity)) == 2, "both workers")
        senders = Senders(server.port, key)
        epoch_s = time.time() - time.perf_counter()
        senders.start()
        try:
            wait_until(lambda: len(senders.results) > 300 or senders.faults, "requests before")
            receipt: dict[str, Any] = json.loads(revoke(tmp_path, key, "--json"))
            count = len(senders.results)
            wait_until(lambda: len(senders.results) > count + 500 or senders.faults, "and after")
        finally:
            senders.stop()
        assert (receipt["workers"], receipt["unconfirmed"]) == (2, 0)
        assert receipt["is_active"] is False
        assert 0 < receipt["ms"] < 2000
        effective_s = moment_s(receipt["effective_at"])
        before = {code for began, code in senders.results if began + epoch_s < effective_s}
        after = [code for began, code in senders.results if began + epoch_s >= effective_s]
        assert {200, 201} <= before
        assert set(after) == {401}
        assert len(after) >= 400
        again = revoke(tmp_path, key)
        assert "was revoked already; dropped by 2 workers after" in again
        assert "; dropped by 2 workers after" in revoke(tmp_path, kept)


def test_a_worker_that_is_killed_is_not_waited_for(tmp_path: Path) -> None:
    """A killed worker counts no more after 3 s, and the one that takes its place does."""
    key, kept = make_key(tmp_path, "acme"), make_key(tmp_path, "acme")
    with start_product(tmp_path, ENV, workers=2) as server, activity_in(tmp_path) as activity:
        wait_until(lambda: len(_live(activity)) == 2, "both workers")
        before = _live(activity)
        workers_in(server)[0].kill()
        wait_until(lambda: len(workers_in(server)) == 2 and _replaced(activity, before), "another")
        receipt = json.loads(revoke(tmp_path, key, "--json"))
        assert (receipt["workers"], receipt["unconfirmed"]) == (2, 0)
        assert receipt["effective_at"] is not None
    # Workers that were stopped in order have left by themselves.
    assert "no worker runs" in revoke(tmp_path, kept)


def test_use_is_seen_and_counted_exactly(tmp_path: Path) -> None:
    """Within seconds each request is counted once, with its last moment and its sources."""
    key = make_key(tmp_path, "acme")
    key_id = key[-61:-49]
    began = utc_now()
    with start_product(tmp_path, ENV, workers=2) as server, activity_in(tmp_path) as activity:
        sent = _send_logs(server, key, 300)
        wait_until(lambda: _requests(activity, key_id) >= sent, "all of them")
        use = read_uses(activity, [key_id])[key_id]
        assert use.requests == sent
        assert began <= use.first_used_at < use.last_used_at <= utc_now()
        assert (use.last_source_ip, use.last_user_agent) == ("127.0.0.1", "agent-2")
        sources = read_sources(activity, key_id, began)
        assert [source.user_agent for source in sources] == ["agent-2", "agent-1", "agent-0"]
        assert sum(source.requests for source in sources) == sent
        last_s = time.time()
        sent += _send_logs(server, key, 1)
        wait_until(lambda: _requests(activity, key_id) > use.requests, "one more")
        assert time.time() - last_s < 20
    with activity_in(tmp_path) as activity:
        assert _requests(activity, key_id) == sent


def test_what_was_removed_is_made_anew(tmp_path: Path) -> None:
    """Without activity.db workers make it anew: uses are counted, revocations confirmed."""
    key, kept = make_key(tmp_path, "acme"), make_key(tmp_path, "acme")
    key_id = kept[-61:-49]
    with start_product(tmp_path, ENV, workers=2) as server, activity_in(tmp_path) as activity:
        wait_until(lambda: len(_live(activity)) == 2, "both workers")
        _send_logs(server, kept, 10)
        wait_until(lambda: _requests(activity, key_id) == 30, "all of them")
        (tmp_path / "activity.db").unlink()
        wait_until(lambda: len(_live(activity)) == 2, "both workers again")
        receipt = json.loads(revoke(tmp_path, key, "--json"))
        assert (receipt["workers"], receipt["unconfirmed"]) == (2, 0)
        sent = _send_logs(server, kept, 10)
        wait_until(lambda: _requests(activity, key_id) == sent, "what came since, and no more")


def _send_logs(server: Server, key: str, each: int) -> int:
    """Send logs of several kinds: taken at a glance, given back, by the slow way, and refused."""
    own_id = b'{"environment":"dev","executed_at":0,"status":"OK","id":"%d"}'
    kinds = (BODY, own_id, b"[" + BODY + b"," + BODY + b"]", b"{ ]}")
    sent = 0
    for agent in range(3):
        headers = {
            "X-API-Key": key,
            "Content-Type": "application/json",
            "User-Agent": f"agent-{agent}",
        }
        connection = WholeConnection(HOST, server.port, timeout=30)
        for number in range(each):
            body = kinds[number % len(kinds)]
            connection.request("POST", PATH, body % sent if body is own_id else body, headers)
            assert read_reply(connection)[0] in {201, 400}
            sent += 1
        connection.close()
    return sent


def _requests(activity: Engine, key_id: str) -> int:
    use: KeyUse | None = read_uses(activity, [key_id]).get(key_id)
    return 0 if use is None else use.requests


def _live(activity: Engine) -> set[Any]:
    with reading(activity) as session:
        return {
            worker.worker_id
            for worker in session.exec(select(Worker))
            if (utc_now() - worker.seen_at).total_seconds() < 3
        }


def _replaced(activity: Engine, before: set[Any]) -> bool:
    """Say whether one of two was lost and another has come."""
    live = _live(activity)
    return len(live) == 2 and len(live & before) == 1
