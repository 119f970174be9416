"""The cache of verified keys, and that it never outlives a key."""

import asyncio
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zlib import crc32

import pytest
from sqlalchemy import Engine, event

from app.columns import utc_now
from app.errors import InvalidKey, Overloaded, StorageUnavailable
from app.keys import database
from app.keys import keyring as keyring_module
from app.keys.bootstrap import see_clients
from app.keys.configured import ConfiguredKeys
from app.keys.database import embedded_url, open_engine, upgrade, writing
from app.keys.entry import Entry
from app.keys.imports import import_key
from app.keys.keyring import READS_UNLISTED_MAX, Keyring
from app.keys.lifecycle import deactivate_key, delete_key
from app.keys.models import ApiKey, Client
from app.keys.principal import Limits
from app.keys.records import LIVE_BYTES_MAX, LIVE_STEP_ROWS, Records
from app.keys.registry import create_key, new_key
from app.keys.restrictions import parse_hours
from app.keys.token import base62, mint
from app.keys.verifier import Peppers
from app.sqlite import sqlite3
from tests.keys.conftest import (
    DEFAULTS,
    OLD_SECRET,
    SECRET,
    FakeWatch,
    KeyringFactory,
    copy_database,
    replace_database,
)
from tests.support import BY


class CountingPeppers(Peppers):
    """Peppers that count what argon2 was asked, and can make it wait."""

    def __init__(self, *secrets: str, delay_s: float = 0) -> None:
        super().__init__(secrets or [SECRET])
        self.argon2_calls = self.verified = 0
        self.delay_s = delay_s

    def verify(self, verifier: str, token: str) -> bool:
        """Count, wait, verify."""
        self.verified += 1
        if verifier.startswith("$argon2id$"):
            self.argon2_calls += 1
            time.sleep(self.delay_s)
        return super().verify(verifier, token)


def _make(engine: Engine, peppers: Peppers, **properties: Any) -> tuple[ApiKey, str]:
    wanted = {"client_id": "acme", "name": "test", "create_client": True, "by": BY, **properties}
    return create_key(engine, peppers, **wanted)


def _alter(engine: Engine, key: ApiKey, **values: Any) -> None:
    with writing(engine) as session:
        found = session.get_one(ApiKey, key.id)
        for name, value in values.items():
            setattr(found, name, value)
        session.add(found)


def _refusal(keyring: Keyring, token: str) -> InvalidKey:
    with pytest.raises(InvalidKey) as raised:
        asyncio.run(_resolve(keyring, token))
    return raised.value


async def _resolve(keyring: Keyring, token: str) -> Any:
    return keyring.cached(token) or await keyring.resolve(token)


def _signed(text: str) -> str:
    return text + base62(crc32(text.encode()), 6)


def _forged(key: ApiKey) -> str:
    """Put a stranger's secret behind a public id, with a good checksum."""
    other = mint("cl_live", "acme")
    return _signed(other.text[:-6].replace(other.key_id, key.key_id))


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def _count_reads(engine: Engine) -> list[str]:
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        if arguments[2].startswith("SELECT"):
            statements.append(arguments[2])

    event.listen(engine, "before_cursor_execute", note)
    return statements


