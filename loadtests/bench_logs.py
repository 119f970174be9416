"""What logs cost: to store one by one and in batches, to keep, to read."""

import json
import statistics
import time
import timeit
from urllib.parse import quote

from app.logs.decode import DecodeLimits, decode_ndjson
from app.logs.identity import ArrivalClock
from app.logs.rows import build_rows
from app.protect.self_scan import is_suspect, suspect
from app.storage.sqlite import schema
from loadtests import sqlite_floor
from loadtests.http_client import Plan, Result, build_request, run_in_process, start
from loadtests.lab import (
    BATCH_LOGS,
    INGEST,
    Lab,
    Loaded,
    Row,
    batch_body,
    bench,
    ingest_request,
)
from loadtests.records import START_NS, encode, simple_record
from loadtests.server import start_asgi, start_product

SINGLE_CONNECTIONS = 64
SINGLE_RATIO_MIN = 0.60
BATCH_CONNECTIONS = 8
BATCH_RATIO_MIN = 0.70
SELF_SCAN_US_MAX = 0.3
PAGE_P95_MS_MAX = 25.0
ARRIVING_LOGS_PER_S = 2000
PAGES_PER_S = 20
RSS_MIB_MAX = 250.0
START_S_MAX = 3.0


@bench("single")
def single_logs(lab: Lab) -> Row:
    """One log a request: authenticated, limited, counted and durable, beside a bare ASGI echo."""
    rounds, seconds = (3, 2.0) if lab.quick else (5, 5.0)
    server, key = lab.product()
    echo = lab.keep(start_asgi())
    # Enough of them that a run does not send the same second over and over: logs are of now.
    count = 40_000 if lab.quick else 100_000
    requests = tuple(ingest_request(key, encode(simple_record(i))) for i in range(count))

    def load(port: int, seconds: float) -> Result:
        plan = Plan(port, requests, SINGLE_CONNECTIONS, seconds=seconds)
        return run_in_process(plan).require(201)

    for port in (server.port, echo.port):
        load(port, 1.0)  # warm
    pairs = [(load(server.port, seconds), load(echo.port, seconds)) for _ in range(rounds)]
    server.stop()
    echo.stop()
    ours = [pair[0].requests_per_s for pair in pairs]
    bare = [pair[1].requests_per_s for pair in pairs]
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    ratio = statistics.median(ratios)
    p99_ms = statistics.median(pair[0].p99_ms for pair in pairs)
    return Row(
        name=f"one log a request, {SINGLE_CONNECTIONS} connections",
        figure=f"{statistics.median(ours):,.0f} req/s (p99 {p99_ms:.1f} ms)",
        baseline=f"{statistics.median(bare):,.0f} req/s, bare ASGI echo",
        ratio=ratio,
        goal=f">= {SINGLE_RATIO_MIN:.2f}",
        passed=ratio >= SINGLE_RATIO_MIN,
        detail={"ratios": ratios, "product_per_s": ours, "echo_per_s": bare},
    )


@bench("self-scan")
def self_scan(lab: Lab) -> Row:
    """Look for keys of the service in logs that hold none: one by one, and a batch as a whole."""
    logs = [encode(simple_record(number)) for number in range(2_000)]
    batch = b"\n".join(logs)
    rounds = 20 if lab.quick else 100

    def single() -> None:
        for log in logs:
            suspect(log)

    def whole() -> None:
        is_suspect(batch)

    single_us, batch_us = (
        min(timeit.repeat(look, number=1, repeat=rounds)) / len(logs) * 1e6
        for look in (single, whole)
    )
    worst_us = max(single_us, batch_us)
    return Row(
        name=f"self-scan of logs of {len(batch) / len(logs):.0f} bytes, nothing found",
        figure=f"{worst_us:.2f} us a log",
        baseline=f"one by one {single_us:.2f} us, in a batch {batch_us:.2f} us",
        goal=f"<= {SELF_SCAN_US_MAX:.1f} us",
        passed=worst_us <= SELF_SCAN_US_MAX and not any(map(suspect, logs)),
        detail={"single_us": single_us, "batch_us": batch_us},
    )


@bench("batch")
def batches(lab: Lab) -> Row:
    """Batches of 1,000 over HTTP beside a bare loop that commits the same rows; both from empty."""
    rounds, count = (3, 60) if lab.quick else (5, 300)
    bodies = [batch_body(number, START_NS) for number in range(count)]
    ours, bare = [], []
    for _ in range(rounds):
        server, key = lab.product()
        requests = tuple(ingest_request(key, body, lines=True) for body in bodies)
        result = run_in_process(Plan(server.port, requests, BATCH_CONNECTIONS, count=count))
        ours.append(result.require(201).requests_per_s * BATCH_LOGS)
        server.stop()
        file = lab.directory() / "floor.db"
        bare.append(sqlite_floor.run_in_process(floor_workload, file, count).logs_per_s)
        for path in file.parent.iterdir():
            path.unlink()
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    ratio = statistics.median(ratios)
    return Row(
        name=f"batches of {BATCH_LOGS:,}, {BATCH_CONNECTIONS} connections",
        figure=f"{statistics.median(ours):,.0f} logs/s",
        baseline=f"{statistics.median(bare):,.0f} logs/s, bare SQLite loop",
        ratio=ratio,
        goal=f">= {BATCH_RATIO_MIN:.2f}",
        passed=ratio >= BATCH_RATIO_MIN,
        detail={"ratios": ratios, "product_per_s": ours, "sqlite_per_s": bare},
    )


