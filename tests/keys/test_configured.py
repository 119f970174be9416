"""Keys that stand in the settings."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from app.errors import StorageUnavailable
from app.keys.configured import ConfiguredKeys, KeysFile
from app.keys.database import StartRefused
from app.keys.imports import Entry
from app.keys.token import mint
from app.keys.verifier import Peppers, is_argon2


def test_ids_come_from_the_place_not_from_the_key(peppers: Peppers) -> None:
    """A configured key's ids are the same with another text, and on every node."""
    ids = [
        [(key.key_id, key.id) for key in ConfiguredKeys(peppers, keys, "boss", "dev").keys]
        for keys in (
            {"a": "acme", "b": "acme", "c": "demo"},
            {"x": "acme", "y": "acme", "z": "demo"},
        )
    ]
    assert ids[0] == ids[1]
    assert [key_id for key_id, _ in ids[0]] == [
        "static_admin",
        "static_default",
        "static_acme_1",
        "static_acme_2",
        "static_demo_1",
    ]


def test_the_verifier_follows_the_strength(peppers: Peppers) -> None:
    """A key of our own making gets the keyed hash, any other argon2id, all if so configured."""
    keys = {mint("cl_live", "acme").text: "acme", "weak": "acme"}
    auto = [is_argon2(key.verifier or "") for key in ConfiguredKeys(peppers, keys).keys]
    forced = ConfiguredKeys(peppers, keys, key_hasher="argon2id").keys
    assert auto == [False, True]
    assert [is_argon2(key.verifier or "") for key in forced] == [True, True]


def test_no_text_of_a_key_is_kept(peppers: Peppers) -> None:
    """What is held of a configured key does not contain it."""
    configured = ConfiguredKeys(peppers, {"weak-but-secret": "acme"})
    assert "weak-but-secret" not in repr(vars(configured))


def test_clients_are_named_for_the_first_start(peppers: Peppers) -> None:
    """The clients that must exist are those of the keys, platform keys having none."""
    assert ConfiguredKeys(peppers, {"a": "acme"}, "b", "c").client_ids == {"acme", "default"}
    assert not ConfiguredKeys(peppers, {})


def test_a_key_that_could_never_work_is_refused(peppers: Peppers) -> None:
    """A mistyped, doubled or endless key stops the start, named by its setting and not shown."""
    mistyped = mint("cl_live", "acme").text[:-6] + "zzzzzz"
    with pytest.raises(StartRefused, match=r"^API_KEYS: a key is mistyped") as raised:
        ConfiguredKeys(peppers, {mistyped: "acme"})
    assert mistyped not in str(raised.value)
    with pytest.raises(StartRefused, match=r"^API_KEYS: the same key as in API_KEY_ADMIN"):
        ConfiguredKeys(peppers, {"same": "acme"}, "same")
    with pytest.raises(StartRefused, match=r"^API_KEY_DEFAULT: a key must have 1 to 512"):
        ConfiguredKeys(peppers, {}, "", "x" * 513)


class CountingPeppers(Peppers):
    """Peppers that count the verifiers they make."""

    made = 0

    def make_argon2id(self, token: str) -> str:
        """Count."""
        self.made += 1
        return super().make_argon2id(token)


class FailingPeppers(Peppers):
    """Peppers for which there is no memory a few times."""

    failures = 0

    def make_argon2id(self, token: str) -> str:
        """Fail, or not."""
        if self.failures:
            self.failures -= 1
            raise MemoryError(token)
        return super().make_argon2id(token)


def _entry(token: str, **properties: object) -> Entry:
    wanted = {"number": 1, "client_id": "acme", "role": "client", **properties}
    return Entry(token=token, **wanted)  # type: ignore[arg-type]


def test_ids_of_the_file_do_not_follow_its_order(peppers: Peppers) -> None:
    """A key of the file keeps its ids in another order and with another text."""
    one, two = _entry("a", description="one"), _entry("b", description="two")
    other = _entry("c", client_id="demo", description="one")
    admin = _entry("d", client_id=None, role="admin", description="one")
    ids = [
        {key.name: key.key_id for key in ConfiguredKeys(peppers, {}, file=entries).keys}
        for entries in (
            [one, two],
            [two, one],
            [_entry("x", description="one"), _entry("y", description="two")],
        )
    ]
    assert ids[0] == ids[1] == ids[2]
    assert ids[0]["one"].startswith("static_file_acme_")
    found = ConfiguredKeys(peppers, {}, file=[one, two, other, admin, _entry("e"), _entry("f")])
    assert len({key.id for key in found.keys}) == 6
    long = ConfiguredKeys(peppers, {}, file=[_entry("a", client_id="x" * 63)])
    assert len(long.keys[0].key_id) <= 64