def test_a_key_is_its_principal(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """A resolved key says who it is and what it may do, and is then cached."""
    key, token = _make(
        engine,
        peppers,
        role="analyst",
        allowed_datasets=["orders"],
        limits={"requests_per_minute": 5, "logs_per_minute": 0},
    )
    keyring = make_keyring()
    assert keyring.cached(token) is None
    principal = asyncio.run(keyring.resolve(token))
    assert keyring.cached(token) is principal
    assert (principal.id, principal.key_id, principal.client_id) == (
        str(key.id),
        key.key_id,
        "acme",
    )
    assert principal.scopes == {"logs:read", "logs:query", "usage:read"}
    assert principal.allowed_datasets == frozenset({"orders"})
    assert not principal.is_admin
    # Unlimited logs are still capped by the client's default.
    assert principal.key_limits == Limits(5, 12_000, 1_000_000)
    assert principal.client_limits == DEFAULTS


def test_a_key_never_exceeds_its_client(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """A client's own limits replace the defaults and cap its keys'."""
    _, token = _make(engine, peppers, limits={"requests_per_minute": 100})
    with writing(engine) as session:
        client = session.get_one(Client, "acme")
        client.requests_per_minute, client.bytes_per_minute = 10, 0
        session.add(client)
    principal = asyncio.run(make_keyring().resolve(token))
    assert principal.client_limits == Limits(10, 12_000, 0)
    assert principal.key_limits == Limits(10, 12_000, 1_000_000)


def test_an_admin_key_is_the_platforms(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """An admin key has no client and no client's limits."""
    _, token = _make(engine, peppers, client_id=None)
    principal = asyncio.run(make_keyring().resolve(token))
    assert principal.is_admin
    assert principal.client_id is None
    assert principal.client_limits == Limits(0, 0, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"is_active": False},
        {"verifier": None},
        {"expires_at": utc_now() - timedelta(seconds=1)},
        {"grace_until": utc_now() - timedelta(seconds=1)},
        {"client_id": None},
        {"role": "admin"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_key_that_stopped_fails_on_the_next_call(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory, values: dict[str, Any]
) -> None:
    """Whatever ends a key ends it in the cache as well, and all ends look alike."""
    key, token = _make(engine, peppers)
    keyring = make_keyring()

    async def main() -> None:
        assert await keyring.resolve(token)
        _alter(engine, key, **values)
        await asyncio.sleep(0)
        assert keyring.cached(token) is None

    _run(main)
    refusal = _refusal(keyring, token)
    assert (refusal.detail, refusal.members) == ("Invalid API key", {})


def test_an_inactive_client_stops_its_keys(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """Deactivating a client stops its keys on the next call, activating it brings them back."""
    _, token = _make(engine, peppers)
    keyring = make_keyring()
    for is_active in (True, False, True):
        with writing(engine) as session:
            client = session.get_one(Client, "acme")
            client.is_active = is_active
            session.add(client)
        if is_active:
            assert asyncio.run(_resolve(keyring, token))
        else:
            _refusal(keyring, token)


def test_a_change_by_another_process_counts_at_once(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory, tmp_path: Path
) -> None:
    """A key switched off by a foreign process, by plain SQL, fails on the very next call."""
    key, token = _make(engine, peppers)
    keyring = make_keyring()
    code = (
        "import sys, sqlite3; c = sqlite3.connect(sys.argv[1]); "
        "c.execute('UPDATE api_keys SET is_active = 0 WHERE key_id = ?', sys.argv[2:]); c.commit()"
    )

    def revoke() -> None:
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "control.db", key.key_id], check=True
        )

    async def main() -> None:
        assert await keyring.resolve(token)
        for _ in range(3):
            await asyncio.sleep(0)
            assert keyring.cached(token)
        await asyncio.to_thread(revoke)
        assert keyring.cached(token) is None
        with pytest.raises(InvalidKey):
            await keyring.resolve(token)

    _run(main)


def test_a_raw_connection_in_this_process_counts_at_once(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory, tmp_path: Path
) -> None:
    """Revoking and restoring a hundred times, each call sees the last commit."""
    key, token = _make(engine, peppers)
    keyring = make_keyring()

    async def main() -> None:
        with closing(sqlite3.connect(tmp_path / "control.db", isolation_level=None)) as raw:
            for turn in range(100):
                raw.execute(
                    "UPDATE api_keys SET is_active = ? WHERE key_id = ?", (turn % 2, key.key_id)
                )
                await asyncio.sleep(0)
                if turn % 2:
                    assert await _resolve(keyring, token)
                else:
                    with pytest.raises(InvalidKey):
                        await _resolve(keyring, token)

    _run(main)


def test_a_rollback_journal_shows_changes_too(
    peppers: Peppers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SQLite is too old for a WAL with several writers, revocation is as immediate."""
    monkeypatch.setattr(database, "SQLITE_SAFE_WAL", False)
    engine = open_engine(embedded_url(tmp_path / "old"))
    upgrade(engine)
    key, token = _make(engine, peppers)
    keyring = Keyring(engine, peppers, DEFAULTS, ConfiguredKeys(peppers, {}))
    assert asyncio.run(_resolve(keyring, token))
    assert keyring.cached(token)
    deactivate_key(engine, key.key_id, by=BY)
    assert keyring.cached(token) is None
    _refusal(keyring, token)
    keyring.close()
    engine.dispose()


def test_the_watch_is_asked_once_a_turn(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """Many calls in one turn of the loop share one check; a later turn has its own."""
    _, token = _make(engine, peppers)
    watch = FakeWatch()
    keyring = make_keyring(watch=watch)

    async def main() -> None:
        await keyring.resolve(token)
        await asyncio.sleep(0)
        asked = watch.asked
        for _ in range(10):
            keyring.cached(token)
        assert watch.asked == asked + 1
        # Scheduled after the check, as a request whose bytes came after it is.
        watch.pending = True
        seen: list[object] = []
        asyncio.get_running_loop().call_soon(lambda: seen.append(keyring.cached(token)))
        await asyncio.sleep(0)
        assert seen == [None]
        assert watch.asked == asked + 2

    _run(main)


def test_a_lost_watch_means_reading_each_key(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """While changes cannot be seen nothing is cached, and what was is not used again after."""
    key, token = _make(engine, peppers)
    watch = FakeWatch()
    keyring = make_keyring(watch=watch)
    asyncio.run(keyring.resolve(token))
    watch.lost = True
    reads = _count_reads(engine)
    assert keyring.cached(token) is None
    for _ in range(3):
        assert asyncio.run(_resolve(keyring, token))
    assert len(reads) == 3
    # The change falls into the gap, and the watch will not tell of it.
    deactivate_key(engine, key.key_id, by=BY)
    watch.lost = False
    assert keyring.cached(token) is None
    _refusal(keyring, token)


def _sql(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute(statement, values)


_REVOKE = "UPDATE api_keys SET is_active = 0 WHERE key_id = ?"


def test_a_restored_backup_counts_at_once(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory, tmp_path: Path
) -> None:
    """What another file under the name says counts on the very next call, and what it says later.

    Restored twice, since an inode number that became free may be used again.
    """
    path, backup = tmp_path / "control.db", tmp_path / "backup.db"
    revoked, revoked_text = _make(engine, peppers)
    kept, kept_text = _make(engine, peppers)
    keyring = make_keyring()

    async def main() -> None:
        for turn in range(2):
            late, late_text = _make(engine, peppers)
            assert await _resolve(keyring, late_text)
            copy_database(path, backup)
            _sql(path, "DELETE FROM api_keys WHERE key_id = ?", late.key_id)
            _sql(backup, _REVOKE, revoked.key_id)
            await asyncio.sleep(0)
            assert turn or await _resolve(keyring, revoked_text)
            assert await _resolve(keyring, kept_text)
            replace_database(backup, path)
            await asyncio.sleep(0)
            assert keyring.cached(revoked_text) is None
            with pytest.raises(InvalidKey):
                await keyring.resolve(revoked_text)
            # Only the new file has this one.
            assert await _resolve(keyring, late_text)
            _, new_text = _make(engine, peppers)
            assert await _resolve(keyring, new_text)
        assert await _resolve(keyring, kept_text)
        _sql(path, _REVOKE, kept.key_id)
        await asyncio.sleep(0)
        assert keyring.cached(kept_text) is None
        with pytest.raises(InvalidKey):
            await keyring.resolve(kept_text)

    _run(main)


def test_a_missing_database_is_an_outage(
    engine: Engine,
    peppers: Peppers,
    make_keyring: KeyringFactory,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the file is away no key works, cached or not; nothing is made in its place."""
    path, backup = tmp_path / "control.db", tmp_path / "backup.db"
    key, token = _make(engine, peppers)
    keyring = make_keyring()
    asyncio.run(keyring.resolve(token))
    copy_database(path, backup)
    _sql(backup, _REVOKE, key.key_id)
    for end in ("-wal", "-shm", ""):
        (tmp_path / f"control.db{end}").unlink(missing_ok=True)
    assert keyring.cached(token) is None
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            asyncio.run(_resolve(keyring, token))
        with pytest.raises(StorageUnavailable):
            keyring.anonymous()
        with pytest.raises(StorageUnavailable):
            see_clients(engine, ["other"], by=BY)
    assert not path.exists()
    assert len([r for r in caplog.records if r.name.startswith("app.keys")]) == 1
    backup.rename(path)
    _refusal(keyring, token)
    _, new_text = _make(engine, peppers)
    assert asyncio.run(_resolve(keyring, new_text))


def test_an_expiry_needs_no_change(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """A cached key stops at its time although nothing was written."""
    _, token = _make(engine, peppers, expires_at=utc_now() + timedelta(seconds=1))
    keyring = make_keyring()
    assert asyncio.run(_resolve(keyring, token))
    assert keyring.cached(token)
    time.sleep(1.05)
    assert keyring.cached(token) is None
    _refusal(keyring, token)


def test_a_mistyped_key_is_told_so_without_a_read(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """A failed checksum is named in the answer and costs no look into the database."""
    keyring = make_keyring()
    reads = _count_reads(engine)
    # No checksum of 32 bits reaches this.
    refusal = _refusal(keyring, mint("cl_live", "acme").text[:-6] + "zzzzzz")
    assert refusal.members == {"code": "malformed_key"}
    assert reads == []


def test_a_forged_secret_is_refused_and_not_remembered(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """A right key_id with another secret and a good checksum opens nothing."""
    key, token = _make(engine, peppers)
    keyring = make_keyring()
    _refusal(keyring, _forged(key))
    # The client's part is covered too: nothing about a key may be altered.
    _refusal(keyring, _signed(token[:-6].replace("acme", "evil")))
    assert asyncio.run(_resolve(keyring, token))


def test_garbage_costs_no_read_once_the_live_keys_are_known(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """Well-formed keys of unknown ids, and keys of other forms, are refused from memory."""
    _make(engine, peppers)
    keyring = make_keyring()

    async def main() -> None:
        for _ in range(50):
            with pytest.raises(InvalidKey):
                await keyring.resolve(mint("cl_live", "acme").text)
            await asyncio.sleep(0.01)
        reads = _count_reads(engine)
        for n in range(50):
            for garbage in (mint("cl_live", "acme").text, f"garbage-{n}", "é", "x" * 10_000):
                with pytest.raises(InvalidKey):
                    await keyring.resolve(garbage)
        assert reads == []
        # And a key made now is known at once.
        _, token = _make(engine, peppers)
        await asyncio.sleep(0)
        assert await keyring.resolve(token)

    _run(main)


def test_a_wrong_secret_is_refused_as_an_unknown_id_is(
    engine: Engine, make_keyring: KeyringFactory
) -> None:
    """Of a listed key a wrong secret is held against the verifier alone, as a made-up id is."""
    peppers = CountingPeppers()
    key, token = _make(engine, peppers)
    odd, _ = _make(engine, peppers)
    _alter(engine, odd, verifier="not of\nours")
    keyring = make_keyring(peppers=peppers)

    async def main() -> None:
        await _listed(keyring)
        assert keyring._live is not None  # noqa: SLF001
        rows = keyring._live.rows  # noqa: SLF001
        assert rows.keys() == {key.key_id, odd.key_id}
        # With columns that cannot be read: who gets as far as to them is not refused.
        unreadable = {name: row.partition(" ")[0] + " {" for name, row in rows.items()}
        keyring._live = keyring._live._replace(rows=unreadable)  # noqa: SLF001
        reads = _count_reads(engine)
        verified = []
        for refused in (_forged(key), mint("cl_live", "acme").text):
            before = peppers.verified
            with pytest.raises(InvalidKey):
                await keyring.resolve(refused)
            verified.append(peppers.verified - before)
        assert (verified, reads) == ([1, 1], [])
        with pytest.raises(ValueError, match="Expecting"):
            await keyring.resolve(token)
        keyring._live = keyring._live._replace(rows=rows)  # noqa: SLF001
        with pytest.raises(InvalidKey):
            await keyring.resolve(_forged(odd))  # a row like that is read by itself
        assert len(reads) == 1

    _run(main)


async def _listed(keyring: Keyring) -> None:
    """Have the keyring read which keys are live, and wait for it."""
    keyring.start()
    await _until_listed(keyring)


async def _until_listed(keyring: Keyring) -> None:
    async with asyncio.timeout(20):
        while keyring._live is None:  # noqa: ASYNC110, SLF001  # nothing tells when it is there
            await asyncio.sleep(0.01)


def test_the_list_of_live_keys_is_bounded_in_bytes(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """Of a key with very many datasets, and of keys beyond the bound, it has the ids alone."""
    _, token = _make(engine, peppers, allowed_datasets=[f"{n:03}{'d' * 60}" for n in range(1_000)])
    count = LIVE_STEP_ROWS + 5
    with writing(engine) as session:
        more = [new_key(peppers, "auto", client_id="acme", name="x") for _ in range(count)]
        session.add_all([key for key, _ in more])
    for bytes_max, listed in (
        (LIVE_BYTES_MAX, {count}),
        (1_000, {LIVE_STEP_ROWS - 1, LIVE_STEP_ROWS}),
    ):
        rows = Records(engine, 50_000, bytes_max).live().rows
        assert len(rows) == count + 1
        whole = [row for row in rows.values() if row]
        assert len(whole) in listed
        assert max(map(len, whole)) < 1_000
    keyring = make_keyring()

    async def main() -> None:
        await _listed(keyring)
        principal = await keyring.resolve(token)
        assert len(principal.allowed_datasets or ()) == 1_000
        assert await keyring.resolve(more[0][1])

    _run(main)


@pytest.mark.parametrize("live_rows_max", [100, 0], ids=["listed", "beyond what is listed"])
def test_a_listed_key_is_the_one_that_is_read(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory, live_rows_max: int
) -> None:
    """Whatever a key and its client have, the list of live keys says what its row says."""
    soon = utc_now() + timedelta(hours=1)
    limits = {"requests_per_minute": 5, "logs_per_minute": 0, "bytes_per_minute": 2**40}
    properties: list[dict[str, Any]] = [
        {"role": "analyst", "allowed_datasets": ["a", "b"], "limits": limits},
        {},
        {"scopes": ["logs:read"], "expires_at": soon, "key_hasher": "argon2id"},
        {"client_id": None},
        {"client_id": "other"},
        {
            "allowed_cidrs": ["10.0.0.0/8", "2001:db8::/32"],
            "allowed_countries": ["DE", "FR"],
            "allowed_hours": parse_hours("mon-fri 22:00-06:00 Europe/Berlin"),
        },
        {"allowed_cidrs": ["192.0.2.7"], "restrictions_mode": "report"},
    ]
    made = [_make(engine, peppers, **one) for one in properties]
    _alter(engine, made[1][0], name='a\nb "ß\u2028')
    _alter(engine, made[4][0], grace_until=soon)
    with writing(engine) as session:
        session.get_one(Client, "other").bytes_per_minute = 10
    read, listed = make_keyring(), make_keyring(live_rows_max=live_rows_max)

    async def main() -> None:
        await _listed(listed)
        reads = _count_reads(engine)
        found = [await listed.resolve(token) for _, token in made]
        restricted = [one.restrictions for one in found]
        assert restricted[:5] == [None] * 5
        assert all(restricted[5:])
        # An argon2 key is read again after its check, in any case.
        assert len(reads) == (1 if live_rows_max else len(made) + 1)
        assert found == [await read.resolve(token) for _, token in made]

    _run(main)


@pytest.mark.parametrize(
    "values",
    [
        {"is_active": False},
        {"verifier": None},
        {"expires_at": utc_now() - timedelta(seconds=1)},
        {"grace_until": utc_now() - timedelta(seconds=1)},
        {"role": "admin"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_listed_key_that_stopped_fails_on_the_next_call(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory, values: dict[str, Any]
) -> None:
    """A key that is used for the first time after its end is refused, however it was listed."""
    key, token = _make(engine, peppers)
    keyring = make_keyring()

    async def main() -> None:
        await _listed(keyring)
        _alter(engine, key, **values)
        await asyncio.sleep(0)
        with pytest.raises(InvalidKey):
            await keyring.resolve(token)
        await _listed(keyring)
        with pytest.raises(InvalidKey):
            await keyring.resolve(token)

    _run(main)


def test_a_listed_key_expires_without_a_change(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """A key that is listed while it lives is refused at its first use after its end."""
    _, token = _make(engine, peppers, expires_at=utc_now() + timedelta(seconds=1))
    keyring = make_keyring()

    async def main() -> None:
        await _listed(keyring)
        await asyncio.sleep(1.05)
        with pytest.raises(InvalidKey):
            await keyring.resolve(token)

    _run(main)


def test_many_keys_that_are_new_soon_cost_no_reads(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """A few keys are read one by one; when they are many, all live ones are read, in steps."""
    made = [
        new_key(peppers, "auto", client_id="acme", name=str(number))
        for number in range(2 * LIVE_STEP_ROWS + 1)
    ]
    see_clients(engine, ["acme"], by=BY)
    with writing(engine) as session:
        session.add_all([key for key, _ in made])
    keyring = make_keyring()

    async def main() -> None:
        for _, token in made[:READS_UNLISTED_MAX]:
            await keyring.resolve(token)
        assert keyring._tasks == set()  # noqa: SLF001  # few keys need no list
        await keyring.resolve(made[-1][1])
        await _until_listed(keyring)
        reads = _count_reads(engine)
        for key, token in made:
            assert (await _resolve(keyring, token)).key_id == key.key_id
        assert reads == []

    _run(main)


def test_no_list_is_made_while_changes_cannot_be_seen(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """While the watch is lost each key is read, and garbage starts nothing in the background."""
    watch = FakeWatch()
    keyring = make_keyring(watch=watch)

    async def main() -> None:
        watch.lost = True
        for _ in range(READS_UNLISTED_MAX + 1):
            with pytest.raises(InvalidKey):
                await keyring.resolve(mint("cl_live", "acme").text)
        assert keyring._tasks == set()  # noqa: SLF001  # nothing else would tell

    _run(main)


def test_an_unreadable_database_is_an_outage(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """When the tables cannot be read a good key is neither accepted from memory nor refused."""
    _, token = _make(engine, peppers)
    keyring = make_keyring()
    asyncio.run(_resolve(keyring, token))
    with engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE api_keys RENAME TO gone")
        connection.commit()
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            asyncio.run(_resolve(keyring, token))
    with engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO api_keys")
        connection.commit()
    assert asyncio.run(_resolve(keyring, token))


def test_the_cache_is_bounded(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """However many keys are in use, the cache holds no more than it may, and all still work."""
    tokens = [_make(engine, peppers)[1] for _ in range(7)]
    keyring = make_keyring(cache_principals_max=3)

    async def main() -> None:
        for token in tokens * 2:
            assert await _resolve(keyring, token)
            assert sum(keyring.cached(token) is not None for token in tokens) <= 3

    _run(main)


def test_an_imported_key_is_found_by_argon2(engine: Engine, make_keyring: KeyringFactory) -> None:
    """A key of a foreign form is accepted, costs argon2 once, and can be revoked."""
    peppers = CountingPeppers()
    see_clients(engine, ["acme"], by=BY)
    key = import_key(engine, peppers, by=BY, token="hunter2", client_id="acme", name="old")
    keyring = make_keyring(peppers=peppers)

    async def main() -> None:
        for _ in range(5):
            principal = await _resolve(keyring, "hunter2")
            assert principal.key_id == key.key_id
        assert peppers.argon2_calls == 1
        deactivate_key(engine, key.key_id, by=BY)
        await asyncio.sleep(0)
        with pytest.raises(InvalidKey):
            await _resolve(keyring, "hunter2")
        assert peppers.argon2_calls == 1

    _run(main)


def test_changes_of_others_cost_no_argon2(engine: Engine, make_keyring: KeyringFactory) -> None:
    """What argon2 has proved of a key holds after any change, but for its own row's word."""
    peppers = CountingPeppers()
    see_clients(engine, ["acme"], by=BY)
    key = import_key(engine, peppers, by=BY, token="hunter2", client_id="acme", name="old")
    keyring = make_keyring(peppers=peppers)

    async def main() -> None:
        for number in range(3):
            assert (await _resolve(keyring, "hunter2")).key_id == key.key_id
            see_clients(engine, [f"other-{number}"], by=BY)
            await asyncio.sleep(0)
        assert peppers.argon2_calls == 1
        # Another verifier under the same tag is another key, though its text is the same.
        _alter(engine, key, verifier=peppers.make_argon2id("hunter2"))
        await asyncio.sleep(0)
        assert (await _resolve(keyring, "hunter2")).key_id == key.key_id
        assert peppers.argon2_calls == 2
        for ended in ({"is_active": False}, {"is_active": True, "deleted_at": utc_now()}):
            _alter(engine, key, **ended)
            await asyncio.sleep(0)
            with pytest.raises(InvalidKey):
                await _resolve(keyring, "hunter2")
        assert peppers.argon2_calls == 2

    _run(main)


@pytest.mark.parametrize("listed", [False, True])
def test_a_key_marked_deleted_by_hand_is_refused(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory, *, listed: bool
) -> None:
    """`deleted_at` alone ends a key, read by itself or from the list of live ones."""
    key, token = _make(engine, peppers)
    keyring = make_keyring()

    async def main() -> None:
        assert await _resolve(keyring, token)
        _alter(engine, key, deleted_at=utc_now())
        await asyncio.sleep(0)
        if listed:
            keyring.start()
            await asyncio.sleep(0.2)
        with pytest.raises(InvalidKey):
            await _resolve(keyring, token)

    _run(main)


def test_garbage_costs_no_argon2(engine: Engine, make_keyring: KeyringFactory) -> None:
    """Keys of foreign forms that share no tag with a stored one never reach argon2."""
    peppers = CountingPeppers()
    see_clients(engine, ["acme"], by=BY)
    key = import_key(engine, peppers, by=BY, token="hunter2", client_id="acme", name="old")
    keyring = make_keyring(peppers=peppers)
    garbage = [f"hunter-{n}" for n in range(500)]
    others = [g for g in garbage if peppers.lookup_tag(g) != key.lookup_tag]
    for token in others:
        _refusal(keyring, token)
    assert peppers.argon2_calls == 0
    assert len(others) > 490


def test_a_forged_secret_of_an_argon2_key_costs_no_argon2(
    engine: Engine, make_keyring: KeyringFactory
) -> None:
    """With KEY_HASHER=argon2id the public key_id alone does not buy argon2 runs."""
    peppers = CountingPeppers()
    key, token = _make(engine, peppers, key_hasher="argon2id")
    keyring = make_keyring(peppers=peppers)
    _refusal(keyring, _forged(key))
    assert peppers.argon2_calls == 0
    assert asyncio.run(_resolve(keyring, token)).key_id == key.key_id


def test_one_key_sent_many_times_is_one_argon2(
    engine: Engine, make_keyring: KeyringFactory
) -> None:
    """Calls with the same key share one run, also if the first caller hangs up."""
    peppers = CountingPeppers(delay_s=0.1)
    see_clients(engine, ["acme"], by=BY)
    import_key(engine, peppers, by=BY, token="hunter2", client_id="acme", name="old")
    peppers.argon2_calls = 0
    keyring = make_keyring(peppers=peppers)

    async def main() -> None:
        calls = [asyncio.create_task(keyring.resolve("hunter2")) for _ in range(20)]
        await asyncio.sleep(0.02)
        calls[0].cancel()
        answers = await asyncio.gather(*calls[1:])
        assert {answer.client_id for answer in answers} == {"acme"}
        assert peppers.argon2_calls == 1

    _run(main)


def test_too_many_waiting_for_argon2_is_overload(
    engine: Engine, make_keyring: KeyringFactory
) -> None:
    """Beyond threads and queue a call is refused at once, and those that wait are served."""
    peppers = CountingPeppers(delay_s=0.1)
    see_clients(engine, ["acme"], by=BY)
    tokens = [f"static-{n}" for n in range(6)]
    for token in tokens:
        import_key(engine, peppers, by=BY, token=token, client_id="acme", name=token)
    keyring = make_keyring(peppers=peppers, argon2_threads=1, argon2_queue=2)

    async def main() -> None:
        answers = await asyncio.gather(
            *(keyring.resolve(token) for token in tokens), return_exceptions=True
        )
        assert [type(answer).__name__ for answer in answers] == ["Principal"] * 3 + [
            "Overloaded"
        ] * 3
        assert await keyring.resolve(tokens[5])

    _run(main)
    assert Overloaded.retry_after_s > 0


def test_a_key_revoked_while_argon2_runs_is_refused(
    engine: Engine, make_keyring: KeyringFactory
) -> None:
    """What argon2 found is read again, so that a revocation meanwhile holds and stays."""
    peppers = CountingPeppers(delay_s=0.1)
    see_clients(engine, ["acme"], by=BY)
    key = import_key(engine, peppers, by=BY, token="hunter2", client_id="acme", name="old")
    keyring = make_keyring(peppers=peppers)

    async def main() -> None:
        call = asyncio.create_task(keyring.resolve("hunter2"))
        await asyncio.sleep(0.03)
        deactivate_key(engine, key.key_id, by=BY)
        with pytest.raises(InvalidKey):
            await call
        assert keyring.cached("hunter2") is None

    _run(main)


def test_a_refusal_in_the_making_is_not_shared_across_a_change(
    engine: Engine, make_keyring: KeyringFactory
) -> None:
    """Who sends a key after it was stored does not get the answer of who sent it before."""
    see_clients(engine, ["acme"], by=BY)
    plain = Peppers([SECRET])
    other = import_key(engine, plain, by=BY, token="hunter2", client_id="acme", name="other")
    # As one key in 65,536 does, it shares its tag with another.
    _alter(engine, other, lookup_tag=plain.lookup_tag("late"))
    keyring = make_keyring(peppers=CountingPeppers(delay_s=0.3))

    async def main() -> None:
        early = asyncio.create_task(keyring.resolve("late"))
        await asyncio.sleep(0.01)
        import_key(engine, plain, by=BY, token="late", client_id="acme", name="late")
        await asyncio.sleep(0)
        assert not early.done()
        assert (await keyring.resolve("late")).name == "late"
        with pytest.raises(InvalidKey):
            await early

    _run(main)


def test_a_list_of_live_keys_read_before_a_change_is_not_used(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """A change while the list of live keys is being read counts at once and later."""
    ended, ended_token = _make(engine, peppers)
    keyring = make_keyring()
    reading = threading.Event()

    @event.listens_for(engine, "after_cursor_execute")
    def _linger(*arguments: Any) -> None:
        if "group_concat" in arguments[2]:
            reading.set()
            time.sleep(0.1)

    async def main() -> None:
        with pytest.raises(InvalidKey):
            await keyring.resolve(mint("cl_live", "acme").text)
        await asyncio.to_thread(reading.wait, 5)
        _, token = _make(engine, peppers)
        deactivate_key(engine, ended.key_id, by=BY)
        assert keyring.cached(token) is None
        await asyncio.sleep(0.3)
        assert await keyring.resolve(token)
        with pytest.raises(InvalidKey):
            await keyring.resolve(ended_token)

    _run(main)


def test_no_memory_for_argon2_is_overload(engine: Engine, make_keyring: KeyringFactory) -> None:
    """A check that could not be made refuses the request, not the key."""

    class NoMemory(Peppers):
        def verify(self, verifier: str, token: str) -> bool:
            raise MemoryError(verifier, token)

    see_clients(engine, ["acme"], by=BY)
    import_key(engine, Peppers([SECRET]), by=BY, token="hunter2", client_id="acme", name="old")
    keyring = make_keyring(peppers=NoMemory([SECRET]))
    with pytest.raises(Overloaded):
        asyncio.run(keyring.resolve("hunter2"))


def test_an_old_pepper_is_replaced_on_use(
    engine: Engine, make_keyring: KeyringFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a rotation of the secret a used key soon needs the new one alone; a deleted one not."""
    monkeypatch.setattr(keyring_module, "RETAG_DELAY_S", 0.05)
    old = Peppers([OLD_SECRET])
    key, token = _make(engine, old)
    import_key(engine, old, by=BY, token="hunter2", client_id="acme", name="old")
    wiped, wiped_token = _make(engine, old)
    keyring = make_keyring(peppers=Peppers([SECRET, OLD_SECRET]))

    async def main() -> None:
        for used in (token, "hunter2", wiped_token):
            assert await keyring.resolve(used)
        _alter(engine, wiped, verifier=None)
        async with asyncio.timeout(20):
            while keyring._tasks:  # noqa: ASYNC110, SLF001  # nothing tells when they are done
                await asyncio.sleep(0.01)

    _run(main)
    after = make_keyring(peppers=Peppers([SECRET]))
    assert asyncio.run(_resolve(after, token)).key_id == key.key_id
    assert asyncio.run(_resolve(after, "hunter2"))
    _refusal(after, wiped_token)
    _alter(engine, wiped, is_active=True)
    _refusal(keyring, wiped_token)


def test_configured_keys_work_without_rows(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """Keys of the settings are accepted, weak or not, while their client is there and active."""
    strong = mint("cl_live", "acme").text
    configured = ConfiguredKeys(peppers, {strong: "acme", "weak": "acme"}, "boss", "dev")
    see_clients(engine, ["acme"], by=BY)
    keyring = make_keyring(configured=configured)
    assert asyncio.run(_resolve(keyring, strong)).key_id == "static_acme_1"
    weak = asyncio.run(_resolve(keyring, "weak"))
    assert (weak.key_id, weak.client_id, weak.role) == ("static_acme_2", "acme", "client")
    assert UUID(weak.id)
    assert asyncio.run(_resolve(keyring, "boss")).is_admin
    _refusal(keyring, "dev")
    see_clients(engine, ["default"], by=BY)
    assert asyncio.run(_resolve(keyring, "dev")).client_id == "default"
    with writing(engine) as session:
        client = session.get_one(Client, "acme")
        client.is_active = False
        session.add(client)
    _refusal(keyring, strong)
    _refusal(keyring, "weak")


def _file_entry(token: str, **properties: Any) -> Entry:
    wanted = {"number": 1, "client_id": "acme", "role": "client", **properties}
    return Entry(token=token, **wanted)


def test_keys_of_the_file_are_what_it_says(engine: Engine, make_keyring: KeyringFactory) -> None:
    """Role, scopes, datasets and limit of the file count, and so do `enabled` and the expiry."""
    peppers = Peppers([SECRET])
    soon = utc_now() + timedelta(seconds=1)
    entries = [
        _file_entry("one", role="analyst", allowed_datasets=["orders"], requests_per_minute=5),
        _file_entry("two", scopes=["logs:read"], expires_at=soon),
        _file_entry("off", is_active=False),
        _file_entry("old", expires_at=utc_now() - timedelta(days=1)),
        _file_entry("boss", client_id=None, role="admin"),
    ]
    see_clients(engine, ["acme"], by=BY)
    keyring = make_keyring(configured=ConfiguredKeys(peppers, {}, file=entries))
    two = asyncio.run(_resolve(keyring, "two"))
    one = asyncio.run(_resolve(keyring, "one"))
    assert (one.role, one.allowed_datasets) == ("analyst", frozenset({"orders"}))
    assert one.key_limits.requests_per_minute == 5
    assert two.scopes == {"logs:read"}
    assert asyncio.run(_resolve(keyring, "boss")).is_admin
    for token in ("off", "old"):
        _refusal(keyring, token)
    time.sleep(1.05)
    assert keyring.cached("two") is None
    _refusal(keyring, "two")


def test_other_configured_keys_count_on_the_next_call(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """A swap is a change of keys: cached ones that are gone fail, and `check` tells of it."""
    strong = mint("cl_live", "acme").text
    see_clients(engine, ["acme"], by=BY)
    configured = ConfiguredKeys(peppers, {"kept": "acme"}, file=[_file_entry("gone")])
    keyring = make_keyring(configured=configured)

    async def main() -> None:
        for token in ("kept", "gone"):
            assert await _resolve(keyring, token)
        before = keyring.check()
        changed = configured.with_file([_file_entry(strong), _file_entry("new")])
        keyring.reconfigure(changed.with_waiting(0))
        # In the same turn of the loop, and for who only recalls.
        assert keyring.recalled(keyring.digest("gone")) is None
        assert keyring.cached("gone") is None
        assert keyring.check() > before
        with pytest.raises(InvalidKey):
            await _resolve(keyring, "gone")
        for token in ("kept", "new", strong):
            assert await _resolve(keyring, token)

    _run(main)


@pytest.mark.parametrize("kind", ["minted", "minted argon2", "weak"])
@pytest.mark.parametrize("source", ["API_KEYS", "the file"])
def test_what_is_stored_decides_over_the_settings(
    engine: Engine,
    peppers: Peppers,
    make_keyring: KeyringFactory,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    source: str,
) -> None:
    """A stored key that the settings have as well is its row's, and fails once that has ended."""
    hasher = "argon2id" if kind == "minted argon2" else "auto"
    token = "hunter2-hunter2" if kind == "weak" else mint("cl_live", "acme").text
    made: Any = {"token": token, "client_id": "acme", "name": "x", "by": BY, "key_hasher": hasher}
    see_clients(engine, ["acme", "other"], by=BY)
    keys = {token: "other"} if source == "API_KEYS" else {}
    file = [_file_entry(token, client_id="other")] if source != "API_KEYS" else None
    keyring = make_keyring(configured=ConfiguredKeys(peppers, keys, key_hasher=hasher, file=file))

    async def main() -> None:
        keyring.start()
        assert (await _resolve(keyring, token)).client_id == "other"
        key = import_key(engine, peppers, **made)
        await asyncio.sleep(0)
        assert keyring.cached(token) is None
        assert (await _resolve(keyring, token)).key_id == key.key_id
        for end in (deactivate_key, delete_key):
            end(engine, key.key_id, by=BY)
            await asyncio.sleep(0)
            with pytest.raises(InvalidKey):
                await _resolve(keyring, token)

    _run(main)
    after = make_keyring(configured=keyring.configured)

    async def listed() -> None:
        after.start()
        while after._live is None:  # noqa: ASYNC110, SLF001
            await asyncio.sleep(0.001)
        with pytest.raises(InvalidKey):
            await _resolve(after, token)

    _run(listed)
    told = [r.getMessage() for r in caplog.records if "is not used" in r.getMessage()]
    assert len(told) == 2  # once of each keyring
    assert token not in caplog.text


def test_a_row_that_shares_a_tag_alone_decides_nothing(
    engine: Engine, make_keyring: KeyringFactory
) -> None:
    """A static key whose short tag is that of a stored key works, and costs argon2 once more."""
    peppers = CountingPeppers()
    see_clients(engine, ["acme"], by=BY)
    row = import_key(engine, peppers, token="a", client_id="acme", name="x", by=BY)
    _alter(engine, row, lookup_tag=peppers.lookup_tag("hunter2"))
    keyring = make_keyring(peppers=peppers, configured=ConfiguredKeys(peppers, {"hunter2": "acme"}))
    assert asyncio.run(_resolve(keyring, "hunter2")).key_id == "static_acme_1"
    assert peppers.argon2_calls == 2
    deactivate_key(engine, row.key_id, by=BY)
    assert asyncio.run(_resolve(keyring, "hunter2")).key_id == "static_acme_1"


@pytest.mark.parametrize(
    "entries",
    [[], [_file_entry("hunter2", is_active=False)], [_file_entry("other")]],
    ids=["gone", "off", "another text"],
)
def test_a_swap_while_argon2_runs_holds(
    engine: Engine, make_keyring: KeyringFactory, entries: list[Entry]
) -> None:
    """A key that was taken out, switched off or changed while it was checked is refused."""
    peppers = CountingPeppers(delay_s=0.1)
    see_clients(engine, ["acme"], by=BY)
    configured = ConfiguredKeys(peppers, {}, file=[_file_entry("hunter2")])
    changed = configured.with_file(entries)
    keyring = make_keyring(peppers=peppers, configured=configured)

    async def main() -> None:
        call = asyncio.create_task(keyring.resolve("hunter2"))
        await asyncio.sleep(0.03)
        keyring.reconfigure(changed)
        with pytest.raises(InvalidKey):
            await call
        assert keyring.cached("hunter2") is None

    _run(main)


def test_garbage_costs_no_argon2_of_the_file(engine: Engine, make_keyring: KeyringFactory) -> None:
    """Malformed, unknown and foreign keys reach no argon2 but by a shared tag, after a swap too."""
    peppers = CountingPeppers()
    minted = mint("cl_live", "acme")
    see_clients(engine, ["acme"], by=BY)
    entries = [_file_entry(token) for token in ("hunter2", "hunter3", minted.text)]
    configured = ConfiguredKeys(peppers, {}, key_hasher="argon2id")
    keyring = make_keyring(peppers=peppers, configured=configured)
    tags = {peppers.lookup_tag(entry.token) for entry in entries}
    forged = _signed(mint("cl_live", "acme").text[:-6].replace("acme", "evil"))
    garbage = [minted.text[:-6] + "zzzzzz", forged, "é", "x" * 600]
    garbage += [mint("cl_live", "acme").text for _ in range(100)]
    garbage += [f"hunter-{n}" for n in range(300)]
    # The public id of a key of the file, with a stranger's secret.
    other = mint("cl_live", "acme")
    garbage.append(_signed(other.text[:-6].replace(other.key_id, minted.key_id)))
    others = [g for g in garbage if peppers.lookup_tag(g) not in tags]

    async def main() -> None:
        keyring.reconfigure(configured.with_file(entries).with_waiting(math.inf))
        for token in others:
            with pytest.raises(InvalidKey):
                await _resolve(keyring, token)
        assert peppers.argon2_calls == 0
        for entry in entries:
            assert await _resolve(keyring, entry.token)
        assert peppers.argon2_calls == 3

    _run(main)
    assert len(others) > 390


def test_a_caller_without_key_is_the_default_client(
    engine: Engine, peppers: Peppers, make_keyring: KeyringFactory
) -> None:
    """Where no key is required the caller is client `default`, unless that is switched off."""
    keyring = make_keyring()
    with pytest.raises(InvalidKey):
        keyring.anonymous()
    see_clients(engine, ["default"], by=BY)
    principal = keyring.anonymous()
    assert (principal.client_id, principal.role, principal.is_admin) == ("default", "client", False)
    assert "keys:manage" not in principal.scopes
    with writing(engine) as session:
        client = session.get_one(Client, "default")
        client.is_active = False
        session.add(client)
    with pytest.raises(InvalidKey):
        keyring.anonymous()
