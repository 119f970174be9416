"""Limits counted in this process.

They stand on the hot path with six windows a request. So what changes with the second (which counts
no longer count) is done once a second, and what is left for a request is comparing and adding.
"""

import time
from collections import deque

from app.edge import limits
from app.edge.limits import KINDS, WINDOW_S, Clock, Meters, Told, check_sizes, open_meters
from app.errors import RateLimited
from app.keys.principal import Principal

# Addresses whose failures are remembered. A flood from more of them than this makes us forget the
# ones that have been quiet longest.
ADDRESSES_MAX = 50_000


class Window:
    """What was used in the last minute, as of the second last passed to `advance`.

    Counting is to add to `used`, which is written straight from the hot path: how much of it is of
    the present second follows from what was used when that began.
    """

    __slots__ = ("_buckets", "_former", "_second", "used")

    def __init__(self, second: int) -> None:
        self._second = second
        # Of the seconds before: [second, amount], oldest first; and how much they make together.
        self._buckets = deque[list[int]]()
        self._former = 0
        self.used = 0

    def advance(self, second: int) -> None:
        """Move to a second: what is a minute old no longer counts."""
        if second <= self._second:
            return
        if self.used > self._former:
            self._buckets.append([self._second, self.used - self._former])
        self._second = second
        buckets = self._buckets
        while buckets and buckets[0][0] <= second - WINDOW_S:
            self.used -= buckets.popleft()[1]
        self._former = self.used

    def take_back(self, amount: int) -> None:
        """Uncount `amount` of what was counted last, and never more than was."""
        self.used = max(0, self.used - amount)
        while self._former > self.used:
            taken = min(self._former - self.used, self._buckets[-1][1])
            self._buckets[-1][1] -= taken
            self._former -= taken
            if not self._buckets[-1][1]:
                self._buckets.pop()

    def wait_s(self, amount: int, limit: int) -> int:
        """Return the whole seconds until `amount` fits under `limit`; 0: it fits now."""
        excess = self.used + amount - limit
        if excess <= 0:
            return 0
        for second, bucket_amount in self._buckets:
            excess -= bucket_amount
            if excess <= 0:
                return second + WINDOW_S - self._second
        return WINDOW_S

    def reset_s(self) -> int:
        """Return the whole seconds until some of what is used no longer counts."""
        oldest = self._buckets[0][0] if self._buckets else self._second
        return oldest + WINDOW_S - self._second


