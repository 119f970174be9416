"""From where and when a key may be used: addresses, countries, hours. Pure.

A key's columns are compiled once, when it is authenticated. What cannot be read there, since
somebody wrote it past the checks below, allows nothing.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from ipaddress import (
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

ENFORCE, REPORT = "enforce", "report"
MODES = (ENFORCE, REPORT)
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

# To compile so many takes 2 ms, of a worker's only thread.
CIDRS_MAX = 200
# A change of any key has all of them compiled anew: the longest lists of so many keys are at hand.
_JOINED_MAX = 256
COUNTRIES_MAX = 250
HOURS_MEMBERS = ("start", "end", "timezone", "days")

NOT_FROM_ADDRESS = "Not allowed from this address"
NOT_FROM_COUNTRY = "Not allowed from this country"
NOT_NOW = "Not allowed at this time"

# ISO 3166-1 alpha-2 as assigned, and XK, by which databases name Kosovo. A code that is none, such
# as UK, would match nobody: better told at once.
COUNTRY_CODES = frozenset(
    """
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS
    BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE
    EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM
    HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC
    LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA
    NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW
    SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO
    TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW
    """.split()  # noqa: SIM905  # a list of 250 lines is no better to read
)

Network = IPv4Network | IPv6Network

_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_DAY_MINUTES = 24 * 60
# The places of v4 addresses lie behind those of v6: `::/0` is all of v6 and nothing of v4.
_V4_AT = 1 << 128
_MAPPED_BITS = 96  # of ::ffff:0:0/96, by which v6 names v4 addresses
# The end of a day, as ISO 8601 writes it: 00:00 would be its beginning.
_MIDNIGHT = "24:00"
# What system directories hold beside the zones of IANA; each machine has its own.
_NO_ZONES = {"localtime", "posixrules", "Factory"}
# `mon-fri 09:00-17:00 Europe/Berlin`; days and zone may be left out.
_HOURS_TEXT = re.compile(
    r"(?:(?P<days>[a-z,-]+)\s+)?(?P<start>[0-9:]+)-(?P<end>[0-9:]+)(?:\s+(?P<zone>\S+))?"
)


@dataclass(frozen=True, slots=True)
class Hours:
    """A daily window in minutes of the zone's own clock: `start` counts, `end` no longer does.

    If it ends no later than it starts, it crosses midnight, and `days` (0 = Monday) are those on
    which it started.
    """

    start: int
    end: int
    timezone: str
    days: frozenset[int]

    def include(self, now: datetime) -> bool:
        """Say whether a moment is within."""
        local = now.astimezone(ZoneInfo(self.timezone))
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        yesterday = (day - 1) % 7
        return (day in self.days and minute >= self.start) or (
            yesterday in self.days and minute < self.end
        )

    def column(self) -> dict[str, Any]:
        """Give what a key's `allowed_hours` holds."""
        return {
            "start": _clock_text(self.start),
            "end": _clock_text(self.end),
            "timezone": self.timezone,
            "days": [DAYS[day] for day in sorted(self.days)],
        }


_NEVER = Hours(0, 0, "UTC", frozenset())


class Addresses:
    """Networks, joined where they adjoin: whether an address is among them takes a search."""

    __slots__ = ("_ends", "_starts", "networks")

    def __init__(self, networks: Iterable[Network]) -> None:
        v4: list[IPv4Network] = []
        v6: list[IPv6Network] = []
        for network in networks:
            if isinstance(network, IPv4Network):
                v4.append(network)
            else:
                v6.append(network)
        self.networks: tuple[Network, ...] = (*collapse_addresses(v4), *collapse_addresses(v6))
        spans = sorted(map(_span, self.networks))
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Addresses) and self.networks == other.networks

    def __hash__(self) -> int:
        return hash(self.networks)

    def include(self, address: str) -> bool:
        """Say whether an address is among them; what is none is not."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address):
            number = int(parsed.ipv4_mapped) + _V4_AT if parsed.ipv4_mapped else int(parsed)
        else:
            number = int(parsed) + _V4_AT
        return self._cover(number, number)

    def contain(self, others: "Addresses") -> bool:
        """Say whether all of the others' addresses are among them."""
        return all(self._cover(*_span(one)) for one in others.networks)

    def _cover(self, first: int, last: int) -> bool:
        at = bisect_right(self._starts, first) - 1
        return at >= 0 and last <= self._ends[at]


