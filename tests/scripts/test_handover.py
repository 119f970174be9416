"""New keys and links that got to nobody: each command takes back what it has made."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from app.delivery.claims import claim
from app.errors import InvalidKey
from app.keys.database import reading
from app.keys.models import ApiKey, Claim
from app.sqlite import sqlite3
from loadtests.server import free_port
from tests.delivery.mail_sink import (
    PASSWORD,
    USER,
    Sink,
    make_certificate,
    part,
    read_message,
    running_sink,
)
from tests.scripts.runner import Runner, error_line
from tests.support import BY

TO = "ops@acme.example"
DEADLINE_S = 20.0
HOWS = ["full", "closed", "left"]
UNSET = "SMTP_URL is not set: the mail is written to a file, not sent.\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate that only SSL_CERT_FILE vouches for."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def _mail_settings(sink: Sink, certificate: Path) -> dict[str, str]:
    return {
        "SMTP_URL": f"smtp://{USER}:{PASSWORD}@localhost:{sink.port}",
        "MAIL_FROM": "logger@example.com",
        "SSL_CERT_FILE": str(certificate),
    }


def _keys(run: Runner) -> dict[str, dict[str, Any]]:
    listed = run.json("list_api_keys", "--include-inactive")["api_keys"]
    return {key["key_id"]: key for key in listed}


def _await_key(run: Runner, count: int) -> None:
    """Wait until there are so many keys."""
    deadline = time.monotonic() + DEADLINE_S
    with run.control() as engine:
        while time.monotonic() < deadline:
            with reading(engine) as session:
                if len(session.exec(select(ApiKey.id)).all()) == count:
                    return
            time.sleep(0.02)
    raise AssertionError("no key was made")


@contextmanager
def _locked(run: Runner) -> Iterator[None]:
    """Be in the middle of a write until the block ends."""
    other = sqlite3.connect(run.data_dir / "control.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.close()


def _start_stuck(run: Runner, command: str, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    """Start a command whose reader doesn't read; give the reading end, by which it is let go."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    process = run.start(command, *arguments, stdout=writer)
    os.close(writer)
    return process, reader


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("generate_api_key", ["--client", "acme"]),
        ("generate_api_key", ["--client", "acme", "--json"]),
        ("create_admin_key", ["--name", "alice"]),
        ("create_admin_key", ["--name", "alice", "--json"]),
    ],
)
def test_a_key_that_nobody_saw_is_off(
    run: Runner, how: str, command: str, arguments: list[str]
) -> None:
    """When the output fails, the key is off, or was never made, and the one line says so."""
    run.prepare()
    line = run.unheard(how, command, *arguments)
    keys = _keys(run)
    if how == "closed":
        assert (line, keys) == ("Error: standard output is closed", {})
    else:
        ((key_id, key),) = keys.items()
        assert not key["is_active"]
        assert f"key {key_id} was switched off again" in line


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("options", [["--json"], ["--grace-seconds", "0"]])
def test_a_rotation_that_nobody_saw_is_undone(run: Runner, how: str, options: list[str]) -> None:
    """When the output fails the old key goes on as it was, and can be rotated again."""
    old = run.json("generate_api_key", "--client", "acme")
    before = _keys(run)[old["key_id"]]
    line = run.unheard(how, "rotate_api_key", old["key_id"], *options)
    keys = _keys(run)
    assert keys.pop(old["key_id"]) == before
    assert run.resolve(old["key"]).id == old["id"]
    if how == "closed":
        assert (line, keys) == ("Error: standard output is closed", {})
    else:
        ((key_id, new),) = keys.items()
        assert not new["is_active"]
        assert f"{old['key_id']} works on as before, the new key {key_id} is off" in line
    assert run.resolve(run.json("rotate_api_key", old["key_id"])["key"]).client_id == "acme"


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM] * 5]
)
def test_a_key_whose_output_is_interrupted_is_off(
    run: Runner, signals: list[signal.Signals]
) -> None:
    """A signal while the key waits to be read switches it off, though another one follows."""
    run.prepare()
    process, reader = _start_stuck(run, "generate_api_key", "--client", "acme")
    _await_key(run, 1)
    assert len(_keys(run)) == 1  # takes so long that the command is stuck by then
    with _locked(run):  # so that it is busy with that when the later ones come
        for one in signals:
            process.send_signal(one)
            time.sleep(0.05)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    os.close(reader)
    ((key_id, key),) = _keys(run).items()
    assert (process.returncode, key["is_active"]) == (128 + signals[0], False)
    assert f"interrupted; key {key_id} was switched off again" in error_line(stderr)


