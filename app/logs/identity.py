"""The service's own id of a log: 36 hex digits that sort as (executed_at, arrival).

    us since year 1 (15) | ns (3) | arrival day (4) | arrival us in the day and writer slot (14)

The id is the log's place: day file and primary key. So a look-up by id needs no index, paging
needs no other cursor, ids made by many processes are unique and ordered without coordination, and
an id tells nothing about other clients' volume as a sequence number would.
"""

import re
import time
from typing import NamedTuple

from app.logs.timestamp import MIN_US, US_PER_DAY

SLOT_BITS = 16
ARRIVAL_BITS = 53  # 37 for the microsecond of the day, 16 for the slot
ARRIVAL_MASK = (1 << ARRIVAL_BITS) - 1
SLOT_MASK = (1 << SLOT_BITS) - 1
ID_LENGTH = 36

_ID = re.compile(r"[0-9a-f]{36}")


class Position(NamedTuple):
    """Where a log stands; tuples of (us, ns, day, arrival) compare as ids do."""

    us: int
    ns: int
    day: int
    arrival: int

    @property
    def seq(self) -> int:
        """The second half of the primary key (us, seq) within a day file; 63 bits."""
        return self.ns << ARRIVAL_BITS | self.arrival


def format_id(us: int, day: int, seq: int) -> str:
    """Return the id of the log at primary key (us, seq) of a day's file."""
    ns, arrival = seq >> ARRIVAL_BITS, seq & ARRIVAL_MASK
    return f"{us - MIN_US:015x}{ns:03x}{day:04x}{arrival:014x}"


def parse_id(text: str) -> Position | None:
    """Return the place that an id names, or None if it can't be one."""
    if not _ID.fullmatch(text):
        return None
    us, ns, day, arrival = (
        int(part, 16) for part in (text[:15], text[15:18], text[18:22], text[22:])
    )
    if ns > 999 or arrival > ARRIVAL_MASK:  # noqa: PLR2004
        return None
    return Position(us + MIN_US, ns, day, arrival)


def received_us(day: int, seq: int) -> int:
    """Return the moment of arrival, us since 1970, which an id carries."""
    return day * US_PER_DAY + ((seq & ARRIVAL_MASK) >> SLOT_BITS)


class ArrivalClock:
    """Gives each log its own microsecond of arrival; never the same twice, never backwards.

    `slot` tells apart the processes that append at one time; the store sets it.
    """

    def __init__(self, slot: int = 0) -> None:
        self.slot = slot
        self._last_us = 0

    def take(self, count: int) -> tuple[int, int]:
        """Reserve `count` consecutive arrivals; return the day and the first arrival's seq bits.

        The next arrivals follow at steps of `1 << SLOT_BITS`. A run that begins before midnight
        stays with its day: the microsecond field has room for it.
        """
        now = max(time.time_ns() // 1000, self._last_us + 1)
        self._last_us = now + count - 1
        day, us_of_day = divmod(now, US_PER_DAY)
        return day, us_of_day << SLOT_BITS | self.slot
