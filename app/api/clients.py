"""/api/v1/clients: made and changed by the platform; their own administrators may see to names."""

from contextlib import closing
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.author import author_of
from app.api.body import read_json, read_query
from app.api.dependencies import Caller, Opened
from app.api.forms import ClientCreate, ClientList, ClientPatch, Nothing, columns
from app.api.openapi import BODY_FAULTS, CLIENT, CLIENT_PAGE, documented
from app.api.pages import render_page
from app.api.reads import reading_of
from app.api.receipt import receipt
from app.api.schemas import CLIENT_CREATE, CLIENT_LIST, CLIENT_PATCH
from app.api.throttle import limited
from app.api.writes import place_of
from app.keys import clients
from app.keys.objects import client_object

router = APIRouter(prefix="/api/v1/clients", tags=["clients"])


@router.post(
    "",
    status_code=201,
    summary="Make a client",
    **documented(CLIENT, *BODY_FAULTS, 403, 409, status=201, body=CLIENT_CREATE),
)
@limited
async def create(request: Request, opened: Opened) -> dict[str, Any]:
    """Make a client; its keys are made by themselves."""
    form, _, caller = await read_json(request, ClientCreate)
    properties = columns(form)
    client_id = properties.pop("client_id")
    client = await opened.writes.run(
        place_of(caller),
        clients.create_client,
        opened.engine,
        client_id,
        properties,
        by=author_of(request, opened, caller),
    )
    return client_object(client)


@router.get("", summary="List clients", **documented(CLIENT_PAGE, 403, 422, parameters=CLIENT_LIST))
@limited
async def list_page(request: Request, caller: Caller, opened: Opened) -> Response:
    """List clients by client_id; a client's own key sees its own alone."""
    query = read_query(request, ClientList)
    after, limit = query.cursor or "", query.limit

    def render() -> bytes:
        found = clients.each_client(opened.engine, asker=caller, after=after, limit=limit + 1)
        with closing(found):
            return render_page(
                "clients",
                found,
                limit,
                show=client_object,
                cursor_of=lambda client: client.client_id,
            )

    body = await opened.reads.run(reading_of(caller), render)
    return Response(body, media_type="application/json")


@router.get("/{client_id}", summary="Show a client", **documented(CLIENT, 403, 404, 422))
@limited
async def show(request: Request, client_id: str, caller: Caller, opened: Opened) -> dict[str, Any]:
    """Return a client."""
    read_query(request, Nothing)
    client = await opened.reads.run(
        reading_of(caller), clients.get_client, opened.engine, client_id, asker=caller
    )
    return client_object(client)


@router.patch(
    "/{client_id}",
    summary="Change a client",
    **documented(CLIENT, *BODY_FAULTS, 403, 404, body=CLIENT_PATCH),
)
@limited
async def change(request: Request, client_id: str, opened: Opened) -> dict[str, Any]:
    """Set what is named and leave the rest; an inactive client's keys stop at once."""
    form, _, caller = await read_json(request, ClientPatch)
    changed = await opened.writes.run(
        place_of(caller),
        clients.update_client,
        opened.engine,
        client_id,
        columns(form),
        by=author_of(request, opened, caller),
    )
    dropped = await receipt(opened, changed.generation) if form.is_active is False else {}
    return client_object(changed.client) | dropped
