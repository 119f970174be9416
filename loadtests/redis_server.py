"""A Redis server of one's own, for tests and benches of the limits that are counted there."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from redis import Redis

from loadtests.server import HOST, ServerError, free_port

START_S_MAX = 20.0


def redis_program() -> str | None:
    """Find the server: that of a wheel beside the interpreter, else this machine's."""
    beside = Path(sys.executable).with_name("redis-server")
    return str(beside) if beside.is_file() else shutil.which("redis-server")


class RedisServer:
    """A server on a free port that keeps nothing on disk; it may be killed and started again."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Give the URL by which the service reaches it."""
        return f"redis://{HOST}:{self.port}/0"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def client(self, **options: str) -> "Redis":
        """Give a client, to be closed."""
        return Redis(host=HOST, port=self.port, **options)  # type: ignore[arg-type]

    def start(self) -> None:
        """Start it, and wait until it listens."""
        program = redis_program()
        if program is None:
            raise ServerError("there is no redis-server")
        self._process = subprocess.Popen(  # noqa: S603  # found above
            [program, *self._arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + START_S_MAX
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise ServerError("redis-server does not start")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def send_signal(self, number: int) -> None:
        """Signal it: stopped, it is there and answers nothing."""
        if self._process is not None:
            self._process.send_signal(number)

    def _arguments(self) -> Sequence[str]:
        saving_nothing = ("--save", "", "--appendonly", "no", "--dir", tempfile.gettempdir())
        return ("--port", str(self.port), "--bind", HOST, *saving_nothing, *self._options)

    def _listens(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
