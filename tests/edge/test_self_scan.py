"""A key of the service inside a log: nowhere in what is stored, and told of."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from app.keys.token import CHECKSUM_LENGTH, SECRET_LENGTH, base62, display, mint
from app.protect.findings import AT_ONCE_MAX
from tests.api.test_tail import Stream
from tests.edge.test_prompt import FakeExchange, seen, take
from tests.support import (
    LOGS,
    NDJSON,
    Json,
    Service,
    eventually,
    key_id_of,
    ndjson,
    record,
    running,
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give one service for all tests here."""
    with running(tmp_path_factory.mktemp("scan"), metrics_public=True) as service:
        yield service


def found(service: Service) -> float:
    """Count the keys that were found, as the metrics tell."""
    lines = service.get("/metrics").text.splitlines()
    [line] = [one for one in lines if one.startswith("central_logger_keys_found_total ")]
    return float(line.split()[1])


def telling(out: str, event: str) -> list[Json]:
    """Give what the service logged of one kind."""
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [one for one in lines if one["event"].startswith(event)]


def finish(service: Service) -> None:
    """Wait for what follows a finding."""
    assert service.app.ingest is not None
    service.run(service.app.ingest._intake.findings.aclose())  # noqa: SLF001  # as the end does


def stored_anywhere(data_dir: Path, text: str) -> bool:
    """Say whether any file of the service holds a text."""
    for path in data_dir.rglob("*.db"):
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        connection.close()
    return any(
        text.encode() in path.read_bytes()
        for path in data_dir.rglob("*")
        if path.is_file() and not path.is_socket()
    )


def everywhere(text: str) -> Json:
    """Give a record that holds a text in all its fields that may hold one."""
    return record(
        message=f"env: LOGGER_API_KEY={text}\n",
        error={"at": [text, {"deep": f"x{text}x"}]},
        workflow=text,
        run_id=text,
        id=text,
        metadata={text: text, "nested": {text: [text]}},
        unknown=[text],
    )


@pytest.mark.parametrize("way", ["single", "array", "logs", "lines"])
def test_no_copy_of_a_log_holds_a_key(service: Service, way: str) -> None:
    """Pages, export, tail, search and files hold the public form, whichever way a log came."""
    client = f"copies-{way}"
    key, leaked = service.key(client), service.key("other")
    one = everywhere(leaked)
    body: Any = {"single": one, "array": [one], "logs": {"logs": [one]}}.get(way)
    sent = ndjson([one]) if way == "lines" else json.dumps(body).encode()
    before = found(service)

    async def follow() -> tuple[list[Json], int]:
        stream = Stream(service.app, key)
        await stream.until(lambda one: one.status == 200)
        headers = {"X-API-Key": key, "Content-Type": NDJSON if way == "lines" else ""}
        answer = await service.http.post(LOGS, content=sent, headers=headers)
        assert answer.status_code == 201
        await stream.until(lambda one: one.logs)
        await stream.close()
        return stream.logs, answer.status_code

    tailed, _ = service.run(follow())
    [read] = service.logs(key)
    wanted = everywhere(display(leaked))
    assert read["message"] == wanted["message"]
    assert read["error"] == wanted["error"]
    assert read["external_id"] == read["run_id"] == read["workflow"] == display(leaked)
    assert read["metadata"] == wanted["metadata"] | {"unknown": wanted["unknown"]}
    exported = service.get(f"{LOGS}/export", key).text
    assert tailed == [json.loads(exported)] == [read]
    assert leaked not in exported
    assert not stored_anywhere(service.settings.data_dir, leaked)
    assert found(service) - before == sent.count(leaked.encode())
    # What was taken out is billed as sent.
    assert service.usage(key)["totals"]["bytes"] == len(sent)


def test_a_dead_letter_holds_the_public_form(service: Service) -> None:
    """A rejected record is kept as it was sent, but for the key."""
    key = service.key("letters")
    bad = {"status": 7, "note": f"with {key}"}
    assert service.post([record(), bad, record()], key).json()["rejected"] == 1
    [letter] = service.get(f"{LOGS}/rejected", key).json()["rejected"]
    assert json.loads(letter["record"]) == {"status": 7, "note": f"with {display(key)}"}


def test_an_exact_replay(service: Service) -> None:
    """A repeat under an Idempotency-Key gets the first answer, though its body held a key."""
    key = service.key("replay")
    body = record(message=f"key {key}")
    first = service.post(body, key, idempotency_key="one")
    again = service.post(body, key, idempotency_key="one")
    assert first.status_code == again.status_code == 201
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = service.post(record(message="key"), key, idempotency_key="one")
    assert other.status_code == 422
    assert len(service.logs(key)) == 1


