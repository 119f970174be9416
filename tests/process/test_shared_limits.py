"""Limits shared by Redis between whole servers: exact together, and its death costs no request."""

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from app.keys.bootstrap import open_secrets
from app.keys.database import open_current
from app.keys.registry import create_key
from app.keys.verifier import Peppers
from loadtests.redis_server import RedisServer
from loadtests.server import HOST, Server, start_product
from tests.edge.limiters import own_redis
from tests.process.service import WAIT_S_MAX, Load, WholeConnection, wait_until
from tests.support import BY

LOG = b'{"environment":"production","executed_at":"2026-06-01T12:00:00Z","status":"SUCCESS"}'
LOGS = "/api/v1/logs"
SENDERS = 16
ALONE = "limits are counted by each worker alone"
SHARED = "limits are shared with the other workers again"
WORKERS = 4  # of both servers


@dataclass
class Pair:
    """Two servers of two workers each, which know the same keys and share a Redis."""

    redis: RedisServer
    servers: list[Server]
    keys: dict[str, str]

    def count(self, key: str, bodies: list[bytes]) -> Counter[int]:
        """Send these from many connections to both servers at once; give how many got what."""
        statuses: Counter[int] = Counter()
        rest = iter(bodies)
        lock = threading.Lock()

        def send(sender: int) -> None:
            port = self.servers[sender % len(self.servers)].port
            connection: HTTPConnection = WholeConnection(HOST, port, timeout=WAIT_S_MAX)
            headers = {"X-API-Key": self.keys[key], "Content-Type": "application/json"}
            while True:
                with lock:
                    body = next(rest, None)
                if body is None:
                    break
                connection.request("POST", LOGS, body, headers)
                response = connection.getresponse()
                response.read()
                with lock:
                    statuses[response.status] += 1
            connection.close()

        senders = [threading.Thread(target=send, args=(number,)) for number in range(SENDERS)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(WAIT_S_MAX)
        assert statuses.total() == len(bodies)
        return statuses

    def sharing(self) -> int:
        """Give how many workers have had an answer of Redis."""
        with self.redis.client() as redis:
            return sum(one["cmd"] in {"eval", "evalsha"} for one in redis.client_list())

    def said(self, event: str) -> int:
        """Give how often the servers have said this. Not to be asked while they write."""
        return sum(server.log_tail(10_000).count(event) for server in self.servers)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Give the servers; `single` may make 100 requests a minute, `batch` send 500 logs."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    limits = {"single": (100, 0), "single2": (100, 0), "batch": (0, 500), "load": (0, 0)}
    keys = {name: make_key(one, name, *of_key) for name, of_key in limits.items()}
    shutil.copytree(one, two, dirs_exist_ok=True)
    with own_redis() as redis:
        settings = {
            "RATE_LIMIT_STORAGE_URL": redis.url,
            # These tests are not about time, and this machine may be busy.
            "RATE_LIMIT_TIMEOUT_MS": "10000",
        }
        with (
            start_product(one, settings, workers=2) as first,
            start_product(two, settings, workers=2) as second,
        ):
            yield Pair(redis, [first, second], keys)


def make_key(data_dir: Path, client_id: str, requests: int, logs: int) -> str:
    """Make a key with these limits a minute."""
    engine = open_current("", data_dir)
    _, key = create_key(
        engine,
        Peppers(open_secrets(data_dir, ())),
        by=BY,
        create_client=True,
        client_id=client_id,
        name="test",
        limits={"requests_per_minute": requests, "logs_per_minute": logs},
    )
    engine.dispose()
    return key


def test_servers_admit_a_limit_together(pair: Pair) -> None:
    """Of many requests at once to four workers on two servers, exactly the limit is let pass."""
    assert pair.count("single", [LOG] * 400) == {201: 100, 429: 300}
    batch = b"[" + b",".join([LOG] * 7) + b"]"
    assert pair.count("batch", [batch] * 200) == {201: 71, 429: 129}  # 71 x 7 = 497
    assert pair.count("batch", [LOG] * 40) == {201: 3, 429: 37}


def test_redis_may_die_at_any_time(pair: Pair) -> None:
    """Redis killed under load costs no request; workers count alone, and together when it is back.

    A limit that was used up then lets no worker pass more than itself, and a new Redis starts anew.
    """
    assert pair.count("single2", [LOG] * 150) == {201: 100, 429: 50}
    loads = [Load(server.port, pair.keys["load"], f"load{server.port}") for server in pair.servers]
    with loads[0].running(4), loads[1].running(4):
        for load in loads:
            load.wait_for_more(200)
        pair.redis.kill()
        for load in loads:
            load.wait_for_more(200)
        alone = pair.count("single2", [LOG] * 600)
        assert set(alone) == {201, 429}
        # Each worker may let pass what it has not itself let pass before.
        assert alone[201] <= (WORKERS - 1) * 100
        pair.redis.start()
        wait_until(lambda: pair.sharing() == WORKERS, "all workers share limits again")
        for load in loads:
            load.wait_for_more(200)
    for load in loads:
        assert set(load.statuses) == {201}
        assert not load.unanswered
    assert pair.count("single2", [LOG] * 300) == {201: 100, 429: 200}
    assert (pair.said(ALONE), pair.said(SHARED)) == (WORKERS, WORKERS)
