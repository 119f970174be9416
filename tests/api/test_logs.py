"""Reading back: all of a client's logs that were asked for, each once, and nobody else's."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support import LOGS, Json, Service, problem, record

DAY = datetime(2026, 6, 1, tzinfo=UTC)


def at(second: int) -> str:
    """Write a moment of the day of these tests."""
    return (DAY + timedelta(seconds=second)).isoformat()


def texts(logs: list[Json]) -> list[str]:
    """Give the messages, in order."""
    return [log["message"] for log in logs]


def walk(
    service: Service, key: str, between: Callable[[int], object] = lambda _: None, **params: Any
) -> list[Json]:
    """Read page by page to the end, doing something `between` the pages."""
    found: list[Json] = []
    cursor: dict[str, str] = {}
    for number in range(1000):
        page = service.get(LOGS, key, params=params | cursor).json()
        found += page["logs"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}
        between(number)
    raise AssertionError("the pages do not end")


@pytest.fixture
def varied(service: Service, key: str) -> str:
    """Store four logs that differ in each filter; give the key."""
    service.post(
        [
            record(message="a", executed_at=at(0), status="FAILED", level="ERROR", workflow="w1"),
            record(message="b", executed_at=at(1), environment="dev", run_id="r1", workflow="w1"),
            record(message="c", executed_at=at(2), dataset="orders", level="INFO", run_id="r2"),
            record(message="d", executed_at=at(3), status="RUNNING", level="", workflow="w2"),
        ],
        key,
    )
    return key


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, "dcba"),
        ({"order": "asc"}, "abcd"),
        ({"status": "FAILED"}, "a"),
        ({"status": ["FAILED", "RUNNING"]}, "da"),
        ({"status": "failed"}, ""),
        ({"environment": "dev"}, "b"),
        ({"level": "INFO"}, "c"),
        ({"level": ""}, "d"),
        ({"workflow": ["w1", "w2"]}, "dba"),
        ({"workflow": "w1", "status": "FAILED"}, "a"),
        ({"run_id": ["r1", "r2"]}, "cb"),
        ({"dataset": "orders"}, "c"),
        ({"dataset": "default"}, "dba"),
        ({"from": at(1), "to": at(3)}, "cb"),
        ({"from": at(3)}, "d"),
        ({"to": at(0)}, ""),
        ({"from": "2026-06-01T02:00:01+02:00", "to": "2026-06-01 00:00:02Z"}, "b"),
        ({"from": at(3), "to": at(0)}, ""),
        ({"status": "' OR 1=1 --"}, ""),
        ({"limit": 2}, "dc"),
        ({"limit": 1000}, "dcba"),
    ],
)
def test_filters(service: Service, varied: str, params: dict[str, Any], found: str) -> None:
    """Each filter shows what it names, several together what they have in common."""
    assert "".join(texts(service.logs(varied, **params))) == found


@pytest.fixture
def searchable(service: Service, key: str) -> str:
    """Store four logs with texts in various places; give the key."""
    service.post(
        [
            record(message="Disk full on db_1", executed_at=at(0), duration_ms=5),
            record(message="b", error={"type": "Disk", "n": 1.5}, executed_at=at(1)),
            record(message="c", metadata={"host": "db_1", "a": {"b": "full disk"}, "n": 3}),
            record(message="Stra\u00dfe d", metadata={"a.b": "x", "host": "DB_1"}, duration_ms=7.5),
        ],
        key,
    )
    return key


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"q": "disk"}, {"D", "b", "c"}),
        ({"q": "DISK full"}, {"D", "c"}),
        ({"q": '"disk full"'}, {"D"}),
        ({"q": "disk -full"}, {"b"}),
        ({"q": "-disk"}, {"S"}),
        ({"q": "dis"}, set()),
        ({"q": "strasse"}, {"S"}),
        ({"q": "1.5"}, {"b"}),
        ({"q": "host"}, set()),
        ({"q": "db_1", "status": "SUCCESS"}, {"D", "c", "S"}),
        ({"metadata.host": "db_1"}, {"c"}),
        ({"metadata.host": ["db_1", "DB_1"]}, {"c", "S"}),
        ({"metadata.host": "db_1", "metadata.n": "3"}, {"c"}),
        ({"metadata.host": "db_1", "metadata.n": "4"}, set()),
        ({"metadata.a.b": ["x", "full disk"]}, {"c", "S"}),
        ({"metadata.a": "full disk"}, set()),
        ({"metadata.host": "DB_1", "q": "d"}, {"S"}),
        ({"min_duration_ms": "5"}, {"D", "S"}),
        ({"min_duration_ms": "5.1"}, {"S"}),
        ({"min_duration_ms": "0", "q": "disk"}, {"D"}),
    ],
)
def test_searches(
    service: Service, searchable: str, params: dict[str, Any], found: set[str]
) -> None:
    """Words, values of metadata and durations select from the 201 on, alone and together."""
    logs = service.logs(searchable, **params)
    assert {text[0] for text in texts(logs)} == found
    assert len(logs) == len(found)


def test_pages_of_a_search(service: Service, key: str) -> None:
    """A cursor continues its own search, and no other one."""
    sent = [
        record(executed_at=at(n), message=f"needle {n}" if n % 3 else "hay", metadata={"n": n % 2})
        for n in range(60)
    ]
    service.post(sent, key)
    params: dict[str, Any] = {"q": "needle", "metadata.n": "1", "limit": 4}
    want = [f"needle {n}" for n in range(59, 0, -1) if n % 3 and n % 2]
    assert texts(walk(service, key, **params)) == want
    cursor = service.get(LOGS, key, params=params).json()["next_cursor"]
    for other in ({"q": "hay"}, {"metadata.n": "0"}, {"min_duration_ms": "1"}, {"metadata.m": "1"}):
        response = service.get(LOGS, key, params={**params, **other, "cursor": cursor})
        (error,) = problem(response, 422)["errors"]
        assert error["field"] == "cursor"


def test_relative_bounds(service: Service, key: str) -> None:
    """-1h is an hour before now."""
    now = datetime.now(UTC)
    for hours, text in ((0.5, "new"), (3, "old")):
        moment = (now - timedelta(hours=hours)).isoformat()
        service.post(record(executed_at=moment, message=text), key)
    assert texts(service.logs(key, **{"from": "-1h"})) == ["new"]
    assert texts(service.logs(key, to="-1h")) == ["old"]
    assert texts(service.logs(key, **{"from": "-1d"})) == ["new", "old"]


def test_nothing_stored_is_an_empty_page(service: Service, key: str) -> None:
    """A client without logs has a page without logs."""
    assert service.get(LOGS, key).json() == {"logs": [], "next_cursor": None}


@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize("limit", [1, 7, 40, 1000])
def test_pages_hold_each_log_once(service: Service, key: str, order: str, limit: int) -> None:
    """Page by page comes what comes at once, in order, also among logs of the same instant."""
    service.post([record(executed_at=at(n // 5), message=str(n)) for n in range(40)], key)
    logs = walk(service, key, order=order, limit=limit)
    assert sorted(texts(logs), key=int) == [str(n) for n in range(40)]
    places = [(log["executed_at"], log["id"]) for log in logs]
    assert places == sorted(places, reverse=order == "desc")


@pytest.mark.parametrize("order", ["desc", "asc"])
def test_pages_hold_while_logs_arrive(service: Service, key: str, order: str) -> None:
    """Newer, older and simultaneous records that arrive meanwhile push out and repeat none."""
    service.post([record(executed_at=at(n // 3), message=f"first {n}") for n in range(30)], key)

    def more(number: int) -> None:
        if number >= 10:
            return  # in ascending order there would be no end
        times = (at(-50 - number), at(number % 10), at(1000 + number), at(5))
        service.post([record(executed_at=time, message="late") for time in times], key)

    logs = walk(service, key, more, order=order, limit=4)
    ids = [log["id"] for log in logs]
    assert len(set(ids)) == len(ids)
    assert {text for text in texts(logs) if text != "late"} == {f"first {n}" for n in range(30)}
    places = [(log["executed_at"], log["id"]) for log in logs]
    assert places == sorted(places, reverse=order == "desc")


def test_a_cursor_keeps_relative_bounds(service: Service, key: str) -> None:
    """The bounds of the first page hold for all pages of it: `-1h` does not move on."""
    now = datetime.now(UTC)
    service.post(
        [
            record(executed_at=(now - timedelta(minutes=n)).isoformat(), message=str(n))
            for n in range(9)
        ],
        key,
    )
    page = service.get(LOGS, key, params={"from": "-1h", "limit": 5}).json()
    params = {"from": "-1s", "limit": 5, "cursor": page["next_cursor"]}
    assert texts(service.logs(key, **params)) == ["5", "6", "7", "8"]


def test_a_cursor_is_of_no_use_elsewhere(service: Service, varied: str) -> None:
    """A cursor is refused with other filters, by another client, or in pieces."""
    cursor = service.get(LOGS, varied, params={"limit": 2}).json()["next_cursor"]
    other = service.key("thief")
    for key, params in (
        (varied, {"cursor": cursor, "status": "FAILED"}),
        (varied, {"cursor": cursor, "order": "asc"}),
        (varied, {"cursor": cursor[:-2]}),
        (varied, {"cursor": "x"}),
        (other, {"cursor": cursor}),
    ):
        (error,) = problem(service.get(LOGS, key, params=params), 422)["errors"]
        assert error == {
            "index": 0,
            "field": "cursor",
            "detail": "is not a cursor of this query",
        }
    assert texts(service.logs(varied, cursor=cursor, limit=100)) == ["b", "a"]


def test_422_names_every_bad_parameter(service: Service, key: str) -> None:
    """All that is wrong with a query is told at once; a misspelt filter shows nothing."""
    params = {"from": "x", "to": "y", "order": "z", "limit": "0", "stats": "FAILED"}
    errors = problem(service.get(LOGS, key, params=params), 422)["errors"]
    assert {error["field"] for error in errors} == set(params)
    for limit in ("1001", "-1", "ten", ""):
        problem(service.get(LOGS, key, params={"limit": limit}), 422)


def test_422_for_bad_searches(service: Service, key: str) -> None:
    """What a question must be is said for each parameter, and nothing is shown."""
    params: dict[str, Any] = {"q": '"open', "min_duration_ms": "-1", "metadata.": "x", "order": "z"}
    errors = problem(service.get(LOGS, key, params=params), 422)["errors"]
    assert {error["field"]: error["detail"] for error in errors} == {
        "q": "has a quote that is not closed",
        "min_duration_ms": "must be a number of at least 0",
        "metadata.": "is not a known parameter",
        "order": "must be desc or asc",
    }
    for bad, detail in (
        ({"q": ""}, "must hold a word"),
        ({"q": ["a", "b"]}, "is given twice"),
        ({"q": "x" * 1025}, "must be at most 1024 characters"),
        ({f"metadata.{n}": "x" for n in range(17)}, "may be filtered by 16 names at most"),
        ({f"metadata.{'n' * 257}": "x"}, "a name must be at most 256 characters"),
    ):
        (error,) = problem(service.get(LOGS, key, params=bad), 422)["errors"]
        assert error["detail"] == detail


def test_a_log_by_its_id(service: Service, varied: str) -> None:
    """A log read by its id is the very object that the list holds."""
    for log in service.logs(varied):
        response = service.get(f"{LOGS}/{log['id']}", varied)
        assert response.json() == log
        assert response.headers["x-content-type-options"] == "nosniff"


def test_404_for_another_clients_log(service: Service, varied: str) -> None:
    """Another client's log and one that never was look alike."""
    other = service.key("stranger")
    log_id = service.logs(varied)[0]["id"]
    answers = [
        {**problem(service.get(f"{LOGS}/{one}", other), 404, "Not found"), "request_id": None}
        for one in (log_id, log_id[:-1] + "0", "0" * 36, "f" * 36, "x", "0x" + log_id[2:], "%00")
    ]
    assert all(answer == answers[0] for answer in answers)
    assert texts(service.logs(other)) == []


