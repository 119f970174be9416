"""The vocabulary of the routes: who calls, what it may, what it stands on."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from app.api.services import Services
from app.errors import Forbidden, Invalid, NotFound
from app.keys.principal import Principal
from app.logs.rows import NOT_A_SLUG, SLUG

ALL_CLIENTS = "*"


def services(request: Request) -> Services:
    """Return what the lifespan opened."""
    opened: Services = request.app.state.services
    return opened


Opened = Annotated[Services, Depends(services)]


async def caller(request: Request, opened: Opened) -> Principal:
    """Authenticate and count the request against its limits."""
    principal = await opened.authenticator.authenticate(request.scope)
    account = opened.limiter.account(principal)
    request.state.account = account
    opened.limiter.admit(account)
    return principal


Caller = Annotated[Principal, Depends(caller)]


def require(scope: str) -> Callable[[Principal], Awaitable[Principal]]:
    """Return the dependency that lets only callers with a scope pass."""

    async def check(principal: Caller) -> Principal:
        if scope not in principal.scopes:
            raise Forbidden(f"Requires scope '{scope}'")
        return principal

    return check


LogReader = Annotated[Principal, Depends(require("logs:read"))]
UsageReader = Annotated[Principal, Depends(require("usage:read"))]


async def platform_admin(principal: Caller) -> Principal:
    """Let only platform keys pass."""
    if not principal.is_admin:
        raise Forbidden("Admin key required")
    return principal


def client_asked(principal: Principal, named: str | None, opened: Services) -> str:
    """Return the client whose data is asked for: the key's own, or the one an admin names.

    Another client's is not forbidden but not found, as if it did not exist.
    """
    if principal.client_id is not None:
        if named not in {None, principal.client_id}:
            raise NotFound
        return principal.client_id
    if named is None:
        raise Invalid.parameter("client_id", "is required with an admin key")
    if named == ALL_CLIENTS:
        return named
    if not SLUG.fullmatch(named):
        raise Invalid.parameter("client_id", NOT_A_SLUG)
    if not opened.authenticator.has_client(named):
        raise NotFound
    return named
