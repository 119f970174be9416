"""From where and when a key may be used: what is allowed, what can't be, what is wider."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.keys.restrictions import (
    CIDRS_MAX,
    COUNTRIES_MAX,
    COUNTRY_CODES,
    DAYS,
    NOT_FROM_ADDRESS,
    NOT_FROM_COUNTRY,
    NOT_NOW,
    Restrictions,
    cidrs_fault,
    compiled,
    countries_fault,
    hours_fault,
    mode_fault,
    parse_hours,
)

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)  # a Monday
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia")

clocks = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
hours_columns = st.builds(
    lambda start, end, timezone, days: {
        "start": start,
        "end": end,
        "timezone": timezone,
        "days": days,
    },
    clocks,
    clocks | st.just("24:00"),
    st.sampled_from(ZONES),
    st.lists(st.sampled_from(DAYS), min_size=1, max_size=7, unique=True),
).filter(lambda hours: hours["start"] != hours["end"])
moments = st.datetimes(
    datetime(2025, 1, 1),  # noqa: DTZ001  # Hypothesis gives them their zone
    datetime(2027, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
# Few bits, so that networks often hold one another.
v4_networks = st.builds(
    lambda bits, prefix: str(ip_network((bits << 24 & -1 << (32 - prefix), prefix))),
    st.integers(0, 15),
    st.integers(4, 12),
)
v6_networks = st.builds(
    lambda bits, prefix: str(
        ip_network((IPv6Address(bits << 120 & -1 << (128 - prefix)).packed, prefix))
    ),
    st.integers(0, 15),
    st.integers(4, 12),
)
cidrs = st.lists(v4_networks | v6_networks, min_size=1, max_size=4)
addresses = st.builds(lambda n: str(IPv4Address(n << 20)), st.integers(0, 1 << 9)) | st.builds(
    lambda n: str(IPv6Address(n << 116)), st.integers(0, 1 << 9)
)
codes = st.sampled_from(["DE", "FR", "US"])
restrictions = st.builds(
    compiled,
    st.none() | cidrs,
    st.none() | st.lists(codes, min_size=1),
    st.none() | st.sampled_from([parse_hours("08:00-16:00"), parse_hours("mon 22:00-06:00")]),
    st.sampled_from(["enforce", "report"]),
)


def fault(
    columns: dict[str, Any], address: str = "", country: str | None = None, now: datetime = NOW
) -> str | None:
    """Say why a key with these columns is refused."""
    found = compiled(
        columns.get("cidrs"), columns.get("countries"), columns.get("hours"), "enforce"
    )
    assert found is not None
    return found.fault(address, country, now)


@given(cidrs, addresses)
def test_an_address_is_within_one_of_the_networks(networks: list[str], address: str) -> None:
    """An address passes exactly if one of the networks holds it."""
    parsed = IPv6Address(address) if ":" in address else IPv4Address(address)
    within = any(parsed in ip_network(network) for network in networks)
    assert (fault({"cidrs": networks}, address) is None) is within


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        (["192.0.2.7"], "192.0.2.7", True),
        (["192.0.2.7"], "192.0.2.8", False),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["::ffff:10.0.0.0/104"], "10.1.2.3", True),
        (["::ffff:10.0.0.0/104"], "11.1.2.3", False),
        (["2001:db8::/32"], "2001:DB8:0::1", True),
        (["0.0.0.0/0"], "2001:db8::1", False),
        (["::/0"], "2001:db8::1", True),
        (["::/0"], "192.0.2.7", False),  # all of v6, and a v4 client is none, however it is written
        (["::/0"], "::ffff:192.0.2.7", False),
        (["::/80"], "255.255.255.255", False),
        (["0.0.0.0/0", "::/0"], "", False),
        (["0.0.0.0/0", "::/0"], "unknown", False),
        (["0.0.0.0/0"], "192.0.2.7:80", False),
    ],
)
def test_addresses(networks: list[str], address: str, allowed: bool) -> None:
    """Addresses count in either way of writing them; what is none is refused."""
    assert fault({"cidrs": networks}, address) == (None if allowed else NOT_FROM_ADDRESS)


def test_countries() -> None:
    """A country that is not allowed, or not known, is refused."""
    columns = {"countries": ["DE", "fr"]}
    assert fault(columns, country="DE") is None
    assert fault(columns, country="FR") is None
    for country in ("US", None, ""):
        assert fault(columns, country=country) == NOT_FROM_COUNTRY


@given(hours_columns, moments)
def test_hours_are_windows_of_a_calendar(hours: dict[str, Any], now: datetime) -> None:
    """A moment passes exactly if a window that starts on an allowed day holds it."""
    local = now.astimezone(ZoneInfo(hours["timezone"])).replace(tzinfo=None)
    within = False
    for days_ago in (0, 1):
        midnight = datetime(local.year, local.month, local.day) - timedelta(days=days_ago)  # noqa: DTZ001
        if DAYS[midnight.weekday()] not in hours["days"]:
            continue
        hour, minute = map(int, hours["end"].split(":"))
        end = midnight + timedelta(hours=hour, minutes=minute)
        hour, minute = map(int, hours["start"].split(":"))
        start = midnight + timedelta(hours=hour, minutes=minute)
        within |= start <= local < (end if end > start else end + timedelta(days=1))
    assert fault({"hours": hours}, now=now) == (None if within else NOT_NOW)


@pytest.mark.parametrize(
    ("text", "now", "allowed"),
    [
        ("09:00-17:00", "2026-03-02T09:00:00", True),
        ("09:00-17:00", "2026-03-02T16:59:59.999999", True),
        ("09:00-17:00", "2026-03-02T17:00:00", False),
        ("mon-fri 09:00-17:00", "2026-03-01T12:00:00", False),  # a Sunday
        ("fri 22:00-06:00", "2026-03-06T23:00:00", True),
        ("fri 22:00-06:00", "2026-03-07T05:59:00", True),  # Saturday, of Friday's window
        ("fri 22:00-06:00", "2026-03-06T05:59:00", False),  # Friday, of Thursday's
        ("fri 22:00-06:00", "2026-03-07T22:00:00", False),
        ("sun 22:00-06:00", "2026-03-02T01:00:00", True),
        ("sun 00:00-24:00", "2026-03-01T23:59:59", True),
        ("sun 00:00-24:00", "2026-03-02T00:00:00", False),
        # The clocks of Berlin are an hour ahead in winter, and two from 29 March on.
        ("09:00-17:00 Europe/Berlin", "2026-03-27T08:00:00", True),
        ("09:00-17:00 Europe/Berlin", "2026-03-27T16:30:00", False),
        ("09:00-17:00 Europe/Berlin", "2026-03-30T07:00:00", True),
        ("09:00-17:00 Europe/Berlin", "2026-03-30T15:00:00", False),
    ],
)
def test_hours(text: str, now: str, allowed: bool) -> None:
    """The end is exclusive, days are those of the start, and the zone's own clock counts."""
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert fault({"hours": parse_hours(text)}, now=moment) == (None if allowed else NOT_NOW)


