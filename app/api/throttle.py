"""Limits of the management routes: of each key, on each route by itself.

Made by slowapi, whose limits hold only where a route is decorated and takes a parameter named
`request`; a test takes each route to its 429. They count in front of the route's own code, so a
request is counted before its body is read.
"""

from fastapi import Request
from slowapi import Limiter


def _caller(request: Request) -> str:
    # The function below is told nothing but this name, so the rate is part of it.
    rate: int = request.app.state.management_requests_per_minute
    return f"{rate} {request.state.account.principal.key_id}"


def _rate(key: str) -> str:
    """Return the limit of a caller; slowapi looks for a parameter of this name."""
    return f"{key.partition(' ')[0]}/minute"


# By endpoint: slowapi's own way counts each path by itself, hence each key that is named in one.
limited = Limiter(key_func=_caller, key_style="endpoint").limit(_rate)
