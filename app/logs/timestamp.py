"""Instants of a log: RFC 3339 text or an epoch number in, whole microseconds + nanoseconds out.

An instant is (us, ns): microseconds since 1970-01-01T00:00Z as a signed int, and the 0-999
nanoseconds beyond them. Microseconds cover the years 1 to 9999 in 64 bits, nanoseconds do not.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache

US_PER_S = 1_000_000
US_PER_MINUTE = 60 * US_PER_S
US_PER_DAY = 86_400 * US_PER_S
MIN_US = -62_135_596_800 * US_PER_S  # 0001-01-01T00:00:00Z
MAX_US = 253_402_300_800 * US_PER_S - 1  # 9999-12-31T23:59:59.999999Z

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
# Lengths of texts with whole seconds, ms or us, by whether they end in Z or in +hh:mm.
_ORDINARY_LENGTHS = {True: frozenset({20, 24, 27}), False: frozenset({25, 29, 32})}
_LEAP_SECOND = 60


class BadTime(ValueError):
    """Not an instant; the message says why."""


def parse_instant(value: str | float) -> tuple[int, int]:
    """Return (us, ns) of an RFC 3339 text, or of a number of s, ms, us or ns since 1970.

    The number's unit is told by its magnitude; a leap second (RFC 3339, 5.7) counts as the next
    second. Raises BadTime.
    """
    if not isinstance(value, str):
        return _from_epoch(value)
    # Most texts have a form that the C parser reads exactly; it also takes forms that are not
    # RFC 3339, so the punctuation is checked here and anything unusual goes the slow way.
    is_utc = value.endswith("Z")
    if (
        len(value) in _ORDINARY_LENGTHS[is_utc]
        and value[4] == value[7] == "-"
        and value[10] in "T "
        and value[13] == value[16] == ":"
        and value[19] in ".Z+-"
        and (is_utc or (value[-3] == ":" and value[-6] in "+-"))
    ):
        try:
            return _microseconds(datetime.fromisoformat(value)), 0
        except ValueError:
            pass
    return _from_unusual_text(value)


def _microseconds(moment: datetime) -> int:
    try:
        delta = moment - _EPOCH
    except OverflowError:
        raise BadTime("is outside the years 0001 to 9999") from None
    us = (delta.days * 86_400 + delta.seconds) * US_PER_S + delta.microseconds
    if not MIN_US <= us <= MAX_US:
        raise BadTime("is outside the years 0001 to 9999")
    return us


def _from_unusual_text(value: str) -> tuple[int, int]:
    match = _RFC3339.fullmatch(value)
    if match is None:
        raise BadTime("must be an RFC 3339 time with an offset, or an epoch number")
    day, minute, second, fraction, offset = match.groups()
    leap = int(second) == _LEAP_SECOND
    try:
        moment = datetime.fromisoformat(
            f"{day}T{minute}:{'59' if leap else second}{'+00:00' if offset in 'Zz' else offset}"
        )
    except ValueError as error:
        raise BadTime(f"is not a time: {error}") from None
    us = _microseconds(moment) + (US_PER_S if leap else 0)
    if us > MAX_US:
        raise BadTime("is outside the years 0001 to 9999")
    ns = int(((fraction or "") + "0" * 9)[:9])
    return us + ns // 1000, ns % 1000


def _from_epoch(value: float) -> tuple[int, int]:
    """Seconds below 1e11 (the year 5138), then ms, us and ns, each a thousand times the last."""
    size = abs(value)
    units = ((1e11, 10**9), (1e14, 10**6), (1e17, 1000), (1e20, 1))
    ns_per_unit = next((ns for limit, ns in units if size < limit), None)
    if ns_per_unit is None:
        raise BadTime("is outside the years 0001 to 9999")
    if isinstance(value, int):
        total_ns = value * ns_per_unit
    else:
        # The shortest decimal of a float is what its sender wrote; binary arithmetic is not.
        total_ns = int(Decimal(repr(value)) * ns_per_unit)
    us, ns = divmod(total_ns, 1000)
    if not MIN_US <= us <= MAX_US:
        raise BadTime("is outside the years 0001 to 9999")
    return us, ns


def format_instant(us: int, ns: int = 0) -> str:
    """RFC 3339 in UTC with the shortest of 0, 3, 6 or 9 fraction digits that is exact."""
    second, micro = divmod(us, US_PER_S)
    text = _format_second(second)
    if ns:
        return f"{text}.{micro:06d}{ns:03d}Z"
    if micro == 0:
        return f"{text}Z"
    if micro % 1000 == 0:
        return f"{text}.{micro // 1000:03d}Z"
    return f"{text}.{micro:06d}Z"


@lru_cache(maxsize=64)
def _format_second(second: int) -> str:
    """Format a whole second; on the hot path it is nearly always the present one."""
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:19]
