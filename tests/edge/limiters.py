"""Limiters of each kind on a clock that stands still until told, driven without a loop in sight."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import pytest
from redis import Redis

from app.edge.limits import Account, Failures, Limiter
from app.edge.local_limits import LocalAccount, LocalFailures, LocalLimiter
from app.edge.redis_windows import RedisWindows
from app.edge.shared_limits import (
    NONE,
    WHATEVER,
    Decision,
    SharedAccount,
    SharedFailures,
    SharedLimiter,
)
from app.keys.principal import UNLIMITED, Limits, Principal
from loadtests.redis_server import RedisServer, redis_program

NO_REDIS = "THERE IS NO redis-server HERE: nothing of limits shared by Redis is tested"
# Nothing here is about time; on a busy machine an answer may take its time.
TIMEOUT_S = 20.0
KINDS = ("requests", "logs", "bytes")

T = TypeVar("T")


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now_s


class Bed:
    """A limiter under test, with what its accounts do as plain calls."""

    def __init__(
        self, runner: asyncio.Runner, clock: Clock, limiter: Limiter, failures: Failures
    ) -> None:
        self.clock = clock
        self.limiter = limiter
        self._failures = failures
        self._runner = runner

    def account(self, principal: Principal) -> Account:
        """Give the account of a principal, as of now."""
        return self.limiter.account(principal)

    def admit(self, account: Account, declared_bytes: int = 0, logs: int = 0) -> None:
        """Count a request, or raise."""
        self.run(account.admit(declared_bytes, logs))

    def charge(self, account: Account, logs: int, body_bytes: int) -> None:
        """Count logs and bytes, or raise."""
        self.run(account.charge(logs, body_bytes))

    def fail(self, source: str) -> int:
        """Count a failed authentication; give the seconds to wait."""
        return self.run(self._failures.count(source))

    def used(self, account: Account) -> dict[str, list[int]]:
        """Give what the windows of an account hold where they are counted."""
        assert isinstance(account, LocalAccount)
        kinds = zip(KINDS, (account.requests, account.logs, account.bytes), strict=True)
        return {name: [window.used for window, _ in meters] for name, meters in kinds}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self._runner.run(work)


class RedisBed(Bed):
    """One that counts in Redis."""

    def __init__(
        self,
        runner: asyncio.Runner,
        clock: Clock,
        windows: RedisWindows,
        failures_per_minute: int,
    ) -> None:
        local = LocalLimiter(clock)
        limiter = SharedLimiter(windows, local, clock)
        failures = SharedFailures(windows, LocalFailures(failures_per_minute, clock))
        super().__init__(runner, clock, limiter, failures)
        self.windows = windows

    def used(self, account: Account) -> dict[str, list[int]]:
        """Ask Redis."""
        assert isinstance(account, SharedAccount)
        look = Decision(account.windows, (WHATEVER,) * 3, NONE, NONE)
        answer = self.run(self.windows.ask(look))
        assert answer is not None
        found: dict[str, list[int]] = {name: [] for name in KINDS}
        for window, used in zip(account.windows, answer.levels.used, strict=True):
            found[KINDS[window.kind]].append(used)
        return found


Beds = Callable[[int], Bed]


@contextmanager
def local_beds() -> Iterator[Beds]:
    """Give a maker of new limiters that count in this process; of so many failures a minute."""
    with asyncio.Runner() as runner:

        def make(failures_per_minute: int) -> Bed:
            clock = Clock()
            failures = LocalFailures(failures_per_minute, clock)
            return Bed(runner, clock, LocalLimiter(clock), failures)

        yield make


@contextmanager
def redis_beds() -> Iterator[Beds]:
    """Give a maker of new limiters that count in Redis, where nothing has been counted before."""
    with ExitStack() as stack:
        server = stack.enter_context(own_redis())
        redis: Redis = stack.enter_context(server.client())
        runner = stack.enter_context(asyncio.Runner())
        clock = Clock()
        windows = RedisWindows(server.url, TIMEOUT_S, clock)
        runner.run(windows.start())
        stack.callback(lambda: runner.run(windows.aclose()))

        def make(failures_per_minute: int) -> Bed:
            redis.flushdb()
            clock.now_s = Clock().now_s
            return RedisBed(runner, clock, windows, failures_per_minute)

        yield make


def own_redis(*options: str) -> RedisServer:
    """Start a server of the test's own, or skip the test loudly."""
    if redis_program() is None:
        pytest.skip(NO_REDIS)
    return RedisServer(*options)


def principal(
    key_id: str = "key1",
    *,
    client_id: str | None = "acme",
    key: Limits = UNLIMITED,
    client: Limits = UNLIMITED,
) -> Principal:
    """Make a key's principal with limits of its own and of its client."""
    return Principal(
        id="",
        key_id=key_id,
        client_id=client_id,
        role="client",
        scopes=frozenset(),
        allowed_datasets=None,
        is_admin=client_id is None,
        key_limits=key,
        client_limits=client,
        expires_at_s=None,
        name="",
    )
