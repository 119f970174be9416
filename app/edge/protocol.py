"""uvicorn's HTTP protocol, with a shorter way for logs that have arrived whole.

An ASGI server makes a task, an event and a chain of coroutines for each request: half of what a
bare echo costs. A request that one read brought whole needs none of them to be taken in. So a POST
of logs is offered to the application at once; if that takes it, the answer is written when the log
is on disk. The next of the same head is known by that, unparsed. All else goes uvicorn's way, as if
nothing had been.

A client that takes its time holds a connection, and there is no end of clients: each has seconds
for the head of its request, and an address has so many connections. One timer a connection looks
at what the client owes; a request that arrives in time costs it nothing. Bodies are `body`'s. It
also looks whether what the client is owed gets anywhere: a reply that nobody reads has a time too.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.edge.ingest import OWN_LINES, PATH
from app.edge.problem import CONTENT_TYPE, Headers, problem, problem_body
from app.edge.prompt import Head
from app.edge.repeated import RepeatedHead, repeated_head
from app.edge.request_id import new_request_id
from app.edge.response import response_bytes
from app.edge.switch import Edge
from app.edge.unread import cut_off, taken_bytes
from app.errors import Overloaded

_RAW_PATH = PATH.encode()
# Of a request's head, or of what stands between or behind the parts of its body: the parser gathers
# it without an end, and a URL of more than this is refused as well.
FIELD_BYTES_MAX = 64 * 1024
# Requests behind one whose answer is under way. uvicorn reads on no further then, but one read may
# bring thousands, each of which takes as much as any.
PIPELINED_MAX = 64
# Heads of a connection, each unlike the one before it, until no more are remembered: where every
# request has an id of its own, say, that would be in vain.
HEADS_MAX = 8


class TooManyError(Exception):
    """More requests are pipelined than anybody needs."""


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
        "body",
        "client",
        "disconnected",
        "keep_alive",
        "message_event",
        "response_complete",
        "scope",
    )

    def __init__(self, protocol: "EdgeProtocol", body: bytes) -> None:
        self.client = protocol.client
        self.body = body
        self._protocol = protocol
        self.scope = protocol.scope
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
            self._protocol.run(self)


class EdgeProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prompt = None
        if isinstance(self.app, Edge):
            self._prompt = self.app.prompt
            self.app.sees_peers = True
        # The parts of a body whose request has not been begun with.
        self._held: list[bytes] | None = None
        self._doors = self.app.connections if isinstance(self.app, Edge) else None
        self._entered: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        # The request that the client owed something of when the timer looked last.
        self._overdue: object = None
        # Bytes in a row that were neither the end of a head nor of a body.
        self._field_bytes = 0
        self._has_head = False
        self.head: list[tuple[bytes, bytes]] = []
        # Requests that were under way, or waited for their turn, when another came behind them.
        self._ahead: list[Any] = []
        # Whether the parser waits for a request to begin; what has arrived now, if it did.
        self._is_between = True
        self._arriving = b""
        # The last head that was taken, and what is known of it.
        self._repeated: RepeatedHead | None = None
        self._known: Head | None = None
        self._heads_left = HEADS_MAX
        # Since when the client may take its time, until the next request.
        self._rests_since_s: float | None = None
        self._rest_timer: asyncio.TimerHandle | None = None
        # Whether the next pipelined request waits for the last answer to be taken.
        self._next_waits = False
        # How much of a reply the client had taken when that changed last, and when it was.
        self._taken: int | None = None
        self._taken_at_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let a client in, unless its address has too many connections."""
        super().connection_made(transport)
        if self._doors is None:
            return
        self._entered = self._doors.enter(self.client[0] if self.client else "")
        if self._entered is None:
            request_id = new_request_id()
            self._answer_last(request_id, *problem(Overloaded(), request_id))
        else:
            self._await_client(self._doors.bounds.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let a client out.

        uvicorn tells the last request alone, and those ahead of it would write where nobody is.
        """
        for cycle in self._ahead:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)
        for timer in (self._timer, self._rest_timer):
            if timer is not None:
                timer.cancel()
        if self._doors is not None and self._entered is not None:
            self._doors.leave(self._entered)
            self._doors.unread.remove(self.transport)

    def pause_writing(self) -> None:
        """Have nothing more written than what is on its way: the client reads too slowly."""
        super().pause_writing()
        if self._doors is not None:
            self._doors.unread.add(self.transport)

    def resume_writing(self) -> None:
        """Write on."""
        super().resume_writing()
        if self._doors is not None:
            self._doors.unread.remove(self.transport)
        if self._next_waits:
            self._next_waits = False
            self._start_asgi_task(*self.pipeline.pop())

    def _await_client(self, head_s: float) -> None:
        self._timer = self.loop.call_later(head_s, self._look, head_s)

    def _look(self, head_s: float) -> None:
        """Close the connection if its client has owed the same thing for `head_s`, or twice that.

        It owes something while nothing of it is under way, nor the time for a next request runs
        (which ends by uvicorn's own timer, but is stopped by any byte): the rest of a head, or of
        a body that was answered early, or anything at all. Of the first request it is known since
        when: since the connection is there.
        """
        if self._is_stalled():
            cut_off(self.transport)
            return
        if self.transport.is_closing():
            self._await_client(head_s)  # the rest of a reply may wait for its client
            return
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if is_busy or self._rests_since_s is not None:
            self._overdue = None
        elif self.cycle is None or self._overdue is self.scope:
            if self.scope is None or (self.cycle is not None and self.scope is self.cycle.scope):
                self.transport.close()  # it has not begun a request that could be answered
            else:
                self._refuse(408, "The request did not arrive in time")
            return
        else:
            self._overdue = self.scope
        self._await_client(head_s)

    def _is_stalled(self) -> bool:
        """Say whether for too long the client has taken nothing of what was written to it."""
        assert self._doors is not None  # noqa: S101  # else nothing looks
        # TLS takes a reply of any size at once, and says nothing of what it does with it.
        may_wait = self.flow.write_paused or self.transport.is_closing() or self.scheme == "https"
        taken = taken_bytes(self.transport) if may_wait else None
        if taken is None or taken != self._taken:
            self._taken, self._taken_at_s = taken, self.loop.time()
            return False
        return self.loop.time() - self._taken_at_s >= self._doors.bounds.unread_s

    def data_received(self, data: bytes) -> None:
        """Parse what came; a request that it does not complete goes uvicorn's way."""
        if self._is_between and self._take_repeated(data):
            return
        self._field_bytes += len(data)
        # The rest of a head that was begun before is none that a request could begin with.
        self._arriving = data if self._is_between else b""
        super().data_received(data)
        self._arriving = b""
        if self._held is not None:
            self._pass_on()
        if self._field_bytes > FIELD_BYTES_MAX:
            self._refuse_fields()

    def _refuse_fields(self) -> None:
        """Close a connection whose head or trailer has no end."""
        if self.transport.is_closing():
            return
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if is_busy or self._has_head:
            self.transport.close()  # an answer is under way, or was given
        else:
            self._refuse(431, f"The head of the request is larger than {FIELD_BYTES_MAX} bytes")

    def on_message_begin(self) -> None:
        """Begin with the head of a request; raise TooManyError for one more in a row."""
        if len(self.pipeline) >= PIPELINED_MAX:
            raise TooManyError
        self._has_head = self._is_between = False
        super().on_message_begin()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as any other fault, and close."""
        if self.pipeline:
            self.transport.close()  # the answers before it are not there yet
        else:
            self._refuse(400, msg)

    def _refuse(self, status: int, detail: str) -> None:
        request_id = new_request_id()
        body = problem_body(status, detail, request_id, {})
        self._answer_last(request_id, status, [CONTENT_TYPE], body)

    def _answer_last(self, request_id: str, status: int, headers: Headers, body: bytes) -> None:
        """Answer without a request's cycle, and close."""
        lines = OWN_LINES % (request_id.encode(), len(body))
        headers = [*self.server_state.default_headers, *headers]
        self.transport.write(response_bytes(status, headers, lines, body, keep_alive=False))
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Hold back what may be taken whole."""
        self._has_head = True
        # What comes from here on is a trailer (RFC 9110, 6.5.1), which uvicorn would put with the
        # head: a key or an address is not to come so late. A look at each field would cost more.
        self.head, self.headers = self.headers, []
        self._field_bytes = 0
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
            self._begin()

    def _begin(self) -> None:
        """Begin with a request the way uvicorn does, which looks at the head once more."""
        self.headers = self.head
        former: Any = self.cycle
        super().on_headers_complete()
        self.headers = []
        if former is not None and not former.response_complete:
            self._ahead = [one for one in self._ahead if not one.response_complete]
            self._ahead.append(former)

    def on_chunk_header(self) -> None:
        """Pass on a body in chunks, which may end in headers of its own."""
        if self._held is not None:
            self._pass_on()

    def on_body(self, body: bytes) -> None:
        """Take in a part of a body."""
        self._field_bytes = 0
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        """Offer a request that has arrived whole."""
        self._field_bytes = 0
        if self._held is not None:
            if self._offer(self._held):
                self._held = None
                return
            self._pass_on()
        super().on_message_complete()

    def _offer(self, parts: list[bytes]) -> bool:
        if not self.parser.should_keep_alive() or self.parser.get_http_version() != "1.1":
            return False
        assert self._prompt is not None  # noqa: S101  # else nothing is held back
        head = self._prompt.look(self.head)
        exchange = Exchange(self, parts[0] if len(parts) == 1 else b"".join(parts))
        if head is None or not self._prompt.take(exchange, head):
            return False
        self.cycle = exchange  # type: ignore[assignment]
        self._is_between = True
        if self._heads_left:
            self._heads_left -= 1
            self._known, self._repeated = head, repeated_head(self._arriving, exchange.body)
        else:
            self._repeated = None
        return True

    def _take_repeated(self, data: bytes) -> bool:
        """Take a request with the head of the last one; False: nothing was done."""
        repeated, known = self._repeated, self._known
        if repeated is None or known is None or self._prompt is None or self.flow.write_paused:
            return False
        if not self.cycle.response_complete:  # it is pipelined
            return False
        body = repeated.body_of(data)
        if body is None:
            return False
        exchange = Exchange(self, body)
        if not self._prompt.take(exchange, known):
            return False
        self.cycle = exchange  # type: ignore[assignment]
        self._rests_since_s = None
        self._heads_left = HEADS_MAX
        return True

    def _pass_on(self) -> None:
        """Begin with the request that was held back, the way uvicorn does."""
        held, self._held = self._held or [], None
        self._begin()
        for part in held:
            super().on_body(part)

    def run(self, exchange: Exchange) -> None:
        """Run a request that was taken, the way uvicorn does."""
        # The head may be that of one before it, of another length.
        length = (b"content-length", b"%d" % len(exchange.body))
        headers = [length if one[0] == length[0] else one for one in exchange.scope["headers"]]
        scope: Any = exchange.scope | {"headers": headers, "state": self.app_state.copy()}
        scope |= {"method": "POST", "path": PATH, "raw_path": _RAW_PATH, "query_string": b""}
        if self.scope is exchange.scope:
            self.scope = scope
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
        if current is exchange:
            self.cycle = cycle
        else:  # another request has been read behind it
            self._ahead.append(cycle)
        self._start_asgi_task(cycle, self.app)

    # Keeping the connection. uvicorn makes a timer at each answer and cancels it at the next
    # request: 1 of the 25 us that one takes. Here a timer looks how long the client has rested.

    def on_response_complete(self) -> None:
        """Begin with the next request that is here, or to wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            # Its answer would be made, and held, for a client that has not taken the last one.
            self._next_waits = self.flow.write_paused
            if not self._next_waits:
                self._start_asgi_task(*self.pipeline.pop())
            return
        self._rests_since_s = self.loop.time()
        if self._rest_timer is None:
            self._rest_timer = self.loop.call_later(self.timeout_keep_alive, self._look_at_rest)

    def _unset_keepalive_if_required(self) -> None:
        self._rests_since_s = None  # something has come

    def _look_at_rest(self) -> None:
        self._rest_timer = None
        if self._rests_since_s is None or self.transport.is_closing():
            return
        left_s = self._rests_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            self.transport.close()
        else:
            self._rest_timer = self.loop.call_later(left_s, self._look_at_rest)
