"""What it costs to ask of three days of logs, while 2,000 a second arrive."""

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple
from urllib.parse import urlencode

from loadtests.bench_logs import ARRIVING_LOGS_PER_S, arrivals
from loadtests.bench_queries import await_sealed
from loadtests.http_client import Plan, build_request, run_in_process, start
from loadtests.lab import (
    BATCH_LOGS,
    INGEST,
    SEED_ROUND_BATCHES,
    Lab,
    Loaded,
    Row,
    bench,
    ingest_request,
)
from loadtests.records import DAY_NS, Record, ndjson, records
from loadtests.server import make_admin_key, make_key

CLIENTS = 20
LOGS, LOGS_QUICK = 3_000_000, 300_000
DAYS = 3
ASKED_PER_S = 20
# Of questions that read every log of a client, or ask of all clients.
HEAVY_PER_S = 4
ASKING_CONNECTIONS = 4
RARE_WORDS = 50
DISK_PART_MAX = 0.5
INGEST_PART_MIN = 0.9
COMMON_WORD = "orders"
# Numbers in a message that hardly any other one has.
_RARE = re.compile(r"\b\d{6,}\b")


@dataclass
class History(Loaded):
    """The product after three days, and words that stand in few logs of each client."""

    admin: str = ""
    received_bytes: int = 0
    disk_bytes: int = 0
    rare_words: list[list[str]] = field(default_factory=list)


class Question(NamedTuple):
    """What is asked again and again, in turn by each client, and how soon it must be answered."""

    name: str
    title: str
    p95_ms_max: float
    requests: Callable[[History], list[bytes]]
    per_s: int = ASKED_PER_S


def _get(history: History, *queries: dict[str, str]) -> list[bytes]:
    return [
        build_request("GET", f"{INGEST}?{urlencode(query)}", headers={"X-API-Key": key})
        for query in queries
        for key in history.keys
    ]


def _table(keys: list[str], body: Record) -> list[bytes]:
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return [
        build_request("POST", "/api/v1/query", content, {**headers, "X-API-Key": key})
        for key in keys
    ]


def _rare(history: History) -> list[bytes]:
    return [
        build_request("GET", f"{INGEST}?q={word}", headers={"X-API-Key": key})
        for key, words in zip(history.keys, history.rare_words, strict=True)
        for word in words
    ]


# With both bounds, as a dashboard asks; some logs stray years from the others.
BY_HOUR = {
    "metrics": ["count"],
    "dimensions": ["time:1h", "status"],
    "from": f"-{DAYS}d",
    "to": "-0s",
    "limit": 10_000,
}
SLOWEST = {"metrics": ["p95_duration_ms"], "dimensions": ["workflow"]}
SYNC = {"workflow": "order-sync"}
QUESTIONS = (
    Question("newest", "newest 100", 10, lambda history: _get(history, {})),
    Question(
        "filtered",
        "newest 100 of a status and workflow",
        15,
        lambda history: _get(history, {"status": "FAILED", **SYNC}, {"status": "SUCCESS", **SYNC}),
    ),
    Question("rare-word", "a rare word, all days", 30, _rare),
    Question("common-word", "a common word, newest 100", 15, lambda h: _get(h, {"q": COMMON_WORD})),
    Question("by-hour", "count by hour and status", 15, lambda h: _table(h.keys, BY_HOUR)),
    Question(
        "by-hour-all",
        "the same of all clients",
        100,
        lambda h: _table([h.admin], {**BY_HOUR, "client_id": "*"}),
        HEAVY_PER_S,
    ),
    Question(
        "p95",
        "p95 of durations by workflow",
        250,
        lambda h: _table(h.keys, SLOWEST),
        HEAVY_PER_S,
    ),
)


def ask(question: Question, lab: Lab) -> Row:
    """Ask at a steady rate, while 2,000 logs a second arrive."""
    seconds = 6.0 if lab.quick else 20.0
    history = three_days(lab)
    arriving = start(arrivals(history, seconds + 3))
    try:
        time.sleep(1.5)  # until the arrivals are under way
        answers = run_in_process(_asking(question, history, seconds)).require(200)
    finally:
        arrived = arriving.wait()
    rate = arrived.require(201).requests_per_s
    return Row(
        name=f"{question.title}, {history.logs:,} logs of {DAYS} days",
        figure=f"p95 {answers.p95_ms:.1f} ms (p50 {answers.p50_ms:.1f}, p99 {answers.p99_ms:.1f})",
        baseline=f"{question.per_s} a second, while {rate:,.0f} logs/s arrive",
        goal=f"p95 <= {question.p95_ms_max:.0f} ms",
        passed=answers.p95_ms <= question.p95_ms_max and rate >= 0.98 * ARRIVING_LOGS_PER_S,
        detail={"asked": answers.requests, "arrivals_p99_ms": arrived.p99_ms},
    )


