"""Workflow run records as clients send them, and what the service must give back for each.

Everything here is pure and deterministic: the same seed gives the same records on every machine,
so a test may send them through one process and check them in another.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import islice
from random import Random
from typing import Any

import orjson

Record = dict[str, Any]

START_NS = 1_780_272_000 * 10**9  # 2026-06-01T00:00:00Z: a constant, or a run could not be repeated
ACTIVE_RUNS_PER_CLIENT = 8
DAY_NS = 86_400 * 10**9
GAP_NS = 200 * 10**6

KNOWN_FIELDS = (
    "environment",
    "executed_at",
    "status",
    "workflow",
    "run_id",
    "level",
    "message",
    "duration_ms",
    "error",
    "dataset",
    "metadata",
)


@dataclass(frozen=True)
class Workflow:
    """One kind of run: `steps` are the messages on its way, `faults` those of its failures."""

    name: str
    engine: str
    dataset: str | None
    steps: tuple[str, ...]
    faults: tuple[str, ...]
    failure_rate: float


WORKFLOWS = (
    Workflow(
        "order-sync",
        "n8n",
        "orders",
        (
            "Fetched {n} orders from https://{host}/api/orders?page={page}",
            "Mapped {n} orders, {small} without a delivery address",
            "Pushed {n} orders to warehouse {host}:8443 in {page} pages",
        ),
        ("429 Too Many Requests from {host}, gave up after {small} attempts",),
        0.04,
    ),
    Workflow(
        "invoice_export",
        "airflow",
        "invoices",
        (
            "Selected {n} invoices of customer группа-{small}",
            "Wrote /var/exports/2026/06/invoices_{page}.csv ({n} rows, {bytes} bytes)",
            'Uploaded "invoices_{page}.csv" to sftp://{host}/in\\archive',
        ),
        ("Permission denied: /var/exports/2026/06/invoices_{page}.csv",),
        0.06,
    ),
    Workflow(
        "nightly-backup",
        "cron",
        "backups",
        (
            "pg_dump of {host}:5432 started",
            "Dumped {n} tables, {bytes} bytes, to /backup/{host}/{page}.dump.zst",
            "Verified checksum of /backup/{host}/{page}.dump.zst",
        ),
        ("No space left on device: /backup/{host} (needs {bytes} bytes)",),
        0.08,
    ),
    Workflow(
        "customer-onboarding",
        "n8n",
        None,
        (
            "Webhook received for müller+{small}@example.com",
            "Created CRM contact {bytes}",
            "Sent welcome mail \u2709 to müller+{small}@example.com",
        ),
        ("CRM answered 502 Bad Gateway after {n} ms",),
        0.03,
    ),
    Workflow(
        "dbt.transform/daily",
        "airflow",
        "analytics",
        (
            "Running model stg_orders ({page} of {n})",
            "Completed model fct_sales in {small}.{page} s; {bytes} rows",
            "PASS={n} WARN={small} ERROR=0 SKIP=0",
        ),
        ('relation "stg_orders_{page}" does not exist', "Deadlock found on {host}"),
        0.10,
    ),
    Workflow(
        "price feed 価格",
        "prefect",
        "prices",
        (
            "Polled {host}: {n} quotes\tlag {small} ms",
            "Published {n} quotes to topic prices.v{page}",
        ),
        ("TLS handshake with {host} timed out after {n} ms",),
        0.02,
    ),
)

ENVIRONMENTS = ("production", "staging", "dev", "qa-eu")
ENVIRONMENT_WEIGHTS = (80, 12, 5, 3)
AWKWARD_TEXTS = (
    'a "quoted" back\\slash / and tab\there',
    "zero\u200bwidth, \U0001f680 rocket, e\u0301 combining",
    "line one\nline two\r\nline three",
    "control \u0001 and \u001f, line separators \u2028 \u2029",
    "<b>not html</b> & 'quotes' ${not.a.template} %s {}",
    "\u0627\u0644\u0639 right-to-left \u05e2\u05d1 \u202e mark \u202c end",
    "",
)
BIG_INTEGERS = (
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    123456789012345678901234567890,
)
FRAMES = ("load_page", "_request", "transform", "write_rows", "<module>", "retry_with_backoff")


def records(
    seed: int,
    clients: Sequence[str],
    count: int,
    *,
    start_ns: int = START_NS,
    span_ns: int | None = None,
) -> Iterator[tuple[str, Record]]:
    """Yield `count` pairs (client_id, record): runs of all clients, interleaved as they happen.

    The first client is the busiest, as in life. Own ids never repeat inside a client. With
    `span_ns` each client's records are spread over that time, else 0.2 s lie between two.
    """
    random = Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(clients))]
    streams = []
    for client, weight in zip(clients, weights, strict=True):
        share = max(1, int(count * weight / sum(weights)))
        gap_ns = GAP_NS if span_ns is None else span_ns // share
        stream = _client_stream(Random(f"{seed}/{client}"), start_ns, gap_ns)
        streams.append((client, stream))
    for client, stream in random.choices(streams, weights, k=count):
        yield client, next(stream)


def simple_record(number: int, start_ns: int = START_NS) -> Record:
    """Give a plain record of about 340 bytes, one millisecond after its forerunner."""
    at = datetime.fromtimestamp(start_ns // 10**9 + number // 1000, UTC)
    return {
        "environment": "production",
        "executed_at": f"{at:%Y-%m-%dT%H:%M:%S}.{number % 1000:03d}Z",
        "status": "FAILED" if number % 23 == 0 else "SUCCESS",
        "workflow": WORKFLOWS[number % 4].name,
        "run_id": f"run-{number // 8:012d}",
        "level": "ERROR" if number % 23 == 0 else "INFO",
        "message": f"synchronised {number % 997} orders from shop-{number % 31:02d}.example.net"
        f" to warehouse-eu-2 in {number % 89} pages",
        "duration_ms": number * 7919 % 90_000,
        "metadata": {"host": f"worker-{number % 40:02d}", "attempt": 1, "region": "eu-west-1"},
    }


def encode(record: Record) -> bytes:
    r"""Give one line of JSON without its line break.

    Records with an integer beyond 64 bits, which orjson refuses, go out through `json` with every
    non-ASCII character escaped as \uXXXX: that form has to arrive whole as well.
    """
    try:
        return orjson.dumps(record)
    except TypeError:
        return json.dumps(record).encode()


def ndjson(batch: Iterable[Record]) -> bytes:
    """Give the body of an `application/x-ndjson` request."""
    return b"".join(encode(record) + b"\n" for record in batch)


def batches(stream: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Cut a stream into lists of `size`; the last may be shorter."""
    iterator = iter(stream)
    while batch := list(islice(iterator, size)):
        yield batch


