"""Keys that were made elsewhere, stored."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from app.columns import utc_now
from app.errors import Invalid, NotFound
from app.keys.bootstrap import see_clients
from app.keys.database import reading
from app.keys.entry import Entry
from app.keys.imports import StoredAlready, import_key
from app.keys.lifecycle import delete_key
from app.keys.models import Client
from app.keys.registry import list_keys
from app.keys.token import mint
from app.keys.verifier import Peppers, is_argon2
from tests.support import BY


def test_an_imported_key_is_classed_by_its_form(engine: Engine, peppers: Peppers) -> None:
    """A key of our form keeps its id and gets the keyed hash, any other argon2id and an id."""
    see_clients(engine, ["acme"], by=BY)
    token = mint("cl_live", "acme")
    ours = import_key(engine, peppers, by=BY, token=token.text, client_id="acme", name="ours")
    theirs = import_key(engine, peppers, by=BY, token="hunter2", client_id="acme", name="theirs")
    assert (ours.key_id, ours.key_prefix) == (token.key_id, token.display)
    assert not is_argon2(ours.verifier or "")
    assert is_argon2(theirs.verifier or "")
    assert "hunter2" not in theirs.key_prefix


@pytest.mark.parametrize("token", ["", " a", "a\n", "é", "x" * 513, f"cl_live_{'a' * 61}"])
def test_what_could_never_be_sent_is_not_imported(
    engine: Engine, peppers: Peppers, token: str
) -> None:
    """A key that no request could carry, or that is mistyped, is refused."""
    see_clients(engine, ["acme"], by=BY)
    with pytest.raises(Invalid) as raised:
        import_key(engine, peppers, by=BY, token=token, client_id="acme", name="n")
    assert raised.value.members["errors"][0]["field"] == "key"


@pytest.mark.parametrize("token", ["hunter2", mint("cl_live", "acme").text], ids=["weak", "ours"])
def test_a_key_is_imported_once(engine: Engine, peppers: Peppers, token: str) -> None:
    """The same key for a second client would be an accident, and is a conflict."""
    see_clients(engine, ["acme"], by=BY)
    see_clients(engine, ["evil"], by=BY)
    import_key(engine, peppers, by=BY, token=token, client_id="acme", name="n")
    with pytest.raises(StoredAlready):
        import_key(engine, peppers, by=BY, token=token, client_id="evil", name="n")


def test_an_imported_key_brings_its_properties(engine: Engine, peppers: Peppers) -> None:
    """Role, scopes, datasets, limit, expiry and state are stored, and a new client is made."""
    expires_at = utc_now() + timedelta(days=1)
    entry = Entry(
        number=1,
        token="hunter2",
        client_id="acme",
        role="analyst",
        description="two\nlines",
        scopes=["logs:read"],
        allowed_datasets=["orders"],
        requests_per_minute=7,
        expires_at=expires_at,
        is_active=False,
    )
    key = import_key(
        engine,
        peppers,
        token=entry.token,
        by=BY,
        client_id="acme",
        name=entry.name_or("none"),
        create_client=True,
        **entry.properties,
    )
    assert (key.role, key.scopes, key.allowed_datasets) == ("analyst", ["logs:read"], ["orders"])
    assert (key.requests_per_minute, key.expires_at, key.is_active) == (7, expires_at, False)
    assert (key.name, key.description) == ("two lines", "two\nlines")


@pytest.mark.parametrize(
    ("properties", "field"),
    [
        ({"role": "emperor"}, "role"),
        ({"scopes": ["all"]}, "scopes"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at"),
        ({"limits": {"requests_per_minute": -1}}, "limits.requests_per_minute"),
    ],
)
def test_a_bad_property_is_not_imported(
    engine: Engine, peppers: Peppers, properties: dict[str, Any], field: str
) -> None:
    """What a key may not have it may not bring along either, and no client is made for it."""
    with pytest.raises(Invalid) as raised:
        import_key(
            engine,
            peppers,
            token="hunter2",
            by=BY,
            client_id="acme",
            name="n",
            create_client=True,
            **properties,
        )
    assert [fault["field"] for fault in raised.value.members["errors"]] == [field]
    with pytest.raises(NotFound):
        import_key(engine, peppers, by=BY, token="hunter2", client_id="acme", name="n")


def test_a_deleted_key_does_not_come_back(engine: Engine, peppers: Peppers) -> None:
    """A key of our form that was deleted here is met as it is."""
    token = mint("cl_live", "acme").text
    key = import_key(
        engine, peppers, by=BY, token=token, client_id="acme", name="n", create_client=True
    )
    delete_key(engine, key.key_id, by=BY)
    with pytest.raises(StoredAlready) as raised:
        import_key(engine, peppers, by=BY, token=token, client_id="acme", name="n")
    assert raised.value.key.deleted_at is not None


@pytest.mark.parametrize("token", ["hunter2", mint("cl_live", "acme").text], ids=["weak", "ours"])
def test_of_many_that_import_a_key_one_does(engine: Engine, token: str) -> None:
    """Imports of one key at the same time store it once, and the others meet it."""
    together = threading.Barrier(4)

    class Together(Peppers):
        def make_argon2id(self, token: str) -> str:
            together.wait(10)
            return super().make_argon2id(token)

        def make_keyed(self, token: str) -> str:
            together.wait(10)
            return super().make_keyed(token)

    def store(number: int) -> bool:
        try:
            import_key(
                engine,
                Together(["the first secret of this test suite"]),
                token=token,
                by=BY,
                client_id=f"client{number}",
                name="n",
                create_client=True,
            )
        except StoredAlready:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(store, range(4))) == [False, False, False, True]
    assert len(list_keys(engine)) == 1
    with reading(engine) as session:
        assert len(session.exec(select(Client)).all()) == 1


def test_keys_that_share_a_tag_are_imported_at_once(engine: Engine) -> None:
    """Who meets another's new key of the same tag looks again, and is stored as well."""
    together = threading.Barrier(3)

    class OneTag(Peppers):
        def make_argon2id(self, token: str) -> str:
            together.wait(10)
            return super().make_argon2id(token)

        def lookup_tag(self, token: str) -> str:
            return f"{len(token)}"

        def lookup_tags(self, token: str) -> tuple[str, ...]:
            return (self.lookup_tag(token),)

    def store(token: str) -> None:
        peppers = OneTag(["the first secret of this test suite"])
        import_key(
            engine, peppers, by=BY, token=token, client_id="acme", name=token, create_client=True
        )

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(store, ["one", "two", "six"]))
    assert sorted(key.name for key in list_keys(engine)) == ["one", "six", "two"]
