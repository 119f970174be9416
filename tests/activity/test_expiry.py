"""Tests of app.activity.expiry: what clients' settings ask for, done by the service itself."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from app.activity.expiry import Expiry
from app.errors import StorageUnavailable
from app.keys.database import open_current
from app.logs.retention import Expired, Policies
from app.storage.memory import MemoryLogStore
from app.storage.sqlite.schema import list_days
from tests.storage.batches import append, record
from tests.support import DEADLINE_S, Service, eventually, running

CLIENTS = "/api/v1/clients"
WINDOW = 7


def today() -> int:
    """Give the UTC day."""
    return int(time.time() // 86_400)


def set_retention(service: Service, admin: str, client_id: str, **changes: Any) -> None:
    """Change a client through the API."""
    response = service.request("PATCH", f"{CLIENTS}/{client_id}", admin, json=changes)
    assert response.status_code == 200, response.text
    assert response.json() | changes == response.json()


def fill(service: Service, client_id: str, *ages: int) -> None:
    """Store logs of two datasets that arrived so many days ago."""
    store = service.app._control.state.services.store  # noqa: SLF001  # its name
    for age in ages:
        sent = [record(message=f"{age}-{one}", dataset=one) for one in ("bills", "orders")]
        service.run(append(store, client_id, *sent, day=today() - age))


def messages(service: Service, key: str) -> set[str]:
    """Give the messages of a client's logs."""
    return {log["message"] for log in service.logs(key)}


def expire(service: Service) -> Expired:
    """Do what another worker would do."""
    store = service.app._control.state.services.store  # noqa: SLF001
    return service.run(Expiry(service.engine, store).expire())


def test_settings_of_a_client_take_effect(tmp_path: Path) -> None:
    """Days of a client and of its datasets are those of the API, until they are taken back."""
    with running(tmp_path) as service:
        admin, key, other = service.key(None), service.key("acme"), service.key("other")
        fill(service, "acme", 1, 2, 20)
        fill(service, "other", 20)
        assert expire(service) == Expired()
        set_retention(service, admin, "acme", dataset_retention_days={"orders": 1})
        assert expire(service) == Expired(logs=2)
        assert messages(service, key) == {"1-bills", "1-orders", "2-bills", "20-bills"}
        set_retention(service, admin, "acme", retention_days=19)
        assert expire(service) == Expired(logs=1)
        assert messages(service, key) == {"1-bills", "1-orders", "2-bills"}
        set_retention(service, admin, "other", retention_days=2)
        assert expire(service) == Expired(days=1)
        assert messages(service, other) == set()
        assert service.usage(other)["totals"]["logs"] == 2
        fill(service, "acme", 30)
        set_retention(service, admin, "acme", retention_days=None, dataset_retention_days=None)
        assert expire(service) == Expired()
        assert {"2-bills", "30-bills", "30-orders"} <= messages(service, key)


def test_a_new_client_has_its_own_days(tmp_path: Path) -> None:
    """Days that are given when a client is made are in force from then on."""
    with running(tmp_path) as service:
        body = {"client_id": "acme", "retention_days": 3, "dataset_retention_days": {"orders": 9}}
        response = service.request("POST", CLIENTS, service.key(None), json=body)
        assert response.status_code == 201
        key = service.key("acme")
        fill(service, "acme", 3, 4, 9, 10)
        assert expire(service) == Expired(logs=2, days=1)
        assert messages(service, key) == {"3-bills", "3-orders", "4-orders", "9-orders"}


@pytest.mark.parametrize("ages", [(4,), (20,)])
def test_a_start_does_it_soon(tmp_path: Path, ages: tuple[int, ...]) -> None:
    """A service that was away lets go of what is due some seconds after its start."""
    with running(tmp_path) as service:
        key = service.key("acme")
        fill(service, "acme", *ages)
        set_retention(service, service.key(None), "acme", retention_days=3)
    with running(tmp_path) as service:
        eventually(lambda: messages(service, key), lambda left: not left)
        assert service.usage(key)["totals"]["logs"] == 2
    assert len(list_days(tmp_path / "logs")) == sum(age <= WINDOW + 1 for age in ages)


class FailingStore(MemoryLogStore):
    """Fails twice, and says when it did not."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0
        self.done = asyncio.Event()

    async def expire(self, policies: Policies, today: int) -> Expired:
        """Fail, or do it."""
        self.tries += 1
        if self.tries <= 2:
            raise StorageUnavailable("no space")
        self.done.set()
        return await super().expire(policies, today)


@pytest.mark.anyio
async def test_what_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A store that is away for a while is asked again, and each failure is logged."""
    engine = open_current("", tmp_path)
    store = FailingStore()
    expiry = Expiry(engine, store, first_s_max=0.01, retry_s_max=0.01)
    expiry.start()
    await asyncio.wait_for(store.done.wait(), DEADLINE_S)
    await expiry.aclose()
    engine.dispose()
    assert store.tries == 3
    assert [one.levelname for one in caplog.records] == ["ERROR", "ERROR"]
