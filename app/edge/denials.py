"""Requests that were refused: noted in memory, written twice a second.

Nothing of this is on the way of a request that is let in, and a refusal waits for nothing. The
reason that its caller is not told is found when it is written (app/activity/denials.py). So is what
the credential would be verified by: on the event loop, others would wait for that. Its text is kept
until then, in memory, behind `Proofs` alone.
"""

from collections import Counter
from functools import lru_cache, partial
from time import time
from typing import Any, Protocol

from app.activity import reasons
from app.activity.refusals import Refusal, Repeats
from app.addresses import party_of
from app.edge.auth import Authenticator
from app.edge.background import BackgroundWriter
from app.edge.problem import status_of
from app.errors import (
    Elsewhere,
    Forbidden,
    InvalidKey,
    InvalidSignature,
    LoggerError,
    RateLimited,
    Unauthenticated,
)
from app.keys import shape
from app.keys.principal import Principal
from app.keys.shape import Presented

FLUSH_S = 0.5
# Refusals a second that get a row of their own; the rest are counted. Of one party it is more than
# a person looks through, of all what a thread writes beside the requests.
ROWS_OF_PARTY_MAX = 50
ROWS_PER_SECOND_MAX = 200
# What waits, if the database is away.
ROWS_WAITING_MAX = 2_000
# More than a worker refuses between two writes: made-up ids are not to crowd out one that is there.
REPEATS_MAX = 4_000
USER_AGENT_BYTES_MAX = 1020
DETAIL_LENGTH_MAX = 500

# Those who are refused come again and again, and reading an address takes 2 µs.
_party_of = lru_cache(4_096)(party_of)

# Party, endpoint, status, reason, shape of the credential, and the key that is named.
_Name = tuple[str, str, int, str, str, str | None]


class Log(Protocol):
    """Where refusals are written, in a thread; it raises StorageUnavailable to be asked again."""

    def is_due(self) -> bool:
        """Say whether there is something to do though nothing was refused."""

    def write(
        self, refusals: list[Refusal], repeats: list[Repeats], *, is_last: bool = False
    ) -> None:
        """Write refusals one by one, and count others."""


class Denials:
    """Refusals of this process that are not written yet."""

    def __init__(self, authenticator: Authenticator, log: Log) -> None:
        self._authenticator = authenticator
        self._log = log
        self._refusals: list[Refusal] = []
        self._repeats: dict[_Name, Repeats] = {}
        self._second = 0
        self._rows = 0
        self._rows_of_party = Counter[str]()
        self._writer = BackgroundWriter("denials", self.flush, FLUSH_S)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    async def aclose(self) -> None:
        """Write the rest and stop."""
        await self._writer.aclose()

    def note(
        self,
        error: LoggerError,
        request_id: str,
        endpoint: str,
        scope: Any,
        principal: Principal | None = None,
    ) -> None:
        """Note what a request is answered with, if it is a refusal of its caller.

        `endpoint` is the method and the route's template; `principal` who was authenticated.
        """
        if not isinstance(error, Unauthenticated | Forbidden | RateLimited | Elsewhere):
            return
        address = self._authenticator.source(scope)
        agent = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
        reason, presented = self._why(error, scope, principal)
        refusal = Refusal(
            at_s=time(),
            request_id=request_id,
            status=status_of(error),
            endpoint=endpoint,
            party=_party_of(address),
            source_ip=address,
            user_agent=agent[:USER_AGENT_BYTES_MAX].decode("utf-8", "replace"),
            reason=reason,
            detail=_detail(error)[:DETAIL_LENGTH_MAX],
            presented=presented,
            key_id=None if principal is None else principal.key_id,
            client_id=None if principal is None else principal.client_id,
        )
        if self._gets_a_row(refusal):
            self._refusals.append(refusal)
        else:
            self._count(Repeats.of(refusal))

    def _why(
        self, error: LoggerError, scope: Any, principal: Principal | None
    ) -> tuple[str, Presented | None]:
        """Name the reason, as far as it can be known here, and the credential if it counts."""
        if isinstance(error, Forbidden):
            return reasons.of_forbidden(error.detail), None
        if isinstance(error, Elsewhere):
            return reasons.OTHER_CLIENT, None
        if isinstance(error, RateLimited):
            reason = reasons.of_limits(error.members["violated"])
            is_guess = reason == reasons.TOO_MANY_FAILURES and principal is None
            return reason, self._authenticator.presented(scope) if is_guess else None
        if principal is None:
            return "", self._authenticator.presented(scope)
        # Authenticated, and no more so when its body had come; or nobody, where a key is needed.
        return "" if isinstance(error, InvalidKey) else shape.NONE, None

    def _gets_a_row(self, refusal: Refusal) -> bool:
        second = int(refusal.at_s)
        if second != self._second:
            self._second, self._rows = second, 0
            self._rows_of_party.clear()
        # A flood of those who are not known is not to hide what befalls those who are.
        most = ROWS_PER_SECOND_MAX if refusal.client_id is None else 2 * ROWS_PER_SECOND_MAX
        if (
            self._rows >= most
            or self._rows_of_party[refusal.party] >= ROWS_OF_PARTY_MAX
            or len(self._refusals) >= ROWS_WAITING_MAX
        ):
            return False
        self._rows += 1
        self._rows_of_party[refusal.party] += 1
        return True

    def _count(self, repeats: Repeats) -> None:
        one = repeats.first
        presented = one.presented or Presented("")
        key_id = one.key_id or presented.key_id
        name: _Name = (one.party, one.endpoint, one.status, one.reason, presented.shape, key_id)
        if name not in self._repeats and len(self._repeats) >= REPEATS_MAX:
            various = Refusal(one.at_s, one.request_id, one.status, "", "", "", "", reasons.VARIOUS)
            repeats = repeats._replace(first=various)
            name = ("", "", one.status, reasons.VARIOUS, "", None)
        before = self._repeats.get(name)
        self._repeats[name] = repeats if before is None else before.plus(repeats)

    async def flush(self) -> None:
        """Write what was noted; keep it for the next time if that fails."""
        is_last = self._writer.is_stopping
        if not (self._refusals or self._repeats or is_last or self._log.is_due()):
            return
        refusals, self._refusals = self._refusals, []
        repeats, self._repeats = self._repeats, {}
        work = partial(self._log.write, refusals, list(repeats.values()), is_last=is_last)
        count = len(refusals) + sum(one.times for one in repeats.values())
        if not await self._writer.write(work, count):
            waiting = refusals + self._refusals
            self._refusals = waiting[:ROWS_WAITING_MAX]
            for one in [*repeats.values(), *map(Repeats.of, waiting[ROWS_WAITING_MAX:])]:
                self._count(one)


def _detail(error: LoggerError) -> str:
    """Say what there is to say of this refusal beyond its reason."""
    if isinstance(error, InvalidSignature):
        return error.cause
    return error.detail if isinstance(error, Forbidden) else ""
