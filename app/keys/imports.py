"""Keys that were made elsewhere, stored."""

from typing import Unpack
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.sql.elements import ColumnElement
from sqlmodel import Session, col, select

from app.errors import Conflict, Invalid
from app.keys.changes import Author, writing_for
from app.keys.database import reading
from app.keys.entry import ImportedProperties
from app.keys.faults import check_new_key
from app.keys.models import ApiKey
from app.keys.registry import IMPORTED, add_key
from app.keys.roles import ADMIN
from app.keys.strength import make_verifier
from app.keys.token import display, parse, random_key_id, token_fault
from app.keys.verifier import Peppers

KEY_IMPORTED = "key.imported"


class StoredAlready(Conflict):
    """The same key is there; `key` is its row, for whoever may know whose it is."""

    def __init__(self, key: ApiKey) -> None:
        super().__init__("This key is stored already")
        self.key = key


def prepare_import(
    peppers: Peppers,
    token: str,
    *,
    client_id: str | None,
    name: str,
    key_hasher: str = "auto",
    **properties: Unpack[ImportedProperties],
) -> ApiKey:
    """Make the row of a key that was made elsewhere, or by another installation; not stored yet.

    Raises Invalid for what could never be accepted as a key, and for each bad property.
    """
    if detail := token_fault(token):
        raise Invalid.parameter("key", detail)
    parsed = parse(token)
    key_id = parsed.key_id if parsed else random_key_id()
    scopes, datasets = properties.get("scopes"), properties.get("allowed_datasets")
    key = ApiKey(
        key_id=key_id,
        # Of a guessable key no part may be shown.
        key_prefix=display(token) if parsed else f"{IMPORTED}{key_id}***",
        client_id=client_id,
        name=name,
        description=properties.get("description", ""),
        role=properties.get("role") or (ADMIN if client_id is None else "client"),
        scopes=None if scopes is None else sorted(set(scopes)),
        allowed_datasets=None if datasets is None else sorted(set(datasets)),
        expires_at=properties.get("expires_at"),
        is_active=properties.get("is_active", True),
        created_by="import",
    )
    limits = properties.get("limits", {})
    check_new_key(key, limits)
    for limit_name, limit in limits.items():
        setattr(key, limit_name, limit)
    key.verifier, key.lookup_tag = make_verifier(peppers, token, key_hasher)
    return key


def import_key(  # noqa: PLR0913 (as registry.create_key)
    engine: Engine,
    peppers: Peppers,
    *,
    token: str,
    client_id: str | None,
    name: str,
    by: Author,
    key_hasher: str = "auto",
    create_client: bool = False,
    **properties: Unpack[ImportedProperties],
) -> ApiKey:
    """Store a key that was made elsewhere, and its client if `create_client` asks for it.

    Raises StoredAlready if it is there, for whichever client: one text that opened two clients'
    logs would be decided by the order of rows. Raises Invalid as `prepare_import`, and NotFound
    for an unknown client.
    """
    if detail := token_fault(token):
        raise Invalid.parameter("key", detail)
    alike = _alike(peppers, token)
    seen = _check_new(engine, peppers, token, alike)
    key = prepare_import(
        peppers, token, client_id=client_id, name=name, key_hasher=key_hasher, **properties
    )
    # argon2 must not run while the write lock is held, so what was stored since the last look is
    # looked at without it, until there is nothing of the kind.
    while not _store(engine, key, alike, seen, by=by, create_client=create_client):
        seen = _check_new(engine, peppers, token, alike)
    return key


def check_new(engine: Engine, peppers: Peppers, token: str) -> None:
    """Raise StoredAlready if a key is stored already."""
    _check_new(engine, peppers, token, _alike(peppers, token))


def find_stored(session: Session, peppers: Peppers, token: str) -> ApiKey | None:
    """Find the row of a key, whatever has become of it; of a weak one that was deleted no more."""
    return _found(session, peppers, token, _alike(peppers, token))[0]


def _alike(peppers: Peppers, token: str) -> ColumnElement[bool]:
    """Select the rows that this key may be."""
    tagged = col(ApiKey.lookup_tag).in_(peppers.lookup_tags(token))
    parsed = parse(token)
    return tagged if parsed is None else tagged | (col(ApiKey.key_id) == parsed.key_id)


def _check_new(
    engine: Engine, peppers: Peppers, token: str, alike: ColumnElement[bool]
) -> set[UUID]:
    with reading(engine) as session:
        key, seen = _found(session, peppers, token, alike)
    if key is not None:
        raise StoredAlready(key)
    return seen


def _found(
    session: Session, peppers: Peppers, token: str, alike: ColumnElement[bool]
) -> tuple[ApiKey | None, set[UUID]]:
    """Give the row of a key, if it is there, and the ids of all that it might have been."""
    parsed = parse(token)
    rows = session.exec(select(ApiKey).where(alike)).all()
    same = (
        key
        for key in rows
        if (parsed and key.key_id == parsed.key_id) or peppers.verify(key.verifier or "", token)
    )
    return next(same, None), {key.id for key in rows}


def _store(  # noqa: PLR0913 (as import_key)
    engine: Engine,
    key: ApiKey,
    alike: ColumnElement[bool],
    seen: set[UUID],
    *,
    by: Author,
    create_client: bool,
) -> bool:
    with writing_for(engine, by) as (session, _):
        if not set(session.exec(select(ApiKey.id).where(alike)).all()) <= seen:
            return False
        add_key(session, key, by=by, create_client=create_client, action=KEY_IMPORTED)
    return True
