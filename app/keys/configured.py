"""Keys that stand in the settings: held in memory, never written to the database.

Rows would be shared, and two nodes with different settings would then add and remove each other's.
"""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from uuid import UUID, uuid5

from app.keys.database import StartRefused
from app.keys.models import ApiKey
from app.keys.records import KeyRecord
from app.keys.token import MalformedToken, parse
from app.keys.verifier import Peppers

DEFAULT_CLIENT_ID = "default"
# A header that carries more is refused before it is looked at: see keyring.
TOKEN_LENGTH_MAX = 512

_NAMESPACE = UUID("6f0a6c1e-4f3b-5d0e-9a53-3a1f0c6d2b77")


class _Named(NamedTuple):
    setting: str
    key_id: str
    client_id: str | None
    token: str


class ConfiguredKeys:
    """The keys of API_KEYS, API_KEY_ADMIN and API_KEY_DEFAULT; falsy if there are none.

    Their ids (`static_admin`, `static_default`, `static_acme_corp_1`) come from their place in the
    settings, never from the key. Raises StartRefused for a key that could never be accepted.
    """

    def __init__(
        self,
        peppers: Peppers,
        api_keys: Mapping[str, str],
        api_key_admin: str = "",
        api_key_default: str = "",
        key_hasher: str = "auto",
    ) -> None:
        named = list(_named(api_keys, api_key_admin, api_key_default))
        _refuse_doubles(named)
        # argon2 releases the GIL, so a long list of static keys loads on every core.
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            loaded = list(threads.map(lambda key: _load(peppers, key, key_hasher), named))
        self.keys: tuple[ApiKey, ...] = tuple(loaded)
        self.client_ids = frozenset(key.client_id for key in named if key.client_id is not None)
        self._by_token_id: dict[str, KeyRecord] = {}
        self._by_tag: dict[str, list[KeyRecord]] = {}
        for source, key in zip(named, loaded, strict=True):
            record = KeyRecord._make(getattr(key, field) for field in KeyRecord._fields)
            parsed = parse(source.token)
            if parsed is not None:
                self._by_token_id[parsed.key_id] = record
            elif key.lookup_tag is not None:
                self._by_tag.setdefault(key.lookup_tag, []).append(record)

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, record: KeyRecord) -> bool:
        return any(record.id == key.id for key in self.keys)

    def by_token_id(self, key_id: str) -> list[KeyRecord]:
        """Find a configured key of our format by the public id in its text."""
        record = self._by_token_id.get(key_id)
        return [] if record is None else [record]

    def by_tags(self, tags: Iterable[str]) -> list[KeyRecord]:
        """Find the configured keys that carry one of these lookup tags."""
        return [record for tag in tags for record in self._by_tag.get(tag, ())]


def _named(api_keys: Mapping[str, str], admin: str, default: str) -> Iterable[_Named]:
    if admin:
        yield _Named("API_KEY_ADMIN", "static_admin", None, admin)
    if default:
        yield _Named("API_KEY_DEFAULT", "static_default", DEFAULT_CLIENT_ID, default)
    count: dict[str, int] = {}
    for token, client_id in api_keys.items():
        count[client_id] = count.get(client_id, 0) + 1
        yield _Named("API_KEYS", f"static_{client_id}_{count[client_id]}", client_id, token)


def _refuse_doubles(named: list[_Named]) -> None:
    seen: dict[str, _Named] = {}
    for key in named:
        other = seen.setdefault(key.token, key)
        if other is not key:
            raise StartRefused(f"{key.setting}: the same key as in {other.setting}")


def _load(peppers: Peppers, named: _Named, key_hasher: str) -> ApiKey:
    if len(named.token) > TOKEN_LENGTH_MAX:
        raise StartRefused(f"{named.setting}: a key is longer than {TOKEN_LENGTH_MAX} characters")
    try:
        keyed = parse(named.token) is not None and key_hasher != "argon2id"
    except MalformedToken as error:
        raise StartRefused(f"{named.setting}: a key is mistyped: {error}") from None
    token = named.token
    return ApiKey(
        id=uuid5(_NAMESPACE, named.key_id),
        key_id=named.key_id,
        key_prefix=named.key_id,
        client_id=named.client_id,
        name=f"{named.setting} of the settings",
        role="admin" if named.client_id is None else "client",
        verifier=peppers.make_keyed(token) if keyed else peppers.make_argon2id(token),
        lookup_tag=None if keyed else peppers.lookup_tag(token),
        created_by="settings",
    )
