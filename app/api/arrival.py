"""The body of a request to a route, as it was sent: bounded in bytes and in time."""

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.errors import MalformedBody, TooLarge

# Of a key with all that it may carry: metadata of 16 KiB, and a thousand datasets.
BODY_BYTES_MAX = 128 * 1024
# From its headers to its end; a body of this size is one packet or a few.
BODY_S_MAX = 30.0


async def read_body(request: Request) -> bytes:
    """Read the body, or give it once more; raise TooLarge or MalformedBody.

    A signed one is read before its route asks for it.
    """
    if not hasattr(request.state, "body"):
        request.state.body = await _read(request)
    body: bytes = request.state.body
    return body


async def _read(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES_MAX:
                    raise TooLarge(f"Body too large: more than {BODY_BYTES_MAX} bytes")
    except TimeoutError:
        raise MalformedBody("Malformed body: it did not arrive in time") from None
    except ClientDisconnect:
        raise MalformedBody("Malformed body: it ends too early") from None
    return bytes(body)