def test_a_lookalike_is_stored_as_sent(service: Service) -> None:
    """A text with the form of a key and a wrong checksum is a text like any other."""
    key = service.key("lookalike")
    letter = "0" if key[-1] != "0" else "1"
    message = f"not a key: {key[:-1]}{letter}"
    before = found(service)
    assert service.post(record(message=message), key).status_code == 201
    assert [one["message"] for one in service.logs(key)] == [message]
    assert found(service) == before


def test_a_whole_request_is_left_to_the_slower_way(service: Service) -> None:
    """The quick way takes no log with a key in it, nor counts anything of it."""
    assert service.app.prompt is not None
    key = seen(service, "quick")
    body = json.dumps(record(message=f"key {key}")).encode()
    exchange = FakeExchange(key, body)
    assert take(service, service.app.prompt, exchange) == [False]
    assert (exchange.answers, exchange.times_given_back) == ([], 0)


def test_a_finding_is_told_once_a_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log tells key, sender, dataset and whether the key works, once; never the key."""
    with running(tmp_path) as service:
        key, leaked = service.key("teller"), service.key("victim")
        body = [record(), record(dataset="orders", message=leaked)]
        for _ in range(3):
            assert service.post(body, key).json()["accepted"] == 2
        finish(service)
        out = capsys.readouterr().out
        [told] = telling(out, "a key of this service was found")
        assert told["key_id"] == key_id_of(leaked)
        assert (told["sender"], told["dataset"], told["is_live"]) == ("teller", "orders", True)
        assert len(telling(out, "leaked key")) == 1
        assert leaked not in out
        assert service.get(LOGS, leaked).status_code == 200  # it goes on working


def forgery(victim: str, number: int = 0) -> str:
    """Make up a text with another's key_id and a right checksum."""
    signed = f"cl_live_victim_{key_id_of(victim)}{number:0{SECRET_LENGTH}}"
    return signed + base62(crc32(signed.encode()), CHECKSUM_LENGTH)


def test_nobody_can_make_up_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A made-up text with another's key_id is taken out, but neither alerts nor stops that key."""
    with running(tmp_path, self_scan_action="quarantine") as strict:
        key, victim = strict.key("forger"), strict.key("victim")
        forged = forgery(victim)
        assert strict.post(record(message=forged), key).status_code == 201
        finish(strict)
        out = capsys.readouterr().out
        [told] = telling(out, "a key of this service was found")
        assert (told["key_id"], told["is_live"]) == (key_id_of(victim), False)
        assert not telling(out, "leaked key")
        assert strict.get(LOGS, victim).status_code == 200
        assert strict.logs(key)[0]["message"] == display(forged)


def test_made_up_keys_hide_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that works is stopped behind hundreds that nobody has, and as many with its own id."""
    with running(tmp_path, self_scan_action="quarantine") as strict:
        leaked, sender = strict.key("victim"), strict.key("forger")
        made_up = [mint("cl_live", "victim").text for _ in range(3 * AT_ONCE_MAX)]
        made_up += [forgery(leaked, number) for number in range(2 * AT_ONCE_MAX)]
        batch = [record(message=one) for one in [*made_up, leaked]]
        assert strict.post(batch, sender).status_code == 201
        finish(strict)
        assert strict.get(LOGS, leaked).status_code == 401
        out = capsys.readouterr().out
        assert [one["key_id"] for one in telling(out, "a found key was stopped")] == [
            key_id_of(leaked)
        ]
        # The log is flooded with neither kind.
        told = telling(out, "a key of this service was found")
        assert sum(one["is_live"] for one in told) == 1
        assert len(told) == 2 * AT_ONCE_MAX + 1


def test_quarantine_stops_a_key_that_works(tmp_path: Path) -> None:
    """With SELF_SCAN_ACTION=quarantine a found key is switched off, and can be revived."""
    with running(tmp_path, self_scan_action="quarantine") as strict:
        key, leaked, admin = (
            strict.key("sender"),
            strict.key("victim"),
            strict.key(None, role="admin"),
        )
        assert strict.post(record(message=leaked), key).status_code == 201
        eventually(lambda: strict.get(LOGS, leaked).status_code, lambda status: status == 401)
        path = f"/api/v1/api-keys/{key_id_of(leaked)}"
        stopped = strict.get(path, admin).json()
        assert (stopped["is_active"], stopped["quarantined_at"] is None) == (False, False)
        revived = strict.request("POST", f"{path}/activate", admin).json()
        assert (revived["is_active"], revived["quarantined_at"]) == (True, None)
        assert strict.get(LOGS, leaked).status_code == 200
        assert strict.get(LOGS, key).status_code == 200
