"""The description of the service for people and tools: /docs, /redoc, /openapi.json.

They answer without a key, so they are limited by address.
"""

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse

from app.api.throttle import limited_by
from app.edge.hardening import page_headers

OPENAPI_PATH = "/openapi.json"
# Of one address, of each page. A person opens one and its description; a tool polls at most once a
# second.
PAGES_PER_MINUTE = 120

# Both pages are empty but for a script of their project's, which its CDN serves and which styles
# the page by itself. Their own script is let in by its hash.
_CDN = "https://cdn.jsdelivr.net"
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {cdn} https://fonts.googleapis.com "
    "'unsafe-inline'; font-src https://fonts.gstatic.com; img-src 'self' data: "
    "https://fastapi.tiangolo.com https://cdn.redoc.ly; connect-src 'self'; worker-src blob:; "
    "form-action 'none'"
)

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
    return _secured(get_swagger_ui_html(openapi_url=OPENAPI_PATH, title="central-logger"))


@router.get("/redoc")
@_limited
async def redoc(request: Request) -> HTMLResponse:  # noqa: ARG001  # as above
    """Describe the service to people, on one page."""
    return _secured(get_redoc_html(openapi_url=OPENAPI_PATH, title="central-logger"))


def _secured(page: HTMLResponse) -> HTMLResponse:
    """Let a page load what it is made of, and nothing else."""
    scripts = _SCRIPT.findall(bytes(page.body))
    hashes = [f"'sha256-{b64encode(sha256(one).digest()).decode()}'" for one in scripts]
    policy = _POLICY.format(scripts=" ".join((_CDN, *hashes)), cdn=_CDN)
    page.headers.update(page_headers(policy))
    return page
