"""What routes stand on: reads and writes while another process holds the control database."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from app.api.reads import PLATFORM_TELLING, READING, TELLING
from app.api.writes import ENDING, ORDINARY, PLATFORM
from app.keys.registry import create_key
from app.pool import LanedPool, Place
from app.sqlite import sqlite3
from tests.api.management import CURRENT, KEYS, ask
from tests.support import DEADLINE_S, Json, Service, create_claim, key_id_of, problem, running


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Give a service of this test's own."""
    with running(tmp_path) as service:
        yield service


@contextmanager
def held(service: Service) -> Iterator[None]:
    """Hold the control database as another process does that writes for long."""
    path = service.settings.data_dir / "control.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


def names(service: Service, admin: str) -> set[str]:
    """List the keys of the client that the tests make keys of."""
    listed = ask(service, "GET", f"{KEYS}?client_id=acme&limit=1000", admin).json()["api_keys"]
    return {key["name"] for key in listed}


def claim_path(service: Service) -> str:
    """Make a claim link."""
    key, text = create_key(
        service.engine,
        service.peppers,
        by=service.by,
        create_client=True,
        client_id="other",
        name="claimed",
    )
    url = "https://logs.example.com"
    return f"/claim/{create_claim(service.engine, key, text, url, by=service.by)}"


def test_reads_do_not_wait_for_writes(service: Service) -> None:
    """While writes wait, reads answer; of too many some are refused at once, and not done."""
    admin, key, claim = service.key(None), service.key("acme", name="reader"), claim_path(service)
    headers = {"X-API-Key": admin}
    excess = 5

    def make(name: str) -> asyncio.Task[httpx.Response]:
        body = {"client_id": "acme", "name": name}
        return asyncio.create_task(service.http.post(KEYS, headers=headers, json=body))

    async def scenario() -> dict[str, httpx.Response]:
        with held(service):
            made = {f"k{number}": make(f"k{number}") for number in range(PLATFORM.places + excess)}
            done: set[asyncio.Task[httpx.Response]] = set()
            while len(done) < excess:
                done, _ = await asyncio.wait(
                    made.values(), return_when=asyncio.FIRST_COMPLETED, timeout=0.05
                )
            for path, caller in (
                (CURRENT, key),
                (KEYS, admin),
                (f"{KEYS}?due=1", admin),
                (claim, ""),
                ("/health/ready", ""),
            ):
                answer = await service.http.get(path, headers={"X-API-Key": caller})
                assert answer.status_code == 200, (path, answer.text)
            # None of them had to wait until the database was let go, or a write gave it up.
            assert all(task.done() == (task in done) for task in made.values())
        return {name: await task for name, task in made.items()}

    answers = service.run(scenario())
    refused = {name: one for name, one in answers.items() if one.status_code != 201}
    assert len(refused) >= excess
    for one in refused.values():
        problem(one, 503, "Overloaded")
    assert names(service, admin) == {"reader"} | (answers.keys() - refused.keys())
    assert service.request("POST", claim).status_code == 200


def test_what_was_refused_is_never_done(service: Service) -> None:
    """Writes that waited in vain are 503 and change nothing, then or later; the next one works."""
    admin, claim = service.key(None), claim_path(service)
    old = service.key("acme", name="old")
    key_path = f"{KEYS}/{old[-61:-49]}"

    async def scenario() -> tuple[httpx.Response, ...]:
        headers = {"X-API-Key": admin}
        with held(service):
            return await asyncio.gather(
                service.http.post(KEYS, headers=headers, json={"client_id": "acme"}),
                service.http.post(f"{key_path}/deactivate", headers=headers),
                service.http.post(f"{key_path}/rotate", headers=headers),
                service.http.delete(key_path, headers=headers),
                service.http.post(claim),
            )

    *answers, page = service.run(scenario())
    details = [problem(one, 503)["detail"] for one in answers]
    assert set(details) <= {"Storage unavailable", "Overloaded"}
    assert "Overloaded" in details
    assert page.status_code == 503
    assert names(service, admin) == {"old"}
    assert ask(service, "POST", KEYS, admin, {"client_id": "acme"}).status_code == 201
    assert service.get(CURRENT, old).json()["rotated_to"] is None
    assert service.request("POST", claim).status_code == 200


def test_no_client_takes_the_places_of_others(service: Service) -> None:
    """While one client has as many writes waiting as it may, all that others ask for is done."""
    flooding, other = (service.key(name, role="owner") for name in ("acme", "other"))
    spare = service.key("other")
    admin, targets = service.key(None), [service.key("acme") for _ in range(ENDING.places + 4)]
    paths = [f"{KEYS}/{key_id_of(target)}" for target in targets]

    def post(path: str, key: str, body: Json | None = None) -> asyncio.Task[httpx.Response]:
        headers = {"X-API-Key": key}
        return asyncio.create_task(service.http.post(path, headers=headers, json=body or {}))

    async def refused(tasks: list[asyncio.Task[httpx.Response]], count: int) -> None:
        """Wait until so many of them were answered at once, and the others wait."""
        until = time.monotonic() + DEADLINE_S
        while sum(task.done() for task in tasks) < count:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)
        assert all(task.result().status_code == 503 for task in tasks if task.done())

    async def scenario() -> list[httpx.Response]:
        with held(service):
            flood = [post(KEYS, flooding) for _ in range(2 * ORDINARY.places)]
            await refused(flood, len(flood) - ORDINARY.places_each)
            # To end its own keys it has other places, as few.
            ends = [post(f"{path}/deactivate", flooding) for path in paths]
            await refused(ends, len(ends) - ENDING.places_each)
            asked = [
                post(KEYS, other),
                post(f"{KEYS}/{key_id_of(spare)}/deactivate", other),
                post(f"{paths[0]}/deactivate", admin),
                post(KEYS, admin, {"client_id": "acme"}),
            ]
            await asyncio.sleep(0.1)
            assert not any(task.done() for task in asked)
        await asyncio.gather(*flood, *ends)
        return await asyncio.gather(*asked)

    made, _, deactivated, last = service.run(scenario())
    assert [made.status_code, deactivated.status_code, last.status_code] == [201, 200, 201]
    assert service.get(CURRENT, targets[0]).status_code == 401
    # The places are free again.
    for _ in range(ORDINARY.places_each + 1):
        assert ask(service, "POST", KEYS, flooding, {}).status_code == 201


