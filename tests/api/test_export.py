"""Exports: all of a client's own logs that were asked for, as lines of JSON or as CSV."""

import asyncio
import csv
import gzip
import io
import json
from typing import Any

import httpx
import pytest
import zstandard

from app.api.services import EXPORT_RETRY_S, EXPORTS_MAX, EXPORTS_PER_CLIENT_MAX, Exports
from app.errors import Overloaded, RateLimited
from app.logs.csv_text import COLUMNS
from tests.support import LOGS, Json, Service, problem, record

EXPORT = f"{LOGS}/export"


def export(service: Service, key: str, **params: Any) -> httpx.Response:
    """Export, and see that it went well."""
    response = service.get(EXPORT, key, params=params, headers={"Accept-Encoding": "identity"})
    assert response.status_code == 200, response.text
    return response


def exported(service: Service, key: str, **params: Any) -> list[Json]:
    """Give the logs of an export as lines of JSON."""
    return [json.loads(line) for line in export(service, key, **params).text.splitlines()]


def table(service: Service, key: str, **params: Any) -> list[dict[str, str]]:
    """Give the rows of an export as CSV."""
    text = export(service, key, format="csv", **params).text
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


@pytest.fixture
def varied(service: Service, key: str) -> str:
    """Store logs that differ in each filter; give the key."""
    service.post(
        [
            record(message="a b", executed_at=1_780_000_000, status="FAILED", level="ERROR"),
            record(message="b", executed_at=1_780_000_001, environment="dev", run_id="r1"),
            record(message="c", executed_at=1_780_000_002, dataset="orders", workflow="w"),
            record(message="d", executed_at=1_780_000_003, duration_ms=5, metadata={"x": 1}),
        ],
        key,
    )
    return key


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"order": "desc"},
        {"status": ["FAILED", "none"]},
        {"environment": "dev"},
        {"dataset": "orders"},
        {"q": "b -a"},
        {"metadata.x": "1"},
        {"min_duration_ms": "5"},
        {"from": "2026-05-28T20:26:41Z", "to": "2026-05-28T20:26:43Z"},
        {"status": "none"},
    ],
)
def test_an_export_holds_what_the_list_holds(
    service: Service, varied: str, params: dict[str, Any]
) -> None:
    """The same filters give the same objects, oldest first unless asked otherwise."""
    listed = service.logs(varied, **{"order": "asc", "limit": 1000, **params})
    assert exported(service, varied, **params) == listed
    assert [row["id"] for row in table(service, varied, **params)] == [log["id"] for log in listed]


def test_headers_of_an_export(service: Service, key: str, client_id: str) -> None:
    """An export is a file to be saved, under the client's name, and never sniffed or cached."""
    for form, media_type in (("ndjson", "application/x-ndjson"), ("csv", "text/csv")):
        headers = export(service, key, format=form).headers
        assert headers["content-type"].partition(";")[0] == media_type
        assert headers["content-disposition"].startswith(f'attachment; filename="{client_id}-logs-')
        assert headers["content-disposition"].endswith(f'Z.{form}"')
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["vary"] == "Accept-Encoding"
        assert "content-encoding" not in headers
        assert "content-length" not in headers
    assert "charset=utf-8" in headers["content-type"]


def test_nothing_to_export(service: Service, key: str) -> None:
    """Without logs there are no lines, and of a table the header row alone."""
    assert export(service, key).content == b""
    assert export(service, key, format="csv").text == ",".join(COLUMNS) + "\r\n"


def test_the_list_is_not_mistaken_for_an_export(service: Service, varied: str) -> None:
    """A path beside it is still a log's id."""
    problem(service.get(f"{EXPORT}s", varied), 404)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1, zstd;q=0.5", "gzip"),
        ("*", "zstd"),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
    ],
)
@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_encodings(
    service: Service, varied: str, form: str, accepted: str, encoding: str | None
) -> None:
    """The answer comes in the encoding that the caller likes best, and is the same."""
    plain = export(service, varied, format=form).content

    async def fetch() -> tuple[httpx.Headers, bytes]:
        headers = {"X-API-Key": varied, "Accept-Encoding": accepted}
        async with service.http.stream(
            "GET", EXPORT, params={"format": form}, headers=headers
        ) as response:
            raw = b"".join([part async for part in response.aiter_raw()])
            return response.headers, raw

    headers, raw = service.run(fetch())
    assert headers.get("content-encoding") == encoding
    if encoding == "zstd":
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    elif encoding == "gzip":
        raw = gzip.decompress(raw)
    assert raw == plain


