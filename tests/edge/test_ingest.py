"""POST /api/v1/logs, grouped by the status that it answers with."""

import asyncio
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import zstandard

from app.logs.identity import ID_LENGTH
from loadtests import records as workflows
from tests.support import (
    DEADLINE_S,
    LOGS,
    NDJSON,
    HeldBody,
    Json,
    Service,
    eventually,
    gzipped,
    key_id_of,
    ndjson,
    problem,
    record,
    running,
)

NO_USAGE = {"requests": 0, "logs": 0, "bytes": 0, "rejected": 0, "denied": 0}
BODY_BYTES_MAX = 200_000
NUMBERS = itertools.count()
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "identity": bytes,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give one service for all tests here; each makes a client of its own."""
    path = tmp_path_factory.mktemp("ingest")
    with running(
        path, max_body_bytes=BODY_BYTES_MAX, max_record_bytes=20_000, max_batch_records=500
    ) as service:
        yield service


@pytest.fixture
def client_id() -> str:
    """Name a client that no other test here has."""
    return f"client-{next(NUMBERS)}"


@pytest.fixture
def key(service: Service, client_id: str) -> str:
    """Make a key of this test's client."""
    return service.key(client_id)


def totals(service: Service, key: str) -> Json:
    """Read the client's usage over all."""
    found: Json = service.usage(key)["totals"]
    return found


def counts(response: httpx.Response, status: int = 201) -> tuple[int, int, int]:
    """Give accepted, rejected and duplicates of a reply to a batch."""
    assert response.status_code == status, response.text
    body = response.json()
    return body["accepted"], body["rejected"], body["duplicates"]


# 201


def test_201_one_record(service: Service, key: str, client_id: str) -> None:
    """One object is answered with its id, client and arrival, and can be read by that id."""
    response = service.post(record(message="hello"), key)
    assert response.status_code == 201
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"id", "client_id", "received_at"}
    assert len(body["id"]) == ID_LENGTH
    assert body["client_id"] == client_id
    stored = service.get(f"{LOGS}/{body['id']}", key).json()
    assert stored["message"] == "hello"
    assert stored["received_at"] == body["received_at"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[%b,%b]", "application/json"),
        (b'{"logs": [%b, %b]}', "application/json; charset=utf-8"),
        (b"%b\n%b", NDJSON),
        (b"%b\r\n\r\n%b\r\n", "application/jsonl"),
        (b"\xef\xbb\xbf%b\n%b\n", "Application/X-NDJSON;charset=utf-8"),
        (b"[%b,%b]", ""),
    ],
)
def test_201_every_form_of_a_batch(
    service: Service, key: str, body: bytes, content_type: str
) -> None:
    """Arrays, {"logs": [...]} and NDJSON are stored alike and answered with counts."""
    parts = [json.dumps(record(message=text)).encode() for text in ("one", "two")]
    response = service.post(body % tuple(parts), key, content_type=content_type)
    assert response.json() == {"accepted": 2, "rejected": 0, "duplicates": 0, "errors": []}
    assert {log["message"] for log in service.logs(key)} == {"one", "two"}


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "zstd", "identity", "GZIP"])
@pytest.mark.parametrize("size", [1, 300])
def test_201_every_encoding(service: Service, key: str, encoding: str, size: int) -> None:
    """Compressed bodies are stored like plain ones, and counted by their expanded bytes."""
    body = ndjson(record(message=f"m{n}") for n in range(size))
    compress = COMPRESS[encoding.lower()]
    response = service.post(compress(body), key, content_type=NDJSON, content_encoding=encoding)
    assert counts(response) == (size, 0, 0)
    assert totals(service, key) == NO_USAGE | {"requests": 1, "logs": size, "bytes": len(body)}


def test_201_without_content_type(service: Service, key: str) -> None:
    """A body without Content-Type is taken for JSON."""
    response = service.request("POST", LOGS, key, content=json.dumps(record()).encode())
    assert response.status_code == 201


