"""GET /api/v1/logs/rejected: what was refused, as it was sent, for its own client."""

import json
from typing import Any

import pytest

from tests.support import LOGS, NDJSON, Json, Service, key_id_of, ndjson, problem, record

REJECTED = f"{LOGS}/rejected"


def rejected(service: Service, key: str, **params: Any) -> list[Json]:
    """Read one page."""
    response = service.get(REJECTED, key, params=params)
    assert response.status_code == 200, response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    found: list[Json] = response.json()["rejected"]
    return found


# --- 200 -----------------------------------------------------------------------------------------


def test_of_a_batch(service: Service, key: str) -> None:
    """Each rejected record of a batch is there, as it was sent; the good ones are not."""
    bad = [record(status=7), record(executed_at="noon"), record(duration_ms=-1)]
    body = [record(), *bad, record()]
    assert service.post(body, key).json()["rejected"] == 3
    found = rejected(service, key)
    assert [one["index"] for one in found] == [3, 2, 1]
    assert [one["field"] for one in found] == ["duration_ms", "executed_at", "status"]
    assert [json.loads(one["record"]) for one in reversed(found)] == bad
    assert {one["key_id"] for one in found} == {key_id_of(key)}
    assert found[0]["received_at"] > found[1]["received_at"] > found[2]["received_at"]


def test_of_lines(service: Service, key: str) -> None:
    """A line that is no JSON comes back as the text that it is."""
    body = ndjson([record()]) + b"\n{broken \xff\n" + ndjson([record()])
    assert service.post(body, key, content_type=NDJSON).status_code == 201
    [one] = rejected(service, key)
    assert (one["index"], one["field"], one["record"]) == (1, None, "{broken \\xff")
    assert one["detail"].startswith("Malformed JSON")


@pytest.mark.parametrize("body", [{"status": 7}, [{"status": 7}], {"logs": [{"status": 7}]}])
def test_of_a_request_refused_whole(service: Service, key: str, body: Any) -> None:
    """A single record's 422 and a batch's of which nothing was accepted are kept too."""
    assert service.post(body, key).status_code == 422
    assert [json.loads(one["record"]) for one in rejected(service, key)] == [{"status": 7}]


def test_a_replay_keeps_nothing_again(service: Service, key: str) -> None:
    """A repeat under an Idempotency-Key keeps its rejected records once."""
    for _ in range(2):
        assert service.post({"status": 7}, key, idempotency_key="once").status_code == 422
    assert len(rejected(service, key)) == 1


def test_a_key_inside_is_redacted(service: Service, key: str) -> None:
    """A key of ours in a rejected record is not shown again."""
    service.post(record(status=7, message=f"with {key}"), key)
    [one] = rejected(service, key)
    # Its public part may stand there, and tells whose it is.
    assert key[12 - 61 :] not in one["record"]
    assert f"{key_id_of(key)}***" in one["record"]


def test_pages(service: Service, key: str) -> None:
    """Pages follow each other without gap or repeat, and bounds choose by the arrival."""
    service.post([{"n": n} for n in range(7)], key)
    found: list[Json] = []
    params: Json = {"limit": 3, "from": "-1h"}
    while True:
        page = service.get(REJECTED, key, params=params).json()
        found += page["rejected"]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert [one["index"] for one in found] == [6, 5, 4, 3, 2, 1, 0]
    assert rejected(service, key, to="-1h") == []
    assert len(rejected(service, key, **{"from": found[2]["received_at"]})) == 3


def test_of_datasets(service: Service, client_id: str, key: str) -> None:
    """A key limited to datasets sees only what is known to have been meant for one of them."""
    narrow = service.key(client_id, allowed_datasets=["orders", "default"])
    bad = [{"dataset": "orders"}, {"dataset": "other"}, {}, 7, {"dataset": ["orders"]}]
    service.post(bad, key)
    assert [one["index"] for one in rejected(service, narrow)] == [2, 0]
    page = service.get(REJECTED, narrow, params={"limit": 1}).json()
    params = {"limit": 1, "cursor": page["next_cursor"]}
    assert [one["index"] for one in rejected(service, narrow, **params)] == [0]


def test_an_admin_names_the_client(service: Service, admin: str, client_id: str, key: str) -> None:
    """A platform key reads those of the client that it names."""
    service.post({"status": 7}, key)
    assert len(rejected(service, admin, client_id=client_id)) == 1


# --- 404, 422 ------------------------------------------------------------------------------------


def test_another_clients(service: Service, key: str) -> None:
    """Another client's are not found."""
    service.key("stranger")
    problem(service.get(REJECTED, key, params={"client_id": "stranger"}), 404, "Not found")


@pytest.mark.parametrize(
    "params",
    [
        {"status": "FAILED"},
        {"q": "x"},
        {"order": "asc"},
        {"dataset": "orders"},
        {"limit": 0},
        {"from": "soon"},
        {"cursor": "nonsense"},
        {"cursor": ["a", "b"]},
    ],
)
def test_bad_parameters(service: Service, key: str, params: Json) -> None:
    """What the route does not know, or can't read, is refused with its name."""
    [fault] = problem(service.get(REJECTED, key, params=params), 422)["errors"]
    assert fault["field"] == next(iter(params))


def test_a_cursor_of_the_logs_is_of_no_use(service: Service, key: str) -> None:
    """A cursor of GET /api/v1/logs is none of the rejected records."""
    service.post([record(), record()], key)
    cursor = service.get(LOGS, key, params={"limit": 1}).json()["next_cursor"]
    problem(service.get(REJECTED, key, params={"limit": 1, "cursor": cursor}), 422)
