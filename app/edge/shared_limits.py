"""Limits counted where all workers and hosts count together.

Whatever counts there also counts in this process, which so knows its own part: when the shared
windows can't be asked, it decides by that alone, and lets nobody start from nothing.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from app.edge import limits
from app.edge.limits import KINDS, WINDOW_S, Clock, Told, check_sizes, open_meters
from app.edge.local_limits import LocalAccount, LocalFailures, LocalLimiter
from app.errors import RateLimited, TooLarge
from app.keys.principal import Principal

WHATEVER = -1
NONE = (0, 0, 0)
ONE_REQUEST = (1, 0, 0)


class SharedWindow(NamedTuple):
    """A window under a limit; `kind` is its place in KINDS."""

    owner: str
    kind: int
    limit: int


class Decision(NamedTuple):
    """What is to happen to some windows at once; costs are in the order of KINDS.

    It passes if all of `asks` fits (WHATEVER always does; no asks never do). Then `adds` count;
    otherwise `backs` are taken back.
    """

    windows: Sequence[SharedWindow]
    asks: Sequence[int] | None
    adds: Sequence[int]
    backs: Sequence[int]


class Levels(NamedTuple):
    """What each of some windows holds, and the seconds until it holds less."""

    used: Sequence[int]
    resets_s: Sequence[int]


class Answer(NamedTuple):
    """What a decision has led to: the levels may be those after some later ones.

    `waits_s` are empty if it passed, else the seconds until each ask will fit.
    """

    levels: Levels
    waits_s: Sequence[int]


class Windows(Protocol):
    """Windows that several processes share."""

    async def ask(self, decision: Decision) -> Answer | None:
        """Have something decided, all or nothing; None: not in time, decide by yourself."""

    def tell(self, decision: Decision) -> None:
        """Have something done before whatever is asked next, and don't wait for it."""


class Reading:
    """What is known of a shared window of an owner."""

    __slots__ = ("_reset_at", "owner", "second", "used")

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.used = 0
        self.second = 0
        self._reset_at = 0

    def see(self, used: int, reset_s: int) -> bool:
        """Learn of its state at `second`; say whether the reset has changed."""
        self.used = used
        reset_at = self.second + reset_s
        if reset_at == self._reset_at:
            return False
        self._reset_at = reset_at
        return True

    def reset_s(self) -> int:
        """Return the whole seconds until some of what is used no longer counts."""
        return max(1, self._reset_at - self.second)