def test_an_edit_costs_argon2_for_the_new_keys_only() -> None:
    """Entries that were there keep their verifiers, whatever else of them has changed."""
    peppers = CountingPeppers(["the first secret of this test suite"])
    first = ConfiguredKeys(peppers, {"s": "acme"}, file=[_entry("a"), _entry("b")])
    assert peppers.made == 3
    second = first.with_file(
        [_entry("c"), _entry("b", is_active=False), _entry("a", role="viewer")]
    )
    assert peppers.made == 4
    by_verifier = {key.verifier: key for key in second.keys}
    assert [by_verifier[key.verifier].role for key in first.keys] == ["client", "viewer", "client"]
    assert not by_verifier[first.keys[2].verifier].is_active
    # What was given out does not change.
    assert [key.is_active for key in first.keys] == [True, True, True]
    assert len(first.with_file([])) == 1


def test_a_key_of_the_file_stands_nowhere_else(peppers: Peppers) -> None:
    """A key that is in the settings already is refused by its entry, and not shown."""
    configured = ConfiguredKeys(peppers, {"secret-1": "acme"})
    with pytest.raises(StartRefused, match=r"^API_KEYS_FILE: entry 7: the same") as raised:
        configured.with_file([_entry("secret-1", number=7)])
    assert "secret-1" not in str(raised.value)


def test_a_file_without_keys_is_configured_all_the_same(peppers: Peppers) -> None:
    """Where keys may come any time no demo keys are wanted."""
    assert ConfiguredKeys(peppers, {}, file=[])
    assert not ConfiguredKeys(peppers, {})


class Followed:
    """A file that is followed, and what came of it."""

    def __init__(self, path: Path, peppers: Peppers) -> None:
        self.path = path
        self.taken: list[ConfiguredKeys] = []
        self.clients: list[set[str]] = []
        self.database_is_down = False
        self.file = KeysFile(path, poll_s=0.02)
        self.configured = ConfiguredKeys(peppers, {}, file=self.file.read())

    def see_clients(self, client_ids: frozenset[str]) -> None:
        """Note the clients, or fail as a locked database does."""
        if self.database_is_down:
            raise StorageUnavailable("locked")
        self.clients.append(set(client_ids))

    async def until(self, happened: Callable[[], object]) -> None:
        """Wait for it."""
        deadline = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    def run(self, *steps: Callable[[], object]) -> None:
        """Follow the file; take each step when what the one before waited for has happened."""

        async def main() -> None:
            self.file.follow(self.configured, self.taken.append, self.see_clients)
            for step in steps:
                happened = step()
                if callable(happened):
                    await self.until(happened)
            await self.file.aclose()

        asyncio.run(main())


def _write(path: Path, *keys: str, tenant: str = "acme") -> None:
    rows = [{"key": key, "tenant": tenant} for key in keys]
    path.write_text(yaml.safe_dump({"api_keys": rows}))


@pytest.fixture
def followed(tmp_path: Path, peppers: Peppers) -> Followed:
    """Give a file with one key."""
    _write(tmp_path / "keys.yaml", "a")
    return Followed(tmp_path / "keys.yaml", peppers)


def _replace(path: Path, *keys: str) -> None:
    _write(path.with_name("new"), *keys)
    path.with_name("new").replace(path)


def test_a_changed_file_is_taken_over(followed: Followed) -> None:
    """Written again or replaced, its keys come and go; a touch changes nothing."""
    taken = followed.taken

    def write() -> Callable[[], object]:
        _write(followed.path, "a", "b")
        return lambda: len(taken) == 1

    def replace() -> Callable[[], object]:
        _replace(followed.path)
        return lambda: len(taken) == 2

    def touch() -> Callable[[], object]:
        os.utime(followed.path, (1, 1))
        return lambda: followed.file._stat and followed.file._stat[3] == 10**9  # noqa: SLF001

    followed.run(write, replace, touch)
    assert [len(keys) for keys in taken] == [2, 0]
    assert followed.clients == []


