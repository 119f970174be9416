"""Authentication of a request: credentials out of its headers, a principal out of the keyring."""

import time
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

from app.edge.address import Networks, limit_group, source_address
from app.edge.limits import Window
from app.errors import InvalidKey, KeyRequired, RateLimited
from app.keys.changes import Asker
from app.keys.keyring import Keyring
from app.keys.principal import Principal

HINT = "send the key as 'X-API-Key: <key>' or 'Authorization: Bearer <key>'"
# Addresses whose failures are remembered. A flood from more of them than this makes us forget the
# ones that have been quiet longest.
ADDRESSES_MAX = 50_000
# Behind a proxy the same few addresses come again and again, and reading one takes 2 µs.
FORWARDED_MAX = 4_096
FORWARDED_BYTES_MAX = 256


def credential(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the key that the headers carry, or None.

    Raises KeyRequired with a hint for an Authorization that is not understood, InvalidKey for two
    credentials that differ or one that can't be a key.
    """
    found: set[bytes] = set()
    unusable = False
    for name, value in headers:
        if name == b"x-api-key":
            if value.strip():
                found.add(value.strip())
        elif name == b"authorization":
            key = _from_authorization(value)
            if key:
                found.add(key)
            else:
                unusable = True
    if len(found) > 1:
        raise InvalidKey
    if not found:
        if unusable:
            raise KeyRequired(hint=HINT)
        return None
    try:
        return found.pop().decode("ascii")
    except UnicodeDecodeError:
        raise InvalidKey from None


def _only_key(headers: dict[bytes, bytes]) -> str | None:
    """Return the X-API-Key, where nothing else may be a credential."""
    key = headers.get(b"x-api-key")
    if key is None or b"authorization" in headers:
        return None
    return key.decode("latin-1")  # it can't fail; no text beyond ASCII is that of a verified key


def _from_authorization(value: bytes) -> bytes | None:
    scheme, _, rest = value.strip().partition(b" ")
    rest = rest.strip()
    kind = scheme.lower()
    if kind == b"bearer":
        return rest
    if kind in {b"apikey", b"api-key"}:
        # Elasticsearch clients send base64 of id:key; a key of ours has `_`, which base64 has not.
        pair = _base64(rest)
        return pair.partition(b":")[2] if pair is not None and b":" in pair else rest
    if kind == b"basic":
        pair = _base64(rest)
        return pair.partition(b":")[2] if pair is not None else None
    return None


def _base64(text: bytes) -> bytes | None:
    try:
        return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        return None


class Authenticator:
    """Turns a request into a principal, and slows down those who guess."""

    def __init__(
        self,
        keyring: Keyring,
        *,
        require_api_key: bool,
        failures_per_minute: int,
        trusted_proxies: Networks,
    ) -> None:
        self._keyring = keyring
        self._require_api_key = require_api_key
        self._failures_per_minute = failures_per_minute
        self._trusted = trusted_proxies
        self._failures: dict[str, Window] = {}
        self._address = partial(source_address, trusted=trusted_proxies)
        self._address_seen = lru_cache(FORWARDED_MAX)(self._address)

    def known(self, headers: dict[bytes, bytes]) -> Principal | None:
        """Return who calls if it takes no more than a look: an X-API-Key alone, seen before.

        `headers` hold every header of the request, none of them twice. None says nothing:
        `authenticate` does it with all care.
        """
        key = _only_key(headers)
        return None if key is None else self._keyring.cached(key)

    def recalled(self, headers: dict[bytes, bytes]) -> Principal | None:
        """Return who `known` would name, as of the last check of the keys.

        It holds if `key_changes` has the same value still after `check_keys`.
        """
        key = _only_key(headers)
        return None if key is None else self._keyring.recalled(key)

    @property
    def key_changes(self) -> int:
        """How often keys were seen to have changed."""
        return self._keyring.changes

    def check_keys(self) -> int:
        """Look whether keys changed, and return `key_changes`."""
        return self._keyring.check()

    async def authenticate(self, scope: Any) -> Principal:
        """Return who calls.

        Raises KeyRequired, InvalidKey, RateLimited (only for a credential that fails),
        StorageUnavailable, Overloaded.
        """
        try:
            token = credential(scope["headers"])
            if token is None:
                if self._require_api_key:
                    raise KeyRequired
                return self._keyring.anonymous()
            return self._keyring.cached(token) or await self._keyring.resolve(token)
        except InvalidKey:
            self._count_failure(self.source(scope))
            raise

    def asker(self, principal: Principal) -> Asker:
        """Give what a change is asked for with, by whom `authenticate` has just returned."""
        return self._keyring.asker(principal)

    def has_client(self, client_id: str) -> bool:
        """Say whether there is a client of that name; raises StorageUnavailable."""
        return self._keyring.has_client(client_id)

    def source(self, scope: Any) -> str:
        """Return the address that a request came from; empty if there is none (a Unix socket)."""
        forwarded = None
        if self._trusted:
            hops = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
            forwarded = b",".join(hops) or None
        return self.address(scope.get("client"), forwarded)

    def address(self, peer: tuple[str, int] | None, forwarded_for: bytes | None) -> str:
        """Do the same with the peer's address and the header X-Forwarded-For."""
        host = peer[0] if peer else ""
        if not self._trusted or forwarded_for is None:
            return host
        if len(forwarded_for) > FORWARDED_BYTES_MAX:
            return self._address(host, forwarded_for)
        return self._address_seen(host, forwarded_for)

    def _count_failure(self, address: str) -> None:
        """Count a failure against its address; raise RateLimited instead once there are too many.

        Comes after the check of the key: a good key is never refused for its neighbours' faults.
        """
        if not self._failures_per_minute:
            return
        group = limit_group(address)
        second = int(time.monotonic())
        window = self._failures.pop(group, None) or Window(second)
        window.advance(second)
        if len(self._failures) >= ADDRESSES_MAX:
            del self._failures[next(iter(self._failures))]
        self._failures[group] = window  # the latest stands last
        wait_s = window.wait_s(1, self._failures_per_minute)
        if wait_s:
            raise RateLimited(["auth_failures"], wait_s)
        window.add(1)
