"""The commands of scripts/, run as their users run them."""

import json
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from app.activity.database import open_activity
from app.activity.uses import Sighting, record
from app.errors import InvalidKey
from app.keys.bootstrap import open_secrets
from app.keys.clients import update_client
from app.keys.database import writing
from app.keys.models import Worker
from app.keys.verifier import Peppers
from tests.scripts.nursery import COMMANDS
from tests.scripts.runner import Runner, error_line
from tests.support import BY, rotate_key


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Runner, command: str) -> None:
    """--help and a wrong option end with 0 and 2, and touch nothing."""
    helped = run(command, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--json" in helped.stdout
    assert run(command, "--no-such-option").returncode == 2
    assert not run.data_dir.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_setting_is_one_line(run: Runner, command: str) -> None:
    """A setting that cannot be used ends any command with 2 and one line that names it."""
    (run.cwd / "a.json").write_text("{}")
    arguments = {
        "create_admin_key": ["--name", "x"],
        "import_api_keys": ["a.json"],
        "revoke_api_key": ["x"],
    }.get(command, [])
    done = run(command, *arguments, answer="acme\n", SECRET_KEY="short")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "SECRET_KEY" in done.stderr


def test_generate_asks_for_the_client(run: Runner) -> None:
    """Alone, the command asks one question, makes the client and shows a key that works."""
    done = run("generate_api_key", answer="acme_corp\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Enter client_id (e.g., 'acme_corp'): ")
    lines = done.stdout.splitlines()
    assert "LOGGER_API_URL=http://127.0.0.1:8000" in lines
    (line,) = (line for line in lines if line.startswith("LOGGER_API_KEY=cl_live_acme_corp_"))
    assert "Send to client (acme_corp)" in done.stdout
    principal = run.resolve(line.partition("=")[2])
    assert (principal.client_id, principal.role) == ("acme_corp", "client")


@pytest.mark.parametrize("answer", ["", "\n", "   \n"])
def test_generate_refuses_an_empty_answer(run: Runner, answer: str) -> None:
    """No client_id, no key: the refusal is one line, and nothing was made."""
    done = run("generate_api_key", answer=answer)
    assert (done.returncode, done.stderr) == (1, "Error: client_id is required\n")
    assert not run.data_dir.exists()


def test_generate_with_json_prints_the_key_object(run: Runner) -> None:
    """With every option given, stdout is one JSON object, the key object with the key."""
    options = (
        "--client demo --name nightly --role ingest --dataset orders --dataset refunds "
        "--expires 30d --requests-per-minute 5 --logs-per-minute 0 --bytes-per-minute 1000 "
        "--environment test --description d"
    )
    made = run.json("generate_api_key", *options.split())
    principal = run.resolve(made["key"])
    assert made["key"].startswith("cl_test_demo_" + made["key_id"])
    assert (principal.id, principal.name) == (made["id"], "nightly")
    assert (made["role"], made["scopes"]) == ("ingest", ["logs:write"])
    assert made["allowed_datasets"] == ["orders", "refunds"]
    assert made["limits"] == {
        "requests_per_minute": 5,
        "logs_per_minute": 0,
        "bytes_per_minute": 1000,
    }
    assert principal.expires_at_s is not None
    again = run.json("generate_api_key", "--client", "demo", "--prefix", "pk")
    assert again["key"].startswith("pk_demo_")


def test_generate_asks_on_stderr_for_machines(run: Runner) -> None:
    """With --json the question does not get into the JSON."""
    done = run("generate_api_key", "--json", answer="demo\n")
    assert json.loads(done.stdout)["client_id"] == "demo"
    assert done.stderr.startswith("Enter client_id")


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["--client", "Acme Corp"], 1, "client_id must match"),
        (["--client", "a", "--dataset", "A B"], 1, "allowed_datasets must match"),
        (["--client", "a", "--expires", "2001-01-01"], 1, "expires_at must be in the future"),
        (["--client", "a", "--requests-per-minute", "-1"], 1, "limits.requests_per_minute"),
        (["--client", "a", "--prefix", "P"], 1, "prefix must match"),
        (["--client", "a", "--role", "admin"], 2, "--role"),
        (["--client", "a", "--expires", "soon"], 2, "--expires"),
        (["--client", "a", "--expires", "99999999999d"], 2, "--expires"),
    ],
)
def test_generate_says_what_is_wrong(
    run: Runner, arguments: list[str], status: int, part: str
) -> None:
    """Bad values are refused by name, without a traceback and without leaving a client."""
    run.prepare()
    done = run("generate_api_key", *arguments)
    assert done.returncode == status
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert run.json("list_api_keys") == {"api_keys": []}


def test_generate_uses_the_public_url(run: Runner) -> None:
    """The client is told the address that the world knows."""
    done = run("generate_api_key", "--client", "a", PUBLIC_URL="https://logs.example.com/")
    assert "LOGGER_API_URL=https://logs.example.com\n" in done.stdout