# A command that gets a signal in the moment after each of its commits.
_SIGNALLED = """
import os, runpy, sys
from sqlalchemy import event
from sqlmodel import Session
event.listen(Session, "after_commit", lambda _: os.kill(os.getpid(), {number}))
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _signalled(run: Runner, number: signal.Signals, *command: str) -> tuple[int, str]:
    """Run a command that is asked to end when it has committed; give its end and its line."""
    python, *options, script = run.command(command[0])
    done = subprocess.run(
        [python, *options, "-c", _SIGNALLED.format(number=int(number)), script, *command[1:]],
        capture_output=True,
        text=True,
        cwd=run.cwd,
        env=run.environment,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.stdout == ""
    return done.returncode, error_line(done.stderr.replace(UNSET, ""))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "command",
    [
        ("generate_api_key", "--client", "acme"),
        ("create_admin_key", "--name", "alice", "--json"),
        ("onboarding_email", "--client", "acme", "--to", TO),
    ],
)
def test_a_key_that_is_interrupted_as_it_is_made_is_off(
    run: Runner, number: signal.Signals, command: tuple[str, ...]
) -> None:
    """A signal that comes with the commit finds nothing to show yet, and the key is off again."""
    run.prepare()
    status, line = _signalled(run, number, *command)
    ((key_id, key),) = _keys(run).items()
    assert (status, key["is_active"]) == (128 + number, False)
    assert line == f"Error: interrupted; key {key_id} was switched off again"
    assert not list(run.cwd.glob("*.eml"))


# A command that gets signals as the control database is closed, and as the interpreter ends.
_SIGNALLED_LATE = """
import atexit, os, runpy, sys
from sqlalchemy import Engine, event
def ask(engine=None):
    if engine is None or engine.url.database.endswith("control.db"):
        for _ in range(2): os.kill(os.getpid(), {number})
