"""The vocabulary of the routes: who calls, what it may, what it stands on."""

from collections.abc import Collection
from typing import Annotated

from fastapi import Depends, Request

from app.activity.access import ALL_DATASETS
from app.api import access
from app.api.arrival import read_body
from app.api.services import Services
from app.edge.accesses import Pending
from app.errors import Elsewhere, Invalid, NotFound
from app.keys.principal import Principal
from app.keys.roles import MANAGEMENT
from app.logs.rows import NOT_A_SLUG, SLUG

ALL_CLIENTS = "*"


def services(request: Request) -> Services:
    """Return what the lifespan opened."""
    opened: Services = request.app.state.services
    return opened


Opened = Annotated[Services, Depends(services)]


async def authorize(request: Request, opened: Opened) -> None:
    """Let a request on to its route: authenticated, counted against its limits, and allowed."""
    rule = access.rule_of(request)
    if not rule.needs_key:
        return
    principal = await opened.authenticator.authenticate(request.scope)
    account = opened.limiter.account(principal)
    request.state.account = account
    address = opened.authenticator.source(request.scope)
    source = (address, request.headers.get("user-agent", "").encode("latin-1"))
    request.state.access = Pending(
        *(opened.accesses, principal.key_id, endpoint(request), source, _datasets(rule, request))
    )
    opened.guard.check(principal, address)
    signed = opened.signatures.check(principal, request.scope, manages=_is_management(rule))
    request.state.signed = signed
    request.state.caller = principal
    opened.sightings.note(principal, *source)
    await account.admit()
    access.check(rule, principal)
    if signed is not None:
        await opened.signatures.confirm(signed, await read_body(request))
        request.state.caller = await authorize_again(request)


def endpoint(request: Request) -> str:
    """Name the route that a request has reached, with nothing of what stands in its path."""
    return f"{request.method} {request.scope['route'].path}"


def _datasets(rule: access.Rule, request: Request) -> Collection[str]:
    """Say which datasets a request reads: those it names, or all that its key may."""
    if rule.scope not in {access.READ.scope, access.QUERY.scope}:
        return ()
    named = {one for one in request.query_params.getlist("dataset") if SLUG.fullmatch(one)}
    return named or (ALL_DATASETS,)


async def authorize_again(request: Request) -> Principal:
    """See whether the caller still may, after its body has come: that may have been held back.

    A request that was begun with a key must give nothing once the key has been revoked.
    """
    opened = services(request)
    principal = await opened.authenticator.authenticate(request.scope)
    opened.guard.check(principal, opened.authenticator.source(request.scope))
    rule = access.rule_of(request)
    opened.signatures.check_still(request.state.signed, principal, manages=_is_management(rule))
    access.check(rule, principal)
    return principal


def _is_management(rule: access.Rule) -> bool:
    return rule.scope == MANAGEMENT


def caller(request: Request) -> Principal:
    """Return who calls, whom `authorize` has let pass."""
    principal: Principal = request.state.caller
    return principal


Caller = Annotated[Principal, Depends(caller)]


def client_asked(principal: Principal, named: str | None, opened: Services) -> str:
    """Return the client whose data is asked for: the key's own, or the one an admin names.

    Another client's is not forbidden but not found, as if it did not exist.
    """
    if principal.client_id is not None:
        if named not in {None, principal.client_id}:
            raise Elsewhere
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


def client_or_all(principal: Principal, named: str | None, opened: Services) -> str | None:
    """Do the same where an admin need not name a client; None for all of them."""
    if principal.client_id is None and named in {None, ALL_CLIENTS}:
        return None
    return client_asked(principal, named, opened)
