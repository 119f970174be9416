"""What one key may do to another: a key can never give what it does not have. Pure.

`asker` is the principal whose key asks; None stands for the operator at a terminal, who may all.
Taking away needs nothing but reach; giving, which includes handing out a new secret for what a key
may do, needs all that the key may do.
"""

from collections.abc import Collection
from datetime import UTC, datetime

from app.errors import Forbidden, NotFound
from app.keys.models import LIMIT_NAMES, ApiKey
from app.keys.principal import Principal
from app.keys.roles import ADMIN, ROLES, effective_scopes

# What makes up what a key may do.
POWERS = frozenset({"role", "scopes", "allowed_datasets", *LIMIT_NAMES})
ALL = POWERS | {"expires_at"}


def check_reach(asker: Principal | None, client_id: str | None) -> None:
    """Raise NotFound unless the asker may see what belongs to a client (None: the platform)."""
    if asker is not None and asker.client_id is not None and asker.client_id != client_id:
        raise NotFound


def check_role(asker: Principal | None, role: object) -> None:
    """Raise Forbidden for a client's own administrator who asks for a key of the platform."""
    if role == ADMIN and asker is not None and not asker.is_admin:
        raise Forbidden("Admin key required")


def check_within(asker: Principal | None, key: ApiKey, given: Collection[str] = ALL) -> None:
    """Raise Forbidden if a key may do what the asker may not, in the columns that it was given.

    Its limits are as much a matter of this as its scopes: 0 and none stand for more than any.
    """
    if asker is None:
        return
    if key.client_id is None and not asker.is_admin:
        raise Forbidden("Admin key required")
    missing = effective_scopes(key.role, key.scopes) - asker.scopes
    if missing and not {"role", "scopes"}.isdisjoint(given):
        raise Forbidden(f"Requires scope '{min(missing)}'")
    if asker.allowed_datasets is not None and "allowed_datasets" in given:
        wider = sorted(set(key.allowed_datasets or ()) - asker.allowed_datasets)
        if key.allowed_datasets is None or wider:
            raise Forbidden(f"Not authorized for dataset '{wider[0] if wider else '*'}'")
    if asker.expires_at_s is not None and "expires_at" in given:
        own_end = _end(asker.expires_at_s)
        if key.expires_at is None or key.expires_at > own_end:
            raise Forbidden("Not authorized to outlive the key that asks")
    for name in LIMIT_NAMES:
        own, limit = _own_limit(asker, name), getattr(key, name)
        if name in given and own and (limit is None or limit == 0 or limit > own):
            raise Forbidden(f"Not authorized for more {name} than {own}")


def narrow(asker: Principal | None, key: ApiKey, *, is_role_asked: bool = True) -> None:
    """Cut what was left open of a new key down to what the asker has."""
    if asker is None:
        return
    if key.scopes is None and not is_role_asked and ROLES[key.role] - asker.scopes:
        # None left is no narrower key but none at all: for check_within to refuse.
        key.scopes = sorted(ROLES[key.role] & asker.scopes) or None
    if key.allowed_datasets is None and asker.allowed_datasets is not None:
        key.allowed_datasets = sorted(asker.allowed_datasets)
    if key.expires_at is None:
        shorten(asker, key)
    for name in LIMIT_NAMES:
        own = _own_limit(asker, name)
        if own and getattr(key, name) is None:
            setattr(key, name, own)


def shorten(asker: Principal | None, key: ApiKey) -> None:
    """Let a new key end no later than the asker."""
    if asker is None or asker.expires_at_s is None:
        return
    own_end = _end(asker.expires_at_s)
    key.expires_at = own_end if key.expires_at is None else min(key.expires_at, own_end)


def _end(at_s: float) -> datetime:
    try:
        return datetime.fromtimestamp(at_s, UTC)
    except (ValueError, OverflowError):  # the last moment of the year 9999, rounded up
        return datetime.max.replace(tzinfo=UTC)


def _own_limit(asker: Principal, name: str) -> int:
    """Return the limit that binds the asker more than its client does; 0: none.

    The platform sets the limits of others, whatever its own.
    """
    if asker.is_admin:
        return 0
    own: int = getattr(asker.key_limits, name)
    ceiling: int = getattr(asker.client_limits, name)
    return own if own and (not ceiling or own < ceiling) else 0
