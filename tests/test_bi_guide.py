"""The requests of docs/bi.md, sent to a real server as the tools that are named there send them."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from app.logs.csv_text import COLUMNS
from loadtests.server import make_key, start_product

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs/bi.md").read_text()
# As Grafana writes them.
NOW = datetime.now(UTC)
MACROS = {
    "${__from:date:iso}": f"{NOW - timedelta(hours=6):%Y-%m-%dT%H:%M:%S}.000Z",
    "${__to:date:iso}": f"{NOW + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}.000Z",
}


class Desk(NamedTuple):
    """A client with four logs of the last hours, one of them failed."""

    url: str
    key: str
    directory: Path


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Start a server and store the logs."""
    data_dir = tmp_path_factory.mktemp("data")
    with start_product(data_dir) as server:
        key = make_key(data_dir, "charted")
        records = [
            {
                "environment": "production",
                "executed_at": (NOW - timedelta(hours=hours)).isoformat(),
                "status": "FAILED" if hours == 1 else "SUCCESS",
                "workflow": "nightly",
                "duration_ms": 100 * hours,
            }
            for hours in (1, 2, 3, 4)
        ]
        url = f"http://127.0.0.1:{server.port}"
        stored = httpx.post(f"{url}/api/v1/logs", json=records, headers={"X-API-Key": key})
        assert stored.json()["accepted"] == 4
        analyst = make_key(data_dir, "charted", role="analyst")
        yield Desk(url, analyst, tmp_path_factory.mktemp("desk"))


def blocks(language: str) -> list[str]:
    """Give the guide's blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def rows_of(text: str) -> list[dict[str, str]]:
    """Read CSV with a header."""
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_shell_blocks(desk: Desk) -> None:
    """Each command gives the table that the text beside it promises."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: the guide's commands were NOT run")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LOGGER_API_URL": desk.url,
        "LOGGER_API_KEY": desk.key,
    }
    exported, summed, fetched = (
        subprocess.run(
            ["bash", "-eu", "-o", "pipefail"],
            input=block,
            env=environment,
            cwd=desk.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for block in blocks("bash")
    )
    assert [row["status"] for row in rows_of(exported)] == ["FAILED"]
    assert [row["count"] for row in rows_of(summed)] == ["1"] * 4
    assert fetched == ""
    file = rows_of((desk.directory / "logs.csv").read_text())
    assert tuple(file[0]) == COLUMNS
    assert len(file) == 4


def m_record(text: str) -> Any:
    """Read a record of Power Query's language, in so far as the guide uses it, as JSON."""
    signs = {"[": "{", "]": "}", "{": "[", "}": "]", "=": ":"}
    tokens = re.findall(r'#?"[^"]*"|[\w.]+|[^\s\w]', text)
    written = []
    for at, token in enumerate(tokens):
        if token.startswith('#"'):
            written.append(token[1:])
        elif re.match(r"\w", token) and tokens[at + 1] == "=":
            written.append(f'"{token}"')
        else:
            written.append(signs.get(token, token))
    return json.loads("".join(written))


def m_request(block: str, desk: Desk) -> httpx.Request:
    """Make the request that a block's Web.Contents makes."""
    found = re.search(r"Web\.Contents\(BaseUrl, (\[.*?\n    \])\)", block, re.DOTALL)
    assert found is not None
    text = re.sub(r",\s*Timeout = #duration\([^)]*\)", "", found[1])
    text = re.sub(r"Json\.FromValue\((.*?)\)\n", r"\1\n", text, flags=re.DOTALL)
    asked = m_record(text.replace("ApiKey", f'"{desk.key}"'))
    assert set(asked) <= {"RelativePath", "Query", "Headers", "Content"}
    return httpx.Request(
        "POST" if "Content" in asked else "GET",
        f"{desk.url}/{asked['RelativePath']}",
        params=asked.get("Query"),
        headers=asked["Headers"],
        content=json.dumps(asked["Content"]) if "Content" in asked else None,
    )


def send(request: httpx.Request) -> httpx.Response:
    """Send a request, and see that it was answered well."""
    with httpx.Client() as client:
        response = client.send(request)
    assert response.status_code == 200, response.text
    return response


def test_power_query_blocks(desk: Desk) -> None:
    """Each query gets CSV that has every column whose type it sets."""
    exported, summed = (rows_of(send(m_request(block, desk)).text) for block in blocks("m"))
    assert [row["status"] for row in exported] == ["FAILED"]
    assert sum(int(row["count"]) for row in summed) == 4
    assert sum(int(row["error_count"]) for row in summed) == 1
    for block, rows in zip(blocks("m"), (exported, summed), strict=True):
        typed = re.findall(r'\{"(\w+)", (?:type|Int64)', block)
        assert typed
        assert set(typed) <= set(rows[0])


def grafana_response(target: dict[str, Any], desk: Desk) -> httpx.Response:
    """Send what Infinity sends for a query, with its macros filled in."""
    options = target["url_options"]
    texts = [target["url"], options.get("data", "")]
    for macro, value in MACROS.items():
        texts = [text.replace(macro, value) for text in texts]
    headers = {one["key"]: one["value"] for one in options.get("headers", ())}
    if "body_content_type" in options:
        headers["Content-Type"] = options["body_content_type"]
    headers["X-API-Key"] = desk.key
    request = httpx.Request(
        options["method"], desk.url + texts[0], headers=headers, content=texts[1] or None
    )
    return send(request)


def test_grafana_blocks(desk: Desk) -> None:
    """Each query of the data source gets rows in the form that it names."""
    targets = [json.loads(block) for block in blocks("json")]
    assert all(target["parser"] == "backend" for target in targets)
    failures, newest, series = (grafana_response(target, desk) for target in targets)
    assert [row["status"] for row in rows_of(failures.text)] == ["FAILED"]
    assert len(newest.json()[targets[1]["root_selector"]]) == 4
    rows = rows_of(series.text)
    assert [one["selector"] for one in targets[2]["columns"]] == list(rows[0])
    assert sum(int(row["count"]) for row in rows) == 4


def test_no_block_is_left_out() -> None:
    """Every block of the guide is of a language that is run here."""
    assert set(re.findall(r"^```(\w+)$", GUIDE, re.MULTILINE)) == {"bash", "m", "json"}
    assert len(re.findall(r"^```", GUIDE, re.MULTILINE)) % 2 == 0
