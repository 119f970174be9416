"""Keys that stand in the settings: held in memory, never written to the database.

Rows would be shared, and two nodes with different settings would then add and remove each other's.
"""

import asyncio
import copy
import logging
import os
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid5

from app.errors import StorageUnavailable
from app.keys.database import StartRefused
from app.keys.imports import (
    KEY_LIST_BYTES_MAX,
    BadKeyList,
    Entry,
    make_verifier,
    read_key_list,
    token_fault,
)
from app.keys.models import ApiKey
from app.keys.records import KeyRecord
from app.keys.roles import ADMIN
from app.keys.token import parse
from app.keys.verifier import Peppers

DEFAULT_CLIENT_ID = "default"
KEYS_FILE = "API_KEYS_FILE"

# A change is in force after two looks at most, of the 5 s that it may take.
FILE_POLL_S = 1.0
# The coarsest clock of a file system: what was written so lately may be written again unseen.
FILE_CLOCK_S = 2.0

_NAMESPACE = UUID("6f0a6c1e-4f3b-5d0e-9a53-3a1f0c6d2b77")
# A key_id of 64 characters has room for this much of a client_id.
_CLIENT_PART_MAX = 38

log = logging.getLogger(__name__)


class _Named(NamedTuple):
    """A key, where it stands, and the names that come from there."""

    place: str
    key_id: str
    name: str
    entry: Entry


class _Held(NamedTuple):
    """What is kept of a key: `digest` finds it again, `token_id` is the public id in its text."""

    place: str
    digest: bytes
    token_id: str | None
    key: ApiKey


class ConfiguredKeys:
    """The keys of API_KEYS, API_KEY_ADMIN, API_KEY_DEFAULT and API_KEYS_FILE.

    Falsy if nothing is configured; a file without keys, where they may come any time, is something.

    Immutable: `with_file` gives those of another content of the file. Ids (`static_admin`,
    `static_default`, `static_acme_corp_1`, `static_file_acme_corp_5e81f2a0c3d4`) come from a key's
    place in the settings, in the file from its tenant and description, never from the key. Raises
    StartRefused for a key that could never be accepted.
    """

    def __init__(  # noqa: PLR0913 (each is one setting)
        self,
        peppers: Peppers,
        api_keys: Mapping[str, str],
        api_key_admin: str = "",
        api_key_default: str = "",
        key_hasher: str = "auto",
        *,
        file: Sequence[Entry] | None = None,
    ) -> None:
        self._peppers = peppers
        self._key_hasher = key_hasher
        # Keys are told apart by a digest under a key of this process, so that none is kept.
        self._digest = blake2b(key=secrets.token_bytes(32), digest_size=16).copy
        fixed = list(_of_settings(api_keys, api_key_admin, api_key_default))
        self._fixed = len(fixed)
        self._held = self._hold([*fixed, *_of_file(file or ())], [])
        self._has_file = file is not None
        self._index()

    def with_file(self, entries: Sequence[Entry]) -> "ConfiguredKeys":
        """Put other keys in place of the file's; argon2 runs for those that were not there."""
        other = copy.copy(self)
        fixed = self._held[: self._fixed]
        other._held = fixed + other._hold(list(_of_file(entries)), fixed)  # noqa: SLF001 (its own)
        other._index()  # noqa: SLF001
        return other

    def __len__(self) -> int:
        return len(self.keys)

    def __bool__(self) -> bool:
        return bool(self.keys) or self._has_file

    def current(self, record: KeyRecord) -> KeyRecord | None:
        """Give the record of a key as it is now, if it still is configured."""
        return self._by_id.get(record.id)

    def by_token_id(self, key_id: str) -> list[KeyRecord]:
        """Find the configured keys of our format by the public id in their text: one or none."""
        return self._by_token_id.get(key_id, [])

    def by_tags(self, tags: Iterable[str]) -> list[KeyRecord]:
        """Find the configured keys that carry one of these lookup tags."""
        return [record for tag in tags for record in self._by_tag.get(tag, ())]

    def _hold(self, named: list[_Named], others: list[_Held]) -> list[_Held]:
        digests = [self._token_digest(one.entry.token) for one in named]
        places = {held.digest: held.place for held in others}
        for one, digest in zip(named, digests, strict=True):
            if digest in places:
                raise StartRefused(f"{one.place}: the same key as in {places[digest]}")
            places[digest] = one.place
            if detail := token_fault(one.entry.token):
                raise StartRefused(f"{one.place}: a key {detail}")
        known = {held.digest: held.key for held in getattr(self, "_held", ())}
        # argon2 releases the GIL, so a long list of static keys loads on every core.
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            keys = threads.map(
                lambda one, digest: self._key(one, known.get(digest)), named, digests
            )
            return [
                _Held(one.place, digest, _token_id(one.entry.token), key)
                for one, digest, key in zip(named, digests, keys, strict=True)
            ]

    def _key(self, named: _Named, known: ApiKey | None) -> ApiKey:
        entry = named.entry
        if known is None:
            verifier, lookup_tag = make_verifier(self._peppers, entry.token, self._key_hasher)
        else:
            verifier, lookup_tag = known.verifier or "", known.lookup_tag
        return ApiKey(
            id=uuid5(_NAMESPACE, named.key_id),
            key_id=named.key_id,
            key_prefix=named.key_id,
            client_id=entry.client_id,
            name=named.name,
            description=entry.description,
            role=entry.role,
            scopes=None if entry.scopes is None else list(entry.scopes),
            allowed_datasets=(
                None if entry.allowed_datasets is None else list(entry.allowed_datasets)
            ),
            requests_per_minute=entry.requests_per_minute,
            expires_at=entry.expires_at,
            is_active=entry.is_active,
            verifier=verifier,
            lookup_tag=lookup_tag,
            created_by="settings",
        )

    def _index(self) -> None:
        self.keys = tuple(held.key for held in self._held)
        self.client_ids = frozenset(key.client_id for key in self.keys if key.client_id is not None)
        self._by_id: dict[UUID, KeyRecord] = {}
        self._by_token_id: dict[str, list[KeyRecord]] = {}
        self._by_tag: dict[str, list[KeyRecord]] = {}
        for held in self._held:
            record = KeyRecord._make(getattr(held.key, field) for field in KeyRecord._fields)
            self._by_id[record.id] = record
            if held.token_id is not None:
                self._by_token_id.setdefault(held.token_id, []).append(record)
            elif record.lookup_tag is not None:
                self._by_tag.setdefault(record.lookup_tag, []).append(record)

    def _token_digest(self, token: str) -> bytes:
        digest = self._digest()
        digest.update(token.encode("utf-8", "surrogatepass"))
        return digest.digest()