@pytest.mark.parametrize("how", ["deactivate", "delete", "patch", "rotate"])
def test_what_ends_a_key_has_its_own_places(service: Service, how: str) -> None:
    """A client whose other writes are too many by far still ends its keys."""
    owner, target = service.key("acme", role="owner"), service.key("acme")
    path = f"{KEYS}/{key_id_of(target)}"
    headers = {"X-API-Key": owner}
    requests: dict[str, tuple[str, str, Json]] = {
        "deactivate": ("POST", f"{path}/deactivate", {}),
        "delete": ("DELETE", path, {}),
        "patch": ("PATCH", path, {"is_active": False}),
        "rotate": ("POST", f"{path}/rotate", {"grace_seconds": 0}),
    }

    async def scenario() -> httpx.Response:
        with held(service):
            makes = [
                asyncio.create_task(service.http.post(KEYS, headers=headers, json={}))
                for _ in range(ORDINARY.places_each + 1)
            ]
            await asyncio.wait(makes, return_when=asyncio.FIRST_COMPLETED)
            method, target_path, body = requests[how]
            ending = asyncio.create_task(
                service.http.request(method, target_path, headers=headers, json=body)
            )
            await asyncio.sleep(0.1)
            assert not ending.done()
        await asyncio.gather(*makes)
        return await ending

    answer = service.run(scenario())
    assert answer.status_code == (201 if how == "rotate" else 200), answer.text
    assert service.get(CURRENT, target).status_code == 401


@asynccontextmanager
async def taken(pool: LanedPool, *places: Place) -> AsyncIterator[None]:
    """Have all these places of a pool taken by what does not end before this does."""
    gate = threading.Event()
    jobs = [
        asyncio.create_task(pool.run(place, gate.wait, DEADLINE_S))
        for place in places
        for _ in range(place.lane.places_each)
    ]
    await asyncio.sleep(0)  # each takes its place in its first step
    try:
        yield
    finally:
        gate.set()
        await asyncio.gather(*jobs, return_exceptions=True)


def test_what_was_done_is_told_whatever_is_read(service: Service) -> None:
    """One client's pages refuse nobody's change its reply, nor anybody else's reads their place."""
    admin, owner = service.key(None), service.key("other", role="owner")
    flooding = service.key("acme", role="owner")
    ended = [service.key("other", name=f"t{number}") for number in range(3)]
    opened = service.app._control.state.services  # noqa: SLF001
    first, second, third = (f"{KEYS}/{key_id_of(one)}" for one in ended)
    full = [Place(READING, str(number)) for number in range(READING.places // READING.places_each)]

    async def ask_for(method: str, path: str, key: str, body: Json | None = None) -> httpx.Response:
        headers = {"X-API-Key": key}
        return await service.http.request(method, path, headers=headers, json=body)

    async def scenario() -> tuple[list[httpx.Response], list[httpx.Response], httpx.Response]:
        async with taken(opened.reads, Place(READING, "acme")):
            refused = await ask_for("GET", KEYS, flooding)
            waiting = asyncio.create_task(ask_for("GET", KEYS, owner))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        listed = await waiting
        async with taken(opened.reads, *full):
            told = [
                await ask_for("PATCH", first, owner, {"name": "new"}),
                await ask_for("POST", f"{first}/deactivate", owner),
                await ask_for("DELETE", second, admin),
                await ask_for("GET", KEYS, owner),
            ]
        async with taken(
            opened.use_reads, Place(TELLING, "other"), Place(PLATFORM_TELLING, "*platform")
        ):
            untold = [
                await ask_for("POST", f"{third}/deactivate", owner),
                await ask_for("DELETE", third, admin),
            ]
        assert listed.status_code == 200
        return told, untold, refused

    told, untold, refused = service.run(scenario())
    problem(refused, 503, "Overloaded")
    problem(told.pop(), 503, "Overloaded")  # all places of all clients are taken
    assert [one.status_code for one in (*told, *untold)] == [200] * 5
    assert all(one.json()["sources"] == [] for one in told)
    assert all(one.json()["total_requests"] == 0 for one in told)
    assert all(one.json()["sources"] is None for one in untold)
    assert all(one.json()["total_requests"] is None for one in untold)
    assert all("effective_at" in one.json() for one in (told[1], told[2], *untold))
    assert [service.get(CURRENT, key).status_code for key in ended] == [401] * 3