@pytest.mark.parametrize("body", [b"[]", b'{"logs":[]}'])
def test_201_an_empty_batch(service: Service, key: str, body: bytes) -> None:
    """A batch of nothing is stored as such."""
    assert counts(service.post(body, key)) == (0, 0, 0)
    assert counts(service.post(b"", key, content_type=NDJSON)) == (0, 0, 0)


def test_201_every_field_comes_back(service: Service, key: str, client_id: str) -> None:
    """What is sent is what is read: known fields by name, unknown ones under metadata."""
    sent = record(
        workflow="nightly",
        run_id="r-1",
        level="ERROR",
        message='zero \x00, quote ", line\nend \u2028 \U0001f680',
        duration_ms=12.5,
        error={"code": 10**30, "nested": [None, True]},
        dataset="orders",
        id="my-own-id",
        metadata={"a": 1, "big": 2**64 + 1},
        host="h1",
        a=2,
    )
    response = service.post(sent, key)
    (stored,) = service.logs(key)
    assert stored == {
        "id": response.json()["id"],
        "client_id": client_id,
        "executed_at": "2026-06-01T12:00:00Z",
        "received_at": response.json()["received_at"],
        "environment": "production",
        "status": "SUCCESS",
        "dataset": "orders",
        "level": "ERROR",
        "workflow": "nightly",
        "run_id": "r-1",
        "message": sent["message"],
        "duration_ms": 12.5,
        "error": sent["error"],
        "external_id": "my-own-id",
        "metadata": {"a": 1, "big": 2**64 + 1, "host": "h1", "_a": 2},
    }


def test_201_realistic_records_come_back(service: Service, key: str) -> None:
    """Records as workflows write them, in awkward texts and numbers, come back equal."""
    sent = [one for _, one in workflows.records(7, ["any"], 300)]
    body = workflows.ndjson(sent)
    assert len(body) < BODY_BYTES_MAX
    assert counts(service.post(body, key, content_type=NDJSON)) == (300, 0, 0)
    stored = [canonical(log) for log in service.logs(key, limit=1000)]
    assert sorted(stored) == sorted(canonical(workflows.expected(one)) for one in sent)


def canonical(log: Json) -> str:
    """Write what a client sent of a log so that equal ones are equal texts."""
    own = ("id", "client_id", "received_at")
    return json.dumps({k: v for k, v in log.items() if k not in own}, sort_keys=True)


def test_201_bad_records_cost_themselves_alone(service: Service, key: str) -> None:
    """Good neighbours of bad records are stored, and the bad ones are named with their place."""
    lines = [
        json.dumps(record(message="good 0")).encode(),
        b'{"environment": "production", ',
        json.dumps(record(status="x" * 33)).encode(),
        json.dumps(record(message="x" * 20_000)).encode(),
        json.dumps(record(dataset="Not A Slug")).encode(),
        b'"a string"',
        json.dumps(record(message="good 6")).encode(),
    ]
    response = service.post(b"\n".join(lines), key, content_type=NDJSON)
    assert counts(response) == (2, 5, 0)
    errors = response.json()["errors"]
    assert [(one["index"], one["field"]) for one in errors] == [
        (1, None),
        (2, "status"),
        (3, None),
        (4, "dataset"),
        (5, None),
    ]
    assert errors[0]["detail"].startswith("Malformed JSON")
    assert errors[2]["detail"] == "Body too large: a record is over 20000 bytes"
    assert {log["message"] for log in service.logs(key)} == {"good 0", "good 6"}
    assert totals(service, key) == {
        "requests": 1,
        "logs": 2,
        "bytes": len(b"\n".join(lines)),
        "rejected": 5,
        "denied": 0,
    }


def test_201_errors_are_told_up_to_a_hundred(service: Service, key: str) -> None:
    """Of many faults the first hundred are told, and all are counted."""
    response = service.post([record(), *[record(duration_ms=-1)] * 150], key)
    assert counts(response) == (1, 150, 0)
    errors = response.json()["errors"]
    assert [one["index"] for one in errors] == list(range(1, 101))