for _question in QUESTIONS:
    bench(_question.name)(partial(ask, _question))


@bench("ingest-beside")
def ingest_beside_questions(lab: Lab) -> Row:
    """Store one log a request, with all of the questions asked in turn and without."""
    rounds, seconds = (2, 3.0) if lab.quick else (5, 5.0)
    history = three_days(lab)
    requests = tuple(
        request for question in QUESTIONS for request in question.requests(history)[:CLIENTS]
    )
    flood = arrivals(history, seconds)
    flood = Plan(flood.port, flood.requests, 64, seconds=seconds)
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(run_in_process(flood).require(201).requests_per_s)
        asking = start(Plan(flood.port, requests, 1, seconds=seconds, rate_per_s=HEAVY_PER_S))
        beside.append(run_in_process(flood).require(201).requests_per_s)
        asking.wait().require(200)
    ratio = sorted(b / a for a, b in zip(alone, beside, strict=True))[rounds // 2]
    return Row(
        name=f"ingest beside {HEAVY_PER_S} questions a second",
        figure=f"{max(beside):,.0f} logs/s",
        baseline=f"{max(alone):,.0f} logs/s without",
        goal=f">= {INGEST_PART_MIN}",
        passed=ratio >= INGEST_PART_MIN,
        ratio=ratio,
        detail={"alone": alone, "beside": beside},
    )


@bench("disk")
def disk(lab: Lab) -> Row:
    """Compare what logs take on disk, with words and sums to ask by, with what was sent."""
    history = three_days(lab)
    ratio = history.disk_bytes / history.received_bytes
    return Row(
        name=f"{history.logs:,} realistic logs on disk",
        figure=f"{history.disk_bytes / history.logs:.0f} bytes a log",
        baseline=f"{history.received_bytes / history.logs:.0f} received",
        goal=f"<= {DISK_PART_MAX}",
        passed=ratio <= DISK_PART_MAX,
        ratio=ratio,
        detail={"seeding_logs_per_s": history.logs_per_s},
    )


def _asking(question: Question, history: History, seconds: float) -> Plan:
    requests = question.requests(history)
    random.Random(1).shuffle(requests)
    return Plan(
        history.server.port,
        tuple(requests),
        ASKING_CONNECTIONS,
        seconds=seconds,
        rate_per_s=question.per_s,
    )


_MADE: dict[Lab, History] = {}


def three_days(lab: Lab) -> History:
    """Give the product with three days of realistic logs in it; the first call fills it."""
    if lab not in _MADE:
        _MADE[lab] = _fill(lab, LOGS_QUICK if lab.quick else LOGS)
    return _MADE[lab]


def _fill(lab: Lab, logs: int) -> History:
    directory = lab.directory()
    names = [f"bench-{number:02d}" for number in range(CLIENTS)]
    keys = [make_key(directory, name, role="owner") for name in names]
    story = Story(keys, logs)
    loaded = lab.fill(directory, keys, logs, story.rounds())
    await_sealed(loaded.data_dir)  # as it is in life, where logs do not come all at once
    files = (directory / "logs").iterdir()
    return History(
        **vars(loaded),
        admin=make_admin_key(directory),
        received_bytes=story.bytes,
        disk_bytes=sum(path.stat().st_size for path in files),
        rare_words=story.rare_words,
    )


class Story:
    """What the clients send in three days, and what to remember of it."""

    def __init__(self, keys: list[str], logs: int) -> None:
        self._keys = keys
        self._logs = logs
        self.bytes = 0
        self.rare_words: list[list[str]] = [[] for _ in keys]

    def rounds(self) -> Iterator[tuple[bytes, ...]]:
        """Yield requests by the hundred, a batch of one client each."""
        requests = self._requests()
        while round_ := tuple(islice(requests, SEED_ROUND_BATCHES)):
            yield round_

    def _requests(self) -> Iterator[bytes]:
        waiting: list[list[Record]] = [[] for _ in self._keys]
        clients = [str(number) for number in range(len(self._keys))]
        span_ns = DAYS * DAY_NS
        start_ns = time.time_ns() - span_ns
        for name, record in records(1, clients, self._logs, start_ns=start_ns, span_ns=span_ns):
            batch = waiting[int(name)]
            batch.append(record)
            if len(batch) == BATCH_LOGS:
                yield self._request(int(name), batch)
                batch.clear()
        for client, batch in enumerate(waiting):
            if batch:
                yield self._request(client, batch)

    def _request(self, client: int, batch: list[Record]) -> bytes:
        known = self.rare_words[client]
        if len(known) < RARE_WORDS:
            known += _RARE.findall(" ".join(one.get("message") or "" for one in batch))[:1]
        body = ndjson(batch)
        self.bytes += len(body)
        return ingest_request(self._keys[client], body, lines=True)
