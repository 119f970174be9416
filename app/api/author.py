"""Who makes a change through the API, for the record of it."""

from fastapi import Request

from app.api.services import Services
from app.keys.changes import Author, Origin
from app.keys.principal import Principal


def author_of(request: Request, opened: Services, caller: Principal) -> Author:
    """Give the caller as the author of a change: in the turn in which it was authenticated."""
    return Author(
        opened.seals,
        asker=opened.authenticator.asker(caller),
        origin=origin_of(request, opened),
        restrict=opened.guard.check_anew,
        keys_max=opened.keys_per_client_max,
    )


def origin_of(request: Request, opened: Services) -> Origin:
    """Say where a request comes from."""
    return Origin(
        source_ip=opened.authenticator.source(request.scope),
        user_agent=request.headers.get("user-agent", ""),
        request_id=request.state.request_id,
    )
