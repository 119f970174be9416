"""A running service under test: load on it, its processes, and what it has stored."""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies

from app.logs.identity import parse_id
from app.logs.query import LogQuery, UsageQuery
from app.storage.sqlite.reader import SqliteReader
from loadtests.server import HOST, Server

WAIT_S_MAX = 30.0
PATH = "/api/v1/logs"
Reply = tuple[int, dict[str, str], bytes]


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Return as soon as something is true; fail if it does not become so."""
    deadline = time.monotonic() + WAIT_S_MAX
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


class WholeConnection(HTTPConnection):
    """Sends a request in one piece, as most clients do; http.client's own send two."""

    _parts: list[bytes] | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request."""
        self._parts = []
        super().request(*args, **kwargs)
        whole, self._parts = b"".join(self._parts), None
        super().send(whole)

    def send(self, data: Any) -> None:
        """Gather the parts of a request."""
        if self._parts is None:
            super().send(data)
        else:
            self._parts.append(data)


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Reply:
    """Send one request on a connection of its own; raise OSError or HTTPException."""
    connection = HTTPConnection(HOST, port, timeout=WAIT_S_MAX)
    try:
        connection.request(method, path, body, headers or {})
        return read_reply(connection)
    finally:
        connection.close()


def read_reply(connection: HTTPConnection) -> Reply:
    """Give status, headers in lower case, and body of the reply that is due."""
    response = connection.getresponse()
    names = {name.lower(): value for name, value in response.getheaders()}
    return response.status, names, response.read()


def is_up(port: int) -> bool:
    """Say whether the service can store logs."""
    with suppress(OSError, HTTPException):
        return ask(port, "GET", "/health/ready")[0] == 200
    return False


def writer_in(server: Server) -> list[psutil.Process]:
    """Give the writer processes of a server: one, or none for a moment."""
    return [one for one in server.tree() if "app.storage.sqlite.writer" in _command(one)]


def the_writer_in(server: Server) -> psutil.Process:
    """Give the one writer process; of two that start at one time, one leaves at once."""
    found: list[psutil.Process] = []

    def is_alone() -> bool:
        found[:] = writer_in(server)
        return len(found) == 1

    wait_until(is_alone, "one writer")
    return found[0]


def workers_in(server: Server) -> list[psutil.Process]:
    """Give the HTTP workers of a server that has several."""
    return [one for one in server.tree() if any("spawn_main" in word for word in _command(one))]


def kill_all(server: Server) -> None:
    """Kill every process of a server at once, as a power cut does, and wait for their end."""
    tree = server.tree()
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.suspend()  # so that none of them sees another's death
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, timeout=WAIT_S_MAX)


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        words: list[str] = process.cmdline()
        return words
    return []


@dataclass
class Load:
    """Senders of logs with run_ids that never repeat, and what became of each request."""

    port: int
    key: str
    name: str
    acknowledged: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)  # may be stored or not
    statuses: Counter[int] = field(default_factory=Counter)
    refusals: list[Reply] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, senders: int = 6) -> Iterator["Load"]:
        """Send until the block ends."""
        threads = [
            threading.Thread(target=self._send_all, args=(number,)) for number in range(senders)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(WAIT_S_MAX)
        assert not self.faults, self.faults
        assert not any(thread.is_alive() for thread in threads)

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more logs were acknowledged."""
        goal = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= goal or self.faults, f"{count} more logs")

    def _send_all(self, sender: int) -> None:
        try:
            connection = WholeConnection(HOST, self.port, timeout=WAIT_S_MAX)
            number = 0
            while not self._stop.is_set():
                number += 1
                # Most senders send one at a time, the others in batches, with and without own ids.
                size = 1 if sender % 3 else 40
                runs = [f"{self.name}-{sender}-{number}-{n}" for n in range(size)]
                if not self._send(connection, runs, own_ids=bool(sender % 2)):
                    connection.close()
                    self._stop.wait(0.02)
                # Some thousand logs a second: more would take the time of tests that run beside.
                self._stop.wait(0.0005 * size if size > 1 else 0.002)
            connection.close()
        except Exception as error:  # noqa: BLE001  # told to the test, which fails with it
            self.faults.append(error)

    def _send(self, connection: HTTPConnection, runs: list[str], *, own_ids: bool) -> bool:
        body = b"\n".join(_log(run, own_id=own_ids) for run in runs)
        kind = "json" if len(runs) == 1 else "x-ndjson"
        headers = {"X-API-Key": self.key, "Content-Type": f"application/{kind}"}
        try:
            connection.request("POST", PATH, body, headers)
            reply = read_reply(connection)
        except (OSError, HTTPException):
            self.unanswered.update(runs)
            return False
        self.statuses[reply[0]] += 1
        if reply[0] == 201:
            answer = json.loads(reply[2])
            if len(runs) == 1:
                assert "id" in answer
                assert "duplicate" not in answer
            else:
                assert (answer["accepted"], answer["duplicates"]) == (len(runs), 0)
            self.acknowledged.update(runs)
            return True
        self.unanswered.update(runs)  # a 503 for want of an answer may be stored all the same
        self.refusals.append(reply)
        return False


def _log(run: str, *, own_id: bool) -> bytes:
    log: dict[str, Any] = {
        "environment": "production",
        "executed_at": time.time(),
        "status": "SUCCESS",
        "run_id": run,
        "message": f"all of {run}" + " and more" * 20,
        "metadata": {"run": run},
    }
    if own_id:
        log["id"] = run
    return json.dumps(log).encode()


def stored_logs(data_dir: Path, client_id: str) -> list[dict[str, Any]]:
    """Read all logs of a client from the files, whether a server runs or not."""
    reader = SqliteReader(data_dir / "logs")
    logs: list[dict[str, Any]] = []
    after = None
    while True:
        page = reader.page(LogQuery(client_id, limit=1000, order="asc", after=after), math.inf)
        logs += json.loads(f"[{page.logs}]")
        if page.last_id is None:
            reader.close()
            return logs
        after = parse_id(page.last_id)


def stored_usage(data_dir: Path, client_id: str) -> tuple[int, int]:
    """Give the requests and logs that a client's usage counts."""
    reader = SqliteReader(data_dir / "logs")
    rows = reader.usage(UsageQuery(client_id, "key"), math.inf)
    reader.close()
    return sum(row.counts[0] for row in rows), sum(row.counts[1] for row in rows)


def check_stored(data_dir: Path, client_id: str, *loads: Load) -> None:
    """Check that what was acknowledged is stored once and whole, and that usage agrees."""
    logs = stored_logs(data_dir, client_id)
    runs = [log["run_id"] for log in logs]
    acknowledged = set().union(*(load.acknowledged for load in loads))
    unanswered = set().union(*(load.unanswered for load in loads))
    assert len(runs) == len(set(runs))
    assert acknowledged - set(runs) == set()
    assert set(runs) - acknowledged - unanswered == set()
    for log in logs:
        assert log["message"] == f"all of {log['run_id']}" + " and more" * 20
        assert log["metadata"] == {"run": log["run_id"]}
    # A batch is stored whole or not at all.
    batches = Counter(run.rpartition("-")[0] for run in runs)
    assert all(
        size == (1 if int(name.split("-")[-2]) % 3 else 40) for name, size in batches.items()
    )
    assert stored_usage(data_dir, client_id) == (len(batches), len(runs))