def test_201_a_repeated_id_is_stored_once(service: Service, key: str) -> None:
    """A record whose own id is stored already is answered with what was stored."""
    first = service.post(record(id="run-7", message="first"), key).json()
    again = service.post(record(id="run-7", message="second"), key)
    assert again.status_code == 201
    assert again.json()["id"] == first["id"]
    assert again.json()["duplicate"] is True
    assert "duplicate" not in first
    assert [log["message"] for log in service.logs(key)] == ["first"]
    assert totals(service, key)["logs"] == 1


def test_201_duplicates_in_a_batch_are_counted(service: Service, key: str) -> None:
    """The counts add up to the records sent, within a batch and across them."""
    batch = [record(id="a"), record(id="b"), record(id="a"), record(), record(status=1)]
    assert counts(service.post(batch, key)) == (3, 1, 1)
    assert counts(service.post(batch, key)) == (1, 1, 3)
    assert totals(service, key)["logs"] == len(service.logs(key)) == 4


def test_201_ids_are_a_clients_own(service: Service, key: str) -> None:
    """Another client's record of the same id is no duplicate."""
    other = service.key("other-client-of-ids")
    assert "duplicate" not in service.post(record(id="mine"), key).json()
    assert "duplicate" not in service.post(record(id="mine"), other).json()


def test_201_an_admin_key_names_the_client(service: Service, key: str, client_id: str) -> None:
    """A platform key writes for the client that it names."""
    admin = service.key(None)
    response = service.post(record(), admin, path=f"{LOGS}?client_id={client_id}")
    assert response.json()["client_id"] == client_id
    assert len(service.logs(key)) == 1


def test_201_headers(service: Service, client_id: str) -> None:
    """Each reply tells its request's id and the limits in force."""
    key = service.key(
        client_id,
        limits={"requests_per_minute": 40, "logs_per_minute": 30, "bytes_per_minute": 5000},
    )
    body = json.dumps(record()).encode()
    response = service.post(body, key)
    assert response.headers["ratelimit-policy"] == (
        '"requests";q=40;w=60, "logs";q=30;w=60, "bytes";q=5000;w=60'
    )
    assert re.fullmatch(
        rf'"requests";r=39;t=\d+, "logs";r=29;t=\d+, "bytes";r={5000 - len(body)};t=\d+',
        response.headers["ratelimit"],
    )
    assert response.headers["x-ratelimit-limit"] == "40"
    assert response.headers["x-ratelimit-remaining"] == "39"
    assert 1 <= int(response.headers["x-ratelimit-reset"]) <= 60
    assert "retry-after" not in response.headers
    other = service.post(body, key)
    assert other.headers["x-request-id"] != response.headers["x-request-id"]


