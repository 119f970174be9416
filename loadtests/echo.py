"""The baseline of the single-log bench: read the body, answer 201 with a constant, nothing else."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]

BODY = (
    b'{"id":"01JWTXM6Y7Q2V9Z8K4N3B5C6D7","client_id":"bench",'
    b'"received_at":"2026-06-01T00:00:00.000000Z","echoed_only":true}'
)
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Answer every HTTP request alike once its body has arrived."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 201, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
