"""What the benches share: servers that end with the run, a store of many logs, the table."""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from loadtests.http_client import Plan, build_request, run_in_process
from loadtests.records import ndjson, simple_record
from loadtests.server import ROOT, Server, make_key, start_product

RESULTS = ROOT / "bench-results"
INGEST = "/api/v1/logs"
BATCH_LOGS = 1000
SEED_CONNECTIONS = 8
SEED_ROUND_BATCHES = 100  # bodies are made 100 at a time, 34 MB, not all before the first is sent


@dataclass(frozen=True)
class Row:
    """One line of the table; `detail` goes to the JSON file only."""

    name: str
    figure: str
    baseline: str
    goal: str
    passed: bool
    ratio: float | None = None  # where the baseline is of the same kind
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass
class Loaded:
    """The product with many logs of several clients in it."""

    server: Server
    data_dir: Path
    keys: list[str]
    logs: int
    rss_bytes: int  # just after the last log
    logs_per_s: float


Bench = Callable[["Lab"], Row]
BENCHES: dict[str, Bench] = {}


def bench(name: str) -> Callable[[Bench], Bench]:
    """Register a function that gives one row; benches run in the order of their definition."""

    def register(function: Bench) -> Bench:
        BENCHES[name] = function
        return function

    return register


class Lab:
    """One run of the benches: a scratch directory, and what was started in it."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self._stack = ExitStack()
        self._directories = 0
        self._loaded: Loaded | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @cached_property
    def scratch(self) -> Path:
        """A directory beside the results, not in /tmp: that may be memory, where fsync is free."""
        RESULTS.mkdir(exist_ok=True)
        name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=RESULTS))
        return Path(name)

    def directory(self) -> Path:
        """Give a new empty directory."""
        self._directories += 1
        path = self.scratch / str(self._directories)
        path.mkdir()
        return path

    def keep(self, server: Server) -> Server:
        """Have `server` stopped at the end of the run, if it still runs then."""
        return self._stack.enter_context(server)

    def product(self) -> tuple[Server, str]:
        """Start the product on an empty directory with one worker; give it with a key."""
        directory = self.directory()
        key = make_key(directory, "bench")
        return self.keep(start_product(directory)), key

    def loaded(self) -> Loaded:
        """Give the product with a million logs of 20 clients in it; the first call fills it."""
        if self._loaded is None:
            self._loaded = self.load(clients=20, logs=100_000 if self.quick else 1_000_000)
        return self._loaded

    def load(self, clients: int, logs: int) -> Loaded:
        """Give the product with so many logs in it, of clients that have as many each."""
        directory = self.directory()
        keys = [make_key(directory, f"bench-{number:02d}") for number in range(clients)]
        return self.fill(directory, keys, logs, _seed_rounds(keys, logs // BATCH_LOGS))

    def fill(
        self, directory: Path, keys: list[str], logs: int, rounds: Iterable[tuple[bytes, ...]]
    ) -> Loaded:
        """Start the product on a directory and send it these rounds of requests, `logs` in all."""
        server = self.keep(start_product(directory))
        elapsed_s = 0.0
        for requests in rounds:
            plan = Plan(server.port, requests, SEED_CONNECTIONS, count=len(requests))
            elapsed_s += run_in_process(plan).require(201).elapsed_s
        return Loaded(server, directory, keys, logs, server.rss_bytes(), logs / elapsed_s)


def ingest_request(key: str, body: bytes, *, lines: bool = False) -> bytes:
    """Give the bytes of one POST of a record, or of a batch, a record a line."""
    content_type = "application/x-ndjson" if lines else "application/json"
    return build_request("POST", INGEST, body, {"X-API-Key": key, "Content-Type": content_type})


def batch_body(number: int, start_ns: int) -> bytes:
    """Give the body of a batch of 1,000; the numbers follow each other."""
    first = number * BATCH_LOGS
    return ndjson(simple_record(i, start_ns) for i in range(first, first + BATCH_LOGS))


def _seed_rounds(keys: list[str], batches: int) -> Iterator[tuple[bytes, ...]]:
    """Yield requests by the hundred; the clients take turns and each has the same times."""
    start_ns = time.time_ns() - 3600 * 10**9
    for first in range(0, batches, SEED_ROUND_BATCHES):
        numbers = range(first, min(first + SEED_ROUND_BATCHES, batches))
        yield tuple(
            ingest_request(
                keys[number % len(keys)], batch_body(number // len(keys), start_ns), lines=True
            )
            for number in numbers
        )


def render(rows: list[Row]) -> str:
    """Give the table, aligned, a line for each row."""
    cells = [("bench", "figure", "baseline", "ratio", "goal", "")]
    cells += [
        (
            row.name,
            row.figure,
            row.baseline,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.goal,
            "pass" if row.passed else "FAIL",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def write_results(rows: list[Row], *, quick: bool, directory: Path = RESULTS) -> Path:
    """Write the rows, their details and the machine to a JSON file; give its path."""
    now = datetime.now(UTC)
    results = {
        "at": now.isoformat(timespec="seconds"),
        "quick": quick,
        "python": sys.version.split()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "rows": [asdict(row) for row in rows],
    }
    directory.mkdir(exist_ok=True)
    path = directory / f"bench-{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return path
