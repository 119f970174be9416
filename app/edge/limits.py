"""Limits of a key and, above it, of its client: requests, logs and bytes in any 60 seconds.

A sliding window of one-second buckets: exact to a second, no double burst at a window's edge, and
a refused request costs nothing.

The counts live in this process (`local_limits`), or in a store that many processes share
(`shared_limits`). Here is what both promise, and one set of tests holds for both.
"""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from app.errors import TooLarge
from app.keys.principal import Limits, Principal

WINDOW_S = 60
# With as many accounts open, all are closed.
ACCOUNTS_MAX = 20_000

REQUESTS, LOGS, BYTES = KINDS = ("requests", "logs", "bytes")

Clock = Callable[[], float]  # seconds


class Account(Protocol):
    """What a principal's requests run past: of each kind the key's limit and the client's."""

    @property
    def principal(self) -> Principal:
        """Whose it is."""

    def header_lines(self) -> bytes:
        """Return the RateLimit headers of draft-ietf-httpapi-ratelimit-headers and the X- ones.

        Of each kind they tell the tightest meter. Each line ends with CR LF.
        """

    def take(self, logs: int, body_bytes: int) -> bool:
        """Count a request, its logs and its bytes if all that passes at a glance, else nothing.

        False says no more than that it takes `admit` and `charge` to find out.
        """

    async def admit(self, declared_bytes: int = 0, logs: int = 0) -> None:
        """Count one request, or raise RateLimited and count nothing.

        Refuses too what can't pass whatever it holds, before anything of it is read: raises
        TooLarge for a cost that no wait would make fit.
        """

    async def charge(self, logs: int, body_bytes: int) -> None:
        """Count the logs and bytes of a request; or raise, and take its own count back.

        Raises RateLimited and TooLarge.
        """

    def refund(self, *, requests: int = 0, logs: int = 0, body_bytes: int = 0) -> None:
        """Take back what was counted for something that did not happen.

        It comes before whatever this process counts next.
        """


class Limiter(Protocol):
    """The accounts of all principals."""

    def account(self, principal: Principal) -> Account:
        """Return the account of a principal, as of now."""


class Failures(Protocol):
    """How often each source has failed to authenticate."""

    async def count(self, source: str) -> int:
        """Count a failure; or count nothing, and return the seconds until one will fit."""


class Gauge(Protocol):
    """How full a window is."""

    @property
    def used(self) -> int:
        """What counts now."""

    def reset_s(self) -> int:
        """Return the whole seconds until some of what is used no longer counts."""


GaugeT = TypeVar("GaugeT", bound=Gauge)


class Meter(NamedTuple, Generic[GaugeT]):
    """One window under one limit."""

    window: GaugeT
    limit: int


Meters = tuple[Meter[GaugeT], ...]


class Told(Generic[GaugeT]):
    """The meters of a principal, and the headers that tell of them."""

    __slots__ = ("_kinds", "_pairs", "_policies", "_template", "bytes", "logs", "requests")

    def __init__(
        self, requests: Meters[GaugeT], logs: Meters[GaugeT], bytes_: Meters[GaugeT]
    ) -> None:
        self.requests = requests
        self.logs = logs
        self.bytes = bytes_
        kinds = zip(KINDS, (requests, logs, bytes_), strict=True)
        self._kinds = [(name, meters) for name, meters in kinds if meters]  # the limited ones
        # The key's and the client's meter of each, or one of them twice: laid out for the headers.
        self._pairs = [(*meters[0], *meters[-1]) for _, meters in self._kinds]
        self._policies = ", ".join(
            f'"{name}";q={min(meter.limit for meter in meters)};w={WINDOW_S}'
            for name, meters in self._kinds
        )
        self._template = b""

    def lay_out(self) -> None:
        """Make all of the headers but the numbers left; to be done when a reset has changed."""
        if not self._kinds:
            return
        resets = [
            f'"{name}";r=%d;t={_tightest(meters).window.reset_s()}' for name, meters in self._kinds
        ]
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
        """Do what Account says."""
        left = []
        for one, one_limit, other, other_limit in self._pairs:
            free, other_free = one_limit - one.used, other_limit - other.used
            left.append(max(0, min(free, other_free)))
        if self.requests:
            left.append(left[0])
        return self._template % tuple(left)


def _tightest(meters: Meters[GaugeT]) -> Meter[GaugeT]:
    return min(meters, key=lambda meter: meter.limit - meter.window.used)


def check_sizes(meters: Told[GaugeT], costs: Sequence[int]) -> None:
    """Raise TooLarge if one of the costs, in the order of KINDS, is above a whole limit."""
    all_meters = (meters.requests, meters.logs, meters.bytes)
    for name, of_kind, cost in zip(KINDS, all_meters, costs, strict=True):
        for _, limit in of_kind:
            if cost > limit:
                raise TooLarge(
                    f"Body too large: it costs {cost} {name}, the limit is {limit} a minute"
                )


class Owner(NamedTuple):
    """Whom a limit is of, as it is named wherever counts are kept."""

    name: str
    limits: Limits


def owners_of(principal: Principal) -> list[Owner]:
    """Return whose limits bind a principal: the key's own, and its client's."""
    owners = [Owner(f"key:{principal.key_id}", principal.key_limits)]
    if principal.client_id is not None:
        owners.append(Owner(f"client:{principal.client_id}", principal.client_limits))
    return owners


def open_meters(
    principal: Principal, open_window: Callable[[str, str], GaugeT]
) -> tuple[Meters[GaugeT], Meters[GaugeT], Meters[GaugeT]]:
    """Return the meters of each kind; `open_window` gives the window of an owner and a kind."""
    owners = owners_of(principal)

    def meters(kind: str) -> Meters[GaugeT]:
        limits = [(owner.name, getattr(owner.limits, f"{kind}_per_minute")) for owner in owners]
        return tuple(Meter(open_window(owner, kind), limit) for owner, limit in limits if limit)

    return meters(REQUESTS), meters(LOGS), meters(BYTES)
