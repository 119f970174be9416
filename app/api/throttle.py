"""Limits of the routes that are not made for machines in a hurry: management, and pages for people.

Made by slowapi, whose limits hold only where a route is decorated and takes a parameter named
`request`; a test takes each route to its 429. They count in front of the route's own code, so a
request is counted before its body is read.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from slowapi import Limiter

from app.addresses import party_of
from app.api.services import Services

# All limits are of a minute, and slowapi does not tell what is left of it.
RETRY_AFTER_S = 60

_Route = TypeVar("_Route", bound=Callable[..., Any])


def source(request: Request) -> str:
    """Name where a request comes from."""
    services: Services = request.app.state.services
    # slowapi skips the limit for an empty key.
    return party_of(services.authenticator.source(request.scope)) or "unix"


def _caller(request: Request) -> str:
    # The function below is told nothing but this name, so the rate is part of it.
    rate: int = request.app.state.management_requests_per_minute
    return f"{rate} {request.state.account.principal.key_id}"


def _rate(key: str) -> str:
    """Return the limit of a caller; slowapi looks for a parameter of this name."""
    return f"{key.partition(' ')[0]}/minute"


def _within_app(name: Callable[[Request], str]) -> Callable[[Request], str]:
    """Name who is counted among the callers of one application: the counts are the process's."""
    return lambda request: f"{name(request)} {request.app.state.throttle_id}"


# By endpoint: slowapi's own way counts each path by itself, hence each key that is named in one.
_limiter = Limiter(key_func=_within_app(source), key_style="endpoint")

# Of each key, on each route by itself.
limited: Callable[[_Route], _Route] = _limiter.limit(_rate, key_func=_within_app(_caller))


def limited_by(
    requests_per_minute: int, name: Callable[[Request], str] = source
) -> Callable[[_Route], _Route]:
    """Limit a route that asks for no key: of each address, or of whatever else `name` names."""
    return _limiter.limit(f"{requests_per_minute}/minute", key_func=_within_app(name))
