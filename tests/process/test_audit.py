"""What scripts and the API change stands in chains that hold, and tampering with them is found."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.sqlite import sqlite3
from loadtests.server import ROOT, make_admin_key, make_key, product_env, start_product
from tests.process.service import ask

HOLDS = "all seals hold\n"
NO_LOGS = shutil.ignore_patterns("logs")


def audit(data_dir: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `central-logger audit`."""
    return subprocess.run(
        [sys.executable, "-m", "app", "audit", *map(str, arguments)],
        cwd=ROOT,
        env=product_env(data_dir),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _change(port: int, admin: str, number: int) -> None:
    headers = {"X-API-Key": admin, "Content-Type": "application/json"}
    body = json.dumps({"name": f"Acme {number}"}).encode()
    assert ask(port, "PATCH", "/api/v1/clients/acme", body, headers)[0] == 200


def _run_and_stop(data_dir: Path, number: int) -> bytes:
    """Change something through a server of two workers, stop it, and give what it logged."""
    admin = make_admin_key(data_dir)
    with start_product(data_dir, workers=2) as server:
        _change(server.port, admin, number)
        assert ask(server.port, "GET", "/api/v1/usage", headers={"X-API-Key": "wrong"})[0] == 401
        # While it runs, and writes.
        found = audit(data_dir, "verify")
        assert (found.returncode, found.stdout.endswith(HOLDS)) == (0, True), found
        server.process.terminate()
        assert server.process.wait(20) == 0
        server.output.seek(0)
        return server.output.read()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory with `data`, an `older` state of it, and the service's `log`."""
    directory = tmp_path_factory.mktemp("audit")
    data_dir = directory / "data"
    make_key(data_dir, "acme")
    log = _run_and_stop(data_dir, 1)
    shutil.copytree(data_dir, directory / "older", ignore=NO_LOGS)
    log += _run_and_stop(data_dir, 2)
    (directory / "log").write_bytes(log)
    return directory


def test_both_stand_in_the_chain(history: Path, tmp_path: Path) -> None:
    """A script's and the API's change name their makers, in an export that holds by itself."""
    output = tmp_path / "acme.ndjson"
    done = audit(history / "data", "export", "--output", output, "--client", "acme")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in output.read_bytes().splitlines()]
    events = [line for line in lines if line["kind"] == "event"]
    assert [event["action"] for event in events] == [
        *("client.created", "key.created", "client.updated", "client.updated")
    ]
    assert events[0]["actor"].startswith("script:generate_api_key (")
    assert events[2]["source_ip"] == "127.0.0.1"
    assert json.loads(events[3]["detail"]) == {"name": ["Acme 1", "Acme 2"]}
    (tmp_path / "secret.key").write_bytes((history / "data/secret.key").read_bytes())
    alone = audit(tmp_path, "verify", "--export", output)
    assert (alone.returncode, alone.stdout) == (0, f"4 events in 1 chains: {HOLDS}")
    output.write_bytes(output.read_bytes().replace(b"Acme 2", b"Acme 3"))
    alone = audit(tmp_path, "verify", "--export", output)
    assert alone.returncode == 1
    assert "chain 'acme', event 4: was changed, or put in\n" in alone.stdout