def test_every_field_is_a_cell(service: Service, key: str) -> None:
    """A row holds what the object holds: texts and numbers as they are, the rest as JSON."""
    service.post(
        [
            record(
                message='says "hi",\r\nand more\n',
                error={"type": "Timeout", "n": 123456789012345678901234567890},
                metadata={"ключ": ["a", 1.50]},
                duration_ms=12.5,
                level="",
                id="mine",
                run_id="  r ",
            ),
            record(error="текст"),
        ],
        key,
    )
    objects = exported(service, key)
    for row, log in zip(table(service, key), objects, strict=True):
        assert tuple(row) == COLUMNS
        for name, cell in row.items():
            if name in {"error", "metadata", "duration_ms"} and log[name] is not None:
                assert json.loads(cell) == log[name]
            else:
                assert cell == (log[name] or "")
    text = export(service, key, format="csv").content
    assert text.count(b"123456789012345678901234567890") == 1
    assert text.startswith(b"id,client_id,executed_at,")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula(service: Service, key: str, start: str) -> None:
    """What a spreadsheet would run is text there, whatever the field; numbers stay numbers."""
    evil = f"{start}HYPERLINK(1)"
    names = ("environment", "status", "level", "workflow", "run_id", "message")
    fields: Json = dict.fromkeys(names, evil)
    service.post(record(**fields, id=evil, error=evil, metadata={evil: evil}, duration_ms=7), key)
    [row] = table(service, key)
    for name in (*names, "external_id"):
        assert row[name] == f"'{evil}"
    assert row["duration_ms"] == "7"
    assert not any(cell[:1] == start for cell in row.values())
    [log] = exported(service, key)
    assert log["message"] == evil


def test_422_names_every_bad_parameter(service: Service, key: str) -> None:
    """An export has no pages, and two formats."""
    params = {"format": "xml", "limit": "5", "cursor": "x", "order": "up", "stats": "FAILED"}
    errors = problem(service.get(EXPORT, key, params=params), 422)["errors"]
    assert {error["field"] for error in errors} == set(params)
    problem(service.get(EXPORT, key, params={"format": ["csv", "csv"]}), 422)


def test_an_admin_key_names_the_client(
    service: Service, admin: str, varied: str, client_id: str
) -> None:
    """A platform key exports the one client that it names."""
    assert exported(service, admin, client_id=client_id) == exported(service, varied)
    problem(service.get(EXPORT, admin), 422)
    problem(service.get(EXPORT, admin, params={"client_id": "*"}), 422)
    problem(service.get(EXPORT, varied, params={"client_id": "demo"}), 404, "Not found")


def test_a_key_exports_its_datasets_only(service: Service, varied: str, client_id: str) -> None:
    """A key that is restricted to datasets exports them alone."""
    narrow = service.key(client_id, allowed_datasets=["orders"])
    assert [log["message"] for log in exported(service, narrow)] == ["c"]
    response = service.get(EXPORT, narrow, params={"dataset": "default"})
    problem(response, 403, "Not authorized for dataset 'default'")


def test_403_without_the_scope(service: Service, client_id: str) -> None:
    """A key that may only write exports nothing."""
    problem(
        service.get(EXPORT, service.key(client_id, role="ingest")),
        403,
        "Requires scope 'logs:read'",
    )


def test_exports_at_one_time_are_bounded() -> None:
    """One too many of a client is told when to come again, one too many of all that it is much."""
    exports = Exports()
    for _ in range(EXPORTS_PER_CLIENT_MAX):
        exports.enter("greedy")
    with pytest.raises(RateLimited) as refused:
        exports.enter("greedy")
    assert refused.value.retry_after_s == EXPORT_RETRY_S
    for number in range(EXPORTS_MAX - EXPORTS_PER_CLIENT_MAX):
        exports.enter(f"other-{number}")
    with pytest.raises(Overloaded):
        exports.enter("one-more")
    exports.leave("greedy")
    exports.enter("one-more")


def test_every_export_ends_in_the_counts(service: Service, varied: str) -> None:
    """Whatever became of exports, as many as before may run: also of those that were refused."""
    for _ in range(2 * EXPORTS_MAX):
        export(service, varied)
        service.get(EXPORT, varied, params={"format": "xml"})

    async def at_once() -> list[int]:
        headers = {"X-API-Key": varied}
        asked = [service.http.get(EXPORT, headers=headers) for _ in range(EXPORTS_PER_CLIENT_MAX)]
        return [response.status_code for response in await asyncio.gather(*asked)]

    assert service.run(at_once()) == [200] * EXPORTS_PER_CLIENT_MAX
