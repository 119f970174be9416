"""Limits of a key and, above it, of its client: requests, logs and bytes in any 60 seconds.

A sliding window of one-second buckets: exact to a second, no double burst at a window's edge, and
a refused request costs nothing. The counts live in this process.

It stands on the hot path with six windows a request. So what changes with the second (which counts
no longer count) is done once a second, and what is left for a request is comparing and adding.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from app.errors import RateLimited, TooLarge
from app.keys.principal import Principal

WINDOW_S = 60
# With as many accounts open, all are closed, and windows that nothing is left in forgotten.
ACCOUNTS_MAX = 20_000

Clock = Callable[[], float]


class Window:
    """What was used in the last minute, as of the second last passed to `advance`."""

    __slots__ = ("_buckets", "_second", "current", "used")

    def __init__(self, second: int) -> None:
        self._second = second
        self.current = [second, 0]
        self._buckets = deque([self.current])  # [second, amount], oldest first, never empty
        self.used = 0

    def advance(self, second: int) -> None:
        """Move to a second: what is a minute old no longer counts."""
        if second <= self._second:
            return
        self._second = second
        buckets = self._buckets
        while buckets and (buckets[0][0] <= second - WINDOW_S or not buckets[0][1]):
            self.used -= buckets.popleft()[1]
        self.current = [second, 0]
        buckets.append(self.current)

    def add(self, amount: int) -> None:
        """Count `amount` now."""
        self.used += amount
        self.current[1] += amount

    def take_back(self, amount: int) -> None:
        """Uncount `amount` of what was counted last, and never more than was."""
        for bucket in reversed(self._buckets):
            taken = min(amount, bucket[1])
            bucket[1] -= taken
            self.used -= taken
            amount -= taken
            if not amount:
                return

    def wait_s(self, amount: int, limit: int) -> int:
        """Return the whole seconds until `amount` fits under `limit`; 0: it fits now."""
        excess = self.used + amount - limit
        if excess <= 0:
            return 0
        second = self._second
        for bucket_second, bucket_amount in self._buckets:
            excess -= bucket_amount
            second = bucket_second
            if excess <= 0:
                break
        return second + WINDOW_S - self._second

    def reset_s(self) -> int:
        """Return the whole seconds until some of what is used no longer counts."""
        return self._buckets[0][0] + WINDOW_S - self._second


class Meter(NamedTuple):
    """One window under one limit."""

    window: Window
    limit: int


Meters = tuple[Meter, ...]


class Account:
    """The meters that a principal's requests run past: of each kind the key's and the client's."""

    __slots__ = (
        "_kinds",
        "_pairs",
        "_policies",
        "_second",
        "_template",
        "bytes",
        "logs",
        "principal",
        "requests",
    )

    def __init__(
        self, principal: Principal, requests: Meters, logs: Meters, bytes_: Meters
    ) -> None:
        self.principal = principal
        self.requests = requests
        self.logs = logs
        self.bytes = bytes_
        self._second = -1
        kinds = (("requests", requests), ("logs", logs), ("bytes", bytes_))
        self._kinds = [(name, meters) for name, meters in kinds if meters]  # the limited ones
        # The key's and the client's meter of each, or one of them twice: laid out for the headers.
        self._pairs = [(*meters[0], *meters[-1]) for _, meters in self._kinds]
        self._policies = ", ".join(
            f'"{name}";q={min(meter.limit for meter in meters)};w={WINDOW_S}'
            for name, meters in self._kinds
        )
        self._template = b""

    def advance(self, second: int) -> None:
        """Move to a second: what is a minute old no longer counts.

        All of the headers but the numbers left is made here, not for every request.
        """
        if second == self._second:
            return
        self._second = second
        resets = []
        for name, meters in self._kinds:
            for window, _ in meters:
                window.advance(second)
            resets.append(f'"{name}";r=%d;t={_tightest(meters).window.reset_s()}')
        if not self._kinds:
            return
        lines = [f"ratelimit-policy: {self._policies}", f"ratelimit: {', '.join(resets)}"]
        if self.requests:
            window, limit = _tightest(self.requests)
            lines += (
                f"x-ratelimit-limit: {limit}",
                f"x-ratelimit-reset: {window.reset_s()}",
                "x-ratelimit-remaining: %d",
            )
        self._template = "".join(f"{line}\r\n" for line in lines).encode()

    def header_lines(self) -> bytes:
        """Return the RateLimit headers of draft-ietf-httpapi-ratelimit-headers and the X- ones.

        Of each kind they tell the tightest meter. Each line ends with CR LF.
        """
        left = []
        for one, one_limit, other, other_limit in self._pairs:
            free, other_free = one_limit - one.used, other_limit - other.used
            left.append(max(0, min(free, other_free)))
        if self.requests:
            left.append(left[0])
        return self._template % tuple(left)


