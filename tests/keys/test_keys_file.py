"""API_KEYS_FILE, as it is followed."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from app.errors import StorageUnavailable
from app.keys.configured import ConfiguredKeys
from app.keys.database import StartRefused
from app.keys.keys_file import FILE_BYTES_MAX, KeysFile
from app.keys.verifier import ARGON2ID, Peppers

POLL_S = 0.02


class FailingPeppers(Peppers):
    """Peppers for which there is no memory a few times."""

    failures = 0

    def make_argon2id(self, token: str) -> str:
        """Fail, or not."""
        if self.failures:
            self.failures -= 1
            raise MemoryError(token)
        return super().make_argon2id(token)


class Followed:
    """A file that is followed, and what came of it."""

    def __init__(self, path: Path, peppers: Peppers) -> None:
        self.path = path
        self.taken: list[ConfiguredKeys] = []
        self.clients: list[set[str]] = []
        self.database_is_down = False
        self.file = KeysFile(path, poll_s=POLL_S)
        self.configured = ConfiguredKeys(peppers, {}, file=self.file.read())

    def is_through(self, count: int) -> bool:
        """Say whether what was taken over last is so many keys, all of them hashed."""
        return bool(self.taken) and not self.taken[-1].waiting and len(self.taken[-1]) == count

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


def test_a_file_of_too_many_keys_is_refused(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    """What would take longer than it may is complained of, at the start and later."""
    grown = followed.path.read_bytes() + b"#" * FILE_BYTES_MAX

    def grow() -> Callable[[], object]:
        followed.path.write_bytes(grown)
        return lambda: str(FILE_BYTES_MAX) in caplog.text

    followed.run(grow)
    assert not followed.taken
    with pytest.raises(StartRefused, match=str(FILE_BYTES_MAX)):
        KeysFile(followed.path).read()


def _replace(path: Path, *keys: str) -> None:
    _write(path.with_name("new"), *keys)
    path.with_name("new").replace(path)


def test_a_changed_file_is_taken_over(followed: Followed) -> None:
    """Written again or replaced, its keys come and go; a touch changes nothing."""

    def write() -> Callable[[], object]:
        _write(followed.path, "a", "b")
        return lambda: followed.is_through(2)

    def replace() -> Callable[[], object]:
        _replace(followed.path)
        return lambda: followed.is_through(0)

    def touch() -> Callable[[], object]:
        os.utime(followed.path, (1, 1))
        return lambda: followed.file._stat and followed.file._stat[3] == 10**9  # noqa: SLF001

    followed.run(write, replace, touch)
    assert [len(keys) for keys in followed.taken] == [1, 2, 0]
    assert followed.clients == []


class QuickPeppers(Peppers):
    """Peppers whose slow hash is the key itself, and who tell of each."""

    on_hash: Callable[[str], object] = len

    def make_argon2id(self, token: str) -> str:
        """Take as long as a step may, which is then a hash on each core."""
        self.on_hash(token)
        time.sleep(POLL_S)
        return ARGON2ID + token


def _tokens(configured: ConfiguredKeys) -> set[str]:
    return {(key.verifier or "").removeprefix(ARGON2ID) for key in configured.keys}


def test_no_end_of_a_key_waits_for_the_hashes_of_others(tmp_path: Path) -> None:
    """What is gone is gone before new keys are hashed, of a second edit before all of them are."""
    path = tmp_path / "keys.yaml"
    new = [f"new-{number}" for number in range(20 * (os.cpu_count() or 1))]
    _write(path, "gone", "gone later", "kept")
    peppers = QuickPeppers(["the first secret of this test suite"])
    followed = Followed(path, peppers)
    takeovers_before: list[int] = []

    def on_hash(token: str) -> None:
        if token == new[0]:  # in the thread that looks at the file: whatever its pace, it is early
            _write(path, "kept", *new)
        takeovers_before.append(len(followed.taken))

    def write() -> Callable[[], object]:
        peppers.on_hash = on_hash
        _write(path, "gone later", "kept", *new)
        return lambda: followed.is_through(1 + len(new))

    followed.run(write)
    assert _tokens(followed.taken[0]) == {"gone later", "kept"}
    assert min(takeovers_before) == 1
    ended = next(keys for keys in followed.taken if "gone later" not in _tokens(keys))
    assert "kept" in _tokens(ended)
    assert ended.waiting
    assert _tokens(followed.taken[-1]) == {"kept", *new}
    assert len(takeovers_before) == len(new)


def test_a_second_write_in_the_same_moment_is_seen(followed: Followed) -> None:
    """A file whose time and size did not change since it was read is read again for a while."""
    now = time.time()

    def write(*keys: str) -> Callable[[], Callable[[], object]]:
        def step() -> Callable[[], object]:
            count = len(followed.taken)
            _write(followed.path, *keys)
            os.utime(followed.path, (now, now))
            return lambda: len(followed.taken) > count and followed.is_through(1)

        return step

    followed.run(write("b"), write("c"))
    configured = [followed.configured, *followed.taken]
    verifiers = {keys.keys[0].verifier for keys in configured if keys.keys}
    assert len(verifiers) == 3


def test_a_rewrite_that_looks_the_same_is_seen(followed: Followed) -> None:
    """A file rewritten in place, with as many bytes and its old time, is read all the same."""

    def settle() -> Callable[[], object]:
        return lambda: followed.file._stat  # noqa: SLF001

    def rewrite() -> Callable[[], object]:
        before = followed.path.stat()
        _write(followed.path, "b")
        os.utime(followed.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = followed.path.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        return lambda: followed.is_through(1)

    followed.run(settle, rewrite)
    assert followed.taken[-1].keys[0].verifier != followed.configured.keys[0].verifier


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
        return lambda: followed.is_through(2)

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
    assert [len(keys) for keys in followed.taken] == [1, 2]


def test_keys_go_even_if_their_clients_cannot_be_made(followed: Followed) -> None:
    """While the database is locked what is gone from the file ends, and clients are made after."""
    followed.database_is_down = True

    def write() -> Callable[[], object]:
        _write(followed.path, "b", tenant="demo")
        return lambda: followed.is_through(1)

    def recover() -> Callable[[], object]:
        assert followed.clients == []
        followed.database_is_down = False
        return lambda: followed.clients

    followed.run(write, recover)
    assert followed.clients == [{"demo"}]
    assert len(followed.taken[0]) == 0


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
        return lambda: followed.is_through(1)

    followed.run(write)
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