def _token_id(token: str) -> str | None:
    parsed = parse(token)
    return None if parsed is None else parsed.key_id


def _of_settings(api_keys: Mapping[str, str], admin: str, default: str) -> Iterator[_Named]:
    if admin:
        yield _of_setting("API_KEY_ADMIN", "static_admin", None, admin)
    if default:
        yield _of_setting("API_KEY_DEFAULT", "static_default", DEFAULT_CLIENT_ID, default)
    count = Counter[str]()
    for token, client_id in api_keys.items():
        count[client_id] += 1
        yield _of_setting("API_KEYS", f"static_{client_id}_{count[client_id]}", client_id, token)


def _of_setting(setting: str, key_id: str, client_id: str | None, token: str) -> _Named:
    role = ADMIN if client_id is None else "client"
    entry = Entry(number=1, token=token, client_id=client_id, role=role)
    return _Named(setting, key_id, f"{setting} of the settings", entry)


def _of_file(entries: Sequence[Entry]) -> Iterator[_Named]:
    """Name keys by tenant and description, so that their order does not matter.

    Those that have both in common are told apart by their order. A digest of the key would let
    guesses be tested against what logs and replies show.
    """
    count = Counter[tuple[str, str]]()
    for entry in entries:
        owner = entry.client_id or ADMIN
        kind = ("" if entry.client_id is None else owner, entry.description)
        count[kind] += 1
        told = "\0".join((*kind, str(count[kind]))).encode()
        part = blake2b(told, digest_size=6).hexdigest()
        key_id = f"static_file_{owner[:_CLIENT_PART_MAX]}_{part}"
        name = entry.name_or(f"{KEYS_FILE} of the settings")
        yield _Named(f"{KEYS_FILE}: entry {entry.number}", key_id, name, entry)


