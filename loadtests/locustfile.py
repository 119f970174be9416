"""Locust users on the way through authentication: a hot key, batches, reads, and garbage keys.

`python -m loadtests.run` sets everything up; by hand, against a server on this machine with
AUTH_FAILURES_PER_MINUTE=0 (or the garbage keys meet that limit, as they should):
LOGGER_API_URL=http://127.0.0.1:8000 LOGGER_API_KEY=... locust -f loadtests/locustfile.py
"""

import os
import time
from itertools import count
from random import Random
from urllib.parse import urlsplit

from locust import FastHttpUser, constant, task

from loadtests.http_client import is_loopback
from loadtests.records import Record, encode, ndjson, records, simple_record

INGEST = "/api/v1/logs"
BATCH_LOGS = 50
# The last one has the shape of a key: it costs the service the most of these.
GARBAGE_KEYS = ("x", "Bearer", "cl_live_acme_corp_tooshort", "cl_live_bench_" + "A1b2" * 15 + "Z")

_user_numbers = count()


def _loopback_url() -> str:
    url = os.environ.get("LOGGER_API_URL", "http://127.0.0.1:8000").rstrip("/")
    host = urlsplit(url).hostname or ""
    if not is_loopback(host):
        raise SystemExit(f"LOGGER_API_URL: {host} is not this machine; load goes to loopback only")
    return url


class Workflow(FastHttpUser):
    """One client workflow that sends, reads back, and now and then has a wrong key."""

    host = _loopback_url()
    wait_time = constant(0)
    network_timeout = 10.0
    connection_timeout = 10.0

    def on_start(self) -> None:
        """Give each user records of its own."""
        self.number = next(_user_numbers)
        self.random = Random(self.number)
        self.sent = 0
        self.key = {"X-API-Key": os.environ.get("LOGGER_API_KEY", "")}
        self.pool = [self._fresh(one) for _, one in records(self.number, ["bench"], 500)]

    @task(80)
    def one_log(self) -> None:
        """Send one log with the hot key."""
        self.sent += 1
        body = encode(simple_record(self.sent, time.time_ns()))
        self._post("POST one log", body, "application/json")

    @task(8)
    def batch(self) -> None:
        """Send a batch of realistic records, a record a line."""
        body = ndjson(self.random.sample(self.pool, BATCH_LOGS))
        self._post("POST batch of 50", body, "application/x-ndjson")

    @task(8)
    def newest(self) -> None:
        """Read the newest logs of a status."""
        path = f"{INGEST}?status=FAILED&limit=20"
        with self.client.get(
            path, headers=self.key, name="GET newest 20", catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")

    @task(4)
    def garbage_key(self) -> None:
        """Fail to authenticate: a 401 is the right answer, anything else a failure."""
        headers = {
            "X-API-Key": self.random.choice(GARBAGE_KEYS),
            "Content-Type": "application/json",
        }
        body = encode(simple_record(0))
        with self.client.post(
            INGEST,
            data=body.decode(),
            headers=headers,
            name="POST garbage key",
            catch_response=True,
        ) as response:
            if response.status_code == 401:
                response.success()
            else:
                response.failure(f"status {response.status_code} instead of 401")

    def _post(self, name: str, body: bytes, content_type: str) -> None:
        headers = self.key | {"Content-Type": content_type}
        with self.client.post(
            INGEST, data=body.decode(), headers=headers, name=name, catch_response=True
        ) as response:
            if response.status_code != 201:
                response.failure(f"status {response.status_code} instead of 201")

    def _fresh(self, record: Record) -> Record:
        """Drop the client's own id: sent twice it would make a duplicate, not a log."""
        return {name: value for name, value in record.items() if name != "id"}
