"""Limits that processes share by Redis: exact together, and never a reason for a request to fail.

What all limits promise is in test_limits.py, which runs over these too.
"""

import asyncio
import signal
import ssl
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from structlog.testing import capture_logs

from app.edge import metrics, redis_windows
from app.edge.limits import Account
from app.edge.local_limits import LocalFailures, LocalLimiter
from app.edge.redis_windows import KEEP_S, PREFIX, RedisWindows
from app.edge.response import parse_lines
from app.edge.shared_limits import SharedFailures, SharedLimiter
from app.errors import RateLimited
from app.keys.principal import Limits, Principal
from app.settings import BadSetting, load_settings
from loadtests.redis_server import RedisServer
from tests.delivery.mail_sink import make_certificate
from tests.edge.limiters import TIMEOUT_S, Clock, own_redis, principal
from tests.support import LOGS, problem, record, running

ALONE = "limits are counted by each worker alone"
SHARED = "limits are shared with the other workers again"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """Give a Redis server."""
    with own_redis() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> Iterator["Redis"]:
    """Give a client of it, which finds it empty."""
    with server.client() as client:
        client.flushall()
        yield client


class Worker:
    """The limits of one process, as it has them."""

    def __init__(self, windows: RedisWindows, clock: Clock | None = None) -> None:
        local_clock = clock or time.monotonic
        self.windows = windows
        self.limiter = SharedLimiter(windows, LocalLimiter(local_clock), local_clock)
        self.failures = SharedFailures(windows, LocalFailures(2, local_clock))

    async def admits(self, who: Principal) -> bool:
        """Say whether a request is let pass."""
        try:
            await self.limiter.account(who).admit()
        except RateLimited:
            return False
        return True

    async def until_shared(self) -> None:
        """Wait until Redis is asked again."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self.windows.is_up:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.02)


@asynccontextmanager
async def worker(
    url: str, timeout_s: float = TIMEOUT_S, clock: Clock | None = None
) -> AsyncIterator[Worker]:
    """Give a process's limits, connected if that can be."""
    windows = RedisWindows(url, timeout_s, clock)
    await windows.start()
    try:
        yield Worker(windows, clock)
    finally:
        await windows.aclose()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario on a loop of its own."""
    asyncio.run(scenario)


def told(account: Account) -> dict[str, str]:
    """Give the headers as text."""
    return {name.decode(): value.decode() for name, value in parse_lines(account.header_lines())}


def decisions_alone() -> float:
    """Give how often a limit was decided on without Redis."""
    (family,) = metrics.limits_alone.collect()
    return next(one.value for one in family.samples if one.name.endswith("_total"))


def test_workers_admit_a_limit_together(server: RedisServer, redis: "Redis") -> None:
    """Of many requests at once to several workers just as many pass as the limit says."""
    who = principal(key=Limits(30, 0, 0), client=Limits(50, 0, 0))
    other = principal("key2", key=Limits(30, 0, 0), client=Limits(50, 0, 0))

    async def scenario() -> None:
        async with worker(server.url) as one, worker(server.url) as two:
            for key, passing in ((who, 30), (other, 20)):
                asked = [each.admits(key) for each in (one, two) for _ in range(40)]
                assert sum(await asyncio.gather(*asked)) == passing

    run(scenario())


def test_a_refused_body_costs_nothing_anywhere(server: RedisServer, redis: "Redis") -> None:
    """What one worker gives back another one finds free, the request's own count too."""
    who = principal(key=Limits(2, 10, 0))

    async def scenario() -> None:
        async with worker(server.url) as one, worker(server.url) as two:
            here, there = one.limiter.account(who), two.limiter.account(who)
            await here.admit()
            await here.charge(8, 1)
            await there.admit()
            with pytest.raises(RateLimited) as caught:
                await there.charge(3, 1)
            assert caught.value.members["violated"] == ["logs"]
            await here.admit()
            here.refund(requests=1, logs=8)
            await here.charge(0, 1)  # comes after the refund
            await there.admit()
            await there.charge(10, 1)

    run(scenario())


def test_headers_tell_what_all_have_used(server: RedisServer, redis: "Redis") -> None:
    """The numbers in a worker's headers count the requests of the others."""
    who = principal(key=Limits(40, 0, 0))

    async def scenario() -> None:
        async with worker(server.url) as one, worker(server.url) as two:
            for _ in range(5):
                await two.admits(who)
            account = one.limiter.account(who)
            assert told(account)["x-ratelimit-remaining"] == "40"  # it has not asked yet
            await account.admit()
            headers = told(account)
            assert headers["x-ratelimit-remaining"] == "34"
            assert headers["ratelimit"].startswith('"requests";r=34;t=')
            account.refund(requests=1)
            assert told(account)["x-ratelimit-remaining"] == "35"

    run(scenario())


