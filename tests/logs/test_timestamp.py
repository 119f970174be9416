"""Instants: what is a time, which one, and how it is written."""

import re
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.logs.timestamp import MAX_US, MIN_US, BadTime, format_instant, parse_instant

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def reference(text: str) -> int | None:
    """Read RFC 3339 by its grammar alone: nanoseconds since 1970, or None."""
    match = RFC3339.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    offset = timedelta()
    if match[8] not in "Zz":
        hours, minutes = int(match[8][1:3]), int(match[8][4:])
        if hours > 23 or minutes > 59:
            return None
        offset = timedelta(hours=hours, minutes=minutes) * (-1 if match[8][0] == "-" else 1)
    try:
        moment = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=timezone(offset))
    except ValueError:
        return None
    if second > 60:
        return None
    whole = (moment - EPOCH) // timedelta(seconds=1) + (second == 60)
    ns = whole * 10**9 + int(((match[7] or ".")[1:] + "0" * 9)[:9])
    return ns if MIN_US * 1000 <= ns < (MAX_US + 1) * 1000 else None


def parsed_ns(value: str | float) -> int | None:
    """Give the nanoseconds that the service reads, None if it refuses."""
    try:
        us, ns = parse_instant(value)
    except BadTime:
        return None
    assert 0 <= ns <= 999
    return us * 1000 + ns


two = st.integers(0, 99).map("{:02}".format)
offsets = st.one_of(
    st.sampled_from(["Z", "z", "", "+00:00", "-00:00", "+0100", "+01", "+01:00:30", "-23:59"]),
    st.builds("{}{}:{}".format, st.sampled_from("+-"), two, two),
)
fractions = st.one_of(
    st.just(""),
    st.sampled_from([".", ",5", ". 5"]),
    st.text("0123456789", min_size=1, max_size=13).map(".{}".format),
)
near_times = st.builds(
    "{}-{}-{}{}{}:{}:{}{}{}".format,
    st.sampled_from(["0000", "0001", "1969", "1970", "2024", "2026", "9999", "026", "12026"]),
    st.integers(0, 13).map("{:02}".format),
    st.integers(0, 32).map("{:02}".format),
    st.sampled_from(["T", "t", " ", "_", "TT", ""]),
    st.integers(0, 25).map("{:02}".format),
    st.integers(0, 61).map("{:02}".format),
    st.integers(0, 62).map("{:02}".format),
    fractions,
    offsets,
)


@given(near_times)
@example("2026-01-01T00:00:00.12345678901Z")  # as long as one with microseconds and an offset
@example("2026-01-01T00:00:00+0100")
@example("2026-01-01T00:00:00.1234567+0100")
@example("2026-01-01T00:00:00.123+01:00:30")
@example("2026-W01-1T00:00:00Z")
@example("2016-12-31T23:59:60Z")
@example("9999-12-31T23:59:60Z")
@example("0001-01-01T00:00:00+00:01")
def test_texts_are_read_by_rfc_3339(text: str) -> None:
    """A text is taken exactly if the grammar of RFC 3339 takes it, to the nanosecond."""
    assert parsed_ns(text) == reference(text)


@given(st.text(max_size=40))
def test_any_other_text_is_refused(text: str) -> None:
    """No text does worse than being refused."""
    assert parsed_ns(text) == reference(text)


@given(st.datetimes(), st.integers(-1439, 1439))
def test_texts_of_datetimes_are_read(naive: datetime, offset_minutes: int) -> None:
    """What isoformat writes with any offset is read back exactly."""
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    us = (moment - EPOCH) // timedelta(microseconds=1)
    expected = us * 1000 if MIN_US <= us <= MAX_US else None
    assert parsed_ns(moment.isoformat()) == expected


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        (0, 0),
        (1_780_272_000, 1_780_272_000 * 10**9),
        (1_780_272_000_123, 1_780_272_000_123 * 10**6),
        (1_780_272_000_123_456, 1_780_272_000_123_456 * 10**3),
        (1_780_272_000_123_456_789, 1_780_272_000_123_456_789),
        (1_780_272_000.123456, 1_780_272_000_123_456_000),
        (0.1, 10**8),
        (1_780_272_000_123.25, 1_780_272_000_123_250_000),
        (-1, -(10**9)),
        (-0.5, -(10**9) // 2),
        (-62_135_596_800, MIN_US * 1000),
    ],
)
def test_numbers_are_read_by_magnitude(value: float, ns: int) -> None:
    """Seconds, ms, us and ns since 1970 are told apart by size, and floats are read as written."""
    assert parsed_ns(value) == ns


@pytest.mark.parametrize(
    "value", [10**20, 10**40, -(10**20), 1e300, -62_135_596_801, 99_999_999_999_999_999]
)
def test_numbers_beyond_the_calendar_are_refused(value: float) -> None:
    """A number that names no moment of the years 1 to 9999, or too large for any unit, is bad."""
    ns = parsed_ns(value)
    assert ns is None or MIN_US * 1000 <= ns <= MAX_US * 1000 + 999


@given(st.integers(-(10**21), 10**21) | st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_is_read_or_refused(value: float) -> None:
    """A number's instant is off by less than a nanosecond of what the number says, or refused."""
    ns = parsed_ns(value)
    if ns is not None:
        units = [
            unit
            for limit, unit in ((1e11, 10**9), (1e14, 10**6), (1e17, 1000), (1e20, 1))
            if abs(value) < limit
        ]
        exact = Fraction(value if isinstance(value, int) else repr(value)) * units[0]
        assert abs(ns - exact) < 1


@given(st.integers(MIN_US, MAX_US), st.integers(0, 999))
def test_what_is_written_is_read_back(us: int, ns: int) -> None:
    """Every instant has one text, RFC 3339 in UTC, that reads as the same instant."""
    text = format_instant(us, ns)
    assert parse_instant(text) == (us, ns)
    assert reference(text) == us * 1000 + ns
    assert re.fullmatch(r".{19}(\.(\d{3}|\d{6}|\d{9}))?Z", text)
    assert not text.endswith("000Z") or len(text) == 30 or text[19] != "."


def test_written_instants_use_the_fewest_digits() -> None:
    """Whole seconds have no fraction, milliseconds three digits, microseconds six, else nine."""
    assert format_instant(0) == "1970-01-01T00:00:00Z"
    assert format_instant(1000) == "1970-01-01T00:00:00.001Z"
    assert format_instant(1) == "1970-01-01T00:00:00.000001Z"
    assert format_instant(0, 1) == "1970-01-01T00:00:00.000000001Z"
    assert format_instant(MIN_US) == "0001-01-01T00:00:00Z"
    assert format_instant(MAX_US, 999) == "9999-12-31T23:59:59.999999999Z"