def test_generate_refuses_a_deactivated_client(run: Runner) -> None:
    """No key is made that could not work; one of another client still is."""
    run.json("generate_api_key", "--client", "acme")
    with run.control() as control:
        update_client(control, "acme", {"is_active": False}, by=BY)
    done = run("generate_api_key", "--client", "acme")
    assert (done.returncode, done.stdout) == (1, "")
    assert "client acme is deactivated" in error_line(done.stderr)
    run.json("generate_api_key", "--client", "demo")
    assert len(run.json("list_api_keys", "--include-inactive")["api_keys"]) == 2


def test_list_shows_keys_and_no_secret(run: Runner) -> None:
    """The list has every active key by its public part, and more only when asked."""
    keys = [run.json("generate_api_key", "--client", client) for client in ("acme", "demo")]
    shown = run("list_api_keys")
    assert shown.returncode == 0
    for key in keys:
        assert key["key_prefix"] in shown.stdout
        assert key["key"][-49:] not in shown.stdout
        assert key["key"] not in run("list_api_keys", "--json").stdout
    run("revoke_api_key", keys[0]["key_id"], "--yes")
    listed = run.json("list_api_keys")["api_keys"]
    assert [key["client_id"] for key in listed] == ["demo"]
    listed = run.json("list_api_keys", "--include-inactive", "--client", "acme")["api_keys"]
    assert [(key["client_id"], key["is_active"]) for key in listed] == [("acme", False)]


def test_list_finds_keys_that_end_soon(run: Runner) -> None:
    """--due lists what ends or is due for rotation within so many days, not what is later."""
    soon = run.json("generate_api_key", "--client", "a", "--expires", "5d")
    run.json("generate_api_key", "--client", "a", "--expires", "50d")
    test = run.json("generate_api_key", "--client", "a", "--environment", "test")

    def due(days: str, live: str = "90", test: str = "30") -> list[str]:
        rotation = {"ROTATION_DAYS_LIVE": live, "ROTATION_DAYS_TEST": test}
        done = run("list_api_keys", "--due", days, "--json", **rotation)
        return [key["id"] for key in json.loads(done.stdout)["api_keys"]]

    assert due("10") == [soon["id"]]
    assert due("31") == [soon["id"], test["id"]]
    assert due("20", test="20") == [soon["id"], test["id"]]
    assert len(due("90")) == 3
    assert len(due("36500", live="0", test="0")) == 2
    for days in ("36501", "-5", "x", "9" * 5000):
        refused = run("list_api_keys", f"--due={days}")
        assert (refused.returncode, "from 0 to 36500" in refused.stderr) == (2, True)
    assert len(run("list_api_keys", "--due", "-5").stderr) < 500
    listed = run("list_api_keys", "--json", ROTATION_DAYS_TEST="0").stdout
    assert json.loads(listed)["api_keys"][2]["rotation_due_at"] is None


def test_list_shows_the_use_of_keys(run: Runner) -> None:
    """The list says when a key was last used, and of one in grace from where, and until when."""
    used, unused = (run.json("generate_api_key", "--client", "acme") for _ in range(2))
    at = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)
    with run.control() as control:
        activity = open_activity(control)
        record(activity, [Sighting(used["key_id"], "192.0.2.7", "n8n/1.0", 3, at, at)])
        activity.dispose()
        peppers = Peppers(open_secrets(run.data_dir, ()))
        rotation = rotate_key(control, peppers, used["key_id"], by=BY)
        rotate_key(control, peppers, rotation.key.key_id, grace_s=0, by=BY)
    grace = rotation.old.grace_until
    assert grace is not None
    lines = run("list_api_keys").stdout.splitlines()
    assert lines[0].endswith("LAST USED")
    (line,) = (line for line in lines if used["key_id"] in line)
    assert f"in grace until {grace:%Y-%m-%d %H:%M}Z" in line
    assert line.endswith("2031-01-02 03:04Z")
    (line,) = (line for line in lines if rotation.key.key_id in line)
    assert "rotated" in line
    (line,) = (line for line in lines if unused["key_id"] in line)
    assert "active" in line
    assert line.endswith("never")
    keys = {key["key_id"]: key for key in run.json("list_api_keys")["api_keys"]}
    shown = keys[used["key_id"]]
    assert (shown["total_requests"], shown["last_used_at"]) == (3, "2031-01-02T03:04:05.000Z")
    assert (shown["last_source_ip"], shown["last_user_agent"]) == ("192.0.2.7", "n8n/1.0")
    (source,) = shown["sources"]
    assert (source["source_ip"], source["requests"]) == ("192.0.2.7", 3)
    assert keys[unused["key_id"]]["last_used_at"] is None
    assert "sources" not in keys[unused["key_id"]]


def test_revoke_asks_first(run: Runner) -> None:
    """Without --yes only a yes revokes, and a revoked key no longer works."""
    made = run.json("generate_api_key", "--client", "acme")
    for answer in ("", "n\n", "\n"):
        done = run("revoke_api_key", made["key_id"], answer=answer)
        assert (done.returncode, done.stderr) == (1, "Error: not revoked\n")
    assert run.resolve(made["key"])
    done = run("revoke_api_key", answer=f"{made['key_id']}\ny\n")
    assert done.returncode == 0
    assert f"Revoked {made['key_prefix']} ({made['name']}); no worker runs." in done.stdout
    with pytest.raises(InvalidKey):
        run.resolve(made["key"])


