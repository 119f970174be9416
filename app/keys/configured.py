"""Keys that stand in the settings: held in memory, never written to the database.

Rows would be shared, and two nodes with different settings would then add and remove each other's.
"""

import copy
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple, TypeVar
from uuid import UUID, uuid5

from app.keys.database import StartRefused
from app.keys.entry import Entry
from app.keys.models import ApiKey
from app.keys.records import KeyRecord
from app.keys.roles import ADMIN
from app.keys.strength import make_verifier, needs_argon2
from app.keys.token import parse, token_fault
from app.keys.verifier import Peppers

DEFAULT_CLIENT_ID = "default"
KEYS_FILE = "API_KEYS_FILE"
INITIAL_ADMIN_KEY = "INITIAL_ADMIN_KEY"

_NAMESPACE = UUID("6f0a6c1e-4f3b-5d0e-9a53-3a1f0c6d2b77")
# A key_id of 64 characters has room for this much of a client_id.
_CLIENT_PART_MAX = 38
# argon2 releases the GIL, so a long list of keys is hashed on every core.
_CORES = os.cpu_count() or 1

_Told = TypeVar("_Told", bound=Hashable)


class _Named(NamedTuple):
    """A key, where it stands, and the names that come from there."""

    place: str
    key_id: str
    name: str
    entry: Entry


class _Held(NamedTuple):
    """What is kept of a key: `digest` finds it again, `token_id` is the public id in its text.

    `asked` is what stands there but for the key and its place.
    """

    place: str
    digest: bytes
    token_id: str | None
    asked: _Named
    key: ApiKey
    record: KeyRecord


