"""What protection costs a request that needs none of it."""

import time
import timeit
from collections.abc import Collection

from app.activity.access import Access
from app.edge.accesses import Accesses
from app.edge.guard import Guard
from app.edge.ingest import ENDPOINT
from app.keys.principal import UNLIMITED, Principal
from app.protect.self_scan import suspect
from loadtests.bench_logs import SINGLE_CONNECTIONS
from loadtests.http_client import Plan, run_in_process
from loadtests.lab import Lab, Row, bench, ingest_request
from loadtests.records import encode, simple_record

LOGS = 2_000
IDLE_PART_MAX = 0.10


class _Nowhere:
    """Keeps accesses in memory: they are written off the hot path."""

    def is_due(self) -> bool:
        return False

    def write(self, accesses: Collection[Access]) -> None:
        """Leave it."""


@bench("protection-idle")
def protection_idle(lab: Lab) -> Row:
    """Time all that looks at a request on the hot path for protection's sake, and the request.

    Nothing is restricted, signed or found: the key has no restrictions, the body no key of ours.
    """
    ours_us = _idle_us(rounds=20 if lab.quick else 100)
    request_us = _request_us(lab, seconds=3.0 if lab.quick else 10.0)
    ratio = ours_us / request_us
    return Row(
        name="protection of a log, with nothing to protect from",
        figure=f"{ours_us:.2f} us",
        baseline=f"{request_us:.1f} us of a worker's CPU a log",
        ratio=ratio,
        goal=f"<= {IDLE_PART_MAX:.2f}",
        passed=ratio <= IDLE_PART_MAX,
        detail={"protection_us": ours_us, "request_us": request_us},
    )


def _idle_us(rounds: int) -> float:
    bodies = [encode(simple_record(number)) for number in range(LOGS)]
    accesses, guard = Accesses(_Nowhere()), Guard()
    principal = Principal(
        id="id",
        key_id="key_id",
        client_id="acme",
        role="client",
        scopes=frozenset(),
        allowed_datasets=None,
        is_admin=False,
        key_limits=UNLIMITED,
        client_limits=UNLIMITED,
        expires_at_s=None,
        name="bench",
    )
    source = ("127.0.0.1", b"bench")

    def look() -> None:
        for body in bodies:
            came_s = time.time()
            assert not suspect(body)
            assert principal.signing is None
            assert principal.restrictions is None or guard.allows(principal, source[0])
            accesses.count((principal.key_id, ENDPOINT, "default", source, "201"), came_s)

    return min(timeit.repeat(look, number=1, repeat=rounds)) / LOGS * 1e6


def _request_us(lab: Lab, seconds: float) -> float:
    """Give the CPU time of the one worker for a log that comes by itself."""
    server, key = lab.product()
    requests = tuple(ingest_request(key, encode(simple_record(number))) for number in range(LOGS))
    plan = Plan(server.port, requests, SINGLE_CONNECTIONS, seconds=seconds)
    run_in_process(plan).require(201)  # until all is warm
    before = server.process.cpu_times()
    result = run_in_process(plan).require(201)
    after = server.process.cpu_times()
    server.stop()
    used_s = after.user + after.system - before.user - before.system
    return float(used_s / result.requests * 1e6)
