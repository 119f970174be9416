"""Refusals of a server with two workers: told by each of them, counted, and sealed."""

import json
from pathlib import Path

from sqlalchemy import create_engine, text

from app.keys.token import mint
from loadtests.server import make_admin_key, make_key, start_product
from tests.process.service import PATH, Reply, ask, wait_until

DENIALS = "/api/v1/audit/denials"
LOG = b'{"environment":"dev","executed_at":0,"status":"OK"}'
FLOOD = 150


def test_every_worker_tells_of_every_refusal(tmp_path: Path) -> None:
    """A refusal is told within seconds by whichever worker is asked, and a flood is counted."""
    data_dir = tmp_path / "data"
    admin, key = make_admin_key(data_dir), make_key(data_dir, "acme")
    env = {"AUTH_FAILURES_PER_MINUTE": "0", "MANAGEMENT_REQUESTS_PER_MINUTE": "100000"}
    with start_product(data_dir, env, workers=2) as server:

        def post(sent: str) -> Reply:
            headers = {"X-API-Key": sent, "Content-Type": "application/json"}
            return ask(server.port, "POST", PATH, LOG, headers)

        def told(request_id: str) -> Reply:
            return ask(server.port, "GET", f"{DENIALS}/{request_id}", b"", {"X-API-Key": admin})

        request_ids = [post(key[:-9])[1]["x-request-id"] for _ in range(8)]
        wait_until(
            lambda: all(told(one)[0] == 200 for one in request_ids), "refusals that are told"
        )
        for request_id in request_ids * 3:
            status, _, body = told(request_id)
            assert (status, json.loads(body)["reason"]) == (200, "truncated")
        unknown = mint("cl_live", "acme").text
        for _ in range(FLOOD):
            assert post(unknown)[0] == 401
        last = post(key)
        assert last[0] == 201
    engine = create_engine(f"sqlite:///{data_dir}/activity.db")
    with engine.connect() as connection:
        wanted = text("SELECT detail FROM audit_events WHERE action = 'denied'")
        details = [json.loads(detail) for detail in connection.execute(wanted).scalars()]
    engine.dispose()
    counts = {
        reason: [one["count"] for one in details if one["reason"] == reason]
        for reason in ("truncated", "unknown_key")
    }
    assert {reason: sum(some) for reason, some in counts.items()} == {
        "truncated": len(request_ids),
        "unknown_key": FLOOD,
    }
    # One at once and one for the repeats, of each worker, in each of the minutes that it took.
    assert len(counts["unknown_key"]) <= 12
