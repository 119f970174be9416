"""list_api_keys.py --suggest: the least that each key needs, ready to be asked for."""

import json
import shlex
import time

from app.activity.access import Access, AccessLog
from app.activity.database import open_activity
from app.keys.registry import get_key
from tests.scripts.runner import Runner

HOUR = int(time.time() // 3600) // 24 * 24 + 9


def use(run: Runner, key_id: str, *accesses: tuple[str, str, str]) -> None:
    """Have a key seen: endpoint, dataset, outcome, at nine o'clock of two days."""
    with run.control() as control:
        activity = open_activity(control)
        AccessLog(activity, 30).write(
            Access(
                key_id, (HOUR - 24 * day) * 60, endpoint, dataset, "192.0.2.7", "n8n", outcome, 3
            )
            for endpoint, dataset, outcome in accesses
            for day in range(2)
        )
        activity.dispose()


def test_suggestions_are_shown_and_can_be_followed(run: Runner) -> None:
    """A used key gets a body for PATCH and options of generate_api_key.py that do what they say."""
    made = run.json("generate_api_key", "--client", "acme", "--name", "etl")
    idle = run.json("generate_api_key", "--client", "acme", "--name", "idle")
    stored = ("POST /api/v1/logs", "orders", "201")
    use(run, made["key_id"], stored, ("GET /api/v1/usage", "", "403"))
    by_key = {one["key_id"]: one for one in run.json("list_api_keys", "--suggest")["suggestions"]}
    assert by_key[idle["key_id"]] | {"name": ""} == {
        "key_id": idle["key_id"],
        "client_id": "acme",
        "name": "",
        "requests": 0,
        "days": 0,
        "patch": {},
        "generate": None,
        "notes": ["it was not used"],
    }
    found = by_key[made["key_id"]]
    assert (found["requests"], found["days"]) == (6, 2)
    assert found["patch"]["scopes"] == ["logs:write"]
    assert found["patch"]["allowed_datasets"] == ["orders"]
    assert found["patch"]["allowed_cidrs"] == ["192.0.2.7/32"]
    assert found["patch"]["allowed_hours"]["start"] == "09:00"
    new = run.json("generate_api_key", *found["generate"])
    with run.control() as control:
        key = get_key(control, new["key_id"])
    assert (key.role, key.allowed_datasets, key.allowed_cidrs, key.allowed_hours) == (
        *("ingest", ["orders"], ["192.0.2.7/32"], found["patch"]["allowed_hours"]),
    )


def test_suggestions_are_readable(run: Runner) -> None:
    """For people it says from how much it was learned, and what to send."""
    made = run.json("generate_api_key", "--client", "acme")
    run.json("generate_api_key", "--client", "other")
    use(run, made["key_id"], ("POST /api/v1/logs", "orders", "201"))
    done = run("list_api_keys", "--suggest", "--client", "acme")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(made["key_prefix"])
    assert "learned from 6 requests on 2 days" in lines[1]
    _, path, body = lines[2].split(maxsplit=2)
    assert path == f"/api/v1/api-keys/{made['key_id']}"
    assert json.loads(body)["allowed_datasets"] == ["orders"]
    assert shlex.split(lines[3])[:4] == ["or", "generate_api_key.py", "--client", "acme"]
    assert "other" not in done.stdout
