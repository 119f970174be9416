"""Every change of the register is recorded in its own transaction, and holds no secret."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, inspect

from app.audit.book import Book
from app.audit.chain import CONTROL
from app.audit.trail import EventFilter, read_events
from app.audit.verify import Checker
from app.delivery.claims import claim, withdraw_claim
from app.errors import StorageUnavailable
from app.keys import changes
from app.keys.bootstrap import first_start, see_clients
from app.keys.changes import CONCEALED, UNRECORDED, Author
from app.keys.clients import begin_erasure, create_client, end_erasure, update_client
from app.keys.configured import ConfiguredKeys
from app.keys.database import reading
from app.keys.imports import import_key
from app.keys.lifecycle import delete_key, undo_rotation, update_key
from app.keys.models import ApiKey, Client
from app.keys.objects import RotationPolicy, client_object, key_object
from app.keys.registry import create_key
from app.keys.verifier import Peppers
from tests.support import BY, create_claim, rotate_key

URL = "https://logs.example.com"


class Register(NamedTuple):
    """A register with a client, and a key of it."""

    engine: Engine
    peppers: Peppers
    key: ApiKey
    text: str

    def rotate(self) -> Any:
        """Rotate the key."""
        return rotate_key(self.engine, self.peppers, self.key.key_id, by=BY)

    def link(self) -> str:
        """Put the key behind a link."""
        return create_claim(self.engine, self.key, self.text, URL, by=BY)

    def recorded(self) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Give action, actor, target and detail of the client's events, the oldest first."""
        with reading(self.engine) as session:
            rows = read_events(session, EventFilter("acme"))
        return [(r.action, r.actor, r.target, json.loads(r.detail)) for r in reversed(rows)]


@pytest.fixture
def register(engine: Engine, peppers: Peppers) -> Register:
    """Give the register."""
    made = create_key(engine, peppers, by=BY, create_client=True, client_id="acme", name="nightly")
    return Register(engine, peppers, *made)


def _undo(register: Register) -> None:
    undo_rotation(register.engine, register.rotate(), by=BY)


def _set(register: Register, **columns: Any) -> object:
    return update_key(register.engine, register.key.key_id, columns, by=BY)


def _set_client(register: Register, **columns: Any) -> object:
    return update_client(register.engine, "acme", columns, by=BY)