def _tightest(meters: Meters) -> Meter:
    return min(meters, key=lambda meter: meter.limit - meter.window.used)


class Limiter:
    """The accounts of all principals that this process has seen lately."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        # Windows outlive accounts: a changed limit does not forget what was used.
        self._windows: dict[tuple[str, str], Window] = {}

    def account(self, principal: Principal) -> Account:
        """Return the account of a principal, as of now."""
        account = self._accounts.get(principal.key_id)
        if account is None or account.principal is not principal:
            if len(self._accounts) >= ACCOUNTS_MAX:
                self._forget_idle()
            account = self._accounts[principal.key_id] = self._open(principal)
        account.advance(int(self._clock()))
        return account

    def admit(self, account: Account, declared_bytes: int = 0, logs: int = 0) -> None:
        """Count one request, or raise RateLimited and count nothing.

        Refuses too what can't pass whatever it holds, before anything of it is read.
        """
        for window, limit in account.requests:
            if window.used >= limit:
                _refuse(account, 1, logs, declared_bytes)
        for window, limit in account.logs:
            if window.used + logs > limit:
                _refuse(account, 1, logs, declared_bytes)
        for window, limit in account.bytes:
            if window.used + declared_bytes > limit:
                _refuse(account, 1, logs, declared_bytes)
        for window, _ in account.requests:
            window.used += 1
            window.current[1] += 1

    def take(self, account: Account, logs: int, body_bytes: int) -> bool:
        """Count a request, its logs and its bytes if all of that passes, else nothing."""
        costs = ((account.requests, 1), (account.logs, logs), (account.bytes, body_bytes))
        for meters, cost in costs:
            for window, limit in meters:
                if window.used + cost > limit:
                    return False
        for meters, cost in costs:
            for window, _ in meters:
                window.used += cost
                window.current[1] += cost
        return True

    def charge(self, account: Account, logs: int, body_bytes: int) -> None:
        """Count logs and bytes; or raise, and take the request's own count back.

        Raises RateLimited, or TooLarge for a cost that no wait would make fit.
        """
        # The body may have taken its time: what is charged counts from now, not from the request.
        account.advance(int(self._clock()))
        for window, limit in account.logs:
            if window.used + logs > limit:
                self._refuse_admitted(account, logs, body_bytes)
        for window, limit in account.bytes:
            if window.used + body_bytes > limit:
                self._refuse_admitted(account, logs, body_bytes)
        for window, _ in account.logs:
            window.used += logs
            window.current[1] += logs
        for window, _ in account.bytes:
            window.used += body_bytes
            window.current[1] += body_bytes

    def refund(
        self, account: Account, *, requests: int = 0, logs: int = 0, body_bytes: int = 0
    ) -> None:
        """Take back what was counted for something that did not happen."""
        for window, _ in account.requests:
            window.take_back(requests)
        for window, _ in account.logs:
            window.take_back(logs)
        for window, _ in account.bytes:
            window.take_back(body_bytes)

    def _refuse_admitted(self, account: Account, logs: int, body_bytes: int) -> None:
        self.refund(account, requests=1)
        _refuse(account, 0, logs, body_bytes)

    def _open(self, principal: Principal) -> Account:
        owners = [(f"key:{principal.key_id}", principal.key_limits)]
        if principal.client_id is not None:
            owners.append((f"client:{principal.client_id}", principal.client_limits))
        second = int(self._clock())

        def meters(kind: str) -> Meters:
            limits = [(owner, getattr(of, f"{kind}_per_minute")) for owner, of in owners]
            return tuple(
                Meter(self._windows.setdefault((owner, kind), Window(second)), limit)
                for owner, limit in limits
                if limit
            )

        return Account(principal, meters("requests"), meters("logs"), meters("bytes"))

    def _forget_idle(self) -> None:
        second = int(self._clock())
        for window in self._windows.values():
            window.advance(second)
        self._windows = {name: window for name, window in self._windows.items() if window.used}
        self._accounts.clear()


def _refuse(account: Account, requests: int, logs: int, body_bytes: int) -> None:
    """Raise what tells why these costs don't fit, with every kind that they violate."""
    costs: Sequence[tuple[str, Meters, int]] = (
        ("requests", account.requests, requests),
        ("logs", account.logs, logs),
        ("bytes", account.bytes, body_bytes),
    )
    violated = []
    wait_s = 1
    for name, meters, cost in costs:
        for window, limit in meters:
            if cost > limit:
                raise TooLarge(
                    f"Body too large: it costs {cost} {name}, the limit is {limit} a minute"
                )
            wait_here_s = window.wait_s(cost, limit)
            if wait_here_s:
                violated.append(name)
                wait_s = max(wait_s, wait_here_s)
    raise RateLimited(list(dict.fromkeys(violated)), wait_s)