def test_the_first_fault_is_told() -> None:
    """Address goes before country, country before time."""
    columns = {"cidrs": ["192.0.2.0/24"], "countries": ["DE"], "hours": parse_hours("01:00-02:00")}
    assert fault(columns, "198.51.100.1", "FR") == NOT_FROM_ADDRESS
    assert fault(columns, "192.0.2.1", "FR") == NOT_FROM_COUNTRY
    assert fault(columns, "192.0.2.1", "DE") == NOT_NOW
    assert fault(columns, "192.0.2.1", "DE", NOW.replace(hour=1)) is None


def test_no_column_is_no_restriction() -> None:
    """A key without any has none at all, in either mode."""
    assert compiled(None, None, None, "enforce") is None
    assert compiled(None, None, None, "report") is None


@pytest.mark.parametrize("junk", [[], {}, "0.0.0.0/0", 5, [5], [None], ["x"], [{}], {"start": "1"}])
def test_what_cannot_be_read_allows_nothing(junk: Any) -> None:
    """A column that holds what no check would have let in refuses everybody."""
    assert fault({"cidrs": junk}, "0.0.0.5") == NOT_FROM_ADDRESS
    assert fault({"countries": junk}, country="DE") == NOT_FROM_COUNTRY
    assert fault({"hours": junk}) == NOT_NOW


def test_only_the_word_report_is_a_dry_run() -> None:
    """Any other mode enforces."""
    modes = {mode: compiled([], None, None, mode) for mode in ("report", "enforce", "REPORT", "")}
    assert [mode for mode, one in modes.items() if one and one.is_report] == ["report"]


@pytest.mark.parametrize(
    "value",
    [
        *([], {}, "10.0.0.0/8", 5, [5], ["10.0.0.1/8"], ["10.0.0.0/33"], ["example.com"], [""]),
        *(["2001:db8::/32/1"], ["10.0.0.0/8 "], ["192.0.2.1"] * (CIDRS_MAX + 1)),
    ],
)
def test_cidrs_that_cannot_be(value: object) -> None:
    """What is no bounded list of addresses and networks is told, briefly."""
    assert "192.0.2.0/24" in str(cidrs_fault(value)) or "1 to" in str(cidrs_fault(value))


