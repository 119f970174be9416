"""The front door: log ingestion to the hot path, all else to FastAPI."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from app.edge import ingest, metrics
from app.edge.hardening import NO_SNIFFING, Bounds, Connections, Cors, with_headers
from app.edge.problem import Headers
from app.edge.prompt import PromptIngest
from app.edge.request_id import new_request_id
from app.edge.response import abort, parse_lines
from app.errors import StorageUnavailable


class Edge:
    """The ASGI application that the server runs, in front of two others.

    It owns the lifespan: what fails to open stops the start with one line, not with a traceback.
    """

    def __init__(
        self,
        control: Any,
        lifespan: Callable[["Edge"], AbstractAsyncContextManager[None]],
        *,
        bounds: Bounds,
        cors: Cors | None = None,
    ) -> None:
        self._control = control
        self._lifespan = lifespan
        self._cors = cors
        self.connections = Connections(bounds)
        self.ingest: ingest.IngestEndpoint | None = None
        self.prompt: PromptIngest | None = None
        # Said by EdgeProtocol: what it gives as a client's address is the other end's.
        self.sees_peers = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass one connection on."""
        kind = scope["type"]
        if kind == "http":
            if not self.sees_peers:
                scope = _without_borrowed_address(scope)
            more: Headers = []
            if self._cors is not None:
                if self._cors.answers(scope):
                    await self._cors.answer(scope, send)
                    return
                more = self._cors.headers(scope)
            if scope["path"] == ingest.PATH and scope["method"] == "POST":
                assert self.ingest is not None  # noqa: S101  # a server opens before it serves
                await self.ingest(scope, receive, with_headers(send, more) if more else send)
            else:
                await self._ask_control(scope, receive, send, more)
        elif kind == "lifespan":
            await self._live(receive, send)

    async def _ask_control(self, scope: Any, receive: Any, send: Any, more: Headers) -> None:
        """Give the answer a request id, and the limits that the request ran past."""
        request_id = new_request_id()
        state = {
            **scope.get("state", {}),
            "request_id": request_id,
            "is_head": scope["method"] == "HEAD",
            "abort": partial(abort, send, receive),
        }
        # A HEAD is a GET whose body the server leaves out (RFC 9110, 9.3.2).
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        scope = {**scope, "state": state, "method": method}

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                metrics.count_request("control", message["status"])
                headers = [
                    *message.get("headers", ()),
                    *more,
                    (b"x-request-id", request_id.encode()),
                ]
                if NO_SNIFFING not in headers:
                    headers.append(NO_SNIFFING)
                if "access" in state:
                    state["access"].answered(message["status"])
                if "account" in state:
                    headers += parse_lines(state["account"].header_lines())
                message = {**message, "headers": headers}
            await send(message)

        await self._control(scope, receive, send_with_headers)

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        phase = "startup"
        try:
            async with self._lifespan(self):
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except StorageUnavailable as error:
            message = f"{error.detail}: {error.reason}"
        except Exception as error:  # noqa: BLE001  # whatever it is, the operator reads one line
            message = f"{type(error).__name__}: {error}"
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": f"lifespan.{phase}.failed", "message": message})


def _without_borrowed_address(scope: Any) -> Any:
    """Forget an address that may be what X-Forwarded-For says, and not that of the other end.

    uvicorn by itself believes that header of whoever is on this machine (`--no-proxy-headers` ends
    that); whom to believe is for TRUSTED_PROXIES to say. No address is let in by none of them.
    """
    host = scope["client"][0].encode() if scope.get("client") else b""
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for" and host and host in value:
            return {**scope, "client": None}
    return scope
