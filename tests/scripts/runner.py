"""Runs the commands of scripts/ as their users do."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from app.keys.bootstrap import open_secrets
from app.keys.configured import ConfiguredKeys
from app.keys.database import embedded_url, open_current, open_engine
from app.keys.keyring import Keyring
from app.keys.principal import UNLIMITED, Principal
from app.keys.verifier import Peppers
from tests.scripts.nursery import SCRIPTS, nursery

# A key of ours, or the token of a claim link.
SECRET = re.compile(r"cl_\w+_[0-9A-Za-z]{61}")


def error_line(stderr: str) -> str:
    """Give the one line of a refusal.

    Lines before it may tell that a database was made, or that no mail server is set.
    """
    before = ("prepared ", "SMTP_URL is not set: the mail is written to a file")
    (line,) = (one for one in stderr.splitlines() if not one.startswith(before))
    assert line.startswith("Error: ")
    assert not SECRET.search(line)
    return line


class Runner:
    """Runs commands on one data directory, from a directory of no importance."""

    def __init__(self, directory: Path) -> None:
        self.cwd = directory / "elsewhere"
        self.cwd.mkdir()
        self.data_dir = directory / "data"
        self.environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(self.data_dir)}

    def __call__(
        self, command: str, *arguments: str, answer: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it with `answer` on its standard input."""
        chosen = {**self.environment, **environment}
        if "PYTHONPATH" not in environment:
            return nursery().run(command, [*arguments], self.cwd, chosen, answer)
        # What it imports is not to be what others do.
        return subprocess.run(
            self.command(command, *arguments),
            input=answer,
            capture_output=True,
            text=True,
            cwd=self.cwd,
            env=chosen,
            check=False,
        )

    def command(self, command: str, *arguments: str) -> list[str]:
        """Give what starts it."""
        return [sys.executable, "-W", "error", str(SCRIPTS / f"{command}.py"), *arguments]

    def start(self, command: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start it, as Popen's options say, with its standard error on a pipe."""
        return subprocess.Popen(
            self.command(command, *arguments),
            stderr=subprocess.PIPE,
            text=True,
            **{"cwd": self.cwd, "env": self.environment, **options},
        )

    def unheard(self, how: str, command: str, *arguments: str) -> str:
        """Run it where its output is `full`, `closed` or `left` by its reader; give its one line.

        It has to end with 1.
        """
        reader, writer = os.pipe()
        os.close(reader)
        redirection = {"full": ">/dev/full", "closed": ">&-", "left": ""}[how]
        shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
        done = subprocess.run(
            [*shell, *self.command(command, *arguments)],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.cwd,
            env=self.environment,
            check=False,
        )
        os.close(writer)
        assert done.returncode == 1, done.stderr
        return error_line(done.stderr)

    def prepare(self) -> None:
        """See that there is a database."""
        open_current("", self.data_dir).dispose()

    @contextmanager
    def control(self) -> Iterator[Engine]:
        """Open the database that the commands work on."""
        engine = open_engine(embedded_url(self.data_dir))
        try:
            yield engine
        finally:
            engine.dispose()

    def json(self, command: str, *arguments: str) -> Any:
        """Run it with --json and read what it printed."""
        done = self(command, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def resolve(self, token: str) -> Principal:
        """Say who a key is, as a server on this data directory would."""
        peppers = Peppers(open_secrets(self.data_dir, ()))
        with self.control() as engine:
            keyring = Keyring(engine, peppers, UNLIMITED, ConfiguredKeys(peppers, {}))
            try:
                return asyncio.run(keyring.resolve(token))
            finally:
                keyring.close()