def expected(record: Record) -> Record:
    """Give what the service returns for `record`, apart from id, client_id and received_at."""
    result: Record = {name: record.get(name) for name in KNOWN_FIELDS}
    result["external_id"] = record.get("id") or None
    result["dataset"] = record.get("dataset") or "default"
    result["executed_at"] = canonical_time(record["executed_at"])
    metadata = dict(record.get("metadata") or {})
    for name, value in record.items():
        if name in KNOWN_FIELDS or name == "id":
            continue
        kept_as = name
        while kept_as in metadata:
            kept_as = f"_{kept_as}"
        metadata[kept_as] = value
    result["metadata"] = metadata
    return result


def same(sent: Any, returned: Any) -> bool:
    """Compare JSON values; an integer beyond 64 bits may come back as its text.

    Parse replies with `json`, not orjson: the latter turns a 30-digit integer into a float.
    """
    if isinstance(sent, dict) and isinstance(returned, dict):
        return sent.keys() == returned.keys() and all(same(sent[k], returned[k]) for k in sent)
    if isinstance(sent, list) and isinstance(returned, list):
        return len(sent) == len(returned) and all(map(same, sent, returned))
    if isinstance(sent, int) and not -(2**63) <= sent < 2**63 and isinstance(returned, str):
        return str(sent) == returned
    # True == 1 in Python, but not in JSON.
    return isinstance(sent, bool) == isinstance(returned, bool) and bool(sent == returned)


_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def canonical_time(sent: str | float) -> str:
    """Give RFC 3339 in UTC with Z and the shortest of 0, 3, 6 or 9 exact fraction digits."""
    time_ns = _text_to_ns(sent) if isinstance(sent, str) else _epoch_to_ns(sent)
    seconds, fraction_ns = divmod(time_ns, 10**9)
    whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    text = whole.isoformat().removesuffix("+00:00")
    digits = f"{fraction_ns:09d}"
    for kept in (0, 3, 6):
        if not digits[kept:].strip("0"):
            return f"{text}.{digits[:kept]}Z" if kept else f"{text}Z"
    return f"{text}.{digits}Z"


