"""What browsers and slow or greedy clients may do: headers of pages, CORS, connections."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from app.addresses import party_of
from app.edge.address import Networks, is_within
from app.edge.problem import Headers
from app.edge.request_id import new_request_id
from app.edge.unread import Unread

NO_SNIFFING = (b"x-content-type-options", b"nosniff")

_API = "/api/v1/"
# What a page may send, and for how many seconds a browser need not ask again.
_ASKED = [
    (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE"),
    (
        b"access-control-allow-headers",
        b"Authorization, Content-Encoding, Content-Type, Idempotency-Key, Last-Event-ID, X-API-Key",
    ),
    (b"access-control-max-age", b"600"),
]
_TOLD = (
    b"access-control-expose-headers",
    (
        b"Idempotent-Replayed, RateLimit, RateLimit-Policy, Retry-After, X-RateLimit-Limit, "
        b"X-RateLimit-Remaining, X-RateLimit-Reset, X-Request-ID"
    ),
)
_VARY = (b"vary", b"Origin")


def page_headers(policy: str) -> dict[str, str]:
    """Give what every HTML page is sent with; `policy` names what it may load.

    No page may be framed, nor tell another site where its reader came from.
    """
    return {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


class Bounds(NamedTuple):
    """What one connection, and all of one address (IPv6: one /64), may take of this process.

    `head_s`: seconds for the head of a request to arrive. `per_address`: connections, 0 = any
    number; those of `trusted` proxies are of many clients, and not counted. `unread_s`: seconds in
    which a client takes nothing of a reply; `unread_bytes`: of replies that wait for their clients.
    """

    head_s: float = 10.0
    per_address: int = 0
    trusted: Networks = ()
    unread_s: float = 60.0
    unread_bytes: int = 256 * 1024**2


class Connections:
    """The open connections of this process, by address."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.unread = Unread(bounds.unread_bytes)
        self._open: Counter[str] = Counter()

    def enter(self, host: str) -> str | None:
        """Count a connection; give the name that `leave` takes, None for one too many."""
        if not self.bounds.per_address or not host or self._is_trusted(host):
            return ""
        name = party_of(host)
        if self._open[name] >= self.bounds.per_address:
            return None
        self._open[name] += 1
        return name

    def leave(self, name: str) -> None:
        """End a connection."""
        if not name:
            return
        self._open[name] -= 1
        if not self._open[name]:
            del self._open[name]

    def _is_trusted(self, host: str) -> bool:
        return is_within(host.partition("%")[0], self.bounds.trusted)


class Cors:
    """Lets web pages of named origins read what the API answers; without it, browsers keep it back.

    Never with credentials: a cookie or a client certificate says nothing here, and a key that a
    page holds is sent by the page itself.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, scope: Any) -> Headers:
        """Give what tells the browser who may read the answer to a request."""
        if not scope["path"].startswith(_API):
            return []
        origin = _header(scope, b"origin")
        if origin not in self._origins:
            return [_VARY]  # an answer to one origin must not be kept for another
        return [_VARY, (b"access-control-allow-origin", origin), _TOLD]

    def answers(self, scope: Any) -> bool:
        """Say whether a request is a preflight, which is answered here alone."""
        return (
            scope["method"] == "OPTIONS"
            and scope["path"].startswith(_API)
            and _header(scope, b"origin") in self._origins
            and bool(_header(scope, b"access-control-request-method"))
        )

    async def answer(self, scope: Any, send: Any) -> None:
        """Tell a browser what a page may send."""
        name = (b"x-request-id", new_request_id().encode())
        headers = [*self.headers(scope), *_ASKED, NO_SNIFFING, name]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def with_headers(send: Any, headers: Headers) -> Any:
    """Return a `send` that adds headers to a response."""

    async def send_with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return send_with_headers


def _header(scope: Any, name: bytes) -> bytes:
    return next((value for one, value in scope["headers"] if one == name), b"")