def test_201_without_a_key_where_none_is_required(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where none is required, no key means client `default`; a bad key is still bad."""
    with running(tmp_path_factory.mktemp("open"), require_api_key=False) as service:
        assert service.post(record()).json()["client_id"] == "default"
        assert len(service.get(LOGS).json()["logs"]) == 1
        problem(service.post(record(), "wrong"), 401, "Invalid API key")


# Idempotency-Key


def test_201_a_repeat_gets_the_first_reply(service: Service, key: str) -> None:
    """The same Idempotency-Key with the same body stores once and answers as the first time."""
    for body, status in ((record(), 201), ([record(id="x"), record(id="x"), {}], 201), ({}, 422)):
        name = f"once-{status}-{type(body).__name__}"
        first = service.post(body, key, idempotency_key=name)
        again = service.post(body, key, idempotency_key=name)
        assert first.status_code == again.status_code == status
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        replies = [{**one.json(), "request_id": None} for one in (first, again)]
        assert replies[0] == replies[1]
    assert totals(service, key)["logs"] == len(service.logs(key)) == 2


def test_201_a_repeat_is_known_however_it_is_compressed(service: Service, key: str) -> None:
    """What counts as the same body is what it expands to."""
    body = json.dumps(record()).encode()
    service.post(body, key, idempotency_key="k")
    again = service.post(gzipped(body), key, idempotency_key="k", content_encoding="gzip")
    assert again.headers["idempotent-replayed"] == "true"


def test_201_an_idempotency_key_is_a_clients_own(
    service: Service, key: str, client_id: str
) -> None:
    """Two keys of one client share it, another client's says nothing."""
    service.post(record(), key, idempotency_key="k")
    second = service.post(record(), service.key(client_id), idempotency_key="k")
    assert second.headers["idempotent-replayed"] == "true"
    other = service.post(record(message="x"), service.key("other-of-keys"), idempotency_key="k")
    assert other.status_code == 201
    assert "idempotent-replayed" not in other.headers


def test_201_only_2xx_and_422_are_remembered(service: Service, key: str, client_id: str) -> None:
    """After a refusal the same Idempotency-Key is free."""
    narrow = service.key(client_id, allowed_datasets=["orders"])
    problem(service.post(record(), narrow, idempotency_key="k"), 403)
    problem(service.post(b"{", narrow, idempotency_key="k"), 400)
    problem(service.post(record(), narrow, idempotency_key="k", content_encoding="br"), 415)
    assert service.post(record(), key, idempotency_key="k").status_code == 201


def test_422_an_idempotency_key_with_another_body(service: Service, key: str) -> None:
    """An Idempotency-Key may not be used for something else, and that is not remembered."""
    service.post(record(), key, idempotency_key="k")
    body = problem(service.post(record(message="other"), key, idempotency_key="k"), 422)
    assert body["errors"][0]["field"] == "Idempotency-Key"
    again = service.post(record(), key, idempotency_key="k")
    assert again.headers["idempotent-replayed"] == "true"
    assert len(service.logs(key)) == 1


@pytest.mark.parametrize("name", ["", "   ", "x" * 256, "ключ"])
def test_422_an_idempotency_key_out_of_form(service: Service, key: str, name: str) -> None:
    """An Idempotency-Key is 1 to 255 ASCII characters."""
    headers: Any = {"X-API-Key": key.encode(), "Idempotency-Key": name.encode()}
    content = json.dumps(record()).encode()
    response = service.run(service.http.post(LOGS, headers=headers, content=content))
    assert problem(response, 422)["errors"][0]["field"] == "Idempotency-Key"


def test_409_while_the_first_is_in_flight(service: Service, key: str) -> None:
    """A second request is told that the first is still on its way; then it gets its reply."""
    body = json.dumps(record()).encode()
    headers = {"X-API-Key": key, "Idempotency-Key": "k"}

    async def scenario() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        held = HeldBody()
        first = asyncio.create_task(service.http.post(LOGS, headers=headers, content=held))
        await held.started.wait()
        held.send(body[:10])
        second = await service.http.post(LOGS, headers=headers, content=body)
        held.send(body[10:])
        held.send(None)
        return await first, second, await service.http.post(LOGS, headers=headers, content=body)

    first, second, third = service.run(scenario())
    problem(second, 409)
    assert first.status_code == 201
    assert third.json() == first.json()
    assert third.headers["idempotent-replayed"] == "true"


def test_409_ends_when_the_first_leaves(service: Service, key: str) -> None:
    """A caller that breaks off in the middle of its body frees its Idempotency-Key."""
    headers = [(b"x-api-key", key.encode()), (b"idempotency-key", b"k")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": LOGS,
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
    }

    async def scenario() -> httpx.Response:
        messages: asyncio.Queue[Json] = asyncio.Queue()
        sent: list[Json] = []

        async def send(message: Json) -> None:
            sent.append(message)

        request = asyncio.create_task(service.app(scope, messages.get, send))
        messages.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        messages.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(request, DEADLINE_S)
        assert sent == []
        return await service.http.post(
            LOGS, headers=dict(headers), content=json.dumps(record()).encode()
        )

    response = service.run(scenario())
    assert response.status_code == 201
    assert "idempotent-replayed" not in response.headers
    assert len(service.logs(key)) == 1


# 400


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"nope", {}),
        (b'{"environment"', {}),
        (b"[1,", {}),
        (b"\xff\xfe\x00", {}),
        (b"[" * 100_000, {}),
        (b"nope\nnope", {"content_type": NDJSON}),
    ],
)
def test_400_what_is_not_json(
    service: Service, key: str, body: bytes, headers: dict[str, str]
) -> None:
    """A body that is no JSON at all is refused with the place of the fault."""
    detail = problem(service.post(body, key, **headers), 400)["detail"]
    assert detail.startswith("Malformed JSON")