@pytest.mark.parametrize("value", [[], {}, "DE", [5], ["DEU"], ["UK"], ["D"], ["ß"], ["DE"] * 251])
def test_countries_that_cannot_be(value: object) -> None:
    """What is no bounded list of ISO 3166-1 alpha-2 codes is told."""
    assert countries_fault(value)


def test_every_country_fits() -> None:
    """All codes there are may be named at once."""
    assert len(COUNTRY_CODES) == COUNTRIES_MAX
    assert countries_fault(sorted(COUNTRY_CODES)) is None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"start": "9:00"}, "start"),
        ({"start": "24:00"}, "start"),
        ({"start": None}, "start"),
        ({"start": "\u0660\u0669:\u0660\u0660"}, "start"),
        ({"end": "17:60"}, "end"),
        ({"end": "17:00:00"}, "end"),
        ({"end": 17}, "end"),
        ({"end": "09:00"}, "differ"),
        ({"timezone": "Berlin"}, "timezone"),
        ({"timezone": "../UTC"}, "timezone"),
        ({"timezone": "localtime"}, "timezone"),
        ({"timezone": None}, "timezone"),
        ({"days": []}, "days"),
        ({"days": "mon"}, "days"),
        ({"days": ["Monday"]}, "days"),
        ({"days": [["mon"]]}, "days"),
        ({"days": ["mon"] * 8}, "days"),
        ({"day": ["mon"]}, "day"),
        ({"x" * 5_000: 1}, "xx"),
    ],
)
def test_hours_that_cannot_be(changed: dict[str, Any], told: str) -> None:
    """What is wrong with hours is told by the member's name, and briefly."""
    hours = parse_hours("mon-fri 09:00-17:00 Europe/Berlin") | changed
    detail = hours_fault(hours)
    assert detail is not None
    assert told in detail
    assert len(detail) < 200


def test_hours_may_leave_zone_and_days_out() -> None:
    """A window alone is one of every day, in UTC."""
    hours = {"start": "09:00", "end": "17:00"}
    assert hours_fault(hours) is None
    assert compiled(None, None, hours, "") == compiled(None, None, parse_hours("09:00-17:00"), "")


@pytest.mark.parametrize("value", [None, "", "Report", 1, ["report"]])
def test_modes_that_cannot_be(value: object) -> None:
    """There are two modes."""
    assert mode_fault(value)
    assert mode_fault("enforce") is mode_fault("report") is None


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("mon-fri 09:00-17:00", "mon tue wed thu fri"),
        ("sat,sun 09:00-17:00 UTC", "sat sun"),
        ("fri-mon 09:00-17:00", "mon fri sat sun"),
        ("wed 09:00-17:00", "wed"),
        ("09:00-17:00", "mon tue wed thu fri sat sun"),
    ],
)
def test_hours_as_people_write_them(text: str, days: str) -> None:
    """Days may be named one by one or from one to another, over the weekend too."""
    read = {"start": "09:00", "end": "17:00", "timezone": "UTC", "days": days.split()}
    assert parse_hours(text) == read


@pytest.mark.parametrize(
    "text", ["", "always", "mon-fri", "mon-fri 9-17", "foo 09:00-17:00", "mon- 09:00-17:00 x y"]
)
def test_hours_that_nobody_can_read(text: str) -> None:
    """What is no window is refused."""
    with pytest.raises(ValueError, match=r"must"):
        parse_hours(text)


@given(hours_columns)
def test_hours_come_back_as_they_were(hours: dict[str, Any]) -> None:
    """The column that compiled hours give says the same."""
    one = compiled(None, None, hours, "enforce")
    assert one is not None
    assert one.hours is not None
    assert compiled(None, None, one.hours.column(), "enforce") == one


@given(restrictions, restrictions, addresses, st.none() | codes, moments)
def test_nothing_passes_by_what_is_not_wider(
    asker: Restrictions | None,
    key: Restrictions | None,
    address: str,
    country: str | None,
    now: datetime,
) -> None:
    """Who passes by restrictions that are not wider than others passes by those as well."""
    if asker is None or asker.wider(key):
        return
    assert key is not None
    if key.fault(address, country, now) is None:
        assert asker.fault(address, country, now) is None
    assert asker.is_report or not key.is_report


@given(restrictions)
def test_none_is_wider_than_itself(one: Restrictions | None) -> None:
    """The same restrictions are within each other, and none at all are wider than any."""
    if one is not None:
        assert one.wider(one) is None
        assert one.wider(None) is not None


def test_networks_that_adjoin_are_one() -> None:
    """A network is within two halves of it."""
    halves = compiled(["10.0.0.0/9", "10.128.0.0/9"], None, None, "enforce")
    assert halves is not None
    assert halves.wider(compiled(["10.0.0.0/8"], None, None, "enforce")) is None
    assert halves.wider(compiled(["10.0.0.0/7"], None, None, "enforce")) == "addresses"