class ConfiguredKeys:
    """The keys of API_KEYS, API_KEY_ADMIN, API_KEY_DEFAULT and API_KEYS_FILE.

    Falsy if nothing is configured; a file without keys, where they may come any time, is something.

    Immutable: `with_file` gives those of another content of the file. Ids (`static_admin`,
    `static_default`, `static_acme_corp_1`, `static_file_acme_corp_5e81f2a0c3d4`) come from a key's
    place in the settings, in the file from its tenant and description, never from the key. Raises
    StartRefused for a key that could never be accepted, and for one that stands in two places:
    INITIAL_ADMIN_KEY is none of these, but is no other key's text either.
    """

    def __init__(  # noqa: PLR0913 (each is one setting)
        self,
        peppers: Peppers,
        api_keys: Mapping[str, str],
        api_key_admin: str = "",
        api_key_default: str = "",
        key_hasher: str = "auto",
        *,
        initial_admin_key: str = "",
        file: Sequence[Entry] | None = None,
    ) -> None:
        self._peppers = peppers
        self._key_hasher = key_hasher
        # Keys are told apart by a digest under a key of this process, so that none is kept.
        self._digest = blake2b(key=secrets.token_bytes(32), digest_size=16).copy
        fixed = list(_of_settings(api_keys, api_key_admin, api_key_default))
        self._fixed = len(fixed)
        self._has_file = file is not None
        self._taken: dict[bytes, str] = {}
        if initial_admin_key:
            self._taken[self._token_digest(initial_admin_key)] = INITIAL_ADMIN_KEY
        named = [*fixed, *_of_file(file or ())]
        self._check(named, [])
        self._set(self._hashed(named, math.inf), [])

    def with_file(self, entries: Sequence[Entry]) -> "ConfiguredKeys":
        """Put other keys in place of the file's, at once.

        What is gone has gone, and what was there has its new properties. New keys that need argon2
        are among `waiting`: nobody's end is to wait until those of others are hashed.
        """
        named = list(_of_file(entries))
        held = self._held[: self._fixed]
        self._check(named, held)
        known = {one.digest: one for one in self._held}
        waiting = []
        for one in named:
            former = known.get(self._token_digest(one.entry.token))
            if former is None and needs_argon2(one.entry.token, self._key_hasher):
                waiting.append(one)
            elif former is not None and former.asked == _asked(one):
                # A row takes 0.2 ms, which at thousands of keys is what an edit would take.
                held.append(former._replace(place=one.place))
            else:
                held.append(self._hold(one, former))
        return self._with(held, waiting)

    def with_waiting(self, time_s: float) -> "ConfiguredKeys":
        """Add as many keys that wait as are hashed in this time, and a few at least."""
        more = self._hashed(self.waiting, time.monotonic() + time_s)
        return self._with([*self._held, *more], self.waiting[len(more) :])

    def __len__(self) -> int:
        return len(self.keys)

    def __bool__(self) -> bool:
        return bool(self.keys) or self._has_file

    def current(self, id_: UUID) -> KeyRecord | None:
        """Give the record of a key as it is now, if it still is configured."""
        return self._by_id.get(id_)

    def by_token_id(self, key_id: str) -> list[KeyRecord]:
        """Find the configured keys of our format by the public id in their text: one or none."""
        return self._by_token_id.get(key_id, [])

    def by_tags(self, tags: Iterable[str]) -> list[KeyRecord]:
        """Find the configured keys that carry one of these lookup tags."""
        return [record for tag in tags for record in self._by_tag.get(tag, ())]

    def _check(self, named: Iterable[_Named], others: Iterable[_Held]) -> None:
        places = self._taken | {held.digest: held.place for held in others}
        _check_keys(named, places, self._token_digest)

    def _hashed(self, named: Sequence[_Named], until: float) -> list[_Held]:
        """Make verifiers for the first of these, until that moment of the monotonic clock."""
        held: list[_Held] = []
        with ThreadPoolExecutor(_CORES) as threads:
            while len(held) < len(named):
                held += threads.map(self._hold, named[len(held) : len(held) + _CORES])
                if time.monotonic() >= until:
                    break
        return held

    def _hold(self, named: _Named, former: _Held | None = None) -> _Held:
        entry = named.entry
        if former is None:
            verifier, lookup_tag = make_verifier(self._peppers, entry.token, self._key_hasher)
        else:
            verifier, lookup_tag = former.key.verifier or "", former.key.lookup_tag
        key = ApiKey(
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
        return _Held(
            place=named.place,
            digest=self._token_digest(entry.token),
            token_id=_token_id(entry.token),
            asked=_asked(named),
            key=key,
            record=KeyRecord.of(key),
        )

    def _with(self, held: list[_Held], waiting: list[_Named]) -> "ConfiguredKeys":
        other = copy.copy(self)
        other._set(held, waiting)  # noqa: SLF001 (its own)
        return other

    def _set(self, held: list[_Held], waiting: list[_Named]) -> None:
        self._held = held
        self.waiting = waiting
        self.keys = tuple(one.key for one in held)
        owners = [key.client_id for key in self.keys] + [one.entry.client_id for one in waiting]
        self.client_ids = frozenset(owner for owner in owners if owner is not None)
        self._by_id: dict[UUID, KeyRecord] = {}
        self._by_token_id: dict[str, list[KeyRecord]] = {}
        self._by_tag: dict[str, list[KeyRecord]] = {}
        for one in held:
            record = one.record
            self._by_id[record.id] = record
            if one.token_id is not None:
                self._by_token_id.setdefault(one.token_id, []).append(record)
            elif record.lookup_tag is not None:
                self._by_tag.setdefault(record.lookup_tag, []).append(record)

    def _token_digest(self, token: str) -> bytes:
        digest = self._digest()
        digest.update(token.encode("utf-8", "surrogatepass"))
        return digest.digest()


def check_file(
    api_keys: Mapping[str, str],
    admin: str,
    default: str,
    initial_admin_key: str,
    entries: Sequence[Entry],
) -> None:
    """Raise StartRefused for what ConfiguredKeys would refuse, but without hashing anything."""
    places = {initial_admin_key: INITIAL_ADMIN_KEY} if initial_admin_key else {}
    _check_keys([*_of_settings(api_keys, admin, default), *_of_file(entries)], places, str)


def texts_of_settings(
    api_keys: Mapping[str, str],
    admin: str,
    default: str,
    initial_admin_key: str,
    entries: Sequence[Entry],
) -> dict[str, tuple[str, str | None]]:
    """Give the text of each key that the settings name, with its place and its client."""
    named = [*_of_settings(api_keys, admin, default), *_of_file(entries)]
    texts = {one.entry.token: (one.place, one.entry.client_id) for one in named}
    if initial_admin_key:
        texts[initial_admin_key] = INITIAL_ADMIN_KEY, None
    return texts


def _check_keys(
    named: Iterable[_Named], places: dict[_Told, str], tell_apart: Callable[[str], _Told]
) -> None:
    for one in named:
        told = tell_apart(one.entry.token)
        if told in places:
            raise StartRefused(f"{one.place}: the same key as in {places[told]}")
        places[told] = one.place
        if detail := token_fault(one.entry.token):
            raise StartRefused(f"{one.place}: a key {detail}")


def _asked(named: _Named) -> _Named:
    return named._replace(place="", entry=replace(named.entry, number=0, token=""))


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
