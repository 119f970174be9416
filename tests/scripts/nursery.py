"""An interpreter that has imported all that the commands need, and forks for each one that is run.

Three quarters of a second of each command are its imports, and the tests run hundreds. A command
still is a process of its own, with its own streams, directory and environment, and ends as any.
"""

import gc
import json
import os
import runpy
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, TypedDict

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
COMMANDS = sorted(file.stem for file in SCRIPTS.glob("[!_]*.py"))
# What commands import only once they need it.
_LATER = ("alembic.command", "boto3", "hvac", "azure.identity", "azure.keyvault.secrets")
_STREAMS = ("stdin", "stdout", "stderr")


class _Order(TypedDict):
    """A command to run; `streams` is the directory of the files that are its streams."""

    command: str
    arguments: list[str]
    cwd: str
    environment: dict[str, str]
    streams: str


class Nursery:
    """Runs commands one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", __name__],
            cwd=SCRIPTS.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        command: str,
        arguments: list[str],
        cwd: Path,
        environment: dict[str, str],
        answer: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with `answer` on its standard input, to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with TemporaryDirectory() as directory:
            streams = {name: Path(directory, name) for name in _STREAMS}
            streams["stdin"].write_text(answer)
            order = _Order(
                command=command,
                arguments=arguments,
                cwd=str(cwd),
                environment=environment,
                streams=directory,
            )
            print(json.dumps(order), file=self._process.stdin, flush=True)
            status = int(self._process.stdout.readline())
            output, errors = streams["stdout"].read_text(), streams["stderr"].read_text()
        return subprocess.CompletedProcess([command, *arguments], status, output, errors)


@cache
def nursery() -> Nursery:
    """Give the one of this process; it ends with it, at the end of its standard input."""
    return Nursery()


def _serve() -> None:
    """Fork for each order; a child leaves the loop, and ends as a script of its own would."""
    sys.path[0] = str(SCRIPTS)
    for name in COMMANDS:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="imported")
    for name in _LATER:
        import_module(name)
    gc.freeze()
    orders = os.fdopen(os.dup(0))
    replies = os.fdopen(os.dup(1), "w")
    for line in orders:
        child = os.fork()
        if not child:
            orders.close()
            replies.close()
            _become(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=replies, flush=True)


def _become(order: _Order) -> NoReturn:
    """Run a command in this process, to its end."""
    for number, name in enumerate(_STREAMS):
        flags = os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY
        os.dup2(os.open(Path(order["streams"], name), flags, 0o600), number)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    script = str(SCRIPTS / f"{order['command']}.py")
    sys.argv = [script, *order["arguments"]]
    runpy.run_path(script, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    _serve()
