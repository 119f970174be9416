"""The FastAPI application of the control and query plane, with every error as a problem."""

from http import HTTPStatus
from uuid import uuid4

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from slowapi.errors import RateLimitExceeded
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app import __version__
from app.api import (
    alerts,
    audit,
    claims,
    clients,
    denials,
    docs,
    erasure,
    export,
    health,
    keys,
    logs,
    query,
    tail,
    usage,
)
from app.api.access import RULES
from app.api.dependencies import authorize, endpoint
from app.api.openapi import describe
from app.api.services import Services
from app.api.throttle import RETRY_AFTER_S
from app.edge.problem import CONTENT_TYPE, Headers, problem, problem_body
from app.errors import Forbidden, Invalid, LoggerError, RateLimited, StorageUnavailable, fault

log = structlog.get_logger(__name__)


def create_control_app(
    *,
    metrics_public: bool = False,
    management_requests_per_minute: int = 600,
    docs_enabled: bool = True,
) -> FastAPI:
    """Build the application; `state.services` is set once the service has opened."""
    app = FastAPI(
        title="central-logger",
        version=__version__,
        redirect_slashes=False,
        dependencies=[Depends(authorize)],
        openapi_url=None,  # the pages for people are in app/api/docs.py, and limited
    )
    app.state.metrics_public = metrics_public
    app.state.management_requests_per_minute = management_requests_per_minute
    app.state.throttle_id = uuid4()
    routers = (
        *(export, tail, logs, query, usage, keys),
        *(audit, alerts, clients, denials, erasure, health, claims),
        *((docs,) if docs_enabled else ()),
    )
    for routes in routers:
        app.include_router(routes.router)
    app.add_exception_handler(LoggerError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RateLimitExceeded, _on_limit)
    app.add_exception_handler(Exception, _on_fault)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoggerError)  # noqa: S101
    services: Services = request.app.state.services
    request_id = request.state.request_id
    account = getattr(request.state, "account", None)
    principal = None if account is None else account.principal
    if principal is not None and isinstance(error, Forbidden | RateLimited):
        services.tally.count(principal, denied=1)
    services.denials.note(error, request_id, endpoint(request), request.scope, principal)
    if isinstance(error, StorageUnavailable):
        log.error("storage unavailable", reason=error.reason, request_id=request_id)
    if request.scope["route"].path == claims.PATH:
        return claims.error_page(error)
    return _response(*problem(error, request_id))


def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    errors = [
        fault(str(one["loc"][-1]) if one["loc"] else None, one["msg"]) for one in error.errors()
    ]
    return _on_error(request, Invalid(errors))


def _on_limit(request: Request, error: Exception) -> Response:
    """Answer for slowapi, whose limits stand on routes that people open."""
    assert isinstance(error, RateLimitExceeded)  # noqa: S101
    return _on_error(request, RateLimited(["requests"], RETRY_AFTER_S))


def _on_http(request: Request, error: Exception) -> Response:
    """Answer what the router itself refuses: no such path, or not with this method."""
    assert isinstance(error, HTTPException)  # noqa: S101
    headers: Headers = [CONTENT_TYPE]
    for name, value in (error.headers or {}).items():
        allowed = _allowed(request) if name.lower() == "allow" else value
        headers.append((name.lower().encode(), allowed.encode()))
    phrase = HTTPStatus(error.status_code).phrase
    detail = "Not found" if error.status_code == HTTPStatus.NOT_FOUND else phrase
    body = problem_body(error.status_code, detail, request.state.request_id, {})
    return _response(error.status_code, headers, body)


def _allowed(request: Request) -> str:
    """Name the methods of a path: the router knows only those of the first route that it met."""
    path = request.url.path
    methods = {method for method, route in RULES if compile_path(route)[0].match(path)}
    return ", ".join(sorted(methods))


def _on_fault(request: Request, error: Exception) -> Response:
    log.error("unexpected fault", request_id=request.state.request_id, exc_info=error)
    body = problem_body(500, "Internal error", request.state.request_id, {})
    return _response(500, [CONTENT_TYPE], body)


def _response(status: int, headers: Headers, body: bytes) -> Response:
    response = Response(body, status)
    response.raw_headers[:] = [*headers, (b"content-length", b"%d" % len(body))]
    return response