def _text_to_ns(sent: str) -> int:
    match = _RFC3339.fullmatch(sent)
    if match is None:
        raise ValueError(f"not RFC 3339: {sent!r}")
    date, time, fraction, sign, hours, minutes = match.groups()
    at = datetime.fromisoformat(f"{date}T{time}+00:00")
    seconds = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    if sign:
        offset_s = int(hours) * 3600 + int(minutes) * 60
        seconds -= offset_s if sign == "+" else -offset_s
    return seconds * 10**9 + int((fraction or "0").ljust(9, "0")[:9])


def _epoch_to_ns(sent: float) -> int:
    """Tell the unit by its size: each covers the years 1973 to 5138 without overlap.

    A float means the decimal number that was written, not the binary one nearest to it.
    """
    number = Decimal(repr(sent))
    size = abs(number)
    for limit, unit_ns in ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3)):
        if size < limit:
            return int(number * unit_ns)
    return int(number)


def _client_stream(random: Random, start_ns: int, gap_ns: int) -> Iterator[Record]:
    """Interleave the records of a client's runs without end; each gets its number as own id."""
    now_ns = start_ns + random.randrange(10**9)
    active = [_run(random) for _ in range(ACTIVE_RUNS_PER_CLIENT)]
    number = 0
    while True:
        slot = random.randrange(ACTIVE_RUNS_PER_CLIENT)
        record = next(active[slot], None)
        if record is None:
            active[slot] = _run(random)
            continue
        now_ns += random.randrange(2 * gap_ns)
        record["executed_at"] = _written_time(random, now_ns + _skew_ns(random))
        if random.random() < 0.15:
            record["id"] = f"{record['run_id']}#{number}"
        number += 1
        yield _shuffled(random, record)


def _run(random: Random) -> Iterator[Record]:
    """Yield the records of one run: RUNNING on its way, then SUCCESS or FAILED."""
    workflow = random.choices(WORKFLOWS, (30, 15, 5, 15, 15, 20))[0]
    base: Record = {
        "environment": random.choices(ENVIRONMENTS, ENVIRONMENT_WEIGHTS)[0],
        "workflow": workflow.name,
        "run_id": _run_id(random, workflow.engine),
    }
    if workflow.dataset is not None and random.random() < 0.5:
        base["dataset"] = workflow.dataset
    if random.random() < 0.03:
        del base["workflow"]  # a script run by hand
    for step in range(random.choices((0, 1, 2, 5), (55, 25, 15, 5))[0]):
        yield base | {
            "status": "RUNNING",
            "level": random.choices(("INFO", "DEBUG", "WARNING"), (70, 20, 10))[0],
            "message": _fill(random, workflow.steps[step % len(workflow.steps)]),
            "metadata": _metadata(random, workflow, step),
        }
    yield base | _ending(random, workflow) | _unknown_fields(random)


def _ending(random: Random, workflow: Workflow) -> Record:
    failed = random.random() < workflow.failure_rate
    duration_ms: float = int(random.lognormvariate(6.5, 1.6))
    if random.random() < 0.3:
        duration_ms = round(duration_ms + random.random(), 3)
    ending: Record = {"status": "FAILED" if failed else "SUCCESS", "duration_ms": duration_ms}
    if random.random() < 0.9:
        ending["level"] = "ERROR" if failed else "INFO"
    if failed:
        fault = _fill(random, random.choice(workflow.faults))
        ending["message"] = fault
        ending["error"] = random.choice((_stack_trace, _error_object))(random, fault)
    elif random.random() < 0.9:
        ending["message"] = _fill(random, workflow.steps[-1])
    if random.random() < 0.02:
        ending["level"] = ending["message"] = None  # sent as null: the same as absent
    if random.random() < 0.85:
        ending["metadata"] = _metadata(random, workflow, 0)
    return ending


def _stack_trace(random: Random, fault: str) -> str:
    lines = ["Traceback (most recent call last):"]
    depth = 300 if random.random() < 0.03 else random.randint(2, 9)
    for _ in range(depth):
        path = f"/srv/flows/{random.choice(('sync', 'export', 'lib/http'))}.py"
        frame = random.choice(FRAMES)
        lines.append(f'  File "{path}", line {random.randint(1, 900)}, in {frame}')
        lines.append(f"    {frame.strip('<>_')}(page={random.randint(1, 99)})")
    lines.append(f"RuntimeError: {fault}")
    return "\n".join(lines)


def _error_object(random: Random, fault: str) -> Record:
    return {
        "type": random.choice(("HTTPError", "java.sql.SQLException", "NodeApiError")),
        "message": fault,
        "code": random.choice((429, 502, "ECONNRESET", None)),
        "retryable": random.random() < 0.5,
        "stack": [f"at {random.choice(FRAMES)} (file.js:{random.randint(1, 400)}:7)"] * 2,
        "cause": {"message": random.choice(AWKWARD_TEXTS), "cause": None},
    }


