"""GET /api/v1/usage: what was sent is what is counted, and told to whom it belongs."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import USAGE, Json, Service, key_id_of, ndjson, problem, record

COUNTERS = ("requests", "logs", "bytes", "rejected", "denied")


def row(requests: int, logs: int, size: int, rejected: int = 0) -> Json:
    """Make the counters of a row without denials."""
    return dict(zip(COUNTERS, (requests, logs, size, rejected, 0), strict=True))


@pytest.fixture
def sent(service: Service, key: str, client_id: str) -> Json:
    """Send with two keys to two datasets; give what each sent."""
    second = service.key(client_id)
    one, two = [record(), record(dataset="orders"), {}], [record(id="x"), record(id="x")]
    bodies = [json.dumps(batch).encode() for batch in (one, two)]
    service.post(bodies[0], key)
    service.post(bodies[1], second)
    return {"keys": [key, second], "bytes": [len(body) for body in bodies]}


def test_totals(service: Service, key: str, sent: Json) -> None:
    """Requests, stored logs, expanded bytes and rejected records add up; duplicates are no logs."""
    usage = service.usage(key)
    assert usage["totals"] == row(2, 3, sum(sent["bytes"]), 1)


def test_by_key(service: Service, key: str, sent: Json) -> None:
    """Each key has a row, by its public id."""
    first, second = (key_id_of(one) for one in sent["keys"])
    rows = {one.pop("key"): one for one in service.usage(key, group_by="key")["usage"]}
    assert rows == {first: row(1, 2, sent["bytes"][0], 1), second: row(1, 1, sent["bytes"][1])}


def test_by_dataset(service: Service, key: str, sent: Json) -> None:
    """Each dataset has a row, and what they share is shared out without remainder."""
    usage = service.usage(key, group_by="dataset")
    rows = {one.pop("dataset"): one for one in usage["usage"]}
    assert {name: one["logs"] for name, one in rows.items()} == {"default": 2, "orders": 1}
    assert usage["totals"] == row(2, 3, sum(sent["bytes"]), 1)


@pytest.mark.parametrize(("group", "length"), [("hour", 20), ("day", 10)])
def test_by_time(service: Service, key: str, sent: Json, group: str, length: int) -> None:
    """Hours and days go by the time of arrival; each row names its start."""
    usage = service.usage(key, group_by=group)
    starts = [one[group] for one in usage["usage"]]
    assert starts
    assert all(len(start) == length for start in starts)
    today = {(datetime.now(UTC) - timedelta(minutes=m)).strftime("%Y-%m-%d") for m in (0, 5)}
    assert {start[:10] for start in starts} <= today
    assert sum(one["logs"] for one in usage["usage"]) == 3
    assert service.usage(key)["usage"] == service.usage(key, group_by="day")["usage"]


def test_bounds(service: Service, key: str, sent: Json) -> None:
    """From and to bound the time of arrival, by minutes."""
    assert service.usage(key, **{"from": "-1h"})["totals"]["logs"] == 3
    assert service.usage(key, to="-1h") == {"usage": [], "totals": row(0, 0, 0)}
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert service.usage(key, to=later)["totals"]["logs"] == 3
    assert service.usage(key, **{"from": later})["totals"]["logs"] == 0


def test_usage_equals_the_logs_sent(service: Service, key: str) -> None:
    """Over many requests of many sizes the count of logs is that of the logs there are."""
    sizes = [1, 2, 50, 7, 300, 0, 13]
    bodies = [ndjson(record(message=str(n)) for n in range(size)) for size in sizes]
    for body in bodies:
        service.post(body, key, content_type="application/x-ndjson")
    assert service.usage(key)["totals"] == row(len(sizes), sum(sizes), sum(map(len, bodies)))
    assert len(service.logs(key, limit=1000)) == sum(sizes)


def test_an_admin_key_reads_any_and_all(
    service: Service, key: str, client_id: str, sent: Json
) -> None:
    """A platform key names a client, or `*` for all, where each row says whose it is."""
    admin = service.key(None)
    assert service.usage(admin, client_id=client_id) == service.usage(key)
    everyone = service.usage(admin, client_id="*", group_by="dataset")
    own = [one for one in everyone["usage"] if one["client_id"] == client_id]
    assert sum(one["logs"] for one in own) == 3
    assert everyone["totals"]["logs"] >= 3
    for params in ({}, {"client_id": "No Slug"}):
        assert problem(service.get(USAGE, admin, params=params), 422)["errors"]


def test_another_clients_usage_is_not_found(service: Service, key: str, client_id: str) -> None:
    """A client reads its own usage only."""
    assert service.usage(key, client_id=client_id) == service.usage(key)
    for other in ("demo", "*"):
        problem(service.get(USAGE, key, params={"client_id": other}), 404, "Not found")


@pytest.mark.parametrize(
    ("name", "value"), [("group_by", "week"), ("from", "x"), ("to", "-1y"), ("group_by", "")]
)
def test_422_bad_parameters(service: Service, key: str, name: str, value: str) -> None:
    """A parameter that can't be read is named."""
    (error,) = problem(service.get(USAGE, key, params={name: value}), 422)["errors"]
    assert error["field"] == name


@pytest.mark.parametrize("group", ["key", "dataset", "hour", "day"])
def test_a_key_of_some_datasets_sees_those(
    service: Service, key: str, client_id: str, sent: Json, group: str
) -> None:
    """To a key that is limited to datasets no group and no total tells of any other."""
    limited = service.key(client_id, allowed_datasets=["orders"])
    usage = service.usage(limited, group_by=group)
    assert usage["totals"]["logs"] == sum(one["logs"] for one in usage["usage"]) == 1
    assert usage["totals"]["requests"] == 0
    if group == "dataset":
        assert [one["dataset"] for one in usage["usage"]] == ["orders"]
    none = service.key(client_id, allowed_datasets=["absent"])
    assert service.usage(none, group_by=group) == {"usage": [], "totals": row(0, 0, 0)}


def test_403_without_the_scope(service: Service, client_id: str) -> None:
    """Reading usage needs its own scope."""
    viewer = service.key(client_id, role="viewer")
    problem(service.get(USAGE, viewer), 403, "Requires scope 'usage:read'")
