"""Restrictions of a key, held up to each of its requests: addresses, countries, hours.

Stands between authentication and limits. A key without restrictions costs one look at an attribute;
of the others the verdict on an address is kept, and what depends on the time is looked at again
each minute.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from app.edge import metrics
from app.errors import Forbidden
from app.keys.authority import check_restrictions
from app.keys.principal import Principal
from app.keys.restrictions import Restrictions
from app.protect.countries import Countries

# Of 0.3 kB each. Past this the memory starts over, as that of verified keys does.
VERDICTS_MAX = 50_000
# What a dry run finds is told once in this time for each key and reason.
REPORT_EVERY_S = 60.0
REPORTS_MAX = 10_000

Clock = Callable[[], float]
# Is told of what a dry run let pass: the principal, its address, and the refusal that it would be.
Report = Callable[[Principal, str, str], None]

log = structlog.get_logger(__name__)


class _Verdict:
    """What restrictions say of an address, and of a minute."""

    __slots__ = ("generation", "minute", "place", "restrictions", "time")

    def __init__(self, restrictions: Restrictions, place: str | None, generation: int) -> None:
        self.restrictions = restrictions
        self.place = place
        self.generation = generation
        self.minute = -1
        self.time: str | None = None


class Guard:
    """Refuses requests that a key's restrictions do not allow."""

    def __init__(
        self,
        countries: Countries | None = None,
        report: Report | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._countries = countries
        self._report = report or Reports()
        self._clock = clock
        self._verdicts: dict[tuple[str, str], _Verdict] = {}

    @property
    def knows_countries(self) -> bool:
        """Say whether a country can be restricted to at all."""
        return self._countries is not None

    def check(self, principal: Principal, address: str) -> None:
        """Raise Forbidden unless the principal may be used from an address, now."""
        if principal.restrictions is not None:
            fault = self._fault(principal, principal.restrictions, address)
            if fault is not None:
                raise Forbidden(fault)

    def allows(self, principal: Principal, address: str) -> bool:
        """Say whether `check` would let it pass."""
        restrictions = principal.restrictions
        return restrictions is None or self._fault(principal, restrictions, address) is None

    def check_anew(self, principal: Principal, address: str) -> None:
        """Do what `check` does, in any thread: for whoever has waited since."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        check_restrictions(principal, address, self._country, now)

    def _country(self, address: str) -> str | None:
        return None if self._countries is None else self._countries.country(address)

    def _fault(self, principal: Principal, restrictions: Restrictions, address: str) -> str | None:
        generation = 0 if self._countries is None else self._countries.generation
        verdict = self._verdicts.get((principal.key_id, address))
        if (
            verdict is None
            # A key that was changed has others.
            or verdict.restrictions is not restrictions
            or verdict.generation != generation
        ):
            verdict = self._judge(principal.key_id, restrictions, address, generation)
        now_s = self._clock()
        minute = int(now_s // 60)
        if minute != verdict.minute:
            verdict.minute = minute
            verdict.time = restrictions.time_fault(datetime.fromtimestamp(now_s, UTC))
        fault = verdict.place or verdict.time
        if fault is not None and restrictions.is_report:
            self._report(principal, address, fault)
            return None
        return fault

    def _judge(
        self, key_id: str, restrictions: Restrictions, address: str, generation: int
    ) -> _Verdict:
        country = None if restrictions.countries is None else self._country(address)
        verdict = _Verdict(restrictions, restrictions.place_fault(address, country), generation)
        if len(self._verdicts) >= VERDICTS_MAX:
            self._verdicts.clear()
        self._verdicts[key_id, address] = verdict
        return verdict


class Reports:
    """Tells the service's log of what dry runs find, and each of its kind once a minute."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[tuple[str, str], float] = {}

    def __call__(self, principal: Principal, address: str, fault: str) -> None:
        """Count one, and tell of it if that was not done lately."""
        metrics.count_would_refuse(fault)
        now = self._clock()
        told = self._told.get((principal.key_id, fault))
        if told is not None and now < told + REPORT_EVERY_S:
            return
        if len(self._told) >= REPORTS_MAX:
            self._told.clear()
        self._told[principal.key_id, fault] = now
        log.warning(
            "a request would be refused",
            key_id=principal.key_id,
            client_id=principal.client_id,
            source_ip=address,
            reason=fault,
        )