def _metadata(random: Random, workflow: Workflow, step: int) -> Record:
    metadata: Record = {"engine": workflow.engine, "step": step, "host": _host(random)}
    chance = random.random()
    if chance < 0.30:
        metadata["counts"] = {"in": random.randrange(5000), "out": random.randrange(5000)}
        metadata["rate"] = random.randrange(10**6) / 1000
    elif chance < 0.42:
        metadata["tags"] = [random.choice(("a", "über", "緊急", "")), None, True, 1.5, []]
        metadata["note"] = random.choice(AWKWARD_TEXTS)
    elif chance < 0.47:
        metadata["clé à espace €"] = {"a.b": {"c/d": {"": [{"deep": [[[1]], {}]}]}}}
    elif chance < 0.50:
        metadata["sequence"] = random.choice(BIG_INTEGERS)
        metadata["offsets"] = [random.choice(BIG_INTEGERS), 0, -1]
    return metadata


def _unknown_fields(random: Random) -> Record:
    """Give fields that the service does not know; some clash with names under metadata."""
    if random.random() > 0.08:
        return {}
    return random.choice(
        (
            {"host": "top-level-host", "pid": random.randrange(1, 65536)},
            {"trigger": {"kind": "webhook", "path": "/hook/\u00e9"}, "attempt": 3},
            {"step": "clashes with metadata.step", "engine": None},
            {"kubernetes.pod": "flows-7d9f", "client_id": "not_yours", "received_at": "never"},
        )
    )


def _fill(random: Random, template: str) -> str:
    return template.format(
        n=random.randrange(1, 5000),
        small=random.randrange(1, 10),
        page=random.randrange(1, 100),
        bytes=random.randrange(10**3, 10**10),
        host=_host(random),
    )


def _host(random: Random) -> str:
    return f"{random.choice(('shop', 'db', 'worker'))}-{random.randrange(1, 40)}.eu.example.net"


def _run_id(random: Random, engine: str) -> str:
    if engine == "airflow":
        hour = random.randrange(24)
        return f"scheduled__2026-06-01T{hour:02d}:00:00+00:00/{random.getrandbits(40):x}"
    if engine == "n8n":
        return str(random.randrange(10**9))
    bits = f"{random.getrandbits(128):032x}"
    return f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}"


def _skew_ns(random: Random) -> int:
    """Most clocks are right; some records are late, by up to ten years, and some early."""
    chance = random.random()
    if chance < 0.94:
        return 0
    if chance < 0.97:
        return -random.randrange(3 * DAY_NS)
    if chance < 0.985:
        return -random.randrange(3650 * DAY_NS)
    return random.randrange(400 * DAY_NS)


def _written_time(random: Random, time_ns: int) -> str | float:
    """Write a time in one of the forms that clients use, cut to the precision of that form."""
    return random.choices(TIME_FORMS, TIME_FORM_WEIGHTS)[0](time_ns)


def _rfc3339(digits: int, offset_minutes: int = 0, zulu: str = "") -> Callable[[int], str]:
    zone = timezone(timedelta(minutes=offset_minutes))

    def write(time_ns: int) -> str:
        seconds, fraction_ns = divmod(time_ns, 10**9)
        text = datetime.fromtimestamp(seconds, zone).isoformat()
        fraction = f".{f'{fraction_ns:09d}'[:digits]}" if digits else ""
        return text[:19] + fraction + (zulu or text[19:])

    return write


TIME_FORMS: tuple[Callable[[int], str | float], ...] = (
    _rfc3339(3, zulu="Z"),
    _rfc3339(0, zulu="Z"),
    _rfc3339(6),
    _rfc3339(6, 120),
    _rfc3339(3, -330),
    _rfc3339(9, zulu="Z"),
    _rfc3339(1, zulu="Z"),
    lambda time_ns: time_ns // 10**9,
    lambda time_ns: time_ns // 10**3 / 10**6,
    lambda time_ns: time_ns // 10**6,
    lambda time_ns: time_ns // 10**3,
    lambda time_ns: time_ns,
)
TIME_FORM_WEIGHTS = (55, 10, 8, 5, 3, 3, 2, 4, 3, 3, 2, 2)


def _shuffled(random: Random, record: Record) -> Record:
    """Order the fields as no two clients do alike; the service may not depend on their order."""
    names = list(record)
    random.shuffle(names)
    return {name: record[name] for name in names}