@dataclass(frozen=True, slots=True)
class Restrictions:
    """What a key is restricted to; None: not by this."""

    addresses: Addresses | None
    countries: frozenset[str] | None
    hours: Hours | None
    is_report: bool  # what would be refused is only reported

    def fault(self, address: str, country: str | None, now: datetime) -> str | None:
        """Return why a request is to be refused, or None.

        `country` is None where it is not known, which is none of those that are allowed.
        """
        return self.place_fault(address, country) or self.time_fault(now)

    def place_fault(self, address: str, country: str | None) -> str | None:
        """Return what of it the place of the caller decides."""
        if self.addresses is not None and not self.addresses.include(address):
            return NOT_FROM_ADDRESS
        if self.countries is not None and country not in self.countries:
            return NOT_FROM_COUNTRY
        return None

    def time_fault(self, now: datetime) -> str | None:
        """Return what of it the time decides; within a minute that is the same."""
        return None if self.hours is None or self.hours.include(now) else NOT_NOW

    def wider(self, key: "Restrictions | None") -> str | None:
        """Return in what a key with those restrictions may more than one with these, or None.

        Which of two windows of hours is the wider may change with the time of year; so they count
        as within each other only if they are the same.
        """
        if self.addresses is not None and (
            key is None or key.addresses is None or not self.addresses.contain(key.addresses)
        ):
            return "addresses"
        if self.countries is not None and (
            key is None or key.countries is None or not key.countries <= self.countries
        ):
            return "countries"
        if self.hours is not None and (key is None or key.hours != self.hours):
            return "hours"
        if key is not None and key.is_report and not self.is_report:
            return "restrictions_mode"
        return None


def compiled(
    cidrs: Sequence[str] | None,
    countries: Sequence[str] | None,
    hours: Mapping[str, Any] | None,
    mode: str,
) -> Restrictions | None:
    """Compile a key's columns; None if they restrict nothing.

    Raises nothing: a column that is not as `cidrs_fault` and the others ask allows nothing.
    """
    if cidrs is None and countries is None and hours is None:
        return None
    return Restrictions(
        None if cidrs is None else _addresses(cidrs),
        None if countries is None else _countries(countries),
        None if hours is None else _hours(hours),
        mode == REPORT,
    )


def cidrs_fault(cidrs: object) -> str | None:
    """Return what is wrong with `allowed_cidrs`, or None."""
    if cidrs is None:
        return None
    # Empty could be meant as "none" or as "all": better asked than guessed.
    if not isinstance(cidrs, list) or not 0 < len(cidrs) <= CIDRS_MAX:
        return f"must name 1 to {CIDRS_MAX} addresses or networks, or be null for all"
    for text in cidrs:
        try:
            _network(text)
        except ValueError:
            return f"must be addresses or networks such as 192.0.2.0/24: {_shown(text)}"
    return None


def countries_fault(countries: object) -> str | None:
    """Return what is wrong with `allowed_countries`, or None."""
    if countries is None:
        return None
    if not isinstance(countries, list) or not 0 < len(countries) <= COUNTRIES_MAX:
        return f"must name 1 to {COUNTRIES_MAX} countries, or be null for all"
    for code in countries:
        # isascii: the capital of "ß" would be South Sudan.
        if not isinstance(code, str) or not code.isascii() or code.upper() not in COUNTRY_CODES:
            return f"must be codes of ISO 3166-1 such as DE: {_shown(code)}"
    return None


def hours_fault(hours: object) -> str | None:
    """Return what is wrong with `allowed_hours`, or None."""
    if hours is None:
        return None
    if not isinstance(hours, dict):
        return f"must be an object of {', '.join(HOURS_MEMBERS)}, or null for all"
    for name in hours:
        if name not in HOURS_MEMBERS:
            return f"{_shown(name)}: must be one of {', '.join(HOURS_MEMBERS)}"
    try:
        _read_hours(hours)
    except ValueError as error:
        return str(error)
    return None


def mode_fault(mode: object) -> str | None:
    """Return what is wrong with `restrictions_mode`, or None."""
    return None if mode in MODES else f"must be one of {', '.join(MODES)}"


