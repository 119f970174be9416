"""What it costs to count limits in Redis, for all workers, and not in each worker."""

import statistics

from loadtests.http_client import Plan, Result, run_in_process
from loadtests.lab import Lab, Row, bench, ingest_request
from loadtests.records import encode, simple_record
from loadtests.redis_server import RedisServer, redis_program
from loadtests.server import make_key, start_product

CONNECTIONS = 64
RATIO_MIN = 0.50


def shared_limits(lab: Lab) -> Row:
    """One log a request with limits in Redis, beside the same with limits in the worker."""
    rounds, seconds = (3, 2.0) if lab.quick else (5, 5.0)
    alone, alone_key = lab.product()
    directory = lab.directory()
    key = make_key(directory, "bench")
    records = [encode(simple_record(number)) for number in range(20_000)]

    def load(port: int, key: str, seconds: float) -> Result:
        requests = tuple(ingest_request(key, one) for one in records)
        return run_in_process(Plan(port, requests, CONNECTIONS, seconds=seconds)).require(201)

    with RedisServer() as redis:
        settings = {"RATE_LIMIT_STORAGE_URL": redis.url}
        shared = lab.keep(start_product(directory, settings))
        targets = ((shared.port, key), (alone.port, alone_key))
        for port, of_port in targets:
            load(port, of_port, 1.0)  # warm
        pairs = [
            [load(*target, seconds).requests_per_s for target in targets] for _ in range(rounds)
        ]
        with redis.client() as client:
            calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        shared.stop()
    alone.stop()
    ratios = [one / other for one, other in pairs]
    ours, alone_per_s = (statistics.median(of_one) for of_one in zip(*pairs, strict=True))
    ratio = statistics.median(ratios)
    return Row(
        name=f"one log a request, limits in Redis, {CONNECTIONS} connections",
        figure=f"{ours:,.0f} req/s",
        baseline=f"{alone_per_s:,.0f} req/s, limits in the worker",
        ratio=ratio,
        goal=f">= {RATIO_MIN:.2f}",
        passed=ratio >= RATIO_MIN,
        detail={"ratios": ratios, "pairs": pairs, "redis_calls": calls},
    )


if redis_program() is not None:
    bench("shared-limits")(shared_limits)