def test_what_was_told_grows_old(server: RedisServer, redis: "Redis") -> None:
    """The seconds in the headers go on between answers; after a minute nothing of one is told."""
    who = principal(key=Limits(40, 0, 0))

    async def scenario() -> None:
        clock = Clock()
        async with worker(server.url, clock=clock) as one, worker(server.url, clock=clock) as two:
            await two.admits(who)
            await one.admits(who)
            clock.now_s += 20
            assert told(one.limiter.account(who))["ratelimit"] == '"requests";r=38;t=40'
            clock.now_s += 40
            assert told(one.limiter.account(who))["ratelimit"] == '"requests";r=40;t=60'

    run(scenario())


def test_redis_time_counts_and_nothing_stays(server: RedisServer, redis: "Redis") -> None:
    """Windows expire by themselves, are named for key, client and address, and hold numbers."""
    who = principal("key9", key=Limits(40, 0, 0), client=Limits(50, 0, 10**10))

    async def scenario() -> None:
        async with worker(server.url) as one:
            await one.admits(who)
            await one.limiter.account(who).charge(1, 6 * 10**9)
            await one.failures.count("192.0.2.1")

    run(scenario())
    names = {name.decode() for name in redis.scan_iter()}
    owners = ("probe", "key:key9", "client:acme", "failures:192.0.2.1")
    assert names == {PREFIX + owner for owner in owners}
    assert all(0 < redis.ttl(name) <= KEEP_S for name in names)


def test_large_counts_are_exact(server: RedisServer, redis: "Redis") -> None:
    """Bytes beyond 32 bits are counted to the last one."""
    limit = 6 * 10**15 + 7
    who = principal(key=Limits(0, 0, limit))

    async def scenario() -> None:
        async with worker(server.url) as one:
            account = one.limiter.account(who)
            await account.charge(1, limit - 1)
            with pytest.raises(RateLimited):
                await account.charge(1, 2)
            await account.charge(1, 1)
            assert told(account)["ratelimit"].startswith('"bytes";r=0;')

    run(scenario())


def test_a_clock_that_goes_back_keeps_nothing_for_longer(
    server: RedisServer, redis: "Redis"
) -> None:
    """After Redis' clock was set back an hour, what was used counts for a minute, not an hour."""
    who = principal(key=Limits(1, 0, 0))

    async def scenario() -> None:
        clock = Clock()
        clock.now_s = 10_000
        async with worker(server.url, clock=clock) as one:
            assert await one.admits(who)
            clock.now_s -= 3600
            assert not await one.admits(who)
            clock.now_s += 60
            assert await one.admits(who)

    run(scenario())


def test_scripts_may_be_forgotten(server: RedisServer, redis: "Redis") -> None:
    """Redis may drop its scripts at any time, and no decision is made alone for it."""
    who = principal(key=Limits(2, 0, 0))

    async def scenario() -> None:
        async with worker(server.url) as one:
            assert await one.admits(who)
            redis.script_flush()
            before = decisions_alone()
            assert [await one.admits(who), await one.admits(who)] == [True, False]
            assert decisions_alone() == before

    run(scenario())


