"""Limits of a key and, above it, of its client: requests, logs and bytes in any 60 seconds.

A sliding window of one-second buckets: exact to a second, no double burst at a window's edge, and
a refused request costs nothing. The counts live in this process.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from app.errors import RateLimited, TooLarge
from app.keys.principal import Principal

WINDOW_S = 60
# Accounts kept at least; idle ones beyond them are forgotten.
ACCOUNTS_MAX = 20_000

POLICIES = ("requests", "logs", "bytes")
Clock = Callable[[], float]


class Window:
    """What was used in the last minute."""

    __slots__ = ("_buckets", "_clock", "_used")

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._buckets: deque[list[int]] = deque()  # [second, amount], oldest first
        self._used = 0

    def used(self) -> int:
        """Return what still counts."""
        buckets = self._buckets
        if buckets and buckets[0][0] <= (now := self._clock()) - WINDOW_S:
            while buckets and buckets[0][0] <= now - WINDOW_S:
                self._used -= buckets.popleft()[1]
        return self._used

    def add(self, amount: int) -> None:
        """Count `amount` now."""
        second = int(self._clock())
        self._used += amount
        if self._buckets and self._buckets[-1][0] == second:
            self._buckets[-1][1] += amount
        else:
            self._buckets.append([second, amount])

    def take_back(self, amount: int) -> None:
        """Uncount `amount` of what was counted last, and never more than was."""
        for bucket in reversed(self._buckets):
            taken = min(amount, bucket[1])
            bucket[1] -= taken
            self._used -= taken
            amount -= taken
            if not amount:
                return

    def wait_s(self, amount: int, limit: int) -> int:
        """Return the whole seconds until `amount` fits under `limit`; 0: it fits now."""
        excess = self.used() + amount - limit
        if excess <= 0:
            return 0
        second = self._clock()
        for bucket_second, bucket_amount in self._buckets:
            excess -= bucket_amount
            second = bucket_second
            if excess <= 0:
                break
        return max(1, int(second + WINDOW_S - self._clock()) + 1)

    def reset_s(self) -> int:
        """Return the whole seconds until some of what is used no longer counts."""
        if not self._buckets:
            return 0
        return max(1, int(self._buckets[0][0] + WINDOW_S - self._clock()) + 1)


@dataclass(slots=True)
class _Meter:
    """One window under one limit."""

    window: Window
    limit: int

    def left(self) -> int:
        return max(0, self.limit - self.window.used())


@dataclass(slots=True)
class Account:
    """The meters that a principal's requests run past, by policy: the key's, then the client's."""

    principal: Principal
    requests: list[_Meter] = field(default_factory=list)
    logs: list[_Meter] = field(default_factory=list)
    bytes: list[_Meter] = field(default_factory=list)
    policy_header: bytes = b""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the RateLimit headers: of each policy its tightest meter."""
        if not self.policy_header:
            return []
        items = []
        tightest = None
        for name, meters in (
            ("requests", self.requests),
            ("logs", self.logs),
            ("bytes", self.bytes),
        ):
            if meters:
                meter = min(meters, key=_Meter.left) if len(meters) > 1 else meters[0]
                items.append(f'"{name}";r={meter.left()};t={meter.window.reset_s()}')
                if name == "requests":
                    tightest = meter
        headers = [
            (b"ratelimit-policy", self.policy_header),
            (b"ratelimit", ", ".join(items).encode()),
        ]
        if tightest is not None:
            headers += [
                (b"x-ratelimit-limit", b"%d" % tightest.limit),
                (b"x-ratelimit-remaining", b"%d" % tightest.left()),
                (b"x-ratelimit-reset", b"%d" % tightest.window.reset_s()),
            ]
        return headers


class Limiter:
    """The accounts of all principals that this process has seen lately."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        # Windows outlive accounts: a changed limit does not forget what was used.
        self._windows: dict[tuple[str, str], Window] = {}

    def account(self, principal: Principal) -> Account:
        """Return the account of a principal."""
        account = self._accounts.get(principal.key_id)
        if account is not None and account.principal is principal:
            return account
        if len(self._accounts) >= ACCOUNTS_MAX:
            self._forget_idle()
        account = self._accounts[principal.key_id] = self._open(principal)
        return account

    def admit(self, account: Account) -> None:
        """Count one request, or raise RateLimited and count nothing."""
        requests = account.requests
        for meter in requests:
            if meter.window.used() >= meter.limit:
                self._refuse(account, [("requests", requests, 1)])
        for meter in requests:
            meter.window.add(1)

    def check_room(self, account: Account, body_bytes: int) -> None:
        """Refuse a request that can't pass whatever it holds, before anything of it is read."""
        try:
            self._require(account, [("logs", account.logs, 1), ("bytes", account.bytes, body_bytes)])
        except (RateLimited, TooLarge):
            self.refund(account, requests=1)
            raise

    def charge(self, account: Account, logs: int, body_bytes: int) -> None:
        """Count logs and bytes, or raise and take the request's own count back.

        Raises RateLimited, or TooLarge for a cost that no wait would make fit.
        """
        costs = [("logs", account.logs, logs), ("bytes", account.bytes, body_bytes)]
        try:
            self._require(account, costs)
        except (RateLimited, TooLarge):
            self.refund(account, requests=1)
            raise
        for _, meters, cost in costs:
            for meter in meters:
                meter.window.add(cost)

    def refund(
        self, account: Account, *, requests: int = 0, logs: int = 0, body_bytes: int = 0
    ) -> None:
        """Take back what was counted for something that did not happen."""
        for meters, cost in (
            (account.requests, requests),
            (account.logs, logs),
            (account.bytes, body_bytes),
        ):
            if cost:
                for meter in meters:
                    meter.window.take_back(cost)

    def _require(self, account: Account, costs: list[tuple[str, list[_Meter], int]]) -> None:
        for name, meters, cost in costs:
            for meter in meters:
                if cost > meter.limit:
                    raise TooLarge(
                        f"Body too large: it costs {cost} {name}, the limit is {meter.limit} a minute"
                    )
        if any(meter.left() < cost for _, meters, cost in costs for meter in meters):
            self._refuse(account, costs)

    def _refuse(self, account: Account, costs: list[tuple[str, list[_Meter], int]]) -> None:
        violated = []
        wait_s = 1
        for name, meters, cost in costs:
            waits = [meter.window.wait_s(cost, meter.limit) for meter in meters]
            if any(waits):
                violated.append(name)
                wait_s = max(wait_s, *waits)
        raise RateLimited(violated, wait_s)

    def _open(self, principal: Principal) -> Account:
        account = Account(principal)
        policies = []
        owners = [(f"key:{principal.key_id}", principal.key_limits)]
        if principal.client_id is not None:
            owners.append((f"client:{principal.client_id}", principal.client_limits))
        for name in POLICIES:
            meters: list[_Meter] = getattr(account, name)
            for owner, limits in owners:
                limit = getattr(limits, f"{name}_per_minute")
                if limit:
                    window = self._windows.setdefault((owner, name), Window(self._clock))
                    meters.append(_Meter(window, limit))
            if meters:
                policies.append(f'"{name}";q={min(m.limit for m in meters)};w={WINDOW_S}')
        account.policy_header = ", ".join(policies).encode()
        return account

    def _forget_idle(self) -> None:
        self._windows = {name: one for name, one in self._windows.items() if one.used()}
        self._accounts.clear()