def parse_hours(text: str) -> dict[str, Any]:
    """Read hours as people write them, `mon-fri 09:00-17:00 Europe/Berlin`.

    Without days it is every day, without a zone UTC. Raises ValueError.
    """
    read = _HOURS_TEXT.fullmatch(text.strip())
    if read is None:
        raise ValueError("must be like 'mon-fri 09:00-17:00 Europe/Berlin'")
    hours = {
        "start": read["start"],
        "end": read["end"],
        "timezone": read["zone"] or "UTC",
        "days": list(DAYS) if read["days"] is None else _parse_days(read["days"]),
    }
    if detail := hours_fault(hours):
        raise ValueError(detail)
    return hours


def _parse_days(text: str) -> list[str]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise ValueError(f"days: must be of {', '.join(DAYS)}, such as mon-fri or sat,sun")
        start, end = DAYS.index(first), DAYS.index(last or first)
        found.update((start + n) % 7 for n in range((end - start) % 7 + 1))
    return [DAYS[day] for day in sorted(found)]


def _span(network: Network) -> tuple[int, int]:
    """Give the first and last of a network as places among all addresses."""
    at = _V4_AT if isinstance(network, IPv4Network) else 0
    return at + int(network.network_address), at + int(network.broadcast_address)


def _network(text: object) -> Network:
    """Read a network; a v4 one that is written as v6 is a v4 one."""
    if not isinstance(text, str):
        raise ValueError(text)  # noqa: TRY004  # a number would be taken for an address
    # Strict: of 10.1.2.3/8 it is not known whether one machine was meant, or 16 million.
    network = ip_network(text)
    first = network.network_address
    # One that begins among the mapped addresses also ends there: their last common bit is set.
    if isinstance(first, IPv6Address) and first.ipv4_mapped is not None:
        return IPv4Network((first.ipv4_mapped, network.prefixlen - _MAPPED_BITS))
    return network


def _addresses(cidrs: Sequence[str]) -> Addresses:
    return _joined(tuple(map(str, cidrs)) if isinstance(cidrs, list) else ())


@lru_cache(_JOINED_MAX)
def _joined(texts: tuple[str, ...]) -> Addresses:
    try:
        return Addresses(map(_network, texts))
    except ValueError:
        return Addresses(())


def _countries(countries: Sequence[str]) -> frozenset[str]:
    if countries_fault(countries):
        return frozenset()
    return frozenset(code.upper() for code in countries)


def _hours(hours: Mapping[str, Any]) -> Hours:
    return _NEVER if hours_fault(hours) else _read_hours(hours)


def _read_hours(hours: Mapping[str, Any]) -> Hours:
    """Read the members; raise ValueError for the first that can't be."""
    start, end = _minute("start", hours.get("start")), _minute("end", hours.get("end"))
    if start == end:
        raise ValueError(f"end: must differ from start; a whole day is 00:00 to {_MIDNIGHT}")
    timezone = hours.get("timezone", "UTC")
    if not isinstance(timezone, str) or timezone not in _zones():
        raise ValueError(
            f"timezone: must be an IANA zone such as Europe/Berlin: {_shown(timezone)}"
        )
    days = hours.get("days", list(DAYS))
    if not isinstance(days, list) or not 0 < len(days) <= len(DAYS):
        raise ValueError(f"days: must name 1 to {len(DAYS)} days, or be absent for all")
    for day in days:
        if day not in DAYS:
            raise ValueError(f"days: must be of {', '.join(DAYS)}: {_shown(day)}")
    return Hours(start, end, timezone, frozenset(map(DAYS.index, days)))


def _minute(name: str, text: object) -> int:
    if name == "end" and text == _MIDNIGHT:
        return _DAY_MINUTES
    read = _CLOCK.fullmatch(text) if isinstance(text, str) else None
    if read is None:
        raise ValueError(f"{name}: must be a time of day, as 09:00")
    return int(read[1]) * 60 + int(read[2])


@lru_cache(1)
def _zones() -> frozenset[str]:
    # It looks at every file of a directory: 30 ms, once.
    return frozenset(available_timezones() - _NO_ZONES)


def _clock_text(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _shown(value: object) -> str:
    return repr(value)[:80]
