"""What all commands share, at a terminal and where there is nothing to work on."""

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from app.keys.token import mint
from tests.scripts.nursery import COMMANDS
from tests.scripts.runner import Runner, error_line

DEADLINE_S = 20.0


class Terminal:
    """A command at a terminal."""

    def __init__(self, run: Runner, command: str, *arguments: str) -> None:
        self._terminal, inner = pty.openpty()
        # Its controlling terminal is the first one that a session's leader opens.
        shell = ["sh", "-c", 'exec "$@" <"$0"', os.ttyname(inner)]
        self.process = subprocess.Popen(
            [*shell, *run.command(command, *arguments)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=run.cwd,
            env=run.environment,
            start_new_session=True,
        )
        os.close(inner)
        self.shown = ""

    def read_until(self, part: str) -> None:
        """Read what is shown until a part of it is there."""
        deadline = time.monotonic() + DEADLINE_S
        while part not in self.shown and time.monotonic() < deadline:
            self._read()
        assert part in self.shown

    def close(self) -> None:
        """Close the terminal."""
        os.close(self._terminal)

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._terminal, text.encode())

    def end(self) -> int:
        """Read the rest; give the exit status."""
        while self._read():
            pass
        self.close()
        return self.process.wait(DEADLINE_S)

    def _read(self) -> bool:
        try:
            piece = os.read(self._terminal, 4096)
        except OSError:  # Linux's way to say that nobody is at the other end
            return False
        self.shown += piece.decode()
        return bool(piece)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("list_api_keys", []),
        ("revoke_api_key", ["abc", "--yes"]),
        ("rotate_api_key", ["abc"]),
        ("rotate_api_key", ["abc", "--notify", "ops@acme.example"]),
        ("onboarding_email", ["--client", "acme", "--to", "ops@acme.example"]),
    ],
)
@pytest.mark.parametrize("has_url", [False, True])
def test_no_database_is_made_where_none_is(
    run: Runner, command: str, arguments: list[str], has_url: bool
) -> None:
    """What works on keys that exist says that there is no database, and makes nothing."""
    path, environment = run.data_dir / "control.db", {}
    if has_url:
        path = run.data_dir / "moved.db"
        environment = {"DATABASE_URL": f"sqlite:///{path}", "SECRET_KEY": "x" * 32}
    done = run(command, *arguments, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"there is no control database at {path}; " in error_line(done.stderr)
    assert not run.data_dir.exists()
    assert list(run.cwd.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_still_starting(run: Runner, tmp_path: Path, command: str) -> None:
    """Ctrl-C while the libraries are loaded ends it without a word."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'sqlalchemy':\n"
        "            print('loading', flush=True)\n"
        f"            time.sleep({DEADLINE_S})\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    environment = {**run.environment, "PYTHONPATH": str(tmp_path)}
    process = run.start(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=DEADLINE_S) == ("", "")
    assert process.returncode == -signal.SIGINT


def test_a_terminal_that_is_gone(run: Runner) -> None:
    """A question whose terminal is closed ends the command by the signal's status."""
    terminal = Terminal(run, "generate_api_key")
    terminal.read_until(": ")
    terminal.close()
    assert terminal.process.wait(DEADLINE_S) == 128 + signal.SIGHUP
    assert not run.data_dir.exists()


@pytest.mark.parametrize("command", ["list_api_keys", "onboarding_email", "revoke_api_key"])
def test_an_empty_file_is_no_database(run: Runner, command: str) -> None:
    """A file of no bytes is not made a database of, and nothing is told of the keys in it."""
    run.data_dir.mkdir()
    (run.data_dir / "control.db").touch()
    done = run(command, *(["abc"] if command == "revoke_api_key" else []))
    assert (done.returncode, done.stdout) == (1, "")
    assert "control.db is no control database" in error_line(done.stderr)
    assert (run.data_dir / "control.db").stat().st_size == 0


@pytest.mark.parametrize("command", ["generate_api_key", "revoke_api_key", "create_admin_key"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_question_that_is_interrupted(run: Runner, command: str, number: signal.Signals) -> None:
    """A signal at a question ends with its status and one line of its own, and makes nothing."""
    terminal = Terminal(run, command)
    terminal.read_until(": ")
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number
    assert terminal.shown.endswith("\r\nError: interrupted\r\n")
    assert "Traceback" not in terminal.shown
    assert not run.data_dir.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(run: Runner, number: signal.Signals) -> None:
    """Under nohup, or wherever else a signal is ignored, the command goes on."""
    ignoring = f'trap "" {number.name.removeprefix("SIG")}; exec "$@"'
    process = subprocess.Popen(
        ["sh", "-c", ignoring, "sh", *run.command("generate_api_key", "--json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=run.environment,
    )
    assert process.stderr is not None
    assert process.stderr.read(5) == b"Enter"
    process.send_signal(number)
    made, _ = process.communicate(b"acme\n", timeout=DEADLINE_S)
    assert (process.returncode, json.loads(made)["client_id"]) == (0, "acme")


def test_a_pasted_key_is_not_shown(run: Runner) -> None:
    """A terminal shows nothing of a key that is pasted at it."""
    key = run.json("generate_api_key", "--client", "acme")
    arguments = ("--key-id", key["key_id"], "--to", "ops@acme.example")
    terminal = Terminal(run, "onboarding_email", *arguments)
    terminal.read_until("Paste the API key (empty to leave it out): ")
    # The question is written after the echo was switched off.
    terminal.type(f"{key['key']}\n")
    assert terminal.end() == 0
    assert "Its claim link works once" in terminal.shown
    assert key["key"][-49:] not in terminal.shown


@pytest.mark.parametrize("command", ["generate_api_key", "list_api_keys"])
def test_closed_standard_error(run: Runner, command: str) -> None:
    """Without a standard error what it gets is dropped, not mixed into the output of machines."""
    arguments = ["--client", "acme"] if command == "generate_api_key" else []
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *run.command(command, *arguments, "--json")]
    done = subprocess.run(shell, stdout=subprocess.PIPE, env=run.environment, check=False)
    if command == "generate_api_key":
        assert (done.returncode, done.stdout[:1], done.stdout[-2:]) == (0, b"{", b"}\n")
    else:
        assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ("revoke_api_key", "{}", "--yes"),
        ("rotate_api_key", "{}"),
        ("generate_api_key", "--client", "acme", "--role", "{}"),
        ("generate_api_key", "{}"),
        ("list_api_keys", "--due", "{}"),
        ("usage_report", "--client", "{}"),
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(run: Runner, arguments: tuple[str, ...]) -> None:
    """What a command complains of goes to journals: a key among it is blotted out."""
    assert run("generate_api_key", "--client", "acme").returncode == 0
    token = mint("cl_live", "acme").text
    name, *others = arguments
    done = run(name, *(one.format(token) for one in others))
    assert done.returncode in {1, 2}
    assert token not in done.stdout + done.stderr
    assert "Error" in done.stderr or "error" in done.stderr


@pytest.mark.parametrize(
    "command", [("generate_api_key", "--client", "acme"), ("create_admin_key", "--name", "alice")]
)
def test_a_secret_that_is_not_the_servers(run: Runner, command: tuple[str, ...]) -> None:
    """Without the server's secret no key is made that would work nowhere, nor another secret."""
    made = run.json("generate_api_key", "--client", "acme")
    secret = run.data_dir / "secret.key"
    text = secret.read_text()
    other = run(*command, SECRET_KEY="another secret of a server")
    assert "no stored key was made under this SECRET_KEY" in error_line(other.stderr)
    secret.unlink()
    none = run(*command)
    assert f"{secret} is not there" in error_line(none.stderr)
    assert (other.returncode, none.returncode) == (1, 1)
    assert not secret.exists()
    secret.write_text(text)
    (listed,) = run.json("list_api_keys", "--include-inactive")["api_keys"]
    assert listed["key_id"] == made["key_id"]
