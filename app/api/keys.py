"""/api/v1/api-keys: keys made, changed, rotated, switched off; by the platform or by their client.

A route reads its request only once slowapi has counted it. It reads the database by `reads` and
writes to it by `writes` (app/api/services.py); behind a write it waits for no `reads`.
The caller asks everywhere: what it may not see is not found, what it may not give forbidden.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Generator, Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Request, Response
from msgspec import UNSET
from pydantic_core import to_json

from app.activity.uses import read_sources, read_uses
from app.api.author import author_of
from app.api.body import read_json, read_query
from app.api.dependencies import Caller, Opened
from app.api.forms import (
    KeyCreate,
    KeyList,
    KeyPatch,
    KeyRotate,
    Nothing,
    SigningKeyForm,
    as_properties,
    check_countries,
    columns,
)
from app.api.openapi import API_KEY, API_KEY_PAGE, BODY_FAULTS, NEW_API_KEY, documented
from app.api.pages import render_page
from app.api.reads import reading_of, telling_of
from app.api.receipt import receipt
from app.api.schemas import KEY_CREATE, KEY_LIST, KEY_PATCH, KEY_ROTATE
from app.api.services import Services
from app.api.throttle import limited
from app.api.writes import place_of
from app.edge.headers import combined, idempotency_key
from app.errors import Invalid, NotFound, Overloaded, StorageUnavailable
from app.keys import lifecycle, registry
from app.keys.changes import writing_for
from app.keys.lifecycle import GRACE_S_DEFAULT
from app.keys.models import LIMIT_NAMES, ApiKey, KeyUse
from app.keys.objects import UNKNOWN_USE, Use, iso_time, key_object, source_objects
from app.keys.principal import Principal
from app.keys.registry import KeyFilter, Once
from app.keys.roles import ADMIN
from app.keys.signing import NO_SIGNING_KEY, NewSigningKey

PLATFORM = "*"

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/api/v1/api-keys", tags=["api-keys"])


@router.post(
    "",
    status_code=201,
    summary="Make a key",
    **documented(NEW_API_KEY, *BODY_FAULTS, 403, 404, 409, status=201, body=KEY_CREATE),
)
@limited
async def create(request: Request, opened: Opened) -> Response:
    """Make a key; its text, `key`, is in this reply and never again. A new client is made too.

    So is `signing_secret`, if it is to sign by hmac-sha256.
    """
    form, body, caller = await read_json(request, KeyCreate)
    check_countries(form, known=opened.guard.knows_countries)
    properties = as_properties(form, caller.client_id)
    if caller.client_id is None and form.client_id is None and form.role != ADMIN:
        raise Invalid.parameter("client_id", "is required, but for role admin")
    by = author_of(request, opened, caller)
    made = await _signing_key(opened, caller, form.signing)
    options: dict[str, Any] = {
        "key_hasher": opened.key_hasher,
        "create_client": caller.is_admin,
        "created_by": caller.key_id,
        "once": _once(request, caller, body),
        "signing": made,
        **properties,
    }

    def make() -> tuple[ApiKey, Response | None]:
        with writing_for(opened.engine, by) as (session, asker):
            key, text = registry.make_key(session, opened.peppers, by=by, asker=asker, **options)
            if not text:
                return key, None
            # Before the commit: nobody would have the text of a key that can't be shown after it.
            shown = key_object(key, opened.rotation_policy) | {"key": text} | _secret_of(made)
            return key, _made(shown)

    key, response = await opened.writes.run(place_of(caller), make)
    if response is None:
        shown = await _shown(opened, caller, key)
        return _made(shown, {"Idempotent-Replayed": "true"})
    return response


@router.get("", summary="List keys", **documented(API_KEY_PAGE, 403, 404, 422, parameters=KEY_LIST))
@limited
async def list_page(request: Request, caller: Caller, opened: Opened) -> Response:
    """List keys, oldest first; `due` leaves those that end or are to be rotated in so many days."""
    query = read_query(request, KeyList)
    due = None
    if query.due is not None:
        due = (opened.rotation_policy, datetime.now(UTC) + timedelta(days=query.due))
    wanted = KeyFilter(
        client_id=query.client_id,
        include_inactive=query.include_inactive,
        due=due,
        after=None if query.cursor is None else _place(query.cursor),
        limit=query.limit + 1,
    )

    def render() -> bytes:
        portions = registry.key_portions(opened.engine, wanted, asker=caller)
        with closing(portions), closing(_with_uses(opened, portions)) as keys:
            return render_page(
                "api_keys",
                keys,
                query.limit,
                show=lambda one: key_object(one[0], opened.rotation_policy, one[1]),
                cursor_of=lambda one: _cursor(one[0]),
            )

    # To the last byte in the thread: a thousand keys would hold up everybody else's logs.
    body = await opened.reads.run(reading_of(caller), render)
    return Response(body, media_type="application/json")


@router.get("/verify/current", summary="Show the key that asks", **documented(API_KEY))
@limited
async def verify_current(request: Request, caller: Caller, opened: Opened) -> dict[str, Any]:
    """Return the object of the key that this request was made with."""
    read_query(request, Nothing)
    try:
        key = await opened.reads.run(reading_of(caller), registry.get_key, opened.engine, caller.id)
    except NotFound:  # a key of the settings, which has no row
        return key_object(_from_settings(caller), opened.rotation_policy) | {
            "created_at": None,
            "rotation_due_at": None,
        }
    return await _shown(opened, caller, key)


@router.get("/{id_or_key_id}", summary="Show a key", **documented(API_KEY, 403, 404, 422))
@limited
async def show(
    request: Request, id_or_key_id: str, caller: Caller, opened: Opened
) -> dict[str, Any]:
    """Return a key by its id or key_id, with the places that it was last used from."""
    read_query(request, Nothing)
    key = await opened.reads.run(
        reading_of(caller), registry.get_key, opened.engine, id_or_key_id, asker=caller
    )
    return await _shown(opened, caller, key)


@router.patch(
    "/{id_or_key_id}",
    summary="Change a key",
    **documented(API_KEY, *BODY_FAULTS, 403, 404, 409, body=KEY_PATCH),
)
@limited
async def change(request: Request, id_or_key_id: str, opened: Opened) -> dict[str, Any]:
    """Set what is named and leave the rest; null stands for the default or for none.

    A new `signing_secret` is in this reply and never again.
    """
    form, _, caller = await read_json(request, KeyPatch)
    check_countries(form, known=opened.guard.knows_countries)
    changes, made = columns(form), None
    if form.signing is not UNSET:
        made = await _signing_key(opened, caller, form.signing)
        changes |= NO_SIGNING_KEY if made is None else made.columns()
    return await _update(request, opened, caller, id_or_key_id, changes) | _secret_of(made)


@router.delete("/{id_or_key_id}", summary="Delete a key", **documented(API_KEY, 403, 404, 422))
@limited
async def delete(request: Request, id_or_key_id: str, opened: Opened) -> dict[str, Any]:
    """Wipe a key for good; the reply tells when every worker had dropped it."""
    _, _, caller = await read_json(request, Nothing, empty=b"{}")
    deleted = await opened.writes.run(
        place_of(caller, ends=True),
        lifecycle.delete_key,
        opened.engine,
        id_or_key_id,
        by=author_of(request, opened, caller),
    )
    dropped = await receipt(opened, deleted.generation)
    return await _shown(opened, caller, deleted.key) | dropped


@router.post(
    "/{id_or_key_id}/deactivate",
    summary="Switch a key off",
    **documented(API_KEY, *BODY_FAULTS, 403, 404),
)
@limited
async def deactivate(request: Request, id_or_key_id: str, opened: Opened) -> dict[str, Any]:
    """Switch a key off; the reply tells when every worker had dropped it."""
    _, _, caller = await read_json(request, Nothing, empty=b"{}")
    return await _update(request, opened, caller, id_or_key_id, {"is_active": False})


@router.post(
    "/{id_or_key_id}/activate",
    summary="Switch a key on again",
    **documented(API_KEY, *BODY_FAULTS, 403, 404, 409),
)
@limited
async def activate(request: Request, id_or_key_id: str, opened: Opened) -> dict[str, Any]:
    """Switch a key on again; one whose time is over stays off."""
    _, _, caller = await read_json(request, Nothing, empty=b"{}")
    return await _update(request, opened, caller, id_or_key_id, {"is_active": True})


@router.post(
    "/{id_or_key_id}/rotate",
    status_code=201,
    summary="Replace a key",
    **documented(NEW_API_KEY, *BODY_FAULTS, 403, 404, 409, status=201, body=KEY_ROTATE),
)
@limited
async def rotate(request: Request, id_or_key_id: str, opened: Opened) -> Response:
    """Make a key that takes over; the old one works until `grace_until`, never past its own end.

    Without grace the reply tells when every worker had dropped the old one.
    """
    form, _, caller = await read_json(request, KeyRotate, empty=b"{}")
    grace_s = GRACE_S_DEFAULT if form.grace_seconds is None else form.grace_seconds
    ends = grace_s == 0
    by = author_of(request, opened, caller)

    def replace() -> tuple[int, dict[str, Any], Response]:
        with writing_for(opened.engine, by) as (session, asker):
            rotation = lifecycle.replace_key(
                session,
                opened.peppers,
                id_or_key_id,
                grace_s=grace_s,
                key_hasher=opened.key_hasher,
                created_by=caller.key_id,
                by=by,
                asker=asker,
                new_secret=opened.signing_keys.new_secret,
            )
            secret = rotation.signing_secret
            shown = key_object(rotation.key, opened.rotation_policy) | {
                "key": rotation.text,
                "grace_until": iso_time(rotation.old.grace_until),
                "old_key_id": rotation.old.key_id,
                **({} if secret is None else {"signing_secret": secret}),
            }
            # As in `create`: else the old key would end, and nobody have the new one.
            return rotation.generation, shown, _made(shown)

    generation, shown, response = await opened.writes.run(place_of(caller, ends=ends), replace)
    return _made(shown | await receipt(opened, generation)) if ends else response


def _made(shown: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    body = to_json(shown, inf_nan_mode="null")  # as the routes that return objects are answered
    return Response(body, 201, headers, "application/json")


async def _signing_key(
    opened: Services, caller: Principal, asked: SigningKeyForm | None
) -> NewSigningKey | None:
    """Make what a key is to sign with, in a thread: the first one loads the cipher."""
    if asked is None:
        return None
    return await opened.reads.run(
        reading_of(caller), opened.signing_keys.make, asked.algorithm, asked.public_key
    )


def _secret_of(made: NewSigningKey | None) -> dict[str, Any]:
    return {} if made is None or made.secret is None else {"signing_secret": made.secret}


async def _update(
    request: Request,
    opened: Services,
    caller: Principal,
    id_or_key_id: str,
    changes: dict[str, Any],
) -> dict[str, Any]:
    """Change a key and show it; what switches it off tells when every worker had dropped it."""
    ends = changes.get("is_active") is False
    changed = await opened.writes.run(
        place_of(caller, ends=ends),
        lifecycle.update_key,
        opened.engine,
        id_or_key_id,
        changes,
        by=author_of(request, opened, caller),
    )
    dropped = await receipt(opened, changed.generation) if ends else {}
    return await _shown(opened, caller, changed.key) | dropped


async def _shown(opened: Services, caller: Principal, key: ApiKey) -> dict[str, Any]:
    """Show a key with its use, and where it is used from; never refuse to, whatever is in the way.

    The key may have just been changed: whoever were told that this failed would not know that it
    was done.
    """
    try:
        return await opened.use_reads.run(telling_of(caller), _read_use, opened, key)
    except Overloaded:
        return key_object(key, opened.rotation_policy, UNKNOWN_USE) | {"sources": None}


def _read_use(opened: Services, key: ApiKey) -> dict[str, Any]:
    ((_, use),) = _with_uses(opened, [[key]])
    shown = key_object(key, opened.rotation_policy, use)
    try:
        sources = read_sources(opened.activity, key.key_id)
    except StorageUnavailable:  # as told already
        return shown | {"sources": None}
    return shown | {"sources": source_objects(sources)}


def _with_uses(
    opened: Services, portions: Iterable[list[ApiKey]]
) -> Generator[tuple[ApiKey, Use], None, None]:
    """Give keys with their use; where that can't be read, without: a leak can't wait for it."""
    is_readable = True
    for keys in portions:
        uses: dict[str, KeyUse] = {}
        if is_readable:
            try:
                uses = read_uses(opened.activity, [key.key_id for key in keys])
            except StorageUnavailable as error:
                log.warning("the uses of keys cannot be read", reason=error.reason)
                is_readable = False
        for key in keys:
            yield key, uses.get(key.key_id) if is_readable else UNKNOWN_USE


def _from_settings(caller: Principal) -> ApiKey:
    return ApiKey(
        id=UUID(caller.id),
        key_id=caller.key_id,
        key_prefix=caller.key_id,
        client_id=caller.client_id,
        name=caller.name,
        role=caller.role,
        scopes=sorted(caller.scopes),
        allowed_datasets=(
            None if caller.allowed_datasets is None else sorted(caller.allowed_datasets)
        ),
        expires_at=(
            None
            if caller.expires_at_s is None
            else datetime.fromtimestamp(caller.expires_at_s, UTC)
        ),
        created_by="settings",
        **{name: getattr(caller.key_limits, name) for name in LIMIT_NAMES},
    )


def _once(request: Request, caller: Principal, body: bytes) -> Once | None:
    key = idempotency_key(combined(request.scope["headers"]))
    if key is None:
        return None
    return Once(caller.client_id or PLATFORM, key, blake2b(body, digest_size=16).digest())


def _cursor(key: ApiKey) -> str:
    """Name the place behind a key; whoever gets it has just seen that key."""
    return urlsafe_b64encode(f"{key.created_at.isoformat()} {key.id}".encode()).decode()


def _place(cursor: str) -> tuple[datetime, UUID]:
    try:
        at, _, last = urlsafe_b64decode(cursor).decode().partition(" ")
        moment = datetime.fromisoformat(at)
        return moment.astimezone(UTC), UUID(last)
    except (ValueError, OverflowError):
        raise Invalid.parameter("cursor", "is not a cursor of this list") from None
