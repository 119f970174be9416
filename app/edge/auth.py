"""Authentication of a request: credentials out of its headers, a principal out of the keyring."""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

from app.addresses import party_of
from app.edge.address import HOPS, Networks, source_address
from app.edge.limits import Failures
from app.errors import InvalidKey, KeyRequired, RateLimited
from app.keys import shape
from app.keys.changes import Asker
from app.keys.keyring import Keyring
from app.keys.models import ApiKey
from app.keys.principal import Principal
from app.keys.shape import Presented

HINT = "send the key as 'X-API-Key: <key>' or 'Authorization: Bearer <key>'"
# Behind a proxy the same few addresses come again and again, and reading one takes 2 µs.
FORWARDED_MAX = 4_096
FORWARDED_BYTES_MAX = 256
_PRINTABLE = frozenset(range(0x20, 0x7F))


def credential(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the key that the headers carry, or None.

    Raises KeyRequired with a hint for an Authorization that is not understood, InvalidKey for two
    credentials that differ or one that can't be a key.
    """
    found, unusable = _credentials(headers)
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


def _credentials(headers: Iterable[tuple[bytes, bytes]]) -> tuple[set[bytes], bool]:
    """Return the keys that differ, and whether there is an Authorization without one."""
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
    return found, unusable


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
        # Elasticsearch clients send base64 of id:key. A key may be base64 too, of random bytes: of
        # 36, every seventh has a colon somewhere, and not one in 10^15 is printable throughout.
        pair = _base64(rest)
        is_pair = pair is not None and b":" in pair and _PRINTABLE.issuperset(pair)
        return pair.partition(b":")[2] if pair is not None and is_pair else rest
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
        failures: Failures,
        trusted_proxies: Networks,
        proxy_header: str = "x-forwarded-for",
    ) -> None:
        self._keyring = keyring
        self._require_api_key = require_api_key
        self._failures = failures
        self._trusted = trusted_proxies
        # By which proxies tell whom they forward for.
        self.proxy_header = proxy_header.encode()
        self._address = partial(source_address, trusted=trusted_proxies, hops=HOPS[proxy_header])
        self._address_seen = lru_cache(FORWARDED_MAX)(self._address)

    def known(self, headers: dict[bytes, bytes]) -> Principal | None:
        """Return who calls if it takes no more than a look: an X-API-Key alone, seen before.

        `headers` hold every header of the request, none of them twice. None says nothing:
        `authenticate` does it with all care.
        """
        key = _only_key(headers)
        return None if key is None else self._keyring.cached(key)

    def digest(self, headers: dict[bytes, bytes]) -> bytes | None:
        """Return what stands for the key of such a request, in this process; it tells nothing."""
        key = _only_key(headers)
        return None if key is None else self._keyring.digest(key)

    def recalled(self, key_digest: bytes) -> Principal | None:
        """Return who `known` would name, as of the last check of the keys.

        It holds if `key_changes` has the same value still after `check_keys`.
        """
        return self._keyring.recalled(key_digest)

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
            await self._count_failure(self.source(scope))
            raise

    def presented(self, scope: Any) -> Presented:
        """Return what may be noted of the credential of a request that `authenticate` refused."""
        found, unusable = _credentials(scope["headers"])
        if not found:
            return Presented(shape.NOT_UNDERSTOOD if unusable else shape.NONE)
        if len(found) > 1:
            return Presented(shape.TWO)
        try:
            return self._keyring.presented(found.pop().decode("ascii"))
        except UnicodeDecodeError:
            return Presented(shape.NOT_ASCII)

    def asker(self, principal: Principal) -> Asker:
        """Give what a change is asked for with, by whom `authenticate` has just returned."""
        return self._keyring.asker(principal)

    def configured_keys(self) -> Sequence[ApiKey]:
        """Give the keys of the settings, which have no row."""
        return self._keyring.configured.keys

    def has_client(self, client_id: str) -> bool:
        """Say whether there is a client of that name; raises StorageUnavailable."""
        return self._keyring.has_client(client_id)

    def source(self, scope: Any) -> str:
        """Return the address that a request came from; empty if there is none (a Unix socket)."""
        forwarded = None
        if self._trusted:
            hops = [value for name, value in scope["headers"] if name == self.proxy_header]
            forwarded = b",".join(hops) or None
        return self.address(scope.get("client"), forwarded)

    def address(self, peer: tuple[str, int] | None, forwarded: bytes | None) -> str:
        """Do the same with the peer's address and the value of `proxy_header`."""
        host = peer[0] if peer else ""
        if not self._trusted or forwarded is None:
            return host
        if len(forwarded) > FORWARDED_BYTES_MAX:
            return self._address(host, forwarded)
        return self._address_seen(host, forwarded)

    async def _count_failure(self, address: str) -> None:
        """Count a failure against its address; raise RateLimited instead once there are too many.

        Comes after the check of the key: a good key is never refused for its neighbours' faults.
        """
        wait_s = await self._failures.count(party_of(address))
        if wait_s:
            raise RateLimited(["auth_failures"], wait_s)
