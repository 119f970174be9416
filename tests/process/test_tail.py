"""Tails of a running service: no gap and no repeat, whatever happens to either side."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests.server import HOST, Server, make_admin_key, make_key, start_product
from tests.process.event_stream import TAIL, EventStream
from tests.process.service import (
    PATH,
    Load,
    ask,
    stored_logs,
    the_writer_in,
    wait_until,
    workers_in,
)

CLIENT = "acme"


@contextmanager
def closing(streams: list[EventStream]) -> Iterator[None]:
    """Hang up in the end."""
    try:
        yield
    finally:
        for stream in streams:
            stream.close()


def post(server: Server, key: str, *runs: str, message: str = "") -> None:
    """Store logs in one request."""
    logs = [
        {"environment": "e", "executed_at": 1e9, "status": "s", "run_id": run, "message": message}
        for run in runs
    ]
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    assert ask(server.port, "POST", PATH, json.dumps(logs).encode(), headers)[0] == 201


class Follower:
    """Reads a tail over many connections, each cut off at a moment of chance."""

    def __init__(self, port: int, key: str, seed: int) -> None:
        self._port = port
        self._key = key
        self._chance = random.Random(seed)
        first = EventStream(port, key)
        wait_until(lambda: first.last_id, "the place where it begins")
        self.streams = [first]

    def reconnect(self) -> None:
        """Hang up, and go on from the last event that came whole."""
        time.sleep(self._chance.random() / 4)
        last = self.streams[-1]
        last.close()
        self.streams.append(EventStream(self._port, self._key, last.last_id))

    @property
    def runs(self) -> list[str]:
        """The run_ids of all that came."""
        return [run for stream in self.streams for run in stream.runs]


def wait_for_logs(reader: EventStream | Follower, count: int) -> None:
    """Wait until so many logs have come."""
    wait_until(lambda: len(reader.runs) >= count, f"{count} logs on a tail")


def test_no_gap_and_no_repeat(tmp_path: Path) -> None:
    """Over reconnects, two workers, the sealing of logs and the writer's death each log comes once.

    What was never acknowledged may be stored or not, so the files say what there is to come.
    """
    key = make_key(tmp_path, CLIENT)
    with start_product(tmp_path, workers=2) as server:
        assert len(workers_in(server)) == 2
        post(server, key, "before")
        followers = [Follower(server.port, key, seed) for seed in range(3)]
        load = Load(server.port, key, "load")
        with load.running():
            for turn in range(5):
                load.wait_for_more(300)
                if turn in {1, 3}:
                    the_writer_in(server).kill()
                for follower in followers:
                    follower.reconnect()
        stored = {log["run_id"] for log in stored_logs(tmp_path, CLIENT)} - {"before"}
        assert stored >= load.acknowledged
        for follower in followers:
            wait_for_logs(follower, len(stored))
            follower.streams[-1].close()
            assert sorted(follower.runs) == sorted(stored)


def test_a_tail_from_long_ago_reads_sealed_logs(tmp_path: Path) -> None:
    """Whoever comes back late gets all in between, in blocks by then, in the order of commits."""
    key = make_key(tmp_path, CLIENT)
    with start_product(tmp_path) as server:
        first = EventStream(server.port, key)
        wait_until(lambda: first.last_id, "the place where it begins")
        place = first.last_id
        sent = [[f"{batch}-{n}" for n in range(1000)] for batch in range(8)]
        for runs in sent:
            post(server, key, *runs)
        with closing([first]):
            wait_until(lambda: len(first.runs) == 8000, "all while they come")
        time.sleep(3)  # the sealer looks each second; whether it is done is no matter
        with closing([again := EventStream(server.port, key, place)]):
            wait_until(lambda: len(again.runs) >= 8000, "all of them again")
            assert again.runs == first.runs
        for batch, runs in enumerate(sent):
            assert sorted(again.runs[1000 * batch : 1000 * (batch + 1)]) == sorted(runs)


def test_hundreds_of_tails_on_one_worker(tmp_path: Path) -> None:
    """Two hundred readers of two clients get all of their own client's logs, each once."""
    keys = [make_key(tmp_path, client) for client in (CLIENT, "other")]
    with start_product(tmp_path) as server:
        streams = [EventStream(server.port, keys[number % 2]) for number in range(200)]
        with closing(streams):
            for number in range(20):
                for client, key in enumerate(keys):
                    post(server, key, *(f"{client}-{number}-{n}" for n in range(10)))
            for client in range(2):
                expected = sorted(f"{client}-{n}-{m}" for n in range(20) for m in range(10))
                for stream in streams[client::2]:
                    wait_for_logs(stream, 200)
                    assert sorted(stream.runs) == expected


