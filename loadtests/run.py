"""`make loadtest`: the service under Locust's users for a bounded time, and a short summary.

Starts the server on a temporary data directory and a free port, makes a key, runs Locust headless
in a process of its own, and stops what it started. CSV files and a report in HTML go to
bench-results/. Ends with 1 if a request failed that should not have, or the server did not stop
cleanly.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadtests.lab import RESULTS
from loadtests.server import HOST, ROOT, Server, make_key, product_env, start_product

SECONDS_MAX = 3600
USERS_MAX = 1000
# The garbage keys of the locustfile are to cost an authentication each, not a limit's refusal.
ENV = {"AUTH_FAILURES_PER_MINUTE": "0"}


def main() -> int:
    """Run the load test; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--users", type=int, default=32)
    options = parser.parse_args()
    if not 1 <= options.seconds <= SECONDS_MAX or not 1 <= options.users <= USERS_MAX:
        parser.error(f"--seconds is at most {SECONDS_MAX}, --users at most {USERS_MAX}")
    RESULTS.mkdir(exist_ok=True)
    for earlier in RESULTS.glob("loadtest*"):
        earlier.unlink()
    with tempfile.TemporaryDirectory(prefix="run-", dir=RESULTS) as scratch:
        data_dir = Path(scratch)
        key = make_key(data_dir, "bench", ENV)
        with start_product(data_dir, ENV) as server:
            locust_code = _run_locust(server, key, options.seconds, options.users)
            code = server.stop()
    # Locust's CSV files lack the last second or two; its JSON has all.
    summary = RESULTS / "loadtest.json"
    entries = json.loads(summary.read_text()) if summary.exists() else []
    failures = print_summary(entries, options.seconds)
    print(f"\nreport: {RESULTS / 'loadtest.html'}")
    if code != 0:
        print(f"the server ended with {code} instead of 0", file=sys.stderr)
    return 0 if locust_code == 0 and failures == 0 and code == 0 else 1


def _run_locust(server: Server, key: str, seconds: int, users: int) -> int:
    url = f"http://{HOST}:{server.port}"
    command = [
        *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py")),
        *("--headless", "--only-summary", "--loglevel", "WARNING", "--stop-timeout", "10"),
        *("--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"),
        *("--csv", str(RESULTS / "loadtest"), "--html", str(RESULTS / "loadtest.html")),
        *("--json-file", str(RESULTS / "loadtest")),
    ]
    env = product_env(RESULTS) | {"LOGGER_API_URL": url, "LOGGER_API_KEY": key}
    print(f"{users} users for {seconds} s ...", file=sys.stderr, flush=True)
    done = subprocess.run(  # noqa: S603  # locust, as installed beside us
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds + 120,
        check=False,
    )
    if done.returncode:
        print(done.stdout.decode(errors="replace")[-3000:], file=sys.stderr)
        print(done.stderr.decode(errors="replace")[-3000:], file=sys.stderr)
    return done.returncode


def print_summary(entries: list[dict[str, Any]], seconds: int) -> int:
    """Print a line for each of Locust's entries; give the failures, or -1 if nothing was sent."""
    print(f"{'request':20} {'count':>8} {'req/s':>7} {'p50':>6} {'p95':>6} {'p99':>6}  failures")
    for entry in entries:
        counts = {float(ms): n for ms, n in entry["response_times"].items()}
        p50, p95, p99 = (percentile_ms(counts, share) for share in (0.50, 0.95, 0.99))
        requests, failures = entry["num_requests"], entry["num_failures"]
        rate = requests / seconds
        print(
            f"{entry['name']:20} {requests:8} {rate:7.0f} {p50:6.0f} {p95:6.0f} {p99:6.0f}"
            f"  {failures}"
        )
    print("percentiles in ms")
    if not sum(entry["num_requests"] for entry in entries):
        return -1
    return sum(entry["num_failures"] for entry in entries)


def percentile_ms(counts: dict[float, int], share: float) -> float:
    """Give the percentile of a histogram that maps each response time to its count."""
    needed = sum(counts.values()) * share
    for value, count in sorted(counts.items()):
        needed -= count
        if needed <= 0:
            return value
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