def test_a_client_id_of_ones_own_is_allowed(service: Service, varied: str, client_id: str) -> None:
    """A client may name itself, and finds nobody else."""
    assert len(service.logs(varied, client_id=client_id)) == 4
    log_id = service.logs(varied)[0]["id"]
    for path in (LOGS, f"{LOGS}/{log_id}"):
        problem(service.get(path, varied, params={"client_id": "demo"}), 404, "Not found")


def test_an_admin_key_names_the_client(service: Service, varied: str, client_id: str) -> None:
    """A platform key reads the client that it names, one at a time."""
    admin = service.key(None)
    logs = service.logs(admin, client_id=client_id)
    assert logs == service.logs(varied)
    params = {"client_id": client_id}
    assert service.get(f"{LOGS}/{logs[0]['id']}", admin, params=params).json() == logs[0]
    problem(service.get(LOGS, admin, params={"client_id": "never-seen"}), 404, "Not found")
    for bad in ({}, {"client_id": "*"}, {"client_id": "No Slug"}, {"client_id": ["a", "b"]}):
        (error,) = problem(service.get(LOGS, admin, params=bad), 422)["errors"]
        assert error["field"] == "client_id"


def test_a_key_reads_its_datasets_only(service: Service, varied: str, client_id: str) -> None:
    """A key that is restricted to datasets sees them alone, in lists and by id."""
    narrow = service.key(client_id, allowed_datasets=["orders", "other"])
    logs = {log["message"]: log["id"] for log in service.logs(varied)}
    assert texts(service.logs(narrow)) == ["c"]
    assert texts(service.logs(narrow, dataset="orders")) == ["c"]
    response = service.get(LOGS, narrow, params={"dataset": ["orders", "default"]})
    problem(response, 403, "Not authorized for dataset 'default'")
    assert service.get(f"{LOGS}/{logs['c']}", narrow).status_code == 200
    problem(service.get(f"{LOGS}/{logs['a']}", narrow), 404, "Not found")


def test_403_without_the_scope(service: Service, client_id: str) -> None:
    """A key that may only write reads nothing."""
    writer = service.key(client_id, role="ingest")
    for path in (LOGS, f"{LOGS}/{'0' * 36}"):
        problem(service.get(path, writer), 403, "Requires scope 'logs:read'")


def test_times_come_back_exactly(service: Service, key: str) -> None:
    """Whatever form a time was sent in, it comes back as the same instant, to the nanosecond."""
    for sent, got in (
        ("2026-06-01T12:00:00.123456789+02:00", "2026-06-01T10:00:00.123456789Z"),
        (1_780_272_000, "2026-06-01T00:00:00Z"),
        (1_780_272_000_001_000_001, "2026-06-01T00:00:00.001000001Z"),
        ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.500Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
    ):
        log_id = service.post(record(executed_at=sent), key).json()["id"]
        assert service.get(f"{LOGS}/{log_id}", key).json()["executed_at"] == got
    logs = service.logs(key)
    assert [log["executed_at"] for log in logs][-1] == "0001-01-01T00:00:00Z"