def test_revoke_again_is_no_fault(run: Runner) -> None:
    """Revoking by UUID or key_id, once or twice, gives the inactive key object and a receipt."""
    made = run.json("generate_api_key", "--client", "acme")
    for name in ("id", "key_id"):
        revoked = run.json("revoke_api_key", made[name], "--yes")
        assert (revoked["is_active"], revoked["workers"]) == (False, 0)
        assert datetime.fromisoformat(revoked["effective_at"]) <= datetime.now(UTC)
        assert revoked["ms"] >= 0
    again = run("revoke_api_key", made["key_id"], "--yes").stdout
    assert "was revoked already; no worker runs." in again


def test_revoke_names_the_heir(run: Runner) -> None:
    """Whoever revokes a key that was rotated is told of the key that works on instead."""
    old = run.json("generate_api_key", "--client", "acme")["key_id"]
    heir = run.json("rotate_api_key", old)
    done = run("revoke_api_key", old, "--yes")
    told = f"Note: {heir['key_prefix']} ({heir['name']}) took over from it and works on.\n"
    assert (done.returncode, done.stderr) == (0, told)
    assert run("revoke_api_key", heir["key_id"], "--yes").stderr == ""
    assert run("revoke_api_key", old, "--yes").stderr == ""


def test_list_of_nobody(run: Runner) -> None:
    """The keys of a client that there is not are no empty list: it may be mistyped."""
    run.json("generate_api_key", "--client", "acme")
    done = run("list_api_keys", "--client", "amce")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Error: no client 'amce'" in done.stderr


def test_revoke_names_workers_that_are_late(run: Runner) -> None:
    """A worker that does not answer, or cannot be seen, takes nothing from the revocation."""
    keys = [run.json("generate_api_key", "--client", "acme") for _ in range(2)]
    with run.control() as control:
        activity = open_activity(control)
        with writing(activity) as session:
            session.add(Worker(generation=0, seen_at=datetime.now(UTC) + timedelta(minutes=1)))
        activity.dispose()
    done = run("revoke_api_key", keys[0]["key_id"], "--yes")
    assert "; not confirmed by 1 of 1 worker after " in done.stdout
    for file in run.data_dir.glob("activity.db*"):
        file.unlink()
    (run.data_dir / "activity.db").write_bytes(b"no database" * 1000)
    done = run("revoke_api_key", keys[1]["key_id"], "--yes")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "what workers know of the keys cannot be read: " in done.stderr
    assert "; whether every worker has dropped it is unknown" in done.stdout
    for key in keys:
        with pytest.raises(InvalidKey):
            run.resolve(key["key"])


def test_revoke_knows_what_it_does_not_know(run: Runner) -> None:
    """An unknown key is one line and 1; no key at all as well."""
    run.prepare()
    done = run("revoke_api_key", "nope", "--yes")
    assert (done.returncode, done.stderr.count("Error: no key 'nope'")) == (1, 1)
    assert "Error: key_id is required" in run("revoke_api_key").stderr


def test_an_admin_key_is_made_for_a_name(run: Runner) -> None:
    """The admin key is the platform's, has the name asked for, and needs one."""
    made = run.json("create_admin_key", "--name", "alice laptop", "--expires", "2990-01-31")
    assert made["is_admin"]
    assert made["expires_at"] == "2990-01-31T00:00:00.000Z"
    principal = run.resolve(made["key"])
    assert (principal.is_admin, principal.client_id) == (True, None)
    asked = run("create_admin_key", answer="bob\n")
    assert "Enter a name" in asked.stdout
    assert "'bob'" in asked.stdout
    refused = run("create_admin_key", answer="\n")
    assert (refused.returncode, refused.stderr) == (1, "Error: name is required\n")


def test_a_broken_database_is_one_line(run: Runner) -> None:
    """Where no database can be opened the command says so and ends with 1."""
    run.data_dir.mkdir()
    (run.data_dir / "control.db").write_bytes(b"no database" * 1000)
    done = run("list_api_keys")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Error: the control database cannot be used")


def test_an_external_database_needs_a_secret(run: Runner) -> None:
    """Off embedded storage no secret is made up, and no migration run behind one's back."""
    url = f"sqlite:///{run.data_dir}/other.db"
    arguments = ("generate_api_key", "--client", "acme")
    done = run(*arguments, DATABASE_URL=url)
    assert (done.returncode, "SECRET_KEY" in done.stderr) == (2, True)
    done = run(*arguments, DATABASE_URL=url, SECRET_KEY="x" * 32)
    assert (done.returncode, "central-logger migrate" in done.stderr) == (1, True)


def test_commands_may_run_at_once(run: Runner) -> None:
    """On a fresh data directory several commands at a time all succeed."""
    started = [
        run.start("generate_api_key", "--client", "acme", "--json", stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    outputs = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * 4, outputs
    assert len({json.loads(out)["key"] for out, _ in outputs}) == 4
    assert len(run.json("list_api_keys")["api_keys"]) == 4