def test_without_redis_each_counts_alone_and_then_together_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker whose Redis dies goes by what it has counted itself, says so once, and heals."""
    monkeypatch.setattr(redis_windows, "RETRY_S", 0.05)
    who = principal(key=Limits(4, 0, 0))

    async def scenario(server: RedisServer) -> None:
        async with worker(server.url) as one, worker(server.url) as two:
            assert [await one.admits(who) for _ in range(3)] == [True] * 3
            assert await two.admits(who)
            assert not await two.admits(who)
            assert await one.failures.count("192.0.2.1") == 0
            server.kill()
            before = decisions_alone()
            assert [await one.admits(who) for _ in range(2)] == [True, False]
            assert [await two.admits(who) for _ in range(4)] == [True, True, True, False]
            assert decisions_alone() == before + 6
            assert told(one.limiter.account(who))["x-ratelimit-remaining"] == "0"
            assert await one.failures.count("192.0.2.1") == 0
            assert await one.failures.count("192.0.2.1") > 0
            await asyncio.sleep(6 * redis_windows.RETRY_S)  # some attempts in vain
            server.start()  # and knows nothing of what was
            await one.until_shared()
            await two.until_shared()
            assert [await one.admits(who) for _ in range(3)] == [True] * 3
            assert [await two.admits(who) for _ in range(2)] == [True, False]

    with own_redis() as server, capture_logs() as logs:
        run(scenario(server))
    events = [one["event"] for one in logs]
    assert (events.count(ALONE), events.count(SHARED)) == (2, 2)


def test_redis_that_hangs_holds_up_the_first_alone(server: RedisServer, redis: "Redis") -> None:
    """Requests behind the one that found Redis silent are decided on at once."""
    who = principal(key=Limits(0, 10**6, 0))

    async def scenario() -> None:
        async with worker(server.url, timeout_s=0.5) as one:
            server.send_signal(signal.SIGSTOP)
            try:
                started = time.monotonic()
                await asyncio.gather(*(one.admits(who) for _ in range(50)))
                for _ in range(50):
                    await one.admits(who)
                assert time.monotonic() - started < 10  # 50 of 0.5 s would be 25
            finally:
                server.send_signal(signal.SIGCONT)
            await one.until_shared()
            await one.limiter.account(who).charge(1, 1)

    with capture_logs() as logs:
        run(scenario())
    assert [one["reason"] for one in logs if one["event"] == ALONE] == ["no answer in time"]


def test_a_replica_is_no_place_to_count(server: RedisServer, redis: "Redis") -> None:
    """A server that must not be written to is as good as none, until it may be again."""
    who = principal(key=Limits(1, 0, 0))

    async def scenario() -> None:
        async with worker(server.url) as one:
            redis.replicaof("127.0.0.1", 1)
            try:
                assert [await one.admits(who) for _ in range(2)] == [True, False]
                await asyncio.sleep(2 * redis_windows.RETRY_S)
                assert not one.windows.is_up
            finally:
                redis.replicaof("NO", "ONE")
            await one.until_shared()

    run(scenario())


def test_without_redis_at_the_start() -> None:
    """The service starts without its Redis, and its password is in no log."""
    password = "of-the-redis"
    who = principal(key=Limits(1, 0, 0))

    async def scenario(server: RedisServer) -> None:
        wrong = server.url.replace("//", "//:not-" + password + "@")
        async with worker(wrong) as one:
            assert [await one.admits(who) for _ in range(2)] == [True, False]
        async with worker(server.url.replace("//", f"//:{password}@")) as one:
            assert one.windows.is_up

    with own_redis("--requirepass", password) as server, capture_logs() as logs:
        run(scenario(server))
    assert [one["event"] for one in logs] == [ALONE]
    assert password not in str(logs)


def test_a_closed_connection_is_opened_anew(server: RedisServer, redis: "Redis") -> None:
    """A connection that was closed while nobody needed it costs no decision."""
    who = principal(key=Limits(2, 0, 0))

    async def scenario() -> None:
        async with worker(server.url) as one:
            assert await one.admits(who)
            redis.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.2)  # until word of it is here
            before = decisions_alone()
            assert [await one.admits(who), await one.admits(who)] == [True, False]
            assert decisions_alone() == before

    run(scenario())


def test_by_tls(server: RedisServer, redis: "Redis", tmp_path: Path) -> None:
    """With rediss:// the server must prove who it is, and then counts as any other."""
    certificate = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    who = principal(key=Limits(1, 0, 0))

    async def scenario() -> None:
        async with tls_in_front(server.port, context) as port:
            url = f"rediss://127.0.0.1:{port}/0"
            async with worker(url) as one:
                assert not one.windows.is_up
            async with worker(f"{url}?ssl_ca_certs={certificate}") as one:
                assert one.windows.is_up
                assert [await one.admits(who) for _ in range(2)] == [True, False]

    run(scenario())


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis://:s3cret@host:port/0", "is not a redis"),
        ("http://:s3cret@host", "is not a redis"),
        ("redis://:s3cret@", "is not a redis"),
        ("s3cret", "is not a redis"),
        ("redis://:a?s3cret=b@host", "is not a redis"),
        ("redis://user?s3cret=b@host", "is not a redis"),
        ("redis://:s3cret@[::1:6379", "is not a redis"),
        ("redis://:s3cret@[1:2]", "has a host or a port"),
        ("redis://:s3cret@host:99999", "has a host or a port"),
        ("redis://:s3cret@host:0", "has a port that is not 1 to 65535"),
        ("redis://:s3cret@host?s3cret=1", "has an option that is none of db, "),
        ("redis://host?socket_timeout=s3cret", "has an option that is none of db, "),
        ("redis://host?ssl_ca_certs=s3cret", "has an option that is none of db, .*rediss://"),
        ("redis://host?db=s3cret", "option db is not a whole number"),
        ("redis://host?db=1&db=2", "option db is not a whole number, once"),
        ("redis://host?password=s3cret&client_name=s3cret%20", "option client_name is not ASCII"),
        ("rediss://host?ssl_ca_certs=/no/such/s3cret", r"option ssl_ca_certs .*\(No such file"),
        ("rediss://host?ssl_ca_certs=/etc/hostname", r"option ssl_ca_certs can't be used \("),
        ("rediss://host?ssl_ca_path=/no/such/s3cret", "option ssl_ca_path is not a directory"),
        ("rediss://host?ssl_keyfile=/s3cret", "option ssl_keyfile goes with ssl_certfile"),
        ("rediss://host?ssl_certfile=/s3cret", "option ssl_certfile can't be used"),
        ("rediss://host?ssl_cert_reqs=s3cret", "option ssl_cert_reqs is not none, optional"),
        ("rediss://host?ssl_check_hostname=s3cret", "option ssl_check_hostname is not true"),
    ],
)
def test_a_bad_url_stops_the_start(url: str, fault: str) -> None:
    """What can't be connected with is refused in one line, which does not repeat the password."""
    begin = f"^RATE_LIMIT_STORAGE_URL: {fault}.*; example: RATE_LIMIT_STORAGE_URL=rediss://"
    with pytest.raises(BadSetting, match=begin) as caught:
        load_settings(rate_limit_storage_url=url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_good_url_says_can_be_connected_with(tmp_path: Path) -> None:
    """Each option that is let through is one that the client takes."""
    certificate = make_certificate(tmp_path)
    options = [
        *("db=3", "username=u", "password=p%40", "client_name=logger"),
        *(f"ssl_{name}={certificate}" for name in ("ca_certs", "certfile")),
        *("ssl_cert_reqs=none", "ssl_check_hostname=False", f"ssl_ca_path={certificate.parent}"),
        *("ssl_password=p", f"ssl_keyfile={certificate}"),
    ]
    for url in ("redis://u:p%3F@[::1]:6380/2", f"rediss://:p@h@ost.example/?{'&'.join(options)}"):
        RedisWindows(load_settings(rate_limit_storage_url=url).rate_limit_storage_url, 1.0)


@asynccontextmanager
async def tls_in_front(behind: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve TLS in front of a plain port, as a proxy does; give the port."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while part := await reader.read(65536):
                    writer.write(part)
                    await writer.drain()
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_read, to_write = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(copy(reader, to_write), copy(to_read, writer))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with proxy:
        yield proxy.sockets[0].getsockname()[1]


def test_services_share_limits_and_failures(
    server: RedisServer, redis: "Redis", tmp_path: Path
) -> None:
    """Two services with one Redis refuse together: requests, logs and wrong keys."""
    shared: dict[str, Any] = {
        "rate_limit_storage_url": server.url,
        "rate_limit_timeout_ms": 20_000,
        "auth_failures_per_minute": 3,
        "api_keys": {"a-key-of-both-services": "acme"},
        "secret_key": ("a secret that both services have",),
        "default_logs_per_minute": 5,
        "default_requests_per_minute": 40,
    }
    key = "a-key-of-both-services"
    with (
        running(tmp_path / "one", **shared) as one,
        running(tmp_path / "two", **shared) as two,
    ):
        assert one.post([record()] * 4, key).status_code == 201
        stored = two.post(record(), key)
        assert stored.status_code == 201
        assert stored.headers["ratelimit"].startswith('"requests";r=38;')
        for service in (one, two):
            refused = problem(service.post(record(), key), 429, "Rate limit exceeded")
            assert refused["violated"] == ["logs"]
        page = two.get(LOGS, key)
        assert (page.status_code, page.headers["x-ratelimit-remaining"]) == (200, "37")
        statuses = [service.get(LOGS, "wrong").status_code for service in (one, two, one, two, one)]
        assert statuses == [401, 401, 401, 429, 429]
        assert one.get(LOGS, key).status_code == 200
