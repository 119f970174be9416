"""The register of clients: made, found, listed, changed.

Public functions own their transaction; those that take a session are steps of a larger one.
"""

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Engine
from sqlmodel import Session, col, or_, select

from app.columns import utc_now
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.keys.authority import check_reach
from app.keys.changes import Author, advance, changes_of, writing_for
from app.keys.database import reading, streamed, writing
from app.keys.faults import SLUG_DETAIL, check_client
from app.keys.models import Client
from app.keys.principal import Principal
from app.keys.token import CLIENT_ID_PATTERN

# What a client's own administrator may change.
OWN = frozenset({"name", "contact_email"})


class ClientChange(NamedTuple):
    """A client after a change, and the generation of it: see changes.py."""

    client: Client
    generation: int


def create_client(
    engine: Engine,
    client_id: str,
    properties: Mapping[str, Any],
    *,
    by: Author,
) -> Client:
    """Make a client with these columns; Invalid names each bad one, Conflict if it is there."""
    client = Client(client_id=client_id, **{"name": client_id, **properties})
    check_client(client)
    with writing_for(engine, by) as (session, principal):
        _check_platform(principal)
        if session.get(Client, client_id) is not None:
            raise Conflict("The client exists already")
        _store(session, client, by)
    return client


def get_client(engine: Engine, client_id: str, *, asker: Principal | None = None) -> Client:
    """Find a client; NotFound if there is none, or it is not the asker's to see."""
    check_reach(asker, client_id)
    with reading(engine) as session:
        return find_client(session, client_id)


def list_clients(
    engine: Engine,
    *,
    asker: Principal | None = None,
    after: str = "",
    limit: int | None = None,
) -> list[Client]:
    """List clients by client_id, those after one of them; of a client's own key only its own."""
    return list(each_client(engine, asker=asker, after=after, limit=limit))


def each_client(
    engine: Engine,
    *,
    asker: Principal | None = None,
    after: str = "",
    limit: int | None = None,
) -> Generator[Client, None, None]:
    """Give the same one by one; who stops before the end reads no more of them."""
    wanted = select(Client).where(col(Client.client_id) > after)
    if asker is not None and asker.client_id is not None:
        wanted = wanted.where(col(Client.client_id) == asker.client_id)
    selected = wanted.order_by(col(Client.client_id)).limit(limit)
    with reading(engine) as session:
        yield from streamed(session, selected)


def list_with_retention(engine: Engine) -> list[Client]:
    """List the clients whose logs are not all kept for ever."""
    is_limited = or_(
        col(Client.retention_days).is_not(None), col(Client.dataset_retention_days).is_not(None)
    )
    with reading(engine) as session:
        return list(session.exec(select(Client).where(is_limited)).all())


def update_client(
    engine: Engine, client_id: str, changes: Mapping[str, Any], *, by: Author
) -> ClientChange:
    """Set columns of a client; while it is inactive none of its keys works.

    Its own administrator may change OWN alone; Forbidden for the rest.
    """
    with writing_for(engine, by) as (session, principal):
        check_reach(principal, client_id)
        if not changes.keys() <= OWN:
            _check_platform(principal)
        client = find_client(session, client_id)
        if changes.get("is_active") and not client.is_active:
            _check_revival(principal)
        for name, value in changes.items():
            setattr(client, name, value)
        check_client(client)
        changed = changes_of(client)
        if changed:
            client.updated_at = utc_now()
        generation = advance(session)
        if changed:
            by.record(session, action_of("client", changed), client, changed)
        return ClientChange(client, generation)


def begin_erasure(engine: Engine, client_id: str, detail: Mapping[str, Any], *, by: Author) -> None:
    """Record that a client's logs are about to be erased, if whoever asks still may."""
    with writing_for(engine, by) as (session, principal):
        _check_platform(principal)
        by.record(session, "logs.erasure_started", find_client(session, client_id), detail)


def end_erasure(engine: Engine, client_id: str, detail: Mapping[str, Any], *, by: Author) -> None:
    """Record what was erased, whatever has become of who asked for it."""
    with writing(engine) as session:
        by.record(session, "logs.erased", find_client(session, client_id), detail)


def add_client(session: Session, client_id: str, *, by: Author, name: str | None = None) -> Client:
    """Find the client, or make it, in the caller's transaction; Invalid for no client_id."""
    client = session.get(Client, client_id)
    if client is None:
        if not CLIENT_ID_PATTERN.fullmatch(client_id):
            raise Invalid.parameter("client_id", SLUG_DETAIL)
        client = Client(client_id=client_id, name=name or client_id)
        _store(session, client, by)
    return client


def find_client(session: Session, client_id: str) -> Client:
    """Find a client in the caller's transaction; NotFound if there is none."""
    client = session.get(Client, client_id)
    if client is None:
        raise NotFound
    return client


def action_of(kind: str, changes: Mapping[str, list[Any]]) -> str:
    """Name a change of a key or a client: by whether it works from now on, if that was changed."""
    if "is_active" not in changes:
        return f"{kind}.updated"
    return f"{kind}.activated" if changes["is_active"][1] else f"{kind}.deactivated"


def _store(session: Session, client: Client, by: Author) -> None:
    session.add(client)
    made = changes_of(client)
    session.flush()
    by.record(session, "client.created", client, made)


def _check_revival(asker: Principal | None) -> None:
    """Raise Forbidden for an asker that ends: the client's keys may live beyond it."""
    if asker is not None and asker.expires_at_s is not None:
        raise Forbidden("Not authorized to outlive the key that asks")


def _check_platform(asker: Principal | None) -> None:
    if asker is not None and not asker.is_admin:
        raise Forbidden("Admin key required")
