"""The first start."""

import asyncio
import stat
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError

from app.keys.bootstrap import (
    FirstKeys,
    check_initial_admin,
    check_secrets,
    first_start,
    open_secrets,
    see_clients,
)
from app.keys.configured import ConfiguredKeys
from app.keys.database import (
    StartRefused,
    embedded_url,
    open_current,
    open_engine,
    reading,
    writing,
)
from app.keys.imports import import_key, prepare_import
from app.keys.lifecycle import deactivate_key, delete_key
from app.keys.models import Client
from app.keys.registry import KeyFilter, list_keys
from app.keys.token import mint
from app.keys.verifier import Peppers
from tests.keys.conftest import SECRET, KeyringFactory
from tests.support import BY


def _other_first(directory: Path) -> None:
    """Have a server start for the first time, under a secret of its own."""
    engine = open_current("", directory)
    peppers = Peppers(open_secrets(directory, ()))
    first_start(engine, peppers, ConfiguredKeys(peppers, {}), seals=BY.seals, embedded=True)
    engine.dispose()


def test_a_lost_secret_is_not_replaced(tmp_path: Path) -> None:
    """Where there are keys, no secret is made in place of the one that they were made under."""
    _other_first(tmp_path)
    (tmp_path / "secret.key").rename(tmp_path / "kept")
    with pytest.raises(StartRefused, match=r"secret\.key is not there"):
        open_secrets(tmp_path, ())
    assert not (tmp_path / "secret.key").exists()
    (tmp_path / "kept").rename(tmp_path / "secret.key")
    assert open_secrets(tmp_path, ())


def test_nor_where_something_was_sealed(tmp_path: Path) -> None:
    """Keys of the settings leave no row; that a client was made for one is sealed all the same."""
    engine = open_current("", tmp_path)
    see_clients(engine, ["acme"], by=BY)
    engine.dispose()
    with pytest.raises(StartRefused, match=r"secret\.key is not there"):
        open_secrets(tmp_path, ())
    assert not (tmp_path / "secret.key").exists()


def test_secrets_of_another_server_are_refused(tmp_path: Path) -> None:
    """Secrets under which no key was made are not the right ones; one that is will do."""
    own = open_secrets(tmp_path, ())
    _other_first(tmp_path)
    engine = open_current("", tmp_path)
    with pytest.raises(StartRefused, match="no stored key was made under"):
        check_secrets(engine, Peppers([SECRET]))
    check_secrets(engine, Peppers([SECRET, *own]))
    engine.dispose()


def test_secrets_are_known_by_weak_keys_too(engine: Engine, peppers: Peppers) -> None:
    """A verifier of argon2 carries no pepper; its lookup tag does."""
    check_secrets(engine, Peppers(["another secret of a server"]))
    import_key(engine, peppers, token="weak", client_id="acme", name="w", by=BY, create_client=True)
    check_secrets(engine, peppers)
    with pytest.raises(StartRefused):
        check_secrets(engine, Peppers(["another secret of a server"]))


def test_first_keys_that_nobody_saw_are_not_stored(engine: Engine, peppers: Peppers) -> None:
    """If they can't be shown there are none, and the next start has others to show."""

    def fail(_: FirstKeys) -> None:
        raise StartRefused("full")

    seen: list[FirstKeys] = []
    nothing = ConfiguredKeys(peppers, {})
    with pytest.raises(StartRefused, match="full"):
        first_start(engine, peppers, nothing, seals=BY.seals, embedded=True, show=fail)
    assert list_keys(engine, KeyFilter(include_inactive=True)) == []
    first_start(engine, peppers, nothing, seals=BY.seals, embedded=True, show=seen.append)
    assert len(seen) == 1


def _race_for_secrets(directory: str) -> tuple[str, ...]:
    return open_secrets(Path(directory), ())