# What is done, and the last event of it: action, target and some of its detail. KEY stands for the
# id of the key.
KEY = "KEY"
DEEDS: dict[str, tuple[Callable[[Register], Any], str, str, dict[str, Any]]] = {
    "update": (
        lambda r: _set(r, name="hourly", scopes=["logs:read"]),
        "key.updated",
        KEY,
        {"name": ["nightly", "hourly"], "scopes": [None, ["logs:read"]]},
    ),
    "metadata": (
        lambda r: _set(r, extra={"team": "data"}),
        "key.updated",
        KEY,
        {"metadata": [{}, {"team": "data"}]},
    ),
    "deactivate": (
        lambda r: _set(r, is_active=False),
        "key.deactivated",
        KEY,
        {"is_active": [True, False]},
    ),
    "activate": (
        lambda r: (_set(r, is_active=False), _set(r, is_active=True)),
        "key.activated",
        KEY,
        {"is_active": [False, True]},
    ),
    "delete": (
        lambda r: delete_key(r.engine, r.key.key_id, by=BY),
        "key.deleted",
        KEY,
        {"is_active": [True, False]},
    ),
    "rotate": (lambda r: r.rotate(), "key.rotated", KEY, {}),
    "undo": (_undo, "key.rotation_undone", KEY, {}),
    "import": (
        lambda r: import_key(
            r.engine, r.peppers, by=BY, token="hunter2", client_id="acme", name="old"
        ),
        "key.imported",
        "",
        {"name": [None, "old"]},
    ),
    "client": (
        lambda r: _set_client(r, name="Acme", contact_email="it@acme.example"),
        "client.updated",
        "acme",
        {"name": ["acme", "Acme"], "contact_email": [None, "it@acme.example"]},
    ),
    "client off": (
        lambda r: _set_client(r, is_active=False),
        "client.deactivated",
        "acme",
        {"is_active": [True, False]},
    ),
    "client on": (
        lambda r: (_set_client(r, is_active=False), _set_client(r, is_active=True)),
        "client.activated",
        "acme",
        {"is_active": [False, True]},
    ),
    "erasure": (
        lambda r: begin_erasure(r.engine, "acme", {"filters": []}, by=BY),
        "logs.erasure_started",
        "acme",
        {"filters": []},
    ),
    "erased": (
        lambda r: end_erasure(r.engine, "acme", {"erased": 7}, by=BY),
        "logs.erased",
        "acme",
        {"erased": 7},
    ),
    "link": (lambda r: r.link(), "claim.created", KEY, {}),
    "link taken back": (
        lambda r: withdraw_claim(r.engine, r.link(), by=BY),
        "claim.withdrawn",
        KEY,
        {},
    ),
    "link opened": (lambda r: claim(r.engine, r.link(), by=BY), "claim.opened", KEY, {}),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_is_done_is_recorded(register: Register, deed: str) -> None:
    """The last event names what was done, by whom, to what, and each column before and after."""
    act, action, target, expected = DEEDS[deed]
    act(register)
    events = register.recorded()
    assert [event[0] for event in events[:2]] == ["client.created", "key.created"]
    last = events[-1]
    assert last[:2] == (action, "a test")
    assert not target or last[2] == target.replace(KEY, register.key.key_id)
    assert {name: last[3][name] for name in expected} == expected
    chains = Book(CONTROL, register.engine).sections()
    assert list(Checker(lambda _: BY.seals, []).check(chains)) == []


@pytest.mark.parametrize("deed", DEEDS)
def test_no_record_holds_a_secret(register: Register, deed: str) -> None:
    """No text of a key, verifier, tag or sealed link is in the events."""
    DEEDS[deed][0](register)
    events = str(register.recorded())
    with register.engine.connect() as connection:
        keys = connection.exec_driver_sql("SELECT verifier, lookup_tag FROM api_keys").all()
    secrets = {text for row in keys for text in row if text} | {register.text[-49:], "hunter2"}
    assert not {secret for secret in secrets if secret in events}


def test_only_what_is_shown_is_recorded() -> None:
    """Each column is left out of records, or shown anyway: no secret is recorded unawares."""
    key = ApiKey(key_id="k", key_prefix="", name="", role="client")
    client = Client(client_id="acme", name="")
    shown = {*key_object(key, RotationPolicy(0, 0)), *client_object(client)}
    shown |= {"requests_per_minute", "logs_per_minute", "bytes_per_minute"}
    known = {"deleted_at", "quarantined_at", "signature_algorithm"}
    columns = {column.name for row in (key, client) for column in inspect(row).mapper.columns}
    assert columns - UNRECORDED - CONCEALED <= shown | known


def test_what_changes_nothing_is_not_recorded(register: Register) -> None:
    """A key that is off already, or gets the name it has, is left alone, and no cache emptied."""
    _set(register, is_active=False)
    before = register.recorded()
    with register.engine.connect() as connection:
        version = connection.exec_driver_sql("PRAGMA data_version").scalar()
        generation = update_key(
            register.engine, register.key.key_id, {"is_active": False, "name": "nightly"}, by=BY
        ).generation
        _set_client(register, name="acme")
    assert generation == 1
    assert register.recorded() == before
    assert version is not None


def test_what_cannot_be_recorded_is_not_done(register: Register) -> None:
    """Without the tables of the audit a change fails, and has not been made."""
    with register.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE audit_heads RENAME TO away")
        connection.commit()
    with pytest.raises(StorageUnavailable):
        _set(register, name="unseen")
    with reading(register.engine) as session:
        found = session.get(ApiKey, register.key.id)
    assert found is not None
    assert found.name == "nightly"


def test_the_first_start_is_recorded(engine: Engine, peppers: Peppers) -> None:
    """First keys are the first start's; what the settings ask for is theirs."""
    configured = ConfiguredKeys(peppers, {})
    first_start(engine, peppers, configured, seals=BY.seals, embedded=True)
    see_clients(engine, ["listed"], by=Author(BY.seals, "settings"))
    with reading(engine) as session:
        rows = read_events(session, EventFilter())
    events = {(row.action, row.actor, row.client_id) for row in rows}
    assert events - {("audit.chain_started", "central-logger", None)} == {
        ("key.created", "first start", None),
        ("client.created", "first start", "demo"),
        ("key.created", "first start", "demo"),
        ("client.created", "settings", "listed"),
    }


def test_the_initial_admin_key_is_recorded(engine: Engine, peppers: Peppers) -> None:
    """INITIAL_ADMIN_KEY is stored by the settings."""
    configured = ConfiguredKeys(peppers, {})
    wanted: dict[str, Any] = {"embedded": True, "initial_admin_key": "boss"}
    first_start(engine, peppers, configured, seals=BY.seals, **wanted)
    with reading(engine) as session:
        (row,) = read_events(session, EventFilter())
    assert (row.action, row.actor, row.chain) == ("key.imported", "settings", "*")


def test_nobody_writes_nothing() -> None:
    """There is no author without a name, nor one that is not asked for."""
    with pytest.raises(AssertionError):
        Author(BY.seals)
    with pytest.raises(TypeError):
        create_client(None, "acme", {})  # type: ignore[call-arg,arg-type]
    assert changes.NOWHERE == ("", "", "")