def test_400_counts_as_a_request(service: Service, key: str) -> None:
    """A request that stored nothing by its own fault is in the usage all the same."""
    service.post(b"{", key)
    wanted = NO_USAGE | {"requests": 1}
    assert eventually(lambda: totals(service, key), wanted.__eq__) == wanted


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_400_what_does_not_expand(service: Service, key: str, encoding: str) -> None:
    """A body that is not what its Content-Encoding says is refused."""
    response = service.post(b"not compressed", key, content_encoding=encoding)
    assert problem(response, 400)["detail"].startswith("Malformed body")


# 401


def test_401_without_a_key(service: Service) -> None:
    """Without a credential the answer says what is missing."""
    assert "hint" not in problem(service.post(record()), 401, "API key required")
    bare = service.post(record(), authorization="cl_live_x")
    assert "X-API-Key" in problem(bare, 401, "API key required")["hint"]


def test_401_has_one_body_for_every_reason(service: Service, key: str, client_id: str) -> None:
    """Unknown, revoked and foreign keys can't be told apart; a mistyped one is, to help."""
    service.revoke(key)
    unknown = service.key("elsewhere")
    service.revoke(unknown)
    answers = [
        {**problem(service.post(record(), one), 401, "Invalid API key"), "request_id": None}
        for one in (key, unknown, "guess", f"cl_live_{client_id}_short")
    ]
    assert all(answer == answers[0] for answer in answers)
    mistyped = service.post(record(), key[:-1] + ("0" if key[-1] != "0" else "1"))
    assert problem(mistyped, 401, "Invalid API key")["code"] == "malformed_key"


def test_401_from_the_next_request_after_a_revocation(service: Service, key: str) -> None:
    """A key that was revoked by another process fails at once, on both planes."""
    assert service.post(record(), key).status_code == 201
    service.revoke(key)
    problem(service.post(record(), key), 401, "Invalid API key")
    problem(service.get(LOGS, key), 401, "Invalid API key")


def test_401_comes_before_the_body_is_looked_at(service: Service) -> None:
    """Nothing is read for a caller that is not known."""

    async def scenario() -> httpx.Response:
        held = HeldBody()
        headers = {"X-API-Key": "guess", "Content-Length": "10"}
        async with asyncio.timeout(DEADLINE_S):
            response = await service.http.post(LOGS, headers=headers, content=held)
        assert not held.started.is_set()
        return response

    problem(service.run(scenario()), 401, "Invalid API key")


# 403


def test_403_without_the_scope(service: Service, client_id: str) -> None:
    """A key that may only read is told which scope it lacks, and the denial is counted."""
    viewer, reader = service.key(client_id, role="viewer"), service.key(client_id)
    problem(service.post(record(), viewer), 403, "Requires scope 'logs:write'")
    wanted = NO_USAGE | {"denied": 1}
    assert eventually(lambda: totals(service, reader), wanted.__eq__) == wanted


def test_403_for_a_dataset(service: Service, client_id: str) -> None:
    """A request all of which goes where its key may not write is refused as a whole."""
    key = service.key(client_id, allowed_datasets=["orders"])
    detail = "Not authorized for dataset '{}'"
    problem(service.post(record(dataset="secret"), key), 403, detail.format("secret"))
    problem(service.post(record(), key), 403, detail.format("default"))
    batch = [record(dataset="a"), record(dataset="b")]
    problem(service.post(batch, key), 403, detail.format("a"))
    assert service.logs(service.key(client_id)) == []


