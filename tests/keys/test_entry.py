"""One key of a file."""

from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from app.keys.entry import FIELDS, Entry, read_entry


def _one(**row: Any) -> Entry:
    entry, faults = read_entry(1, {"key": "k", "tenant": "acme", **row})
    assert faults == []
    assert entry is not None
    return entry


def _faults(**row: Any) -> list[tuple[str, str]]:
    entry, faults = read_entry(1, {"key": "k", "tenant": "acme", **row})
    assert entry is None
    return [(fault.field, fault.detail) for fault in faults]


@pytest.mark.parametrize(
    ("value", "limit"),
    [(0, 0), (60, 60), (6e1, 60), ("60", 60), ("100/minute", 100), ("100 / m", 100)],
)
def test_a_rate_is_requests_a_minute(value: object, limit: int) -> None:
    """A number, or text that names the minute, is the limit of requests."""
    assert _one(rate_limit=value).requests_per_minute == limit


@pytest.mark.parametrize("value", ["2990-01-31", "2990-01-31T00:00:00Z", "2990-01-31 00:00"])
def test_a_time_without_a_zone_is_utc(value: str) -> None:
    """A date is its beginning, and what has no zone is UTC."""
    for given in (value, yaml.safe_load(value)):
        assert _one(expires_at=given).expires_at == datetime(2990, 1, 31, tzinfo=UTC)


def test_the_short_words_are_scopes() -> None:
    """The words of common key files stand for our scopes, one each."""
    words = ["read", "write", "query", "usage", "manage", "audit"]
    scopes = [_one(permissions=[word]).scopes for word in words]
    assert scopes == [
        ["logs:read"],
        ["logs:write"],
        ["logs:query"],
        ["usage:read"],
        ["keys:manage"],
        ["audit:read"],
    ]


@pytest.mark.parametrize(
    ("row", "field", "detail"),
    [
        ({"key": None}, "key", "is required"),
        ({"key": 12345}, "key", "must be text"),
        ({"key": "x" * 513}, "key", "must have 1 to 512"),
        ({"key": "clé"}, "key", "printable ASCII"),
        ({"key": f"cl_live_{'a' * 61}"}, "key", "is mistyped"),
        ({"tenant": "Acme Corp"}, "tenant", "must match"),
        ({"tenant": None}, "tenant", "is required"),
        ({"role": "admin"}, "tenant", "must be absent"),
        ({"role": "emperor"}, "role", "must be one of client"),
        ({"role": ["client"]}, "role", "must be text"),
        ({"description": "\0"}, "description", "printable"),
        ({"description": "x" * 4097}, "description", "4096"),
        ({"rate_limit": -1}, "rate_limit", "requests per minute"),
        ({"rate_limit": True}, "rate_limit", "requests per minute"),
        ({"rate_limit": "100/hour"}, "rate_limit", "requests per minute"),
        ({"rate_limit": 1 << 63}, "rate_limit", "requests per minute"),
        ({"expires_at": "soon"}, "expires_at", "must be a time"),
        ({"expires_at": "0001-01-01T00:00:00+05:00"}, "expires_at", "must be a time"),
        ({"enabled": "perhaps"}, "enabled", "true or false"),
        ({"enabled": 0}, "enabled", "true or false"),
        ({"allowed_datasets": []}, "allowed_datasets", "1 to 1000"),
        ({"allowed_datasets": ["A B"]}, "allowed_datasets", "must match"),
        ({"permissions": "read;fly"}, "permissions", "must be of audit"),
        ({"permissions": [1]}, "permissions", "list of words"),
        ({"tenent": "acme"}, "field 3", "did you mean tenant?"),
        ({"xyz": 1}, "field 3", "is none of key"),
        ({"key": object()}, "key", "must be text"),
    ],
)
def test_a_bad_field_is_named(row: dict[str, Any], field: str, detail: str) -> None:
    """An entry with a fault is left out, and the fault names the field and what it should be."""
    ((found, told),) = _faults(**dict(sorted(row.items())))
    assert (found, detail in told) == (field, True), told


def test_a_name_of_too_many_digits_is_unknown() -> None:
    """A name that Python refuses to write is complained of as any other."""
    _, faults = read_entry(2, {"key": "k", "tenant": "acme", 1 << 99_999: 1})
    assert [str(fault) for fault in faults] == [
        f"entry 2: field 3 is none of {', '.join(FIELDS)}",
    ]