class SharedAccount(Told[Reading]):
    """An account whose counts are shared; its headers tell what the last answer said."""

    __slots__ = (
        "_answered",
        "_clock",
        "_levels",
        "_readings",
        "_second",
        "_shared",
        "local",
        "principal",
        "windows",
    )

    def __init__(self, local: LocalAccount, shared: Windows, clock: Clock) -> None:
        super().__init__(*open_meters(local.principal, lambda owner, _: Reading(owner)))
        self.principal = local.principal
        self.local = local
        self._shared = shared
        self._clock = clock
        self._second = -1
        self._levels: Levels | None = None  # of the last answer
        self._answered: int | None = None  # in which second; None: headers tell this process's own
        self._readings = [  # in the order of the windows
            meter.window for meters in (self.requests, self.logs, self.bytes) for meter in meters
        ]
        self.windows = [
            SharedWindow(reading.owner, kind, limit)
            for kind, meters in enumerate((self.requests, self.logs, self.bytes))
            for reading, limit in meters
        ]

    def advance(self, second: int) -> None:
        """Move to a second: what was told grows older, until nothing of it counts."""
        if second == self._second:
            return
        self._second = second
        for reading in self._readings:
            reading.second = second
        if self._answered is not None:
            if second - self._answered >= WINDOW_S:
                self._answered = None
            else:
                self.lay_out()

    def header_lines(self) -> bytes:
        """Do what Account says."""
        return self.local.header_lines() if self._answered is None else super().header_lines()

    def take(self, logs: int, body_bytes: int) -> bool:  # noqa: ARG002  # as Account has it
        """Do what Account says: what others have used takes more than a glance."""
        return False

    async def admit(self, declared_bytes: int = 0, logs: int = 0) -> None:
        """Do what Account says."""
        costs = (1, logs, declared_bytes)
        check_sizes(self, costs)
        if await self._is_counted(Decision(self.windows, costs, ONE_REQUEST, NONE)):
            self.local.add(requests=1)
        else:
            await self.local.admit(declared_bytes, logs)

    async def charge(self, logs: int, body_bytes: int) -> None:
        """Do what Account says."""
        try:
            check_sizes(self, (0, logs, body_bytes))
        except TooLarge:
            self.refund(requests=1)
            raise
        asks, adds = (WHATEVER, logs, body_bytes), (0, logs, body_bytes)
        try:
            is_counted = await self._is_counted(Decision(self.windows, asks, adds, ONE_REQUEST))
        except RateLimited:
            self.local.refund(requests=1)
            raise
        if is_counted:
            self.local.add(logs=logs, body_bytes=body_bytes)
        else:
            await self.local.charge(logs, body_bytes)

    def refund(self, *, requests: int = 0, logs: int = 0, body_bytes: int = 0) -> None:
        """Do what Account says."""
        backs = (requests, logs, body_bytes)
        self.local.refund(requests=requests, logs=logs, body_bytes=body_bytes)
        if self.windows:
            self._shared.tell(Decision(self.windows, None, NONE, backs))
        for meters, back in zip((self.requests, self.logs, self.bytes), backs, strict=True):
            for reading, _ in meters:
                reading.used = max(0, reading.used - back)

    async def _is_counted(self, decision: Decision) -> bool:
        """Say whether it passed with all; raise RateLimited if it did not, False: nobody knows."""
        if not decision.windows:
            return True
        answer = await self._shared.ask(decision)
        if answer is None:
            self._answered = None
            return False
        if answer.levels is not self._levels:  # many decisions of one call have them in common
            self._see(answer.levels)
        if not answer.waits_s:
            return True
        waits = zip(decision.windows, answer.waits_s, strict=True)
        violated = dict.fromkeys(KINDS[window.kind] for window, wait_s in waits if wait_s)
        raise RateLimited(list(violated), max(answer.waits_s))

    def _see(self, levels: Levels) -> None:
        self._levels = levels
        self.advance(int(self._clock()))
        is_changed = self._answered is None
        self._answered = self._second
        for reading, used, reset_s in zip(
            self._readings, levels.used, levels.resets_s, strict=True
        ):
            is_changed |= reading.see(used, reset_s)
        if is_changed:
            self.lay_out()


class SharedLimiter:
    """The accounts of all principals that this process has seen lately."""

    def __init__(self, shared: Windows, local: LocalLimiter, clock: Clock = time.monotonic) -> None:
        self._shared = shared
        self._local = local
        self._clock = clock
        self._accounts: dict[str, SharedAccount] = {}

    def account(self, principal: Principal) -> SharedAccount:
        """Return the account of a principal, as of now."""
        local = self._local.account(principal)
        account = self._accounts.get(principal.key_id)
        if account is None or account.local is not local:
            if len(self._accounts) >= limits.ACCOUNTS_MAX:
                self._accounts.clear()
            account = SharedAccount(local, self._shared, self._clock)
            self._accounts[principal.key_id] = account
        account.advance(int(self._clock()))
        return account


class SharedFailures:
    """Counts failures with all; a limit of 0 is none."""

    def __init__(self, shared: Windows, local: LocalFailures) -> None:
        self._shared = shared
        self._local = local

    async def count(self, source: str) -> int:
        """Do what Failures says."""
        limit = self._local.per_minute
        if not limit:
            return 0
        window = SharedWindow(f"failures:{source}", 0, limit)
        answer = await self._shared.ask(Decision([window], ONE_REQUEST, ONE_REQUEST, NONE))
        if answer is None:
            return await self._local.count(source)
        if answer.waits_s:
            return answer.waits_s[0]
        self._local.add(source)
        return 0