def test_403_is_a_records_own_in_a_mixed_batch(service: Service, client_id: str) -> None:
    """In a batch the record of a dataset not allowed is rejected alone."""
    key = service.key(client_id, allowed_datasets=["orders"])
    response = service.post([record(dataset="orders"), record(dataset="secret")], key)
    assert counts(response) == (1, 1, 0)
    assert response.json()["errors"] == [
        {"index": 1, "field": "dataset", "detail": "Not authorized for dataset 'secret'"}
    ]
    assert counts(service.post([record(dataset="secret"), {}], key), 422) == (0, 2, 0)


# 413


def test_413_a_body_over_the_limit(service: Service, key: str) -> None:
    """Too many bytes are refused, as sent and as expanded, declared or not."""
    body = ndjson(record(message="x" * 900) for _ in range(250))
    assert len(body) > BODY_BYTES_MAX
    text = f"Body too large: more than {BODY_BYTES_MAX} bytes"
    problem(service.post(body, key, content_type=NDJSON), 413, text)
    packed = service.post(gzipped(body), key, content_type=NDJSON, content_encoding="gzip")
    problem(packed, 413, text)

    async def chunked() -> httpx.Response:
        held = HeldBody()
        for at in range(0, len(body), 50_000):
            held.send(body[at : at + 50_000])
        return await service.http.post(LOGS, headers={"X-API-Key": key}, content=held)

    problem(service.run(chunked()), 413, text)
    assert service.logs(key) == []


def test_413_too_many_records(service: Service, key: str) -> None:
    """A batch of more records than allowed is refused whole."""
    for body, media in ((b"[" + b"0," * 500 + b"0]", "application/json"), (b"0\n" * 501, NDJSON)):
        response = service.post(body, key, content_type=media)
        problem(response, 413, "Body too large: more than 500 records")


def test_413_a_single_record_over_the_limit(service: Service, key: str) -> None:
    """One object that is over MAX_RECORD_BYTES is refused."""
    response = service.post(record(message="x" * 20_000), key)
    problem(response, 413, "Body too large: a record is over 20000 bytes")


def test_413_a_cost_above_the_whole_limit(service: Service, client_id: str) -> None:
    """What no wait would make fit is told apart from what should wait."""
    key = service.key(client_id, limits={"logs_per_minute": 3, "bytes_per_minute": 1000})
    body = problem(service.post([record()] * 4, key), 413)
    assert body["detail"] == "Body too large: it costs 4 logs, the limit is 3 a minute"
    large = problem(service.post(record(message="x" * 1000), key), 413)
    assert large["detail"].startswith("Body too large: it costs")
    assert counts(service.post([record()] * 3, key)) == (3, 0, 0)


