"""Runs the commands of scripts/ as their users do."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.keys.bootstrap import open_secrets
from app.keys.configured import ConfiguredKeys
from app.keys.database import embedded_url, open_engine
from app.keys.keyring import Keyring
from app.keys.principal import UNLIMITED, Principal
from app.keys.verifier import Peppers

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


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
        return subprocess.run(
            [sys.executable, "-W", "error", SCRIPTS / f"{command}.py", *arguments],
            input=answer,
            capture_output=True,
            text=True,
            cwd=self.cwd,
            env={**self.environment, **environment},
            check=False,
        )

    def json(self, command: str, *arguments: str) -> Any:
        """Run it with --json and read what it printed."""
        done = self(command, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def resolve(self, token: str) -> Principal:
        """Say who a key is, as a server on this data directory would."""
        engine = open_engine(embedded_url(self.data_dir))
        peppers = Peppers(open_secrets(self.data_dir, ()))
        keyring = Keyring(engine, peppers, UNLIMITED, ConfiguredKeys(peppers, {}))
        try:
            return asyncio.run(keyring.resolve(token))
        finally:
            keyring.close()
            engine.dispose()
