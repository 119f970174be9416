"""The description of the service for people and tools: /docs, /redoc, /openapi.json.

They answer without a key, so they are limited by address.
"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse

from app.api.throttle import limited_by

OPENAPI_PATH = "/openapi.json"
# Of one address, of each page. A person opens one and its description; a tool polls at most once a
# second.
PAGES_PER_MINUTE = 120

router = APIRouter(include_in_schema=False)
_limited = limited_by(PAGES_PER_MINUTE)


@router.get(OPENAPI_PATH)
@_limited
async def openapi(request: Request) -> JSONResponse:
    """Describe the service to tools."""
    schema: dict[str, Any] = request.app.openapi()
    return JSONResponse(schema)


@router.get("/docs")
@_limited
async def docs(request: Request) -> HTMLResponse:  # noqa: ARG001  # slowapi asks for it
    """Describe the service to people."""
    return get_swagger_ui_html(openapi_url=OPENAPI_PATH, title="central-logger")


@router.get("/redoc")
@_limited
async def redoc(request: Request) -> HTMLResponse:  # noqa: ARG001  # as above
    """Describe the service to people, on one page."""
    return get_redoc_html(openapi_url=OPENAPI_PATH, title="central-logger")
