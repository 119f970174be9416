"""import_api_keys.py, run as its users run it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidKey
from app.keys.token import mint
from tests.scripts.runner import Runner, error_line

YAML = """
api_keys:
  - key: legacy-key-1
    tenant: acme
    description: nightly run
    role: analyst
    rate_limit: 100/minute
    allowed_datasets: [orders]
    permissions: [read]
    expires_at: 2990-01-31
  - key: legacy-key-2
    role: admin
  - key: legacy-key-3
    tenant: demo
    enabled: false
"""


def _file(run: Runner, name: str, text: str) -> str:
    (run.cwd / name).write_text(text)
    return name


def _keys(run: Runner) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = run.json("list_api_keys", "--include-inactive")["api_keys"]
    return listed


def test_imported_keys_work(run: Runner) -> None:
    """Keys of a file are stored with their properties and work; no text of them is printed."""
    done = run("import_api_keys", _file(run, "keys.yaml", YAML))
    assert done.returncode == 0, done.stderr
    assert "Imported 3, stored already 0, failed 0." in done.stdout
    assert "legacy-key" not in done.stdout + done.stderr
    principal = run.resolve("legacy-key-1")
    assert (principal.client_id, principal.role, principal.name) == (
        "acme",
        "analyst",
        "nightly run",
    )
    assert principal.scopes == frozenset({"logs:read"})
    assert principal.allowed_datasets == frozenset({"orders"})
    assert principal.key_limits.requests_per_minute == 100
    assert principal.expires_at_s is not None
    assert run.resolve("legacy-key-2").is_admin
    with pytest.raises(InvalidKey):
        run.resolve("legacy-key-3")
    assert principal.key_id in done.stdout.partition("Worth rotating")[2]


def test_a_second_run_is_harmless(run: Runner) -> None:
    """What is stored already is skipped, and stays as it was made since."""
    name = _file(run, "keys.json", json.dumps({"legacy-1": "acme", "legacy-2": "demo"}))
    first = run.json("import_api_keys", name)
    run("revoke_api_key", first["imported"][0]["key_id"], "--yes")
    second = run.json("import_api_keys", name)
    assert (len(first["imported"]), first["skipped"]) == (2, [])
    assert (second["imported"], len(second["skipped"]), second["failed"]) == ([], 2, [])
    assert [one["key_id"] for one in second["skipped"]] == [
        one["key_id"] for one in first["imported"]
    ]
    assert [one["is_active"] for one in second["skipped"]] == [False, True]
    assert len(_keys(run)) == 2


def test_a_bad_entry_does_not_stop_the_others(run: Runner) -> None:
    """Good entries are stored, bad ones reported by number, and the end is 1."""
    strong = mint("cl_live", "acme").text
    mistyped = mint("cl_live", "acme").text[:-6] + "zzzzzz"
    rows = f"""key,tenant,role,expires_at
{strong},acme,client,
legacy-1,acme,emperor,
{mistyped},acme,,
legacy-2,acme,,2001-01-01
legacy-3,Acme,,
legacy-4,demo,ingest,
"""
    done = run("import_api_keys", _file(run, "keys.csv", rows), "--json")
    assert (done.returncode, done.stderr.count("Error: 4 of the entries")) == (1, 1)
    report = json.loads(done.stdout)
    assert [one["entry"] for one in report["imported"]] == [1, 6]
    assert [one["entry"] for one in report["failed"]] == [2, 3, 4, 5]
    assert [one["entry"] for one in report["worth_rotating"]] == [6]
    assert not any(secret in done.stdout for secret in ("legacy", strong[-49:], mistyped[-49:]))
    assert {key["client_id"] for key in _keys(run)} == {"acme", "demo"}
    assert run.resolve(strong).client_id == "acme"


def test_a_key_of_another_client_is_a_failure(run: Runner) -> None:
    """A key cannot be given to a second client, and the report says whose it is."""
    run.json("import_api_keys", _file(run, "a.json", '{"legacy-1": "acme"}'))
    done = run("import_api_keys", _file(run, "b.json", '{"legacy-1": "evil"}'))
    assert done.returncode == 1
    assert "entry 1: key is stored already, for client acme" in done.stdout
    assert run.resolve("legacy-1").client_id == "acme"


def test_keys_that_the_settings_have(run: Runner) -> None:
    """A key of the settings is imported for its own client alone, and to be taken out there."""
    name = _file(run, "k.json", json.dumps({"legacy-1": "acme", "legacy-2": "demo", "boss": "x"}))
    settings = {
        "API_KEYS": json.dumps({"legacy-1": "acme"}),
        "API_KEYS_FILE": _file(run, "f.yaml", "api_keys: [{key: legacy-2, tenant: acme}]"),
        "INITIAL_ADMIN_KEY": "boss",
    }
    done = run("import_api_keys", name, **settings)
    assert done.returncode == 1
    assert "Imported 1, stored already 0, failed 2." in done.stdout
    assert "entry 2: key is that of API_KEYS_FILE: entry 1 already, for client acme" in done.stdout
    assert "entry 3: key is that of INITIAL_ADMIN_KEY already, for the platform" in done.stdout
    assert "decides:\n  entry 1: API_KEYS" in done.stdout
    assert [key["client_id"] for key in _keys(run)] == ["acme"]


def test_a_dry_run_stores_nothing(run: Runner) -> None:
    """--dry-run finds what a run would find, and leaves neither keys nor clients."""
    run.json("import_api_keys", _file(run, "a.json", '{"legacy-1": "acme"}'))
    rows = "key,tenant,expires_at\nlegacy-1,acme,\nlegacy-2,demo,\nlegacy-3,demo,2001-01-01\n"
    name = _file(run, "b.csv", rows)
    done = run("import_api_keys", name, "--dry-run", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["dry_run"] is True
    assert [one["entry"] for one in report["imported"]] == [2]
    assert [one["entry"] for one in report["skipped"]] == [1]
    assert [one["entry"] for one in report["failed"]] == [3]
    assert [key["client_id"] for key in _keys(run)] == ["acme"]


def test_many_keys_are_imported_at_once(run: Runner) -> None:
    """A long list of new clients is stored whole, by several threads."""
    name = _file(run, "keys.json", json.dumps({f"legacy-{n}": f"client{n % 7}" for n in range(60)}))
    assert len(run.json("import_api_keys", name)["imported"]) == 60
    assert len(_keys(run)) == 60


@pytest.mark.parametrize(
    ("name", "text", "status", "part"),
    [
        ("no-such.yaml", None, 2, "No such file"),
        ("keys.txt", "api_keys: []", 2, "--format"),
        ("keys.yaml", "keys: []", 1, "api_keys"),
        ("keys.json", '["hunter2"]', 1, "JSON map"),
        ("keys.csv", "hunter2,acme", 1, "line of names"),
    ],
)
def test_a_file_that_is_none_is_told(
    run: Runner, name: str, text: str | None, status: int, part: str
) -> None:
    """A missing, unknown or broken file ends with a line that says what, and no text of it."""
    if text is not None:
        _file(run, name, text)
    done = run("import_api_keys", name)
    assert (done.returncode, part in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert not run.data_dir.exists()


def test_a_file_without_an_end(run: Runner) -> None:
    """Of a file that is too large no more is read than tells that it is."""
    command = run.command("import_api_keys", "--format", "json", "/dev/zero")
    # Where all of it is read, memory is short soon.
    shell = ["sh", "-c", 'ulimit -v 2000000; exec "$@"', "sh", *command]
    done = subprocess.run(
        shell, capture_output=True, text=True, cwd=run.cwd, env=run.environment, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "/dev/zero has more than 2097152 bytes" in error_line(done.stderr)


def test_the_file_is_asked_for(run: Runner, tmp_path: Path) -> None:
    """Without FILE the command asks for it, and --format says what its name does not."""
    (tmp_path / "keys").write_text('{"legacy-1": "acme"}')
    done = run("import_api_keys", "--format", "json", answer=f"{tmp_path / 'keys'}\n")
    assert done.stdout.startswith("Enter the file with the keys: ")
    assert done.returncode == 0
