"""/claim/{token}: the pages behind a claim link, for people, hence in HTML and without a key.

Opening the page uses nothing up, since mail scanners and previews open every link; its button does.
"""

import asyncio
from base64 import b64encode
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.api.author import origin_of
from app.api.dependencies import Opened
from app.api.openapi import documented
from app.api.throttle import limited_by, source
from app.api.writes import CLAIMS
from app.delivery import claims
from app.delivery.templates import STYLE, render
from app.edge.hardening import page_headers
from app.edge.problem import retry_after, status_of
from app.errors import Gone, LoggerError, NotFound
from app.keys.changes import Author

PATH = "/claim/{token}"
# Of one address, of each of the two pages. A person opens one and presses its button; an office of
# many people may share an address.
PAGES_PER_MINUTE = 60

_STYLE_HASH = b64encode(sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    # Among them no referrer: the link is a secret.
    **page_headers(f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'"),
    "Cache-Control": "no-store",
    "X-Robots-Tag": "noindex, nofollow",
}

_HTML = {"text/html": {"schema": {"type": "string"}}}


def _source(request: Request) -> str:
    """Name who asks, apart from those at the same address whose links can't be any.

    Neither mistyped links nor guesses without a right checksum keep a good link from its page. A
    neighbour who makes up links with one does: whether a link is good is a read of the database,
    and to bound those is what the limit is for.
    """
    kind = "link" if claims.is_well_formed(request.path_params["token"]) else "none"
    return f"{kind} {source(request)}"


_limited = limited_by(PAGES_PER_MINUTE, _source)


def _documented() -> dict[str, Any]:
    arguments = documented(_HTML, 404, 429, 503, public=True)
    responses = arguments["responses"]
    responses[410] = {"description": "Used, or its time is over"}
    for status in (410, 429, 503):
        responses[status]["content"] = _HTML
    # A path with a slash in its token reaches no route, and gets the problem of any unknown path.
    responses[404]["content"] |= _HTML
    return arguments


router = APIRouter(tags=["claims"])


@router.get(PATH, summary="Open a claim link", **_documented())
@_limited
async def show_button(request: Request, token: str, opened: Opened) -> HTMLResponse:  # noqa: ARG001  # slowapi asks for it
    """Ask whether the key is to be shown."""
    await asyncio.to_thread(claims.check_open, opened.engine, token)
    return HTMLResponse(render("claim_ask.html"), headers=HEADERS)


@router.post(PATH, summary="Show the key behind a claim link, once", **_documented())
@_limited
async def show_key(request: Request, token: str, opened: Opened) -> HTMLResponse:
    """Show the key."""
    by = Author(opened.seals, claims.BY_LINK, origin=origin_of(request, opened))
    claimed = await opened.writes.run(CLAIMS, claims.claim, opened.engine, token, by=by)
    return HTMLResponse(render("claim_shown.html", **claimed._asdict()), headers=HEADERS)


def error_page(error: LoggerError) -> HTMLResponse:
    """Tell a person why there is no key."""
    headers = dict(HEADERS)
    wait_s = retry_after(error)
    if isinstance(error, NotFound):
        page = render("claim_unknown.html")
    elif isinstance(error, Gone):
        page = render("claim_gone.html")
    else:
        page = render("claim_later.html", wait_s=wait_s)
        headers["Retry-After"] = str(wait_s)
    return HTMLResponse(page, status_of(error), headers=headers)
