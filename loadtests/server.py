"""Servers under load, each in processes of their own: the product, and bare ASGI apps.

Whoever starts one stops it, by its pid and those of its children, never by a name.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 15.0

# What `central-logger serve` sets too: a baseline under other flags would measure the flags.
UVICORN_FLAGS = (
    *("--loop", "uvloop", "--http", "httptools", "--ws", "none"),
    *("--no-proxy-headers", "--no-access-log", "--log-level", "warning"),
)
# In force, so that they cost what they cost, but never met.
BENCH_LIMITS = {
    "DEFAULT_REQUESTS_PER_MINUTE": str(10**9),
    "DEFAULT_LOGS_PER_MINUTE": str(10**10),
    "DEFAULT_BYTES_PER_MINUTE": str(10**13),
}


class ServerError(Exception):
    """A server, or the script that makes its keys, did not do what it was started for."""


@dataclass(frozen=True)
class Server:
    """A running server and how long it took from its start until it was ready."""

    process: psutil.Popen
    port: int
    start_s: float
    output: IO[bytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def tree(self) -> list[psutil.Process]:
        """Give the process and all its descendants."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def rss_bytes(self) -> int:
        """Sum the resident memory of the tree; pages that its processes share count in each."""
        total = 0
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def cpu_s(self) -> float:
        """Sum the CPU time that the tree has used since its start."""
        total = 0.0
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stop(self) -> int | None:
        """Ask the server to end, then kill what is left; give its exit code, None if killed."""
        tree = self.tree()
        if tree:
            self.process.terminate()
        try:
            code: int | None = self.process.wait(STOP_SECONDS_MAX)
        except psutil.TimeoutExpired:
            code = None
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if code is None:
            self.process.wait()
        self.output.close()
        return code

    def log_tail(self, lines: int = 20) -> str:
        """Give the last lines that the server wrote."""
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def start_product(data_dir: Path, env: dict[str, str] | None = None, workers: int = 1) -> Server:
    """Start central-logger on `data_dir` with `env` over the bench's limits, and await it."""
    port = free_port()
    command = ["app", "serve", "--port", str(port), "--workers", str(workers)]
    return _start(command, port, product_env(data_dir, env))


def start_asgi(app: str = "loadtests.echo:app") -> Server:
    """Start a bare ASGI app under the product's server flags, one worker, and await it."""
    port = free_port()
    command = ["uvicorn", app, "--host", HOST, "--port", str(port), *UVICORN_FLAGS]
    return _start(command, port, _clean_env())


def product_env(data_dir: Path, env: dict[str, str] | None = None) -> dict[str, str]:
    """Give the environment of the product and its scripts: none of the caller's own settings."""
    return _clean_env() | {"DATA_DIR": str(data_dir)} | BENCH_LIMITS | (env or {})


def make_key(
    data_dir: Path, client_id: str, env: dict[str, str] | None = None, *, role: str = "client"
) -> str:
    """Make a client and a key of it with the product's own script; give the key."""
    arguments = ["--client", client_id, "--role", role]
    return _printed_key("generate_api_key.py", arguments, product_env(data_dir, env))


def make_admin_key(data_dir: Path, env: dict[str, str] | None = None) -> str:
    """Make a key of the platform with the product's own script; give the key."""
    return _printed_key("create_admin_key.py", ["--name", "admin"], product_env(data_dir, env))


def _printed_key(name: str, arguments: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(  # noqa: S603  # our own script
        [sys.executable, str(ROOT / "scripts" / name), *arguments, "--json"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise ServerError(f"{name}: exit {done.returncode}: {done.stderr.decode()[-500:]}")
    return str(json.loads(done.stdout)["key"])


def free_port() -> int:
    """Give a port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _clean_env() -> dict[str, str]:
    """Keep what a process needs of our environment; a developer's settings must not leak in.

    `.env` is read too but comes second, so the settings that a bench depends on are all given.
    """
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    return env | {"PYTHONPATH": str(ROOT), "HOST": HOST}


def _start(command: list[str], port: int, env: dict[str, str]) -> Server:
    output = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
    started_s = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        _await_ready(process, port, started_s + READY_SECONDS_MAX)
    except BaseException as error:
        server = Server(process, port, 0.0, output)
        tail = server.log_tail()
        server.stop()
        if isinstance(error, ServerError):
            raise ServerError(f"{' '.join(command)}: {error}\n{tail}") from None
        raise
    return Server(process, port, time.perf_counter() - started_s, output)


def _await_ready(process: psutil.Popen, port: int, until_s: float) -> None:
    while time.perf_counter() < until_s:
        if process.poll() is not None:
            raise ServerError(f"ended with exit code {process.poll()} before it was ready")
        with suppress(OSError):
            if _answers_ready(port):
                return
        time.sleep(0.01)
    raise ServerError(f"was not ready within {READY_SECONDS_MAX:.0f} s")


def _answers_ready(port: int) -> bool:
    request = b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with socket.create_connection((HOST, port), timeout=2) as connection:
        connection.sendall(request)
        return connection.recv(12).startswith(b"HTTP/1.1 2")
