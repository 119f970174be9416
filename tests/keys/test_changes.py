"""A change is made by what its asker is when its turn has come, not by what it was."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine

from app.errors import Forbidden, InvalidKey, LoggerError
from app.keys.authority import check_restrictions
from app.keys.changes import Asker, Origin, writing_for
from app.keys.clients import create_client, update_client
from app.keys.configured import ConfiguredKeys
from app.keys.database import sqlite_path
from app.keys.entry import Entry
from app.keys.keyring import Keyring
from app.keys.lifecycle import deactivate_key, delete_key, update_key
from app.keys.models import ApiKey
from app.keys.registry import KeyFilter, create_key, list_keys
from app.keys.restrictions import (
    DAYS,
    ENFORCE,
    NOT_FROM_ADDRESS,
    NOT_FROM_COUNTRY,
    NOT_NOW,
    REPORT,
)
from app.keys.verifier import Peppers
from app.sqlite import sqlite3
from tests.keys.conftest import KeyringFactory
from tests.support import BY, rotate_key

SOON = datetime.now(UTC) + timedelta(days=10)
FILE_KEY = "a-key-of-the-file-of-some-length"


class Plane:
    """A control database with an owner, who asks, and two keys of its client, one switched off."""

    def __init__(self, engine: Engine, peppers: Peppers, keyring: Keyring) -> None:
        self.engine = engine
        self.peppers = peppers
        self.keyring = keyring
        self.owner, text = self.make(role="owner", name="owner")
        self.on, _ = self.make()
        self.off, _ = self.make()
        deactivate_key(engine, self.off.key_id, by=BY)
        self.by = replace(BY, asker=self.asked_by(text))

    def make(self, **properties: Any) -> tuple[ApiKey, str]:
        """Make a key as the operator."""
        wanted = {
            "client_id": "acme",
            "name": "test",
            "create_client": True,
            "by": BY,
            **properties,
        }
        return create_key(self.engine, self.peppers, **wanted)

    def asked_by(self, text: str) -> Asker:
        """Authenticate a key that asks for something."""
        return self.keyring.asker(asyncio.run(self.keyring.resolve(text)))

    @contextmanager
    def held(self) -> "Iterator[sqlite3.Connection]":
        """Hold the database as another process does that writes; what it wrote is committed."""
        path = sqlite_path(self.engine.url)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA foreign_keys = ON")
            other.execute("BEGIN IMMEDIATE")
            yield other
            other.execute("COMMIT")

    def state(self) -> list[dict[str, Any]]:
        """Give all keys but the one that asks."""
        keys = list_keys(self.engine, KeyFilter(include_inactive=True))
        return [key.model_dump() for key in keys if key.id != self.owner.id]


@pytest.fixture
def plane(engine: Engine, peppers: Peppers, make_keyring: KeyringFactory) -> Plane:
    """Give the database and who asks."""
    return Plane(engine, peppers, make_keyring())


GIFTS: dict[str, Callable[[Plane], object]] = {
    "create": lambda plane: create_key(
        plane.engine,
        plane.peppers,
        by=plane.by,
        client_id="acme",
        name="gift",
        role="client",
        allowed_datasets=["a", "b"],
        limits={"requests_per_minute": 50},
        expires_at=SOON,
    ),
    "widen": lambda plane: update_key(
        plane.engine, plane.on.key_id, {"scopes": ["logs:query", "logs:read"]}, by=plane.by
    ),
    "activate": lambda plane: update_key(
        plane.engine, plane.off.key_id, {"is_active": True}, by=plane.by
    ),
    "rotate": lambda plane: rotate_key(plane.engine, plane.peppers, plane.on.key_id, by=plane.by),
}
LOSSES: dict[str, tuple[str, type[LoggerError]]] = {
    "a role": ("UPDATE api_keys SET role = 'viewer' WHERE id = :id", Forbidden),
    "scopes": ("""UPDATE api_keys SET scopes = '["keys:manage"]' WHERE id = :id""", Forbidden),
    "datasets": ("""UPDATE api_keys SET allowed_datasets = '["a"]' WHERE id = :id""", Forbidden),
    "limits": ("UPDATE api_keys SET requests_per_minute = 5 WHERE id = :id", Forbidden),
    "a longer life": ("UPDATE api_keys SET expires_at = :tomorrow WHERE id = :id", Forbidden),
    "life": ("UPDATE api_keys SET expires_at = '2001-01-01' WHERE id = :id", InvalidKey),
    "its row": ("DELETE FROM api_keys WHERE id = :id", InvalidKey),
    "its verifier": ("UPDATE api_keys SET verifier = NULL WHERE id = :id", InvalidKey),
    "its client": ("UPDATE clients SET is_active = 0", InvalidKey),
}


@pytest.mark.parametrize("gift", GIFTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_lost_while_it_waited_is_not_given(plane: Plane, gift: str, loss: str) -> None:
    """Whatever the asker lost before its write began is no longer given by it, nor is any other."""
    statement, error = LOSSES[loss]
    before = plane.state()
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%d %H:%M:%S.000000")
    with ThreadPoolExecutor(1) as threads:
        with plane.held() as other:
            giving = threads.submit(GIFTS[gift], plane)
            values = {"id": plane.owner.id.hex, "tomorrow": tomorrow}
            assert other.execute(statement, values).rowcount == 1
        with pytest.raises(error):
            giving.result()
    assert plane.state() == before


@pytest.mark.parametrize("gift", GIFTS)
def test_what_was_not_lost_is_given(plane: Plane, gift: str) -> None:
    """A write that waited for a change that is not about its asker is done."""
    with ThreadPoolExecutor(1) as threads:
        with plane.held() as other:
            giving = threads.submit(GIFTS[gift], plane)
            other.execute("UPDATE clients SET name = 'renamed'")
        giving.result()


def test_a_key_that_lost_the_scope_takes_nothing_away(plane: Plane) -> None:
    """Who no longer manages keys neither ends nor renames any."""
    update_key(plane.engine, plane.owner.key_id, {"role": "client"}, by=BY)
    for take in (deactivate_key, delete_key):
        with pytest.raises(Forbidden, match="Requires scope 'keys:manage'"):
            take(plane.engine, plane.on.key_id, by=plane.by)
    with pytest.raises(Forbidden):
        update_client(plane.engine, "acme", {"name": "mine"}, by=plane.by)


ANOTHER_DAY = DAYS[(datetime.now(UTC).weekday() + 3) % 7]
RESTRICTED: dict[str, tuple[str, Any, str | None]] = {
    "address": ("allowed_cidrs", ["192.0.2.0/24"], None),
    "another address": ("allowed_cidrs", ["198.51.100.0/24"], NOT_FROM_ADDRESS),
    "country": ("allowed_countries", ["DE"], None),
    "another country": ("allowed_countries", ["FR"], NOT_FROM_COUNTRY),
    "hours": ("allowed_hours", {"start": "00:00", "end": "24:00"}, None),
    "other hours": (
        "allowed_hours",
        {"start": "00:00", "end": "00:01", "days": [ANOTHER_DAY]},
        NOT_NOW,
    ),
}


@pytest.mark.parametrize("restriction", RESTRICTED)
@pytest.mark.parametrize("mode", [ENFORCE, REPORT])
def test_the_asker_is_held_to_its_restrictions_as_they_are_then(
    plane: Plane, restriction: str, mode: str
) -> None:
    """A key restricted while its write waited does nothing from elsewhere, but for a dry run."""
    column, value, detail = RESTRICTED[restriction]
    origin = Origin(source_ip="192.0.2.7")
    restrict = partial(check_restrictions, country_of={"192.0.2.7": "DE"}.get)
    by = replace(plane.by, origin=origin, restrict=restrict)
    set_to = f"UPDATE api_keys SET {column} = ?, restrictions_mode = ? WHERE id = ?"
    with ThreadPoolExecutor(1) as threads:
        with plane.held() as other:
            ending = threads.submit(deactivate_key, plane.engine, plane.on.key_id, by=by)
            other.execute(set_to, (json.dumps(value), mode, plane.owner.id.hex))
        if detail is None or mode == REPORT:
            ending.result()
        else:
            with pytest.raises(Forbidden, match=detail):
                ending.result()
            assert plane.state()[0]["is_active"]


def test_a_key_may_take_from_itself(plane: Plane) -> None:
    """A change of the asker by itself is judged by what it was before it."""
    update_key(plane.engine, plane.owner.key_id, {"role": "viewer"}, by=plane.by)
    with pytest.raises(Forbidden):
        deactivate_key(plane.engine, plane.on.key_id, by=plane.by)


# Keys of the settings, which have no row.


class File:
    """A key of the platform in API_KEYS_FILE, and what becomes of the file."""

    ENTRY = Entry(number=1, token=FILE_KEY, client_id=None, role="admin")

    def __init__(self, peppers: Peppers, make_keyring: KeyringFactory) -> None:
        self.configured = ConfiguredKeys(peppers, {}, file=[self.ENTRY])
        self.keyring = make_keyring(configured=self.configured)
        asker = self.keyring.asker(asyncio.run(self.keyring.resolve(FILE_KEY)))
        self.by = replace(BY, asker=asker)

    def becomes(self, *entries: Entry) -> None:
        """Have the file say something else."""
        configured = self.configured.with_file(entries)
        while configured.waiting:
            configured = configured.with_waiting(1.0)
        self.keyring.reconfigure(configured)


@pytest.fixture
def file(peppers: Peppers, make_keyring: KeyringFactory) -> File:
    """Give the file."""
    return File(peppers, make_keyring)


def test_a_key_of_the_settings_gives(engine: Engine, file: File) -> None:
    """What stands in the settings as it did may do what it may, after another reading too."""
    create_client(engine, "one", {}, by=file.by)
    file.becomes(file.ENTRY, Entry(number=2, token="another", client_id="acme", role="client"))
    create_client(engine, "two", {}, by=file.by)


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([], InvalidKey),
        ([replace(File.ENTRY, is_active=False)], InvalidKey),
        ([replace(File.ENTRY, token="another key in its place")], InvalidKey),
        ([replace(File.ENTRY, scopes=["logs:read"])], Forbidden),
    ],
)
def test_a_key_of_the_settings_that_changed_does_not(
    engine: Engine, file: File, entries: list[Entry], error: type[LoggerError]
) -> None:
    """What is gone from the settings, or is another key, gives nothing."""
    file.becomes(*entries)
    with pytest.raises(error):
        create_client(engine, "acme", {}, by=file.by)


def test_a_key_of_the_settings_is_looked_at_up_to_the_commit(engine: Engine, file: File) -> None:
    """What goes from the settings in the midst of its write has written nothing."""

    def write() -> None:
        with writing_for(engine, file.by) as (session, _):
            session.connection().exec_driver_sql("UPDATE generation SET value = value + 1")
            file.becomes()

    with pytest.raises(InvalidKey):
        write()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT value FROM generation").scalar() == 0
