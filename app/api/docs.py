"""The description of the service for people and tools: /docs, /redoc, /openapi.json.

They answer without a key, so slowapi limits them by address. Its limits hold only where a route is
decorated and takes a parameter named `request`; a test takes each to its 429.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from slowapi import Limiter

from app.api.services import Services

OPENAPI_PATH = "/openapi.json"
# A person opens a page and its description; a tool polls at most once a second.
PAGES_PER_MINUTE = "120/minute"
RETRY_AFTER_S = 60


def _source(request: Request) -> str:
    services: Services = request.app.state.services
    # slowapi skips the limit for an empty key.
    return services.authenticator.source(request.scope) or "unix"


def add_docs(app: FastAPI) -> None:
    """Add the pages, with a limiter of this application's own."""
    app.state.limiter = limiter = Limiter(key_func=_source)

    @app.get(OPENAPI_PATH, include_in_schema=False)
    @limiter.limit(PAGES_PER_MINUTE)
    async def openapi(request: Request) -> JSONResponse:
        schema: dict[str, Any] = request.app.openapi()
        return JSONResponse(schema)

    @app.get("/docs", include_in_schema=False)
    @limiter.limit(PAGES_PER_MINUTE)
    async def docs(request: Request) -> HTMLResponse:  # noqa: ARG001  # slowapi asks for it
        return get_swagger_ui_html(openapi_url=OPENAPI_PATH, title="central-logger")

    @app.get("/redoc", include_in_schema=False)
    @limiter.limit(PAGES_PER_MINUTE)
    async def redoc(request: Request) -> HTMLResponse:  # noqa: ARG001  # as above
        return get_redoc_html(openapi_url=OPENAPI_PATH, title="central-logger")