def test_refusals_have_a_book_of_their_own(history: Path, tmp_path: Path) -> None:
    """What was refused is in the export too."""
    output = tmp_path / "all.ndjson"
    assert audit(history / "data", "export", "--output", output).returncode == 0
    lines = [json.loads(line) for line in output.read_bytes().splitlines()]
    actions = {(line["book"], line["action"]) for line in lines if line["kind"] == "event"}
    assert ("activity", "denied") in actions
    assert ("control", "denied") not in actions


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        (
            "UPDATE audit_events SET actor = 'nobody' WHERE chain = 'acme' AND seq = 2",
            "control: chain 'acme', event 2: was changed, or put in\n",
        ),
        ("DELETE FROM audit_events WHERE chain = 'acme' AND seq > 3", "event 4: cut off"),
    ],
)
def test_tampering_is_found(history: Path, tmp_path: Path, statement: str, told: str) -> None:
    """One line names what was done to the database behind the service's back, and the exit is 1."""
    data_dir = tmp_path / "data"
    shutil.copytree(history / "data", data_dir, ignore=NO_LOGS)
    with closing(sqlite3.connect(data_dir / "control.db", isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount > 0
    found = audit(data_dir, "verify")
    assert (found.returncode, found.stderr) == (1, "")
    assert told in found.stdout
    assert HOLDS not in found.stdout


@pytest.mark.parametrize(
    ("file", "statements", "told"),
    [
        (
            "activity.db",
            ["UPDATE alembic_version SET version_num = '0002'"],
            "activity: chain '*', event 1: the whole chain is missing\n",
        ),
        (
            "activity.db",
            [f"DELETE FROM audit_{name}" for name in ("events", "heads", "checkpoints")],
            "activity: chain '*', event 1: the whole chain is missing\n",
        ),
        (
            "control.db",
            [f"DELETE FROM audit_{name}" for name in ("events", "heads", "checkpoints")],
            "control: chain '*', event 1: the whole chain is missing\n",
        ),
    ],
    ids=["outdated", "activity", "control"],
)
def test_an_emptied_book_is_missed(
    history: Path, tmp_path: Path, file: str, statements: list[str], told: str
) -> None:
    """Where all of a book has gone, or it can't be read as one, that is a fault."""
    data_dir = tmp_path / "data"
    shutil.copytree(history / "data", data_dir, ignore=NO_LOGS)
    with closing(sqlite3.connect(data_dir / file, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    found = audit(data_dir, "verify")
    assert (found.returncode, told in found.stdout) == (1, True), found


def test_a_removed_book_is_missed(history: Path, tmp_path: Path) -> None:
    """Without the file of refusals, the other one tells that there was one."""
    data_dir = tmp_path / "data"
    shutil.copytree(history / "data", data_dir, ignore=NO_LOGS)
    for path in data_dir.glob("activity.db*"):
        path.unlink()
    found = audit(data_dir, "verify")
    assert (found.returncode, "activity: chain '*'" in found.stdout) == (1, True), found


def test_an_older_state_is_told_by_the_log(history: Path) -> None:
    """A whole database put back holds in itself; the service's own log knows of later events."""
    log = history / "log"
    assert audit(history / "data", "verify", "--log", log).returncode == 0
    older = history / "older"
    assert audit(older, "verify").returncode == 0
    found = audit(older, "verify", "--log", log)
    assert found.returncode == 1
    assert (
        "chain 'acme', event 4: missing: a checkpoint of the log was signed for it" in found.stdout
    )


def test_checkpoints_that_were_read_are_counted(
    history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log counts as Docker wraps it, or as it is; one without any checkpoint proves nothing."""
    monkeypatch.setenv("DATA_DIR", str(history / "data"))
    text = (history / "log").read_text()
    wrapped = [json.dumps({"log": f"{line}\n", "stream": "x"}) for line in text.splitlines()]
    (history / "docker").write_text("\n".join(wrapped))
    (history / "utf-16").write_text(text, "utf-16")
    (history / "log.gz").write_bytes(gzip.compress(text.encode()))
    verify = ["audit", "verify", "--log"]
    whole = [CliRunner().invoke(cli, [*verify, str(history / name)]) for name in ("log", "docker")]
    assert whole[0].stdout == whole[1].stdout
    found = re.search(r", (\d+) checkpoints in the log: all seals hold\n$", whole[0].stdout)
    assert found
    assert int(found[1]) == text.count('"audit checkpoint"') > 0
    for name in ("utf-16", "log.gz", "/dev/null"):
        done = CliRunner().invoke(cli, [*verify, str(history / name)])
        assert done.exit_code == 1
        assert "no checkpoint was found" in done.stdout
        assert HOLDS not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["verify", "--export", "/no/such/file"], 1, "No such file"),
        (["verify", "--export", "x", "--client", "acme"], 2, "--export"),
        (["verify", "--client", "nobody"], 1, "nobody"),
        (["verify", "--export", ROOT / "README.md"], 1, "no export"),
        (["export", "--output", "/no/such/directory/x"], 1, "No such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    history: Path,
    arguments: list[str],
    status: int,
    told: str,
) -> None:
    """A refusal is one line on standard error."""
    monkeypatch.setenv("DATA_DIR", str(history / "data"))
    done = CliRunner().invoke(cli, ["audit", *map(str, arguments)])
    assert (done.exit_code, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("central-logger: ")
    assert told in line


def test_no_database_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory that is none of the service's a check refuses, and leaves nothing behind."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    done = CliRunner().invoke(cli, ["audit", "verify"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert list(tmp_path.iterdir()) == []