# 415


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/xml", "json", "*/*", "é"],
)
def test_415_another_content_type(service: Service, key: str, content_type: str) -> None:
    """A content type that is not ours is refused with those that are."""
    headers: Any = {"X-API-Key": key, "Content-Type": content_type.encode()}
    headers["X-API-Key"] = key.encode()
    response = service.run(service.http.post(LOGS, headers=headers, content=b"{}"))
    body = problem(response, 415)
    assert body["supported"] == ["application/json", "application/x-ndjson", "application/jsonl"]


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "snappy"])
def test_415_another_encoding(service: Service, key: str, encoding: str) -> None:
    """A content encoding that is not ours is refused with those that are."""
    body = problem(service.post(record(), key, content_encoding=encoding), 415)
    assert body["supported"] == ["gzip", "deflate", "zstd"]


# 422


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({}, "environment"),
        (record(environment=None), "environment"),
        (record(environment="x" * 65), "environment"),
        (record(status=5), "status"),
        (record(status="x" * 33), "status"),
        (record(executed_at="yesterday"), "executed_at"),
        (record(executed_at=True), "executed_at"),
        (record(duration_ms=-1), "duration_ms"),
        (record(duration_ms="5"), "duration_ms"),
        (record(error=[1]), "error"),
        (record(metadata=[]), "metadata"),
        (record(metadata="x", unknown=1), "metadata"),
        (record(dataset="UPPER"), "dataset"),
        (record(id="x" * 129), "id"),
        (record(message=5), "message"),
        (5, None),
        (None, None),
    ],
)
def test_422_an_invalid_record(service: Service, key: str, sent: object, field: str | None) -> None:
    """A single record that breaks a rule is refused with the field at fault."""
    (error,) = problem(service.post(sent, key), 422)["errors"]
    assert (error["index"], error["field"]) == (0, field)
    assert error["detail"]


def test_422_all_rejected(service: Service, key: str) -> None:
    """A batch of which nothing could be stored is refused with its counts and errors."""
    response = service.post([{}, 5, record(duration_ms=-1)], key)
    body = problem(response, 422)
    assert counts(response, 422) == (0, 3, 0)
    assert [one["index"] for one in body["errors"]] == [0, 1, 2]
    usage = totals(service, key)
    assert (usage["requests"], usage["rejected"], usage["logs"]) == (1, 3, 0)


def test_422_an_admin_key_must_name_a_client(service: Service) -> None:
    """A platform key has no client of its own."""
    admin = service.key(None)
    for query in ("", "?client_id=", "?client_id=Not%20A%20Slug", "?client_id=*"):
        body = problem(service.post(record(), admin, path=LOGS + query), 422)
        assert body["errors"][0]["field"] == "client_id"


# 429


@pytest.mark.parametrize(
    ("limits", "sent", "violated"),
    [
        ({"requests_per_minute": 2}, record(), "requests"),
        ({"logs_per_minute": 2}, record(), "logs"),
        ({"logs_per_minute": 3}, [record(), record()], "logs"),
        ({"bytes_per_minute": 2 * len(json.dumps(record()))}, record(), "bytes"),
    ],
)
def test_429_over_a_limit(
    service: Service, client_id: str, limits: dict[str, int], sent: Any, violated: str
) -> None:
    """Over a limit a request is told which, and when to come again; it stores and costs nothing."""
    key, reader = service.key(client_id, limits=limits), service.key(client_id)
    passed = 0
    while (response := service.post(sent, key)).status_code == 201:
        passed += 1
        assert passed < 5
    assert problem(response, 429, "Rate limit exceeded")["violated"] == [violated]
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert "ratelimit" in response.headers
    again = service.post(sent, key)
    assert (
        again.headers["ratelimit"].split(";t=")[0] == response.headers["ratelimit"].split(";t=")[0]
    )
    size = len(sent) if isinstance(sent, list) else 1
    assert len(service.logs(reader)) == passed * size
    if violated == "bytes":  # that denials are counted is the same for all
        usage = eventually(lambda: totals(service, reader), lambda found: found["denied"] == 2)
        assert (usage["requests"], usage["logs"]) == (passed, passed * size)


def test_429_counts_what_is_stored_only(service: Service, client_id: str) -> None:
    """Rejected records and duplicates use up no limit of logs."""
    key = service.key(client_id, limits={"logs_per_minute": 5})
    for _ in range(4):
        service.post([record(id="same"), {}, {}, {}], key)
    assert counts(service.post([record()] * 4, key)) == (4, 0, 0)
    problem(service.post(record(), key), 429)


def test_429_reading_is_limited_too(service: Service, client_id: str) -> None:
    """Both planes count against the same limit, and tell it."""
    key = service.key(client_id, limits={"requests_per_minute": 2})
    service.post(record(), key)
    read = service.get(LOGS, key)
    assert read.headers["x-ratelimit-remaining"] == "0"
    assert problem(service.get(LOGS, key), 429, "Rate limit exceeded")["violated"] == ["requests"]


# 503


def test_503_while_too_much_is_in_flight(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Over MAX_INFLIGHT_BYTES a request is turned away, costs nothing, and passes later."""
    with running(tmp_path_factory.mktemp("full"), max_inflight_bytes=100) as service:
        key = service.key("acme", limits={"requests_per_minute": 2})
        body = json.dumps(record()).encode()

        async def scenario() -> tuple[httpx.Response, httpx.Response]:
            held = HeldBody()
            headers = {"X-API-Key": key}
            first = asyncio.create_task(service.http.post(LOGS, headers=headers, content=held))
            await held.started.wait()
            held.send(body[:60])
            held.send(b"")
            await eventually_held(service, 60)
            second = await service.http.post(LOGS, headers=headers, content=body)
            held.send(body[60:])
            held.send(None)
            return await first, second

        first, second = service.run(scenario())
        assert first.status_code == 201
        problem(second, 503, "Overloaded")
        assert service.post(body, key).status_code == 201


async def eventually_held(service: Service, count: int) -> None:
    """Await that the service holds so many bytes of bodies."""
    endpoint: Any = service.app.ingest
    async with asyncio.timeout(DEADLINE_S):
        while endpoint._intake.inflight.bytes < count:  # noqa: ASYNC110, SLF001  # no event tells of it
            await asyncio.sleep(0)


def test_503_while_the_store_is_away(service: Service, client_id: str) -> None:
    """Without its writer the service refuses, at no cost, and recovers by itself."""
    key = service.key(client_id, limits={"requests_per_minute": 4})
    assert service.post(record(message="before"), key).status_code == 201

    async def scenario() -> httpx.Response:
        endpoint: Any = service.app.ingest
        writer = endpoint._store._writer._process  # noqa: SLF001  # the very process that must die
        writer.kill()
        await writer.wait()
        return await service.http.post(
            LOGS, headers={"X-API-Key": key}, content=json.dumps(record(message="lost")).encode()
        )

    problem(service.run(scenario()), 503, "Storage unavailable")
    ready = eventually(lambda: service.get("/health/ready"), lambda r: r.status_code == 200)
    assert ready.json() == {"status": "ok"}
    assert service.post(record(message="after"), key).status_code == 201
    reader = service.key(client_id)
    assert {log["message"] for log in service.logs(reader)} == {"before", "after"}
    remaining = service.post(record(), key).headers["x-ratelimit-remaining"]
    assert remaining == "1"


def test_the_planes_name_each_others_methods(service: Service, key: str) -> None:
    """What the path can't do is refused with all that it can."""
    response = service.request("DELETE", LOGS, key)
    problem(response, 405)
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST"}


def test_usage_is_kept_by_key(service: Service, client_id: str) -> None:
    """Each key's own part of the usage is told apart."""
    keys = [service.key(client_id), service.key(client_id)]
    for key, size in zip(keys, (2, 3), strict=True):
        service.post([record()] * size, key)
    usage = service.usage(keys[0], group_by="key")["usage"]
    assert {one["key"]: one["logs"] for one in usage} == {
        key_id_of(keys[0]): 2,
        key_id_of(keys[1]): 3,
    }


def test_404_an_admin_key_writes_for_no_client_that_is_not_there(service: Service) -> None:
    """Logs for a misspelt client are refused: nobody could find them, or the wrong one later."""
    admin = service.key(None)
    problem(service.post(record(), admin, path=f"{LOGS}?client_id=never-made"), 404, "Not found")


def test_404_a_client_key_names_no_other_client(service: Service) -> None:
    """A client's key that names another client stores nothing for either."""
    key = service.key("names-another")
    service.key("another-client")
    response = service.post(record(), key, path=f"{LOGS}?client_id=another-client")
    problem(response, 404, "Not found")
    assert service.post(record(), key, path=f"{LOGS}?client_id=names-another").status_code == 201


def test_201_a_repeat_needs_no_room_for_logs(service: Service) -> None:
    """A repeat under an Idempotency-Key is answered although the limit of logs is used up."""
    key = service.key("repeats-when-full", limits={"logs_per_minute": 1})
    body = record()
    first = service.post(body, key, idempotency_key="once")
    assert first.status_code == 201
    assert service.post(record(), key).status_code == 429
    again = service.post(body, key, idempotency_key="once")
    assert (again.status_code, again.content) == (201, first.content)


def test_201_a_duplicate_is_told_as_it_is_stored(service: Service) -> None:
    """The reply to a repeated id names the stored log and the time at which that one came."""
    key = service.key("told-as-stored")
    first = service.post(record(id="a"), key).json()
    again = service.post(record(id="a", message="later"), key).json()
    assert again == {**first, "duplicate": True}
