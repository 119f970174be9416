"""usage_report.py, run as its users run it, beside a running server and without one."""

import csv
import io
import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from loadtests.server import HOST, Server, start_product
from tests.scripts.runner import Runner, error_line

NAMES = ("requests", "logs", "bytes", "rejected", "denied")


def send(server: Server, key: str, *records: dict[str, Any]) -> None:
    """Send a batch."""
    connection = HTTPConnection(HOST, server.port, timeout=30)
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    connection.request("POST", "/api/v1/logs", json.dumps(records), headers)
    response = connection.getresponse()
    assert response.status == 201, response.read()
    connection.close()


def log(**fields: Any) -> dict[str, Any]:
    """Give a valid record."""
    return {"environment": "e", "executed_at": 0, "status": "OK", "message": "m" * 500} | fields


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Give a runner on one data directory for all: a report changes nothing."""
    return Runner(tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="module")
def keys(run: Runner) -> dict[str, str]:
    """Make two clients, one with two keys; give key_id by key, in the order of their making."""
    made = [
        run.json("generate_api_key", *options.split())
        for options in (
            "--client acme --name one --logs-per-minute 50",
            "--client acme --name two",
            "--client other --name =three",
        )
    ]
    return {one["key"]: one["key_id"] for one in made}


@pytest.fixture(scope="module")
def sent(run: Runner, keys: dict[str, str]) -> dict[str, str]:
    """Store 3 and 2 logs of one client, 1 of the other, and stop the server."""
    with start_product(run.data_dir) as server:
        one, two, three = keys
        send(server, one, log(), log(), log(), {"bad": 1})
        send(server, two, log(), log())
        send(server, three, log())
        while_running = run.json("usage_report")
    assert run.json("usage_report")["usage"] == while_running["usage"]
    return keys


def test_report_of_clients(run: Runner, sent: dict[str, str]) -> None:
    """Each client has a row with what it sent and what that takes, and all are summed."""
    report = run.json("usage_report")
    acme, other = report["usage"]
    assert [acme[name] for name in ("client_id", "requests", "logs", "rejected")] == [
        *("acme", 2, 5, 1)
    ]
    assert [other[name] for name in ("client_id", "requests", "logs", "denied")] == [
        *("other", 1, 1, 0)
    ]
    assert 500 <= other["stored_bytes"] < acme["stored_bytes"]
    assert report["totals"] == {name: acme[name] + other[name] for name in NAMES}


def test_report_of_keys(run: Runner, sent: dict[str, str]) -> None:
    """Each key of a client has a row of its own, with the limit that binds it."""
    rows = {row["key_id"]: row for row in run.json("usage_report", "--client", "acme")["usage"]}
    one_id, two_id, _ = sent.values()
    assert set(rows) == {one_id, two_id}
    assert (rows[one_id]["name"], rows[one_id]["logs"], rows[one_id]["rejected"]) == ("one", 3, 1)
    assert (rows[two_id]["name"], rows[two_id]["logs"]) == ("two", 2)
    assert rows[one_id]["logs_per_minute"] == 50
    assert rows[one_id]["logs_left"] in {47, 50}  # of this minute, or it is the next one already
    assert rows[two_id]["logs_per_minute"] > 50


def test_bounds(run: Runner, sent: dict[str, str]) -> None:
    """--from and --to bound the minutes, as times or as how long ago."""
    for options in (["--to", "1d"], ["--to", "2020-01-01T00:00:00Z"], ["--from", "2999-01-01"]):
        assert not run.json("usage_report", *options)["totals"]["logs"]
    for options in (["--from", "1d"], ["--from", "2020-01-01", "--to", "2999-01-01T00:00:00Z"]):
        assert run.json("usage_report", *options)["totals"]["logs"] == 6


def test_csv_and_table(run: Runner, sent: dict[str, str]) -> None:
    """CSV has the columns and values of JSON, and nothing that a spreadsheet would run."""
    done = run("usage_report", "--client", "other", "--csv")
    [row] = csv.DictReader(io.StringIO(done.stdout))
    [wanted] = run.json("usage_report", "--client", "other")["usage"]
    assert row["name"] == "'=three"
    assert list(row) == list(wanted)
    assert row["logs"] == "1"
    lines = run("usage_report").stdout.splitlines()
    assert lines[0].split()[:2] == ["CLIENT", "ID"]
    assert [line.split()[0] for line in lines[1:]] == ["acme", "other", "total"]


def test_a_client_without_logs(tmp_path: Path) -> None:
    """Before any server ran there is nothing to count, and the clients are there."""
    run = Runner(tmp_path)
    run.json("generate_api_key", "--client", "acme")
    report = run.json("usage_report")
    assert [row["client_id"] for row in report["usage"]] == ["acme"]
    assert set(report["totals"].values()) == {0}


def test_refusals(run: Runner, keys: dict[str, str]) -> None:
    """An unknown client is 1, and what cannot be understood 2."""
    done = run("usage_report", "--client", "nobody")
    assert done.returncode == 1
    assert "no client 'nobody'" in error_line(done.stderr)
    for options in (["--from", "soon"], ["--csv", "--json"]):
        assert run("usage_report", *options).returncode == 2
