"""The main job at size: a hundred thousand real records in, and back to each client alone."""

import gzip
import json
import threading
import zlib
from collections import Counter
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any

import zstandard

from loadtests.records import Record, encode, expected, ndjson, records, same
from loadtests.server import HOST, make_key, start_product
from tests.process.service import PATH, read_reply

RECORDS = 100_000
CLIENTS = ("acme_corp", "globex", "initech", "umbrella-eu")
SIZES = (1, 1, 1, 1, 7, 60, 400)
ENCODINGS = ("", "gzip", "deflate", "zstd")


def _body(random: Random, batch: Sequence[Record]) -> tuple[bytes, dict[str, str]]:
    """Write a batch in one of the forms and encodings that clients use."""
    array = b"[" + b",".join(map(encode, batch)) + b"]"
    forms = {
        "application/json": array,
        "application/json; charset=utf-8": b'{"logs":' + array + b"}",
        "application/x-ndjson": ndjson(batch),
        "application/jsonl": ndjson(batch).rstrip(b"\n"),
    }
    if len(batch) == 1:
        forms["application/json"] = encode(batch[0])
    media_type = random.choice(list(forms))
    encoding = random.choice(ENCODINGS)
    headers = {"Content-Type": media_type}
    if encoding:
        headers["Content-Encoding"] = encoding
    return _compress(forms[media_type], encoding), headers


def _compress(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.compress(body, 1)
    if encoding == "deflate":
        return zlib.compress(body, 1)
    if encoding == "zstd":
        return zstandard.ZstdCompressor(1).compress(body)
    return body


class Client:
    """A client that sends its records, then reads everything back."""

    def __init__(self, port: int, client_id: str, key: str, sent: list[Record]) -> None:
        self.client_id = client_id
        self.sent = sent
        self.requests = 0
        self.read: list[Record] = []
        self.usage: dict[str, Any] = {}
        self._key = key
        self._http = HTTPConnection(HOST, port, timeout=60)

    def run(self) -> None:
        """Do the client's whole job."""
        self._send_all()
        self._read_all()
        self.usage = self._get("/api/v1/usage?group_by=dataset")
        self._http.close()

    def _send_all(self) -> None:
        random = Random(self.client_id)
        at = 0
        while at < len(self.sent):
            batch = self.sent[at : at + random.choice(SIZES)]
            at += len(batch)
            body, headers = _body(random, batch)
            once = {"Idempotency-Key": f"batch-{at}"} if random.random() < 0.1 else {}
            reply = self._post(body, headers | once)
            if once:  # a network that failed after the commit makes clients repeat themselves
                assert self._post(body, headers | once) == reply
            assert reply.get("accepted", 1) == len(batch)
            assert not reply.get("rejected")
            assert not reply.get("duplicates")
            self.requests += 1

    def _read_all(self) -> None:
        cursor = ""
        while True:
            page = self._get(f"{PATH}?limit=1000&order=asc{cursor}")
            self.read += page["logs"]
            if page["next_cursor"] is None:
                return
            cursor = f"&cursor={page['next_cursor']}"

    def _post(self, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        self._http.request("POST", PATH, body, headers | {"X-API-Key": self._key})
        return self._reply(201)

    def _get(self, path: str) -> dict[str, Any]:
        self._http.request("GET", path, headers={"X-API-Key": self._key})
        return self._reply(200)

    def _reply(self, wanted: int) -> dict[str, Any]:
        status, _, body = read_reply(self._http)
        assert status == wanted, body
        answer: dict[str, Any] = json.loads(body)
        return answer


def _sorting_text(log: Record) -> str:
    """Give a text that is equal for what `same` finds equal."""
    return json.dumps(_big_as_text(log), sort_keys=True)


def _big_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _big_as_text(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_big_as_text(one) for one in value]
    is_big = isinstance(value, int) and not -(2**63) <= value < 2**63
    return str(value) if is_big else value


def _check(client: Client) -> None:
    """Check that a client has read back just what it sent, in order, and is told so."""
    own = {"id", "client_id", "received_at"}
    got = [{name: log[name] for name in log if name not in own} for log in client.read]
    want = [expected(record) for record in client.sent]
    assert len(got) == len(want)
    pairs = zip(sorted(want, key=_sorting_text), sorted(got, key=_sorting_text), strict=True)
    assert [pair for pair in pairs if not same(*pair)][:1] == []
    assert {log["client_id"] for log in client.read} == {client.client_id}
    ids = [log["id"] for log in client.read]
    assert ids == sorted(set(ids))
    totals = client.usage["totals"]
    assert totals["logs"] == len(client.sent)
    assert totals["rejected"] == totals["denied"] == 0
    assert {row["dataset"]: row["logs"] for row in client.usage["usage"]} == Counter(
        log["dataset"] for log in client.read
    )


def test_all_records_come_back_to_their_client_alone(tmp_path: Path) -> None:
    """Each client's records go in by HTTP in every form and are read back equal, by it alone."""
    sent: dict[str, list[Record]] = {client_id: [] for client_id in CLIENTS}
    for client_id, record in records(2026, CLIENTS, RECORDS):
        sent[client_id].append(record)
    keys = {client_id: make_key(tmp_path, client_id) for client_id in CLIENTS}
    with start_product(tmp_path) as server:
        clients = [Client(server.port, one, keys[one], sent[one]) for one in CLIENTS]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.stop() == 0
    for client in clients:
        _check(client)
    assert sum(len(client.read) for client in clients) == RECORDS
    assert len({log["id"] for client in clients for log in client.read}) == RECORDS
    assert sum(client.requests for client in clients) > 1000
