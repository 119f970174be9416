"""The least that a key needs, learned from what it did."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.activity.access import Used
from app.activity.privilege import ADDRESSES_MAX, generate_options, suggest
from app.keys.models import ApiKey
from app.keys.restrictions import DAYS, cidrs_fault, hours_fault

WRITE, READ = "POST /api/v1/logs", "GET /api/v1/logs"
USAGE, MANAGE = "GET /api/v1/usage", "POST /api/v1/api-keys"
SCOPES = {
    WRITE: "logs:write",
    READ: "logs:read",
    USAGE: "usage:read",
    MANAGE: "keys:manage",
    "GET /api/v1/api-keys/verify/current": None,
}


def key(**fields: Any) -> ApiKey:
    """Make a key."""
    properties = {"key_id": "k", "key_prefix": "k", "client_id": "acme", "role": "client"} | fields
    return ApiKey(name="a key", **properties)


def used(hour: int = 33, **fields: Any) -> Used:
    """Make what a key did in an hour; 33 is 09:00 of a day."""
    values: dict[str, Any] = {
        "endpoint": WRITE,
        "dataset": "orders",
        "source_ip": "192.0.2.7",
        "outcome": "201",
        "hour": hour,
        "requests": 5,
    }
    return Used(**values | fields)


def test_what_was_used_is_suggested() -> None:
    """Scopes, datasets, addresses and hours are those of the requests that were let in."""
    rows = [
        used(),
        used(40, dataset="returns", source_ip="::ffff:192.0.2.8"),
        used(60, requests=1),
        used(3, endpoint=READ, outcome="403", source_ip="198.51.100.1", dataset="*"),
        used(3, outcome="429", source_ip="198.51.100.1"),
    ]
    found = suggest(key(), rows, SCOPES)
    assert found is not None
    assert found.patch == {
        "scopes": ["logs:write"],
        "allowed_datasets": ["orders", "returns"],
        "allowed_cidrs": ["192.0.2.7/32", "192.0.2.8/32"],
        "allowed_hours": {"start": "09:00", "end": "17:00", "timezone": "UTC", "days": list(DAYS)},
    }
    assert (found.requests, found.days, found.notes) == (11, 2, [])
    assert generate_options(key(), found) == [
        *("--client", "acme", "--role", "ingest", "--dataset", "orders", "--dataset", "returns"),
        *("--cidr", "192.0.2.7/32", "--cidr", "192.0.2.8/32", "--hours", "09:00-17:00 UTC"),
    ]


def test_nothing_is_suggested_beyond_what_is_known() -> None:
    """What was not noted, or is narrow already, stays as it is, and a note says why."""
    assert suggest(key(), [used(outcome="403")], SCOPES) is None
    narrow = key(
        role="ingest",
        allowed_datasets=["orders"],
        allowed_cidrs=["192.0.2.7/32"],
        allowed_hours={"start": "09:30", "end": "10:00", "timezone": "UTC", "days": list(DAYS)},
    )
    found = suggest(narrow, [used()], SCOPES)
    assert found is not None
    assert found.patch == {}
    everywhere = [used(hour, endpoint=READ, dataset="*", source_ip="") for hour in range(24)]
    found = suggest(key(), everywhere, SCOPES)
    assert found is not None
    assert found.patch == {"scopes": ["logs:read"]}
    assert len(found.notes) == 3
    found = suggest(key(), [used(endpoint="GET /api/v1/api-keys/verify/current")], SCOPES)
    assert found is not None
    assert "scopes" not in found.patch


def test_what_manages_keys_keeps_all_it_has() -> None:
    """A key gives others what it has itself: with less its very requests would be refused."""
    rows = [used(), used(endpoint=MANAGE, dataset="")]
    found = suggest(key(role="owner"), rows, SCOPES)
    assert found is not None
    assert (found.patch, found.restrictions, found.scopes) == (
        *({}, {}, ["keys:manage", "logs:write"]),
    )
    assert "it managed keys" in found.notes[0]
    assert generate_options(key(role="owner"), found) == ["--client", "acme", "--role", "owner"]


def test_usage_is_of_all_datasets() -> None:
    """A key that read the usage is not to see less of it afterwards."""
    found = suggest(key(), [used(), used(endpoint=USAGE, dataset="")], SCOPES)
    assert found is not None
    assert "allowed_datasets" not in found.patch
    assert found.patch["scopes"] == ["logs:write", "usage:read"]
    assert "it read the usage" in found.notes[0]


def test_many_addresses_become_networks() -> None:
    """Of many addresses their networks are named, unless the key is restricted already."""
    rows = [used(source_ip=f"192.0.{n % 2}.{n}") for n in range(2 * ADDRESSES_MAX)]
    rows += [used(source_ip=f"2001:db8::{n}") for n in range(3)]
    found = suggest(key(), rows, SCOPES)
    assert found is not None
    assert found.patch["allowed_cidrs"] == ["192.0.0.0/23", "2001:db8::/64"]
    found = suggest(key(allowed_cidrs=["192.0.0.0/16"]), rows, SCOPES)
    assert found is not None
    assert "allowed_cidrs" not in found.patch
    found = suggest(key(), [used(source_ip=f"10.{n}.0.{n % 7}") for n in range(200)], SCOPES)
    assert found is not None
    assert "allowed_cidrs" not in found.patch


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        ([9], ("09:00", "10:00")),
        ([22, 23, 24, 25], ("22:00", "02:00")),
        ([20, 23], ("20:00", "24:00")),
        ([0, 5], ("00:00", "06:00")),
        (range(23), ("00:00", "23:00")),
    ],
)
def test_the_shortest_span_holds_all_hours(hours: list[int], expected: tuple[str, str]) -> None:
    """The span leaves out the longest time without use, across midnight if need be."""
    found = suggest(key(), [used(hour) for hour in hours], SCOPES)
    assert found is not None
    asked = found.patch["allowed_hours"]
    assert (asked["start"], asked["end"]) == expected


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(st.lists(st.builds(used, st.integers(0, 10**6), source_ip=addresses), min_size=1))
def test_a_suggestion_can_be_asked_for(rows: list[Used]) -> None:
    """What is suggested is what the API takes."""
    found = suggest(key(), rows, SCOPES)
    assert found is not None
    assert cidrs_fault(found.patch.get("allowed_cidrs")) is None
    assert hours_fault(found.patch.get("allowed_hours")) is None
