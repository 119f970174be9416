"""uvicorn's HTTP protocol, with a shorter way for logs that have arrived whole.

An ASGI server makes a task, an event and a chain of coroutines for each request: half of what a
bare echo costs. A request that one read brought whole needs none of them to be taken in. So a POST
of logs is offered to the application at once; if that takes it, the answer is written when the log
is on disk. All else goes uvicorn's way, as if nothing had been.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.edge.ingest import PATH
from app.edge.problem import CONTENT_TYPE, Headers, problem_body
from app.edge.request_id import new_request_id
from app.edge.response import response_bytes
from app.edge.switch import Edge

_RAW_PATH = PATH.encode()


class _NobodyWaits:
    """Stands for the event that would wake a request's task."""

    def set(self) -> None:
        """Wake nobody."""


_NOBODY_WAITS = _NobodyWaits()


class Exchange:
    """A request that has arrived whole; each that is taken is either answered or given back.

    For uvicorn it stands where the cycle of another request would, and so has some of its members.
    """

    __slots__ = (
        "_protocol",
        "_scope",
        "body",
        "client",
        "disconnected",
        "headers",
        "keep_alive",
        "message_event",
        "response_complete",
    )

    def __init__(self, protocol: "EdgeProtocol", body: bytes) -> None:
        self.client = protocol.client
        self.headers = protocol.headers
        self.body = body
        self._protocol = protocol
        self._scope = protocol.scope
        self.message_event = _NOBODY_WAITS
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False

    def answer(self, status: int, headers: Headers, lines: bytes, body: bytes) -> None:
        """Send a response; `lines` are headers too, each `name: value` with CR LF."""
        self.response_complete = True
        if self.disconnected:
            return
        protocol = self._protocol
        protocol.transport.write(
            response_bytes(
                status,
                (*protocol.server_state.default_headers, *headers),
                lines,
                body,
                keep_alive=self.keep_alive,
            )
        )
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()

    def give_back(self) -> None:
        """Have the request run as any other."""
        self.response_complete = True
        if not self.disconnected:
            self._protocol.run(self, self._scope)


class EdgeProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prompt = self.app.prompt if isinstance(self.app, Edge) else None
        # The parts of a body whose request has not been begun with.
        self._held: list[bytes] | None = None

    def data_received(self, data: bytes) -> None:
        """Parse what came; a request that it does not complete goes uvicorn's way."""
        super().data_received(data)
        if self._held is not None:
            self._pass_on()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as any other fault, and close."""
        request_id = new_request_id()
        body = problem_body(400, msg, request_id, {})
        lines = b"x-request-id: %b\r\ncontent-length: %d\r\n" % (request_id.encode(), len(body))
        headers = (*self.server_state.default_headers, CONTENT_TYPE)
        self.transport.write(response_bytes(400, headers, lines, body, keep_alive=False))
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Hold back what may be taken whole."""
        if (
            self.url == _RAW_PATH
            and self._prompt is not None
            and self.parser.get_method() == b"POST"
            and not self.expect_100_continue
            and not self.flow.write_paused  # a slow reader's answers must not pile up
            and (self.cycle is None or self.cycle.response_complete)  # else it is pipelined
        ):
            self._held = []
        else:
            super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Pass on a body in chunks, which may end in headers of its own."""
        if self._held is not None:
            self._pass_on()

    def on_body(self, body: bytes) -> None:
        """Take in a part of a body."""
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        """Offer a request that has arrived whole."""
        if self._held is not None:
            if self._offer(self._held):
                self._held = None
                return
            self._pass_on()
        super().on_message_complete()

    def _offer(self, parts: list[bytes]) -> bool:
        if not self.parser.should_keep_alive() or self.parser.get_http_version() != "1.1":
            return False
        exchange = Exchange(self, parts[0] if len(parts) == 1 else b"".join(parts))
        assert self._prompt is not None  # noqa: S101  # else nothing is held back
        if not self._prompt.take(exchange):
            return False
        self.cycle = exchange  # type: ignore[assignment]
        return True

    def _pass_on(self) -> None:
        """Begin with the request that was held back, the way uvicorn does."""
        held, self._held = self._held or [], None
        super().on_headers_complete()
        for part in held:
            super().on_body(part)

    def run(self, exchange: Exchange, scope: Any) -> None:
        """Run a request that was taken, the way uvicorn does."""
        scope |= {"method": "POST", "path": PATH, "raw_path": _RAW_PATH, "query_string": b""}
        arrived = asyncio.Event()
        arrived.set()
        cycle = RequestResponseCycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            self.access_log,
            self.server_state.default_headers,
            arrived,
            expect_100_continue=False,
            keep_alive=exchange.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body += exchange.body
        cycle.more_body = False
        current: object = self.cycle
        if current is exchange:  # else another request has been read behind it
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)