def test_a_second_write_in_the_same_moment_is_seen(followed: Followed) -> None:
    """A file whose time and size did not change since it was read is read again for a while."""
    now = time.time()

    def write(*keys: str) -> Callable[[], Callable[[], object]]:
        def step() -> Callable[[], object]:
            count = len(followed.taken)
            _write(followed.path, *keys)
            os.utime(followed.path, (now, now))
            return lambda: len(followed.taken) > count

        return step

    followed.run(write("b"), write("c"))
    verifiers = {keys.keys[0].verifier for keys in [followed.configured, *followed.taken]}
    assert len(verifiers) == 3


def test_a_bad_file_changes_nothing_and_is_told_once(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    """Unreadable, broken or missing, the keys stay; each state is told once, without them."""

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]

    def put(text: str | None, count: int) -> Callable[[], Callable[[], object]]:
        def step() -> Callable[[], object]:
            if text is None:
                followed.path.unlink()
            else:
                draft = followed.path.with_name("draft")
                draft.write_text(text)
                draft.replace(followed.path)  # as a whole: half of it is a fault of its own
            return lambda: len(said()) >= count

        return step

    def write() -> Callable[[], object]:
        _write(followed.path, "a", "b")
        return lambda: followed.taken

    def look_again() -> Callable[[], object]:
        until = time.monotonic() + 0.3
        return lambda: time.monotonic() > until

    followed.run(
        put("api_keys: [{key: hunter2, role: emperor, tenant: acme}]", 1),
        look_again,
        put("api_keys: [{key: hunter3, role: emperor, tenant: acme}]", 2),
        put("api_keys: [{key: hunter2", 3),
        look_again,
        put(None, 4),
        look_again,
        write,
    )
    assert "entry 1: role must be one of" in said()[0]
    assert said()[1] == said()[0]
    assert "not plain YAML" in said()[2]
    assert "No such file" in said()[3]
    assert len(said()) == 4
    assert "hunter2" not in caplog.text
    assert [len(keys) for keys in followed.taken] == [2]


def test_keys_go_even_if_their_clients_cannot_be_made(followed: Followed) -> None:
    """While the database is locked what is gone from the file ends, and clients are made after."""
    followed.database_is_down = True

    def write() -> Callable[[], object]:
        _write(followed.path, "b", tenant="demo")
        return lambda: followed.taken

    def recover() -> Callable[[], object]:
        assert followed.clients == []
        followed.database_is_down = False
        return lambda: followed.clients

    followed.run(write, recover)
    assert followed.clients == [{"demo"}]
    assert len(followed.taken) == 1


def test_a_failure_of_any_kind_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails for want of memory, say, is taken over when it no longer does."""
    peppers = FailingPeppers(["the first secret of this test suite"])
    _write(tmp_path / "keys.yaml", "a")
    followed = Followed(tmp_path / "keys.yaml", peppers)
    peppers.failures = 2

    def write() -> Callable[[], object]:
        _write(followed.path, "hunter2")
        return lambda: followed.taken

    followed.run(write)
    assert len(followed.taken[0]) == 1
    assert caplog.text.count("MemoryError") == 1
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, os.fspath], ids=["pipe", "directory", "nothing"]
)
def test_what_is_no_file_is_refused_at_the_start(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    """A start with something else in place of the file ends in one line, and waits for nothing."""
    make(tmp_path / "keys")
    with pytest.raises(StartRefused, match=r"^API_KEYS_FILE: ") as raised:
        KeysFile(tmp_path / "keys").read()
    assert "\n" not in str(raised.value)


def test_a_bad_entry_refuses_the_start(tmp_path: Path) -> None:
    """A file with a bad entry is refused whole, by the entry's number."""
    path = tmp_path / "keys.yaml"
    path.write_text("api_keys: [{key: a, tenant: acme}, {key: b}, {key: c}]")
    with pytest.raises(StartRefused, match=r"^API_KEYS_FILE: entry 2: tenant .*\(and 1 more\)$"):
        KeysFile(path).read()