@pytest.mark.parametrize("is_quiet", [True, False])
def test_a_revoked_key_s_tail_ends(tmp_path: Path, is_quiet: bool) -> None:
    """After the revocation the stream ends, in order and with the reason; nothing follows it."""
    key, other = make_key(tmp_path, CLIENT), make_key(tmp_path, CLIENT)
    with start_product(tmp_path, workers=2) as server:
        admin = {"X-API-Key": make_admin_key(tmp_path)}
        streams = [EventStream(server.port, key) for _ in range(4)]
        left = EventStream(server.port, other)
        with closing([*streams, left]):
            if not is_quiet:
                post(server, other, "seen")
                for stream in (*streams, left):
                    wait_for_logs(stream, 1)
            revoked = time.monotonic()
            path = f"/api/v1/api-keys/{key[-61:-49]}/deactivate"
            assert ask(server.port, "POST", path, headers=admin)[0] == 200
            post(server, other, "secret")
            wait_until(lambda: all(stream.has_ended for stream in streams), "the end of each")
            assert time.monotonic() - revoked < 20
            wait_until(lambda: "secret" in left.runs, "the other key's goes on")
            for stream in streams:
                assert (stream.reason, stream.is_whole) == ("key revoked", True)
                assert "secret" not in stream.runs


def test_a_slow_reader_is_dropped_and_resumes(tmp_path: Path) -> None:
    """Who does not read is dropped, hung up on in the end, and misses nothing when it resumes."""
    key = make_key(tmp_path, CLIENT)
    with start_product(tmp_path) as server:
        slow = socket.create_connection((HOST, server.port), timeout=60)
        slow.sendall(f"GET {TAIL} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n".encode())
        head = slow.recv(2000)
        quick = EventStream(server.port, key)
        with closing([quick]):
            count = 60  # the system itself takes some MiB for a reader
            for number in range(count):
                post(server, key, str(number), message="x" * 500_000)
            wait_until(lambda: len(quick.runs) == count, "all on the quick one")
        received = [head]
        while b'"reason":' not in received[-1][-200:]:
            part = slow.recv(1 << 20)
            assert part, "it ended without a word"
            received.append(part)
        slow.close()
        text = b"".join(received).decode()
        assert '"reason":"slow reader"' in text
        got = text.count('"run_id":')
        assert 0 < got < count
        last_id = text.rpartition("\nid: ")[2].partition("\n")[0]
        with closing([resumed := EventStream(server.port, key, last_id)]):
            wait_until(lambda: len(resumed.runs) == count - got, "the rest")
            assert resumed.runs == [str(number) for number in range(got, count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stop_does_not_wait_for_tails(tmp_path: Path, workers: int) -> None:
    """Asked to stop, the server ends each tail with the reason, and is gone soon."""
    key = make_key(tmp_path, CLIENT)
    with start_product(tmp_path, workers=workers) as server:
        streams = [EventStream(server.port, key) for _ in range(10)]
        wait_until(lambda: all(stream.last_id for stream in streams), "all begun")
        stopped = time.monotonic()
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert time.monotonic() - stopped < 6  # less than it leaves requests that do not end
        with closing(streams):
            wait_until(lambda: all(stream.has_ended for stream in streams), "the end of each")
        assert {stream.reason for stream in streams} == {"server stopping"}


def test_ingest_goes_on_beside_a_busy_tail(tmp_path: Path) -> None:
    """Readers that come and go while logs stream in take nothing from those who send."""
    key = make_key(tmp_path, CLIENT)
    with start_product(tmp_path) as server:
        load = Load(server.port, key, "load")
        stop = threading.Event()

        def come_and_go() -> None:
            while not stop.is_set():
                EventStream(server.port, key).close()

        comer = threading.Thread(target=come_and_go)
        with load.running(senders=4):
            comer.start()
            load.wait_for_more(2000)
            stop.set()
            comer.join(30)
        assert load.statuses.keys() == {201}
        assert not comer.is_alive()