def _race_for_keys(directory: Path, initial_admin_key: str) -> list[FirstKeys | None]:
    """Run first starts that have all looked before any of them writes."""
    together = Barrier(4)

    def start(_: int) -> FirstKeys | None:
        engine = open_engine(embedded_url(directory))

        @event.listens_for(engine, "before_cursor_execute")
        def _wait(*arguments: Any) -> None:
            if arguments[2] == "BEGIN IMMEDIATE":
                together.wait(10)

        peppers = Peppers([SECRET])
        try:
            return first_start(
                engine,
                peppers,
                ConfiguredKeys(peppers, {}),
                seals=BY.seals,
                embedded=True,
                initial_admin_key=initial_admin_key,
            )
        finally:
            engine.dispose()

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(start, range(4)))


def test_a_fresh_installation_gets_two_keys(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """The first start makes client demo with a key, and an admin key; both work, once shown."""
    nothing = ConfiguredKeys(peppers, {})
    first = first_start(engine, peppers, nothing, seals=BY.seals, embedded=True)
    assert first is not None
    keyring = make_keyring()
    assert asyncio.run(keyring.resolve(first.admin_key)).is_admin
    assert asyncio.run(keyring.resolve(first.client_key)).client_id == first.client_id == "demo"
    assert first_start(engine, peppers, nothing, seals=BY.seals, embedded=True) is None


@pytest.mark.parametrize("reason", ["configured", "initial", "not embedded", "revoked"])
def test_no_first_keys_where_others_exist(engine: Engine, peppers: Peppers, reason: str) -> None:
    """Keys of the settings, an external database, or keys once made, prevent the demo keys."""
    configured = ConfiguredKeys(peppers, {"weak": "acme"} if reason == "configured" else {})
    if reason == "revoked":
        first_start(engine, peppers, configured, seals=BY.seals, embedded=True)
        for key in list_keys(engine):
            deactivate_key(engine, key.key_id, by=BY)
    made = first_start(
        engine,
        peppers,
        configured,
        seals=BY.seals,
        embedded=reason != "not embedded",
        initial_admin_key="boss" if reason == "initial" else "",
    )
    assert made is None
    found = list_keys(engine, KeyFilter(include_inactive=True))
    assert bool(found) == (reason in {"initial", "revoked"})


def test_the_initial_admin_key_is_imported_once(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """INITIAL_ADMIN_KEY works from the first start on, and a restart does not undo its end."""
    nothing = ConfiguredKeys(peppers, {})
    for _ in range(2):
        first_start(
            engine, peppers, nothing, seals=BY.seals, embedded=True, initial_admin_key="boss"
        )
    (key,) = list_keys(engine)
    assert asyncio.run(make_keyring().resolve("boss")).is_admin
    deactivate_key(engine, key.key_id, by=BY)
    first_start(engine, peppers, nothing, seals=BY.seals, embedded=True, initial_admin_key="boss")
    assert list_keys(engine) == []
    (ended,) = list_keys(engine, KeyFilter(include_inactive=True))
    assert ended.id == key.id


def test_a_bad_initial_admin_key_is_refused(engine: Engine, peppers: Peppers) -> None:
    """A mistyped key of our form stops the start instead of being stored in vain."""
    with pytest.raises(StartRefused, match=r"^INITIAL_ADMIN_KEY: is mistyped"):
        first_start(
            engine,
            peppers,
            ConfiguredKeys(peppers, {}),
            seals=BY.seals,
            embedded=True,
            initial_admin_key="cl_admin_" + "a" * 61,
        )


@pytest.mark.parametrize("kind", ["weak", "revoked", "minted", "deleted"])
def test_an_initial_admin_key_is_no_other_key(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory, kind: str
) -> None:
    """A client's key, whatever has become of it, is not stored for the platform as well."""
    token = "hunter2-hunter2" if kind in {"weak", "revoked"} else mint("cl_live", "acme").text
    key = import_key(
        engine, peppers, token=token, client_id="acme", name="x", by=BY, create_client=True
    )
    if kind == "revoked":
        deactivate_key(engine, key.key_id, by=BY)
    if kind == "deleted":
        delete_key(engine, key.key_id, by=BY)
    configured = ConfiguredKeys(peppers, {}, initial_admin_key=token)
    told = r"^INITIAL_ADMIN_KEY: .* client acme"
    with pytest.raises(StartRefused, match=told) as raised:
        check_initial_admin(engine, peppers, token)
    assert token not in str(raised.value)
    with pytest.raises(StartRefused, match=told):
        first_start(
            engine, peppers, configured, seals=BY.seals, embedded=True, initial_admin_key=token
        )
    found = list_keys(engine, KeyFilter(include_inactive=True))
    assert [one.client_id for one in found] == ([] if kind == "deleted" else ["acme"])
    if kind in {"weak", "minted"}:
        assert not asyncio.run(make_keyring().resolve(token)).is_admin


def test_a_fault_of_the_database_holds_no_values(engine: Engine, peppers: Peppers) -> None:
    """What goes wrong in a statement is told without its values, of which one is a verifier."""
    rows = [prepare_import(peppers, "x" * 9, client_id=None, name="hunter2") for _ in range(2)]
    rows[1].key_id = rows[0].key_id
    with pytest.raises(IntegrityError) as raised, writing(engine) as session:
        session.add_all(rows)
    assert "hunter2" not in str(raised.value)


def test_clients_of_the_settings_exist_afterwards(engine: Engine, peppers: Peppers) -> None:
    """Configured keys, and a service open to all, find their clients made."""
    configured = ConfiguredKeys(peppers, {"weak": "acme"})
    first_start(engine, peppers, configured, seals=BY.seals, embedded=True, require_api_key=False)
    with reading(engine) as session:
        assert session.get(Client, "acme")
        assert session.get(Client, "default")


def test_of_many_first_starts_one_makes_keys(engine: Engine, tmp_path: Path) -> None:
    """Several that start together make two keys in all, shown by one of them."""
    made = _race_for_keys(tmp_path, "")
    assert sum(first is not None for first in made) == 1
    assert len(list_keys(engine)) == 2


def test_of_many_first_starts_one_imports_the_admin_key(engine: Engine, tmp_path: Path) -> None:
    """Several that start together store INITIAL_ADMIN_KEY once."""
    _race_for_keys(tmp_path, "boss")
    assert [key.name for key in list_keys(engine)] == ["INITIAL_ADMIN_KEY"]


def test_secrets_of_the_settings_come_first(tmp_path: Path) -> None:
    """SECRET_KEY is used as it is, and no file is made."""
    assert open_secrets(tmp_path, (SECRET,)) == (SECRET,)
    assert list(tmp_path.iterdir()) == []


def test_a_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    """The generated secret is the same on every start, strong, and its owner's alone."""
    made = open_secrets(tmp_path / "new", ())
    assert open_secrets(tmp_path / "new", ()) == made
    assert len(made[0]) >= 64
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["secret.key"]
    assert stat.S_IMODE((tmp_path / "new/secret.key").stat().st_mode) == 0o600


def test_of_many_starts_all_get_one_secret(tmp_path: Path) -> None:
    """Threads and processes that start together agree on one secret."""
    together = Barrier(8)

    def race(directory: Path) -> tuple[str, ...]:
        together.wait(10)
        return open_secrets(directory, ())

    with ThreadPoolExecutor(8) as threads:
        for attempt in range(10):
            found = set(threads.map(race, [tmp_path / str(attempt)] * 8))
            assert len(found) == 1
    with get_context("spawn").Pool(4) as pool:
        found = set(pool.map(_race_for_secrets, [str(tmp_path / "b")] * 16, chunksize=1))
    assert len(found) == 1
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["secret.key"]


def test_a_secret_file_may_hold_several(tmp_path: Path) -> None:
    """Each line is a secret, the first the current one."""
    (tmp_path / "secret.key").write_text(f"{SECRET}\n\n  {SECRET * 2}\n")
    assert open_secrets(tmp_path, ()) == (SECRET, SECRET * 2)


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40])
def test_a_bad_secret_file_is_refused_not_replaced(tmp_path: Path, content: bytes) -> None:
    """A file that cannot be used stops the start in one line, and stays as it is."""
    path = tmp_path / "secret.key"
    path.write_bytes(content)
    with pytest.raises(StartRefused) as raised:
        open_secrets(tmp_path, ())
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == content