def floor_workload(count: int) -> sqlite_floor.Workload:
    """Give the rows that the product makes of the batch bench's bodies, under its own schema.

    Only the logs: the bare loop is spared the series, the usage and the client's id.
    """
    clock = ArrivalClock()
    limits = DecodeLimits()
    batches_of_rows = []
    for number in range(count):
        decoded = decode_ndjson(batch_body(number, START_NS), limits)
        built = build_rows(decoded, None, clock.take(len(decoded))[1])
        batches_of_rows.append([(1, *row, 0) for row in built.rows])
    return sqlite_floor.Workload(
        schema.PRAGMAS, schema.CREATE_STATEMENTS, schema.insert_sql, batches_of_rows
    )


@bench("page")
def newest_page(lab: Lab) -> Row:
    """Newest 100 of a status and workflow, of any client, while 2,000 logs a second arrive."""
    seconds = 6.0 if lab.quick else 30.0
    loaded = lab.loaded()
    arriving = start(arrivals(loaded, seconds + 3))
    try:
        time.sleep(1.5)  # until the arrivals are under way
        pages = run_in_process(_page_reads(loaded, seconds)).require(200)
    finally:
        arrived = arriving.wait()
    arrived.require(201)
    rate = arrived.requests_per_s
    shown = len(json.loads(pages.samples[200])["logs"])
    kept_up = rate >= 0.98 * ARRIVING_LOGS_PER_S and shown == 100
    return Row(
        name=f"newest 100 by status and workflow, {loaded.logs:,} logs stored",
        figure=f"p95 {pages.p95_ms:.1f} ms (p50 {pages.p50_ms:.1f}, p99 {pages.p99_ms:.1f})",
        baseline=f"while {rate:,.0f} logs/s arrive",
        goal=f"p95 <= {PAGE_P95_MS_MAX:.0f} ms",
        passed=pages.p95_ms <= PAGE_P95_MS_MAX and kept_up,
        detail={
            "pages": pages.requests,
            "logs_in_a_page": shown,
            "arrivals_p50_ms": arrived.p50_ms,
            "arrivals_p99_ms": arrived.p99_ms,
            "seeding_logs_per_s": loaded.logs_per_s,
        },
    )


def arrivals(loaded: Loaded, seconds: float) -> Plan:
    """Send one log a request, all clients in turn: the hardest form of 2,000 logs a second."""
    now_ns = time.time_ns()
    requests = tuple(
        ingest_request(loaded.keys[i % len(loaded.keys)], encode(simple_record(i, now_ns)))
        for i in range(10_000)
    )
    return Plan(loaded.server.port, requests, 32, seconds=seconds, rate_per_s=ARRIVING_LOGS_PER_S)


def _page_reads(loaded: Loaded, seconds: float) -> Plan:
    """Read a steady 20 pages a second, each of another client, status or workflow than the last."""
    requests = []
    for i in range(len(loaded.keys) * 6):
        sample = simple_record(i)
        status = "SUCCESS" if i % 3 == 0 else "FAILED"  # FAILED is one in 23: a longer search
        query = f"status={status}&workflow={quote(sample['workflow'])}&limit=100"
        headers = {"X-API-Key": loaded.keys[i % len(loaded.keys)]}
        requests.append(build_request("GET", f"{INGEST}?{query}", headers=headers))
    return Plan(loaded.server.port, tuple(requests), 4, seconds=seconds, rate_per_s=PAGES_PER_S)


@bench("memory")
def memory(lab: Lab) -> Row:
    """Sum the process tree's memory after a million logs, and after the pages, if they ran."""
    loaded = lab.loaded()
    rss_mib = max(loaded.rss_bytes, loaded.server.rss_bytes()) / 2**20
    return Row(
        name=f"process tree after {loaded.logs:,} logs",
        figure=f"{rss_mib:,.0f} MiB RSS",
        baseline=f"{len(loaded.server.tree())} processes",
        goal=f"<= {RSS_MIB_MAX:.0f} MiB",
        passed=rss_mib <= RSS_MIB_MAX,
        detail={"after_seeding_mib": loaded.rss_bytes / 2**20},
    )


@bench("start")
def ready_after_start(lab: Lab) -> Row:
    """From the start of the process to a ready answer: on an empty directory and on a full one."""
    first_s = []
    for _ in range(3):
        with start_product(lab.directory()) as server:
            first_s.append(server.start_s)
    loaded = lab.loaded()
    loaded.server.stop()
    loaded.server = lab.keep(start_product(loaded.data_dir))
    again_s = loaded.server.start_s
    worst_s = max(*first_s, again_s)
    return Row(
        name="ready after a start",
        figure=f"{worst_s:.2f} s",
        baseline=f"empty {statistics.median(first_s):.2f} s, {loaded.logs:,} logs {again_s:.2f} s",
        goal=f"<= {START_S_MAX:.0f} s",
        passed=worst_s <= START_S_MAX,
        detail={"empty_s": first_s, "full_s": again_s},
    )