class LocalAccount(Told[Window]):
    """An account whose counts live in this process."""

    __slots__ = ("_clock", "_second", "principal")

    def __init__(
        self,
        principal: Principal,
        clock: Clock,
        requests: Meters[Window],
        logs: Meters[Window],
        bytes_: Meters[Window],
    ) -> None:
        super().__init__(requests, logs, bytes_)
        self.principal = principal
        self._clock = clock
        self._second = -1

    def advance(self, second: int) -> None:
        """Move to a second: what is a minute old no longer counts.

        All of the headers but the numbers left is made here, not for every request.
        """
        if second == self._second:
            return
        self._second = second
        for _, meters in self._kinds:
            for window, _ in meters:
                window.advance(second)
        self.lay_out()

    async def admit(self, declared_bytes: int = 0, logs: int = 0) -> None:
        """Do what Account says."""
        for window, limit in self.requests:
            if window.used >= limit:
                self._refuse(1, logs, declared_bytes)
        for window, limit in self.logs:
            if window.used + logs > limit:
                self._refuse(1, logs, declared_bytes)
        for window, limit in self.bytes:
            if window.used + declared_bytes > limit:
                self._refuse(1, logs, declared_bytes)
        for window, _ in self.requests:
            window.used += 1

    def take(self, logs: int, body_bytes: int) -> bool:
        """Do what Account says."""
        # Written out: a loop over the kinds would take as long again.
        for window, limit in self.requests:
            if window.used >= limit:
                return False
        for window, limit in self.logs:
            if window.used + logs > limit:
                return False
        for window, limit in self.bytes:
            if window.used + body_bytes > limit:
                return False
        for window, _ in self.requests:
            window.used += 1
        for window, _ in self.logs:
            window.used += logs
        for window, _ in self.bytes:
            window.used += body_bytes
        return True

    async def charge(self, logs: int, body_bytes: int) -> None:
        """Do what Account says."""
        # The body may have taken its time: what is charged counts from now, not from the request.
        self.advance(int(self._clock()))
        for window, limit in self.logs:
            if window.used + logs > limit:
                self._refuse_admitted(logs, body_bytes)
        for window, limit in self.bytes:
            if window.used + body_bytes > limit:
                self._refuse_admitted(logs, body_bytes)
        self.add(logs=logs, body_bytes=body_bytes)

    def add(self, *, requests: int = 0, logs: int = 0, body_bytes: int = 0) -> None:
        """Count, whether it fits or not."""
        for meters, cost in (
            (self.requests, requests),
            (self.logs, logs),
            (self.bytes, body_bytes),
        ):
            for window, _ in meters:
                window.used += cost

    def refund(self, *, requests: int = 0, logs: int = 0, body_bytes: int = 0) -> None:
        """Do what Account says."""
        for window, _ in self.requests:
            window.take_back(requests)
        for window, _ in self.logs:
            window.take_back(logs)
        for window, _ in self.bytes:
            window.take_back(body_bytes)

    def _refuse_admitted(self, logs: int, body_bytes: int) -> None:
        self.refund(requests=1)
        self._refuse(0, logs, body_bytes)

    def _refuse(self, requests: int, logs: int, body_bytes: int) -> None:
        """Raise what tells why these costs don't fit, with every kind that they violate."""
        costs = (requests, logs, body_bytes)
        check_sizes(self, costs)
        violated = []
        wait_s = 1
        for name, meters, cost in zip(
            KINDS, (self.requests, self.logs, self.bytes), costs, strict=True
        ):
            for window, limit in meters:
                wait_here_s = window.wait_s(cost, limit)
                if wait_here_s:
                    violated.append(name)
                    wait_s = max(wait_s, wait_here_s)
        raise RateLimited(list(dict.fromkeys(violated)), wait_s)


class LocalLimiter:
    """The accounts of all principals that this process has seen lately."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, LocalAccount] = {}
        # Windows outlive accounts: a changed limit does not forget what was used.
        self._windows: dict[tuple[str, str], Window] = {}

    def account(self, principal: Principal) -> LocalAccount:
        """Return the account of a principal, as of now."""
        account = self._accounts.get(principal.key_id)
        if account is None or account.principal is not principal:
            if len(self._accounts) >= limits.ACCOUNTS_MAX:
                self._forget_idle()
            account = self._accounts[principal.key_id] = self._open(principal)
        account.advance(int(self._clock()))
        return account

    def _open(self, principal: Principal) -> LocalAccount:
        second = int(self._clock())

        def window(owner: str, kind: str) -> Window:
            return self._windows.setdefault((owner, kind), Window(second))

        return LocalAccount(principal, self._clock, *open_meters(principal, window))

    def _forget_idle(self) -> None:
        second = int(self._clock())
        for window in self._windows.values():
            window.advance(second)
        self._windows = {name: window for name, window in self._windows.items() if window.used}
        self._accounts.clear()


class LocalFailures:
    """Counts failures in this process; a limit of 0 is none."""

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._windows: dict[str, Window] = {}

    async def count(self, source: str) -> int:
        """Do what Failures says."""
        if not self.per_minute:
            return 0
        window = self._window(source)
        wait_s = window.wait_s(1, self.per_minute)
        if not wait_s:
            window.used += 1
        return wait_s

    def add(self, source: str) -> None:
        """Count one that has been let pass elsewhere."""
        self._window(source).used += 1

    def _window(self, source: str) -> Window:
        second = int(self._clock())
        window = self._windows.pop(source, None) or Window(second)
        window.advance(second)
        if len(self._windows) >= ADDRESSES_MAX:
            del self._windows[next(iter(self._windows))]
        self._windows[source] = window  # the latest stands last
        return window
