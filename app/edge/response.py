"""A whole response in one write.

ASGI sends a response in two messages, which uvicorn checks header by header and writes in two
system calls: 25 µs of the 80 that a request took. The hot path knows its whole answer at once and
makes every header itself, so where `send` is uvicorn's own it writes the bytes. Anywhere else, and
where a slow reader holds the connection up, it sends the two messages.
"""

from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.edge.problem import Headers


async def respond(send: Any, status: int, headers: Headers, lines: bytes, body: bytes) -> None:
    """Answer a request.

    `lines` are headers too, each `name: value` with CR LF; the Content-Length is among them.
    """
    cycle = getattr(send, "__self__", None)
    if isinstance(cycle, RequestResponseCycle) and not cycle.flow.write_paused:
        _write(cycle, status, headers, lines, body)
        return
    headers = [*headers, *parse_lines(lines)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def abort(send: Any, receive: Any) -> None:
    """Cut a connection off in the middle of a response, and return when that is done.

    To end it in order would be to say that the response is whole.
    """
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle):
        raise ConnectionAbortedError("a response broke off")  # what any server takes for a fault
    cycle.transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


def parse_lines(lines: bytes) -> Headers:
    """Return header lines as ASGI wants them."""
    split = [line.partition(b": ") for line in lines.split(b"\r\n") if line]
    return [(name, value) for name, _, value in split]


def _write(
    cycle: RequestResponseCycle, status: int, headers: Headers, lines: bytes, body: bytes
) -> None:
    """Do what `cycle.send` does for the two messages of a complete response."""
    if cycle.disconnected:
        return
    all_headers = (*cycle.default_headers, *headers)
    response = response_bytes(status, all_headers, lines, body, keep_alive=cycle.keep_alive)
    cycle.waiting_for_100_continue = False
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(response)
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


def response_bytes(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    lines: bytes,
    body: bytes,
    *,
    keep_alive: bool,
) -> bytes:
    """Return a whole response; the Content-Length is among the headers or the lines."""
    parts = [STATUS_LINE[status]]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts += (lines, b"\r\n" if keep_alive else b"connection: close\r\n\r\n", body)
    return b"".join(parts)
