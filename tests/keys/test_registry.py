"""Making, listing and switching off keys."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from app.columns import utc_now
from app.errors import Invalid, NotFound
from app.keys.clients import add_client
from app.keys.database import reading, writing
from app.keys.lifecycle import deactivate_key
from app.keys.objects import RotationPolicy, iso_time, key_object
from app.keys.registry import (
    KeyFilter,
    Once,
    any_key,
    create_key,
    get_key,
    list_keys,
)
from app.keys.roles import ADMIN
from app.keys.token import CLIENT_ID_PATTERN
from app.keys.verifier import Peppers, is_argon2
from app.settings import SLUG
from tests.support import BY


def _make(engine: Engine, peppers: Peppers, **properties: Any) -> Any:
    wanted = {"client_id": "acme", "name": "test", "create_client": True, "by": BY, **properties}
    return create_key(engine, peppers, **wanted)


def test_a_key_is_made_and_its_text_stored_nowhere(engine: Engine, peppers: Peppers) -> None:
    """The row has a verifier, and no part of the secret."""
    key, token = _make(engine, peppers)
    assert peppers.verify(key.verifier, token)
    with engine.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM api_keys")).all())
    assert token[-49:-6] not in stored
    assert key.key_prefix in stored


def test_an_idempotency_key_is_stored_nowhere(engine: Engine, peppers: Peppers) -> None:
    """A key that was sent as Idempotency-Key finds what it made, and is not in the database."""
    _, sent = _make(engine, peppers)
    once = Once("acme", sent, b"digest")
    first, again = (_make(engine, peppers, once=once) for _ in range(2))
    assert (again[0].id, again[1]) == (first[0].id, "")
    with engine.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM created_once")).all())
    assert sent[-49:-6] not in stored


@pytest.mark.parametrize(
    ("properties", "head"),
    [
        ({}, "cl_live_acme_"),
        ({"environment": "test"}, "cl_test_acme_"),
        ({"prefix": "pk"}, "pk_acme_"),
        ({"client_id": None}, "cl_admin_"),
    ],
)
def test_the_prefix_says_the_environment(
    engine: Engine, peppers: Peppers, properties: dict[str, Any], head: str
) -> None:
    """The text begins with the environment's prefix, or the one asked for."""
    key, token = _make(engine, peppers, **properties)
    assert token.startswith(head)
    assert key.key_prefix == f"{head}{key.key_id}***"


@pytest.mark.parametrize(
    ("properties", "fields"),
    [
        ({"client_id": "Acme Corp"}, ["client_id"]),
        ({"name": " "}, ["name"]),
        ({"name": "a\r\nBcc: x"}, ["name"]),
        ({"name": "x" * 256}, ["name"]),
        ({"description": "\0"}, ["description"]),
        ({"environment": "moon"}, ["environment"]),
        ({"role": "emperor"}, ["role"]),
        ({"role": "admin"}, ["role"]),
        ({"client_id": None, "role": "client"}, ["role"]),
        ({"scopes": ["logs:read", "all"]}, ["scopes"]),
        ({"allowed_datasets": []}, ["allowed_datasets"]),
        ({"allowed_datasets": ["a b"]}, ["allowed_datasets"]),
        ({"metadata": {"a": object()}}, ["metadata"]),
        ({"metadata": {"a": "x" * 20_000}}, ["metadata"]),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, ["expires_at"]),
        ({"expires_at": datetime(2990, 1, 1)}, ["expires_at"]),  # noqa: DTZ001 (the fault)
        ({"prefix": "P-"}, ["prefix"]),
        ({"limits": {"requests_per_minute": -1}}, ["limits.requests_per_minute"]),
        ({"limits": {"per_year": 1}}, ["limits.per_year"]),
        ({"name": "", "role": "x", "prefix": ""}, ["name", "role", "prefix"]),
    ],
)
def test_every_bad_field_is_named(
    engine: Engine, peppers: Peppers, properties: dict[str, Any], fields: list[str]
) -> None:
    """Bad input is refused with all its faults, and leaves neither key nor client."""
    with pytest.raises(Invalid) as raised:
        _make(engine, peppers, **properties)
    assert [error["field"] for error in raised.value.members["errors"]] == fields
    assert not list_keys(engine, KeyFilter(include_inactive=True))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM clients")).scalar() == 0


