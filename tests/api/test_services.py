"""What routes stand on: reads and writes while another process holds the control database."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.api.services import WRITE_THREADS, WRITES_QUEUE
from app.delivery.claims import create_claim
from app.keys.registry import create_key
from app.sqlite import sqlite3
from tests.api.management import CURRENT, KEYS, ask
from tests.support import Service, problem, running

PLACES = WRITE_THREADS + WRITES_QUEUE


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
        service.engine, service.peppers, create_client=True, client_id="other", name="claimed"
    )
    return f"/claim/{create_claim(service.engine, key, text, 'https://logs.example.com')}"


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
            made = {f"k{number}": make(f"k{number}") for number in range(PLACES + excess)}
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