event.listen(Engine, "engine_disposed", ask)
atexit.register(ask)
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["generate", "rotate", "revoke"])
def test_a_signal_after_the_last_word_changes_nothing(
    run: Runner, number: signal.Signals, command: str
) -> None:
    """Once all is done and told, the exit status says so, whatever signals come."""
    first = run.json("generate_api_key", "--client", "acme")["key_id"]
    arguments = {"generate": ["--client", "acme"], "revoke": [first, "--yes"]}.get(command, [first])
    python, *options, script = run.command(f"{command}_api_key")
    done = subprocess.run(
        [python, *options, "-c", _SIGNALLED_LATE.format(number=int(number)), script, *arguments],
        capture_output=True,
        text=True,
        cwd=run.cwd,
        env=run.environment,
        check=False,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if command != "revoke":
        shown = re.search(r"cl_live_acme_\w{61}", done.stdout)
        assert shown is not None
        assert run.resolve(shown[0]).client_id == "acme"


@pytest.mark.parametrize("options", [["--grace-seconds", "0"], ["--notify", TO]])
def test_a_rotation_that_is_interrupted_as_it_is_made_is_undone(
    run: Runner, options: list[str]
) -> None:
    """A signal that comes with the commit leaves the old key as it was, and says so."""
    old = run.json("generate_api_key", "--client", "acme")
    before = _keys(run)[old["key_id"]]
    status, line = _signalled(run, signal.SIGINT, "rotate_api_key", old["key_id"], *options)
    assert status == 128 + signal.SIGINT
    assert f"interrupted; the rotation was undone: {old['key_id']} works on as before" in line
    assert _keys(run)[old["key_id"]] == before
    assert run.resolve(old["key"]).id == old["id"]


@pytest.mark.parametrize("how", ["full", "left", "signalled"])
def test_a_revocation_that_could_not_be_told_of_is_named(run: Runner, how: str) -> None:
    """When the output fails, or a signal comes, the one line says that the key is revoked."""
    key = run.json("generate_api_key", "--client", "acme")
    command = ("revoke_api_key", key["key_id"], "--yes")
    if how == "signalled":
        status, line = _signalled(run, signal.SIGINT, *command)
        assert status == 128 + signal.SIGINT
    else:
        line = run.unheard(how, *command)
    assert line.endswith(f". {key['key_prefix']} (acme) is revoked.")
    assert not _keys(run)[key["key_id"]]["is_active"]


@pytest.mark.parametrize(
    ("grace", "advice"),
    [("3600", "rotate {new} before that"), ("0", "works no more: rotate {new} now")],
)
def test_what_cannot_be_taken_back_is_told(run: Runner, grace: str, advice: str) -> None:
    """While the database is locked the line names what is left, and what helps against it."""
    old = run.json("generate_api_key", "--client", "acme")
    arguments = (old["key_id"], "--grace-seconds", grace)
    process, reader = _start_stuck(run, "rotate_api_key", *arguments)
    _await_key(run, 2)
    with _locked(run):
        os.close(reader)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    (new,) = _keys(run).keys() - {old["key_id"]}
    line = error_line(stderr)
    assert process.returncode == 1
    assert f"nobody has the new key {new}" in line
    assert line.endswith(advice.format(new=new))
    if grace == "0":
        with pytest.raises(InvalidKey):
            run.resolve(old["key"])


def test_a_new_key_that_is_left_is_told(run: Runner) -> None:
    """A key that cannot be switched off, since the database is locked, is named as active."""
    run.prepare()
    process, reader = _start_stuck(run, "generate_api_key", "--client", "acme")
    _await_key(run, 1)
    with _locked(run):
        os.close(reader)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    (key_id,) = _keys(run)
    assert error_line(stderr).endswith(f"key {key_id} is still active: revoke it")


# Mails


def test_a_locked_database_makes_nothing(run: Runner) -> None:
    """While somebody else writes, key and link are refused together, in a line without either."""
    old = run.json("generate_api_key", "--client", "acme")
    before = _keys(run)
    with _locked(run):
        onboarding = run("onboarding_email", "--client", "new", "--to", TO)
        rotation = run("rotate_api_key", old["key_id"], "--notify", TO)
    for done in (onboarding, rotation):
        assert (done.returncode, done.stdout) == (1, "")
        assert "database is locked" in error_line(done.stderr.replace(UNSET, ""))
    assert _keys(run) == before
    assert list(run.cwd.iterdir()) == []


def test_a_link_that_cannot_be_made_leaves_no_key(run: Runner) -> None:
    """A fault at the link takes the key of the same transaction with it: none is unseen."""
    old = run.json("generate_api_key", "--client", "acme")
    before = _keys(run)
    with run.control() as engine, engine.connect() as connection:
        connection.exec_driver_sql("DROP TABLE claims")
        connection.commit()
    for done in (
        run("onboarding_email", "--client", "new", "--to", TO),
        run("rotate_api_key", old["key_id"], "--notify", TO),
    ):
        assert done.returncode == 1
        assert "claims" in error_line(done.stderr.replace(UNSET, ""))
    assert _keys(run) == before


def test_what_is_neither_sent_nor_written_is_taken_back(run: Runner) -> None:
    """Where the server is away and no file can be made, key and rotation are taken back."""
    old = run.json("generate_api_key", "--client", "acme")
    before = _keys(run)
    mail = {"SMTP_URL": f"smtp://127.0.0.1:{free_port()}", "MAIL_FROM": "logger@example.com"}
    environment = {**run.environment, **mail}
    for arguments, told in (
        (["onboarding_email", "--client", "new", "--to", TO, "--send"], "was switched off again"),
        (["rotate_api_key", old["key_id"], "--notify", TO], "works on as before"),
    ):
        # Nobody makes a file in /proc, whoever runs the test.
        process = run.start(*arguments, cwd="/proc", env=environment)
        _, stderr = process.communicate(timeout=DEADLINE_S)
        line = error_line(stderr)
        assert process.returncode == 1
        assert line.startswith("Error: not sent: ")
        assert told in line
    after = _keys(run)
    assert after[old["key_id"]] == before[old["key_id"]]
    assert [key["is_active"] for key in after.values()] == [True, False, False]


def test_a_mail_that_could_not_be_told_of_is_named(run: Runner) -> None:
    """When the output fails after the mail was written, the key works and the line has the file."""
    run.prepare()
    line = run.unheard("full", "onboarding_email", "--client", "acme", "--to", TO)
    ((key_id, key),) = _keys(run).items()
    assert key["is_active"]
    assert f"The mail to {TO} is in onboarding-acme-{key_id}.eml." in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_mail_on_its_way_is_on_disk(
    run: Runner, certificate: Path, number: signal.Signals
) -> None:
    """A signal while a server keeps its answer back leaves a file with the new key's link."""
    old = run.json("generate_api_key", "--client", "acme")
    with running_sink(certificate) as sink:
        sink.is_holding = threading.Event()
        process = run.start(
            *("rotate_api_key", old["key_id"], "--grace-seconds", "0", "--notify", TO),
            env={**run.environment, **_mail_settings(sink, certificate)},
        )
        assert sink.is_holding.wait(DEADLINE_S)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    (output,) = run.cwd.glob("*.eml")
    assert output.stat().st_mode & 0o777 == 0o600
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        line = f"Error: not sent: interrupted; the mail is in {output.name}"
        assert error_line(stderr) == line
    text = part(read_message(output.read_bytes()), "plain")
    (token,) = re.findall(r"/claim/(\w+)", text)
    with run.control() as engine:
        assert run.resolve(claim(engine, token, by=BY).text).client_id == "acme"


def _claims(run: Runner) -> list[Claim]:
    with run.control() as engine, reading(engine) as session:
        return list(session.exec(select(Claim)).all())


def test_a_pasted_key_meets_an_existing_file(run: Runner) -> None:
    """Where the mail's file is there already, no link is made, and the file stays as it is."""
    key = run.json("generate_api_key", "--client", "acme")
    file = run.cwd / f"onboarding-acme-{key['key_id']}.eml"
    file.write_text("mine")
    arguments = ("--key-id", key["key_id"], "--to", TO)
    done = run("onboarding_email", *arguments, answer=f"{key['key']}\n")
    assert (done.returncode, f"{file.name} exists already" in done.stderr) == (1, True)
    assert (_claims(run), file.read_text()) == ([], "mine")


def test_a_link_to_a_pasted_key_is_taken_back(run: Runner) -> None:
    """A link that is neither sent nor written opens nothing; the key, which somebody has, works."""
    key = run.json("generate_api_key", "--client", "acme")
    (run.cwd / f"onboarding-acme-{key['key_id']}.eml").write_text("mine")
    arguments = ("--key-id", key["key_id"], "--to", TO, "--send")
    mail = {"SMTP_URL": f"smtp://127.0.0.1:{free_port()}", "MAIL_FROM": "logger@example.com"}
    done = run("onboarding_email", *arguments, answer=f"{key['key']}\n", **mail)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("File exists; the claim link was taken back")
    (claim,) = _claims(run)
    assert claim.sealed is None
    assert run.resolve(key["key"]).id == key["id"]


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_server_that_quotes_the_mail(run: Runner, certificate: Path, pieces: int) -> None:
    """A refusal that repeats a key, whole or in two lines, is told without it."""
    key = run.json("generate_api_key", "--client", "acme")
    text: str = key["key"]
    quoted = "= ".join([text] if pieces == 1 else [text[:45], text[45:]])
    with running_sink(certificate) as sink:
        sink.refusal = f"554 LOGGER_API_KEY={quoted} looks like spam"
        mail = _mail_settings(sink, certificate)
        arguments = ("--key-id", key["key_id"], "--to", TO, "--send", "--inline-key")
        done = run("onboarding_email", *arguments, answer=f"{text}\n", **mail)
    assert done.returncode == 1
    assert "554 LOGGER_API_KEY=" in done.stderr
    assert "looks like spam" in done.stderr
    secret = text[-49:]
    assert not any(secret[i : i + 20] in done.stderr for i in range(len(secret) - 20))
