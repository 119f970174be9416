"""Signed requests: which have to be, whether they are, and that each is let in once.

Head first: what is wrong there costs the reading of no body. When the body is here and is the one
that was signed, the nonce is used up, last of all, so that no refused request takes one. While
that can't be written nothing signed is let in: a copy of a request might have come before.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from app.errors import Forbidden, InvalidSignature, Overloaded
from app.keys.principal import Principal
from app.keys.signing import ED25519, Signing
from app.pool import BoundedPool
from app.protect.nonces import Nonces, SpentNonce
from app.protect.signatures import (
    AGE_S_BOUND,
    AGE_S_MAX,
    SKEW_S,
    Message,
    Unconfirmed,
    check_digest,
    field,
    is_signed,
    verify,
)
from app.protect.signing_keys import SigningKeys

# Hashed in the event loop, in 0.2 ms; the interpreter is free while a thread hashes more.
INLINE_BYTES_MAX = 256 * 1024
# A transaction of so many takes 5 ms; those that come meanwhile share the next one.
BURNED_AT_ONCE_MAX = 100
BURNS_WAITING_MAX = 2_000

Clock = Callable[[], float]


class Signed(NamedTuple):
    """A request whose signature holds, as far as its head can tell."""

    signing: Signing
    nonce_of: str
    unconfirmed: Unconfirmed


class Signatures:
    """Holds requests to the signatures that their keys ask for."""

    def __init__(  # noqa: PLR0913  # its parts, and what settings say
        self,
        keys: SigningKeys,
        nonces: Nonces,
        *,
        age_s_max: int = AGE_S_MAX,
        sign_management: bool = False,
        public_url: str = "",
        clock: Clock = time.time,
    ) -> None:
        self._keys = keys
        self._burner = _Burner(nonces)
        self._age_s_max = age_s_max
        self._sign_management = sign_management
        self._public_url = urlsplit(public_url.rstrip("/"))
        self._clock = clock
        self.close = self._burner.close

    def asks(self, principal: Principal, *, manages: bool = False) -> bool:
        """Say whether a request has to be signed; `manages` is said of one that is about keys."""
        signing = principal.signing
        return signing is not None and (
            signing.is_required
            or (manages and self._sign_management and signing.stored is not None)
        )

    def check(self, principal: Principal, scope: Any, *, manages: bool = False) -> Signed | None:
        """Check the head of a request: what is left for `confirm`, None if it need not be signed.

        Raises Forbidden if it is not signed, InvalidSignature if its signature does not hold.
        """
        signing = principal.signing
        if signing is None or not self.asks(principal, manages=manages):
            return None
        if not is_signed(scope["headers"]):
            raise Forbidden("Signature required")
        key = self._keys.open(signing)
        if key is None:
            raise InvalidSignature("the server has nothing that it could be held against")
        unconfirmed = verify(
            self._message(scope), key, principal.key_id, self._clock(), self._age_s_max
        )
        # Of a public key that several API keys share: what is signed for one is not for the others.
        nonce_of = principal.key_id
        if key.algorithm == ED25519:
            nonce_of = f"{ED25519}:{hashlib.sha256(key.material).hexdigest()[:48]}"
        return Signed(signing, nonce_of, unconfirmed)

    async def confirm(self, signed: Signed, body: bytes) -> None:
        """Check the body, as it was sent, and use up the nonces.

        Raises InvalidSignature; StorageUnavailable and Overloaded where the nonce can't be written.
        """
        unconfirmed = signed.unconfirmed
        if unconfirmed.digest is not None:
            if len(body) > INLINE_BYTES_MAX:
                await asyncio.to_thread(check_digest, unconfirmed.digest, body)
            else:
                check_digest(unconfirmed.digest, body)
        elif body:
            raise InvalidSignature("it does not cover content-digest")
        # Not for as long as it is good now: it is good again once SIGNATURE_AGE_S_MAX is raised.
        until_s = unconfirmed.created_s + AGE_S_BOUND + SKEW_S
        spent = [SpentNonce(signed.nonce_of, nonce, until_s) for nonce in unconfirmed.nonces]
        # One, as a rule. Of several all are burned, also behind one that was used before.
        if not all([await self._burner.burn(one) for one in spent]):
            raise InvalidSignature("its nonce was used before")

    def check_still(
        self, signed: Signed | None, principal: Principal, *, manages: bool = False
    ) -> None:
        """Raise Forbidden if a request that was checked would have to be signed otherwise now."""
        if self.asks(principal, manages=manages) and (
            signed is None or signed.signing != principal.signing
        ):
            raise Forbidden("Signature required")

    def _message(self, scope: Any) -> Message:
        """Give a request as its sender saw it, in front of the proxy that PUBLIC_URL names."""
        fields = scope["headers"]
        host = field(fields, "host") or ""
        scheme, prefix = scope["scheme"], ""
        if host and host.lower() == self._public_url.netloc.lower():
            scheme, prefix = self._public_url.scheme, self._public_url.path
        raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
        # What asked for a HEAD is served as a GET.
        is_head = scope.get("state", {}).get("is_head", False)
        length = field(fields, "content-length")
        return Message(
            method="HEAD" if is_head else scope["method"],
            scheme=scheme,
            host=host,
            path=prefix + raw_path.decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            fields=fields,
            has_body=length not in {None, "0"} or field(fields, "transfer-encoding") is not None,
        )


class _Burner:
    """Burns nonces in a thread of its own, all that wait in one transaction."""

    def __init__(self, nonces: Nonces) -> None:
        self._nonces = nonces
        self._pool = BoundedPool("nonces", 1, 1)
        self._waiting: list[tuple[SpentNonce, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None
        self.close = self._pool.close

    async def burn(self, used: SpentNonce) -> bool:
        """Use a nonce up, and say whether it was new."""
        if len(self._waiting) >= BURNS_WAITING_MAX:
            raise Overloaded
        outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((used, outcome))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await outcome

    async def _run(self) -> None:
        try:
            while self._waiting:
                some = self._waiting[:BURNED_AT_ONCE_MAX]
                del self._waiting[:BURNED_AT_ONCE_MAX]
                await self._burn_all(some)
        finally:
            self._task = None

    async def _burn_all(self, some: list[tuple[SpentNonce, asyncio.Future[bool]]]) -> None:
        try:
            are_new = await self._pool.run(self._nonces.burn, [used for used, _ in some])
        except Exception as error:  # noqa: BLE001  # whatever it is, each of them is told
            for _, outcome in some:
                if not outcome.done():  # nobody waits for it any more
                    outcome.set_exception(copy(error))  # it grows a traceback where it is raised
            return
        for (_, outcome), is_new in zip(some, are_new, strict=True):
            if not outcome.done():
                outcome.set_result(is_new)