def test_an_unknown_client_is_not_made_by_accident(engine: Engine, peppers: Peppers) -> None:
    """Only who asks for it gets the client made along with the key."""
    with pytest.raises(NotFound):
        _make(engine, peppers, create_client=False)
    with writing(engine) as session:
        add_client(session, "acme", by=BY, name="Acme Corp")
    _make(engine, peppers, create_client=False)
    with writing(engine) as session:
        assert add_client(session, "acme", by=BY).name == "Acme Corp"


def test_the_hasher_can_be_forced(engine: Engine, peppers: Peppers) -> None:
    """With KEY_HASHER=argon2id new keys get argon2id and a lookup tag."""
    key, token = _make(engine, peppers, key_hasher="argon2id")
    assert is_argon2(key.verifier)
    assert key.lookup_tag == peppers.lookup_tag(token)


def test_keys_are_listed_by_client_and_state(engine: Engine, peppers: Peppers) -> None:
    """The list is oldest first, of one client or all, with inactive ones on request."""
    first, _ = _make(engine, peppers)
    second, _ = _make(engine, peppers)
    other, _ = _make(engine, peppers, client_id="demo")
    deactivate_key(engine, second.key_id, by=BY)
    assert [key.id for key in list_keys(engine)] == [first.id, other.id]
    assert [key.id for key in list_keys(engine, KeyFilter("acme"))] == [first.id]
    listed = list_keys(engine, KeyFilter("acme", include_inactive=True))
    assert {key.id for key in listed} == {first.id, second.id}


def test_a_key_is_found_by_either_id(engine: Engine, peppers: Peppers) -> None:
    """UUID and key_id both name a key, and nothing else does."""
    key, token = _make(engine, peppers)
    assert get_key(engine, key.key_id).id == key.id
    assert get_key(engine, str(key.id)).id == key.id
    for unknown in ("nope", str(uuid4()), "-" * 36, token, ""):
        with pytest.raises(NotFound):
            get_key(engine, unknown)


def test_revoking_twice_is_revoking_once(engine: Engine, peppers: Peppers) -> None:
    """A key that is off stays off, without another write."""
    key, _ = _make(engine, peppers)
    assert not deactivate_key(engine, key.key_id, by=BY).key.is_active
    with engine.connect() as connection:
        before = connection.exec_driver_sql("PRAGMA data_version").scalar()
        assert not deactivate_key(engine, key.key_id, by=BY).key.is_active
        assert connection.exec_driver_sql("PRAGMA data_version").scalar() == before
    with pytest.raises(NotFound):
        deactivate_key(engine, "nope", by=BY)


def test_admin_keys_are_counted_although_revoked(engine: Engine, peppers: Peppers) -> None:
    """Whether there ever was an admin key does not change by revoking it."""

    def were_made() -> tuple[bool, bool]:
        with reading(engine) as session:
            return any_key(session), any_key(session, role=ADMIN)

    assert were_made() == (False, False)
    _make(engine, peppers)
    assert were_made() == (True, False)
    key, _ = _make(engine, peppers, client_id=None)
    deactivate_key(engine, key.key_id, by=BY)
    assert were_made() == (True, True)


def test_a_shown_key_holds_no_secret(engine: Engine, peppers: Peppers) -> None:
    """The JSON object has every property of a key, and nothing to guess it by."""
    expires_at = utc_now() + timedelta(days=1)
    key, token = _make(engine, peppers, expires_at=expires_at, limits={"logs_per_minute": 7})
    shown = key_object(get_key(engine, key.key_id), RotationPolicy(90, 30))
    assert token[-49:] not in json.dumps(shown)
    assert not {"verifier", "lookup_tag", "key"} & set(shown)
    assert shown["limits"] == {
        "requests_per_minute": None,
        "logs_per_minute": 7,
        "bytes_per_minute": None,
    }
    assert shown["scopes"] == ["logs:read", "logs:write", "usage:read"]
    assert shown["is_admin"] is False
    assert shown["expires_at"] == iso_time(expires_at)
    assert shown["expires_at"].endswith("Z")
    assert shown["last_used_at"] is None


def test_settings_and_keys_agree_on_client_ids() -> None:
    """API_KEYS accepts exactly the client ids that keys can be made for."""
    assert CLIENT_ID_PATTERN.pattern == SLUG