class KeysFile:
    """API_KEYS_FILE: read at the start, then followed.

    A content that cannot be used leaves the last good one in force, and is complained of once. The
    file is looked at in a thread: a disk may be slow, and argon2 is.
    """

    def __init__(self, path: str | Path, poll_s: float = FILE_POLL_S) -> None:
        self._path = Path(path)
        self._poll_s = poll_s
        # What stat said of the content that was read last; None: to be read again in any case.
        self._stat: tuple[int, ...] | None = None
        self._is_settling = False
        self._is_undone = False
        self._digest = b""  # of that content, which holds keys and is not kept
        self._complaint = ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys-file")
        self._task: asyncio.Task[None] | None = None

    def read(self) -> list[Entry]:
        """Read it; raises StartRefused, in one line without any text of a key."""
        try:
            content = self._read()
        except OSError as error:
            raise StartRefused(f"{KEYS_FILE}: {error}") from error
        self._digest = blake2b(content).digest()
        return _entries(content)

    def follow(
        self,
        configured: ConfiguredKeys,
        take_over: Callable[[ConfiguredKeys], None],
        see_clients: Callable[[frozenset[str]], None],
    ) -> None:
        """Have what the file says from now on taken over, on this event loop.

        `see_clients` is called in the thread, to make what clients are not there yet.
        """
        self._task = asyncio.create_task(self._follow(configured, take_over, see_clients))

    async def aclose(self) -> None:
        """Follow it no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _follow(
        self,
        configured: ConfiguredKeys,
        take_over: Callable[[ConfiguredKeys], None],
        see_clients: Callable[[frozenset[str]], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        seen_clients = configured.client_ids
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                changed = await loop.run_in_executor(self._thread, self._reread, configured)
                if changed is not None:
                    # Before any clients are made: what is gone from the file ends at once, whether
                    # or not the database can be written.
                    configured = changed
                    take_over(configured)
                    log.info("%s: %d keys in force", KEYS_FILE, len(configured))
                if not configured.client_ids <= seen_clients:
                    await loop.run_in_executor(self._thread, see_clients, configured.client_ids)
                    seen_clients, self._complaint = configured.client_ids, ""
            except StorageUnavailable as error:
                self._complain(f"{KEYS_FILE}: new clients cannot be made yet: {error.reason}")
            except (StartRefused, OSError) as error:
                self._complain(f"{error}; the keys read from {KEYS_FILE} before remain in force")
            except Exception as error:  # noqa: BLE001 (whatever it is, it is tried again)
                self._stat, self._is_undone = None, True
                self._complain(f"{KEYS_FILE} cannot be taken over yet: {type(error).__name__}")

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            log.error("%s", complaint)
        self._complaint = complaint

    def _reread(self, configured: ConfiguredKeys) -> ConfiguredKeys | None:
        """Give the keys of a changed file; None if there is nothing new in it."""
        if _identity(os.stat(self._path)) == self._stat:  # noqa: PTH116 (as in watch.py)
            self._is_settling = False
            return None
        # Whoever is writing it gets until the next look to finish, and not longer.
        self._is_settling = not self._is_settling
        if self._is_settling:
            return None
        content = self._read()
        digest = blake2b(content).digest()
        if digest != self._digest:
            self._digest, self._complaint = digest, ""
        elif not self._is_undone:
            return None
        self._is_undone = False
        return configured.with_file(_entries(content))

    def _read(self) -> bytes:
        # Not to wait for whoever would write into a pipe of that name.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise StartRefused(f"{KEYS_FILE}: {self._path} is not a file")
            content = file.read(KEY_LIST_BYTES_MAX + 1)
        is_settled = abs(time.time() - found.st_mtime) > FILE_CLOCK_S
        self._stat = _identity(found) if is_settled else None
        return content


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _entries(content: bytes) -> list[Entry]:
    try:
        entries, faults = read_key_list(content, "yaml")
    except BadKeyList as error:
        raise StartRefused(f"{KEYS_FILE}: {error}") from None
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise StartRefused(f"{KEYS_FILE}: {faults[0]}{more}")
    return entries
