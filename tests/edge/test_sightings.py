"""Which keys were used, and from where: counted in memory, written by and by."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any

import pytest
from sqlalchemy import Engine

from app.activity.database import open_activity
from app.activity.uses import Sighting, read_sources, read_uses
from app.columns import utc_now
from app.edge.background import LAST_FLUSH_S_MAX
from app.edge.sightings import (
    KEYS_PER_WRITE,
    SOURCES_MAX,
    SOURCES_OF_KEY_MAX,
    Sightings,
)
from app.errors import StorageUnavailable
from app.keys.database import embedded_url, open_engine
from tests.support import NDJSON, Service, eventually, key_id_of, ndjson, record, running


class Written:
    """Takes what is written, or fails as told."""

    def __init__(self) -> None:
        self.sightings: list[Sighting] = []
        self.fault: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, sightings: list[Sighting]) -> None:
        """Write."""
        assert self.may_go_on.wait(20)
        if self.fault is not None:
            raise self.fault
        self.sightings += sightings

    def requests(self) -> int:
        """Sum what was written."""
        return sum(one.requests for one in self.sightings)


@pytest.fixture
def written() -> Written:
    """Give what stands for the database."""
    return Written()


def test_requests_are_counted_by_source(written: Written) -> None:
    """Each key, address and user agent has its count, its first and its last moment."""

    async def scenario() -> None:
        sightings = Sightings(written)
        for at_s in (1000.0015, 1001.5, 1002.25):
            sightings.count("k", ("192.0.2.1", b"curl"), at_s)
        sightings.count("k", ("192.0.2.1", b"Stra\xc3\x9fe\xff"), 1003.0)
        await sightings.flush()
        await sightings.flush()
        await sightings.aclose()

    asyncio.run(scenario())
    times = [datetime.fromtimestamp(at_s, UTC) for at_s in (1000.001, 1002.25, 1003.0)]
    assert written.sightings == [
        Sighting("k", "192.0.2.1", "curl", 3, times[0], times[1]),
        Sighting("k", "192.0.2.1", "Straße\ufffd", 1, times[2], times[2]),
    ]


def test_invented_sources_of_one_key_stay_its_own(written: Written) -> None:
    """A key from ever new places takes a bounded part of memory, loses no count, and hides none."""

    async def scenario() -> None:
        sightings = Sightings(written)
        for number in range(3 * SOURCES_OF_KEY_MAX):
            sightings.count("noisy", ("192.0.2.1", b"%d" % number + b"x" * 10_000), time())
        sightings.count("quiet", ("192.0.2.9", b"curl"), time())
        await sightings.flush()
        await sightings.aclose()

    asyncio.run(scenario())
    assert written.requests() == 3 * SOURCES_OF_KEY_MAX + 1
    noisy = [one for one in written.sightings if one.key_id == "noisy"]
    assert len(noisy) == SOURCES_OF_KEY_MAX + 1
    assert (noisy[-1].source_ip, noisy[-1].user_agent) == ("", "")
    assert max(len(one.user_agent) for one in noisy) < 2000
    assert written.sightings[-1][:3] == ("quiet", "192.0.2.9", "curl")


def test_memory_is_bounded(written: Written) -> None:
    """Beyond so many sources in all, uses are counted without them."""

    async def scenario() -> None:
        sightings = Sightings(written)
        keys = SOURCES_MAX // SOURCES_OF_KEY_MAX + 10
        for number in range(keys * SOURCES_OF_KEY_MAX):
            key_id = f"k{number % keys}"
            sightings.count(key_id, ("192.0.2.1", b"%d" % number), time())
        await sightings.flush()
        await sightings.aclose()
        assert written.requests() == keys * SOURCES_OF_KEY_MAX
        assert len(written.sightings) == SOURCES_MAX + keys

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", [StorageUnavailable("away"), ZeroDivisionError()])
def test_a_failing_database_loses_nothing(written: Written, fault: Exception) -> None:
    """What could not be written is written the next time, together with what came since."""

    async def scenario() -> None:
        sightings = Sightings(written)
        written.fault = fault
        sightings.count("k", ("192.0.2.1", b"curl"), 1000)
        await sightings.flush()
        sightings.count("k", ("192.0.2.1", b"curl"), 1001)
        await sightings.flush()
        written.fault = None
        sightings.count("k", ("192.0.2.1", b"curl"), 1002)
        await sightings.flush()
        await sightings.aclose()

    asyncio.run(scenario())
    [one] = written.sightings
    assert (one.requests, one.first_at.timestamp(), one.last_at.timestamp()) == (3, 1000, 1002)


def test_writing_holds_up_nobody(written: Written) -> None:
    """While a write takes its time the loop goes on, and what comes is counted once, later."""

    async def scenario() -> None:
        sightings = Sightings(written)
        written.may_go_on.clear()
        sightings.count("k", ("192.0.2.1", b"curl"), 1000)
        flush = asyncio.create_task(sightings.flush())
        for _ in range(100):
            await asyncio.sleep(0)
            sightings.count("k", ("192.0.2.1", b"curl"), 1001)
        assert not flush.done()
        written.may_go_on.set()
        await flush
        assert written.requests() == 1
        await sightings.flush()
        await sightings.aclose()

    asyncio.run(scenario())
    assert written.requests() == 101


def test_many_keys_are_written_in_portions(written: Written) -> None:
    """So many keys a write and no more; what follows a failure waits for the next time."""
    sizes: list[int] = []
    failing: list[Exception] = []

    def write(sightings: list[Sighting]) -> None:
        sizes.append(len(sightings))
        if len(sizes) == 2 and failing:
            raise failing.pop()
        written(sightings)

    async def scenario() -> None:
        sightings = Sightings(write)
        for number in range(2 * KEYS_PER_WRITE + 1):
            sightings.count(f"k{number}", ("192.0.2.1", b"curl"), 1000)
        failing.append(StorageUnavailable("away"))
        await sightings.flush()
        assert sizes == [KEYS_PER_WRITE] * 2
        await sightings.flush()
        await sightings.aclose()

    asyncio.run(scenario())
    assert sizes == [*[KEYS_PER_WRITE] * 3, 1]
    assert sorted(one.key_id for one in written.sightings) == sorted(
        f"k{number}" for number in range(2 * KEYS_PER_WRITE + 1)
    )
    assert written.requests() == 2 * KEYS_PER_WRITE + 1


def test_all_is_written_by_and_by_and_at_the_end(written: Written) -> None:
    """Nobody has to ask: what was counted is written soon, and the rest with the stop."""

    async def scenario() -> None:
        sightings = Sightings(written)
        sightings.start()
        sightings.count("k", ("192.0.2.1", b"curl"), 1000)
        async with asyncio.timeout(20):
            while not written.sightings:  # noqa: ASYNC110  # what it waits for is in a thread
                await asyncio.sleep(0.01)
        sightings.count("k", ("192.0.2.1", b"curl"), 1001)
        await sightings.aclose()

    asyncio.run(scenario())
    assert written.requests() == 2


def test_a_stop_waits_for_no_database(written: Written) -> None:
    """A write that does not end does not hold the stop."""

    async def scenario() -> float:
        sightings = Sightings(written)
        sightings.start()
        written.may_go_on.clear()
        sightings.count("k", ("192.0.2.1", b"curl"), 1000)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await sightings.aclose()
        return loop.time() - began

    try:
        assert LAST_FLUSH_S_MAX <= asyncio.run(scenario()) < 15
    finally:
        written.may_go_on.set()


@contextmanager
def activity_of(directory: Path) -> Iterator[Engine]:
    """Open what a service has written."""
    control = open_engine(embedded_url(directory))
    engine = open_activity(control)
    yield engine
    engine.dispose()
    control.dispose()


def test_every_authenticated_request_is_seen(tmp_path: Path) -> None:
    """Whatever becomes of a request to store logs, its key was used; a bad key was not."""
    before = utc_now()
    with running(tmp_path) as service:
        key = service.key(limits={"logs_per_minute": 3})
        viewer = service.key(role="viewer")
        agent = {"user-agent": "n8n/1.0"}
        statuses = [
            service.post(record(), key, **agent).status_code,
            service.post(ndjson([record(), record()]), key, content_type=NDJSON).status_code,
            service.post(record(), key, **agent).status_code,
            service.post(b"{", key, **agent).status_code,
            service.post(record(), key + "x", **agent).status_code,
            service.post(record(), viewer, **agent).status_code,
        ]
        assert statuses == [201, 201, 429, 429, 401, 403]
    ids = [key_id_of(key), key_id_of(viewer)]
    with activity_of(tmp_path) as activity:
        uses = read_uses(activity, ids)
        assert [uses[one].requests for one in ids] == [4, 1]
        assert uses[ids[0]].last_source_ip == "127.0.0.1"
        assert uses[ids[0]].last_user_agent == "n8n/1.0"
        assert before <= uses[ids[0]].first_used_at <= uses[ids[0]].last_used_at <= utc_now()
        assert sorted(source.requests for source in read_sources(activity, ids[0])) == [1, 3]


def test_who_needs_no_key_is_seen_too(tmp_path: Path) -> None:
    """Static keys have uses under their own ids, callers without a key under one of theirs."""
    settings: dict[str, Any] = {"api_keys": json.dumps({"dev-key-1": "acme"})}
    with running(tmp_path, require_api_key=False, **settings) as service:
        assert service.post(record(), "dev-key-1").status_code == 201
        assert service.post(record()).status_code == 201
        principal = service.run(_authenticated(service, "dev-key-1"))
    with activity_of(tmp_path) as activity:
        uses = read_uses(activity, [principal, "anonymous"])
    assert {key_id: use.requests for key_id, use in uses.items()} == {principal: 1, "anonymous": 1}


async def _authenticated(service: Service, key: str) -> str:
    authenticator = service.app._control.state.services.authenticator  # noqa: SLF001  # its name
    found = await authenticator.authenticate({"headers": [(b"x-api-key", key.encode())]})
    return str(found.key_id)


def test_a_proxy_is_seen_through(tmp_path: Path) -> None:
    """Behind a trusted proxy the source is the address that it forwards for, else the peer."""
    with running(tmp_path, trusted_proxies="127.0.0.1,10.0.0.0/8") as service:
        key = service.key()
        for forwarded in ("203.0.113.5", "6.6.6.6, 203.0.113.5, 10.1.1.1", "x" * 300):
            headers = {"x-forwarded-for": forwarded}
            assert service.post(record(), key, **headers).status_code == 201
    with activity_of(tmp_path) as activity:
        sources = read_sources(activity, key_id_of(key))
    assert {source.source_ip: source.requests for source in sources} == {
        "203.0.113.5": 2,
        "127.0.0.1": 1,
    }


def test_a_broken_activity_file_stops_no_log(tmp_path: Path) -> None:
    """Logs are stored, and refused, as ever while uses of keys cannot be written."""
    (tmp_path / "activity.db").write_bytes(b"not a database" * 1000)
    with running(tmp_path) as service:
        key = service.key()
        assert service.post(record(), key).status_code == 201
        service.revoke(key)
        assert service.post(record(), key).status_code == 401
        other = service.key()
        eventually(lambda: service.logs(other), lambda logs: len(logs) == 1)
