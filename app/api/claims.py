"""/claim/{token}: the pages behind a claim link, for people, hence in HTML and without a key.

Opening the page uses nothing up, since mail scanners and previews open every link; its button does.
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from slowapi import Limiter

from app.api.dependencies import Opened
from app.api.openapi import documented
from app.api.services import Services
from app.delivery import claims
from app.delivery.templates import STYLE, render
from app.edge.address import limit_group
from app.edge.problem import status_of
from app.errors import Gone, NotFound

PATH = "/claim/{token}"
# A person opens one and presses its button; an office of many people may share an address.
PAGES_PER_MINUTE = "60/minute"

_STYLE_HASH = b64encode(sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",  # the link is a secret
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
}

T = TypeVar("T")

_HTML = {"text/html": {"schema": {"type": "string"}}}


def make_router() -> APIRouter:
    """Make the routes, with a limiter of this application's own.

    slowapi would count each token by itself, and so a guesser never, but for `key_style`.
    """
    router = APIRouter(tags=["claims"])
    limited = Limiter(key_func=_source, key_style="endpoint").limit(PAGES_PER_MINUTE)

    @router.get(PATH, summary="Open a claim link", **_documented())
    @limited
    async def show_button(request: Request, token: str, opened: Opened) -> HTMLResponse:  # noqa: ARG001  # slowapi asks for it
        return await _answer(
            lambda: claims.check_open(opened.engine, token),
            lambda _: render("claim_ask.html"),
        )

    @router.post(PATH, summary="Show the key behind a claim link, once", **_documented())
    @limited
    async def show_key(request: Request, token: str, opened: Opened) -> HTMLResponse:  # noqa: ARG001  # as above
        return await _answer(
            lambda: claims.claim(opened.engine, token),
            lambda claimed: render("claim_shown.html", **claimed._asdict()),
        )

    return router


async def _answer(step: Callable[[], T], page: Callable[[T], str]) -> HTMLResponse:
    """Take a step in a thread and show its page, or the one for a link that does not work."""
    try:
        return HTMLResponse(page(await asyncio.to_thread(step)), headers=HEADERS)
    except NotFound as error:
        body, status = render("claim_unknown.html"), status_of(error)
    except Gone as error:
        body, status = render("claim_gone.html"), status_of(error)
    return HTMLResponse(body, status, headers=HEADERS)


def _source(request: Request) -> str:
    services: Services = request.app.state.services
    # slowapi skips the limit for an empty key.
    return limit_group(services.authenticator.source(request.scope)) or "unix"


def _documented() -> dict[str, Any]:
    arguments = documented(_HTML, 404, 429, 503, public=True)
    responses = arguments["responses"]
    # A path with a slash in its token reaches no route, and gets the problem of any unknown path.
    responses[404]["content"] |= _HTML
    responses[410] = {"description": "Used, or its time is over", "content": _HTML}
    return arguments
