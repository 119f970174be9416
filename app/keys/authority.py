"""What one key may do to another: a key can never give what it does not have. Pure.

`asker` is the principal whose key asks; None stands for the operator at a terminal, who may all.
Taking away needs nothing but reach. Giving needs all that the key may do then, whichever part of it
was given: whoever adds a scope to a key that reads every dataset gives that scope on all of them.
To hand out a new secret for a key, or to switch it on, is to give all of it.

A life is part of what is given. An asker that ends makes, revives and rotates nothing that lives
beyond it, not as the platform either, and leaves itself no heir: else whoever holds a leaked key
that is about to end, in the grace of its rotation say, would stay. Automation that looks after keys
without an end needs a key without one; what can be taken away by it is not bounded by its own end.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from app.errors import Elsewhere, Forbidden
from app.keys.models import LIMIT_NAMES, ApiKey
from app.keys.principal import Principal
from app.keys.restrictions import REPORT, compiled
from app.keys.roles import ADMIN, MANAGEMENT, ROLES, effective_scopes


def check_reach(asker: Principal | None, client_id: str | None) -> None:
    """Raise NotFound unless the asker may see what belongs to a client (None: the platform)."""
    if asker is not None and asker.client_id is not None and asker.client_id != client_id:
        raise Elsewhere


def check_role(asker: Principal | None, role: object) -> None:
    """Raise Forbidden for a client's own administrator who asks for a key of the platform."""
    if role == ADMIN and asker is not None and not asker.is_admin:
        raise Forbidden("Admin key required")


def _unknown(_address: str) -> None:
    """Know no country."""


def check_restrictions(
    asker: Principal,
    address: str,
    country_of: Callable[[str], str | None] = _unknown,
    now: datetime | None = None,
) -> None:
    """Raise Forbidden unless the asker may be used from an address, now.

    What a dry run would refuse passes: it has been told of when the request came.
    """
    restrictions = asker.restrictions
    if restrictions is None or restrictions.is_report:
        return
    country = None if restrictions.countries is None else country_of(address)
    found = restrictions.fault(address, country, now or datetime.now(UTC))
    if found is not None:
        raise Forbidden(found)


def check_within(asker: Principal | None, key: ApiKey) -> None:
    """Raise Forbidden if a key may do what the asker may not.

    Its limits are as much a matter of this as its scopes: 0 and none stand for more than any. So is
    the role behind explicit scopes, which is what is left without them.
    """
    if asker is None:
        return
    if key.client_id is None and not asker.is_admin:
        raise Forbidden("Admin key required")
    missing = effective_scopes(key.role, key.scopes) - asker.scopes or _role_beyond(asker, key.role)
    if missing:
        raise Forbidden(f"Requires scope '{min(missing)}'")
    if asker.allowed_datasets is not None:
        wider = sorted(set(key.allowed_datasets or ()) - asker.allowed_datasets)
        if key.allowed_datasets is None or wider:
            raise Forbidden(f"Not authorized for dataset '{wider[0] if wider else '*'}'")
    _check_restricted(asker, key)
    _check_signed(asker, key)
    if asker.expires_at_s is not None:
        end = key.ends_at
        if end is None or end.timestamp() > asker.expires_at_s:
            raise Forbidden("Not authorized to outlive the key that asks")
    for name, own in zip(LIMIT_NAMES, asker.own_limits, strict=True):
        limit = getattr(key, name)
        # The default of the one is the default of the other.
        most = getattr(asker.key_limits, name) if own is None and limit is not None else own
        if most and not asker.is_admin and (not limit or limit > most):
            raise Forbidden(f"Not authorized for more {name} than {most}")


def check_life(
    asker: Principal | None, until: datetime | None, given_until: datetime | None
) -> None:
    """Raise Forbidden if an expiry is put later, beyond the asker's own end."""
    if asker is None or asker.expires_at_s is None:
        return
    is_later = given_until is not None and (until is None or until > given_until)
    if is_later and (until is None or until.timestamp() > asker.expires_at_s):
        raise Forbidden("Not authorized to outlive the key that asks")


def check_change(asker: Principal | None, before: Principal, key: ApiKey, *, revived: bool) -> None:
    """Raise Forbidden if a changed key was given something, and then has more than the asker has.

    `before` is who the key was; what it could not give itself is more than it had.
    """
    if not revived:
        try:
            check_within(before, key)
        except Forbidden:
            pass
        else:
            return
    check_within(asker, key)


def must_sign(asker: Principal | None) -> bool:
    """Say whether a key of the asker's making must sign its requests, where that was left open.

    What it signs with has to be named: the asker's own signing key is of no use to another.
    """
    return asker is not None and asker.signing is not None and asker.signing.is_required


def narrow(
    asker: Principal | None,
    key: ApiKey,
    *,
    is_role_asked: bool = True,
    is_mode_asked: bool = True,
) -> None:
    """Cut what was left open of a new key down to what the asker has."""
    if asker is None:
        return
    if not is_role_asked:
        if key.scopes is None and ROLES[key.role] - asker.scopes:
            # None left is no narrower key but none at all: for check_within to refuse.
            key.scopes = sorted(ROLES[key.role] & asker.scopes) or None
        if _role_beyond(asker, key.role):
            key.role = asker.role
    if key.allowed_datasets is None and asker.allowed_datasets is not None:
        key.allowed_datasets = sorted(asker.allowed_datasets)
    _restrict(asker, key, is_mode_asked=is_mode_asked)
    if key.expires_at is None:
        shorten(asker, key)
    for name, own in zip(LIMIT_NAMES, asker.own_limits, strict=True):
        # The platform sets the limits of others, whatever its own.
        if own and not asker.is_admin and getattr(key, name) is None:
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


def _check_restricted(asker: Principal, key: ApiKey) -> None:
    """Raise Forbidden if a key is restricted less than the asker.

    The mode does not matter here: what a dry run is to become is asked for already. So a key that
    only reports passes nothing on that it is about to lose.
    """
    if asker.restrictions is None:
        return
    wider = asker.restrictions.wider(
        compiled(key.allowed_cidrs, key.allowed_countries, key.allowed_hours, key.restrictions_mode)
    )
    if wider == "restrictions_mode":
        raise Forbidden("Not authorized to only report what its own restrictions refuse")
    if wider is not None:
        raise Forbidden(f"Not authorized for other {wider} than those of the key that asks")


def _check_signed(asker: Principal, key: ApiKey) -> None:
    """Raise Forbidden if a key may do unsigned what the asker may not.

    A signing key may be asked for where keys are managed, and there alone (SIGN_MANAGEMENT): who
    has one makes no key that manages without one, whatever is asked for at the moment.
    """
    if asker.signing is None:
        return
    if asker.signing.is_required and not key.require_signature:
        raise Forbidden("Not authorized for keys that need no signature")
    if key.signing_key is None and MANAGEMENT in effective_scopes(key.role, key.scopes):
        raise Forbidden("Not authorized for keys that manage keys without a signing key")


def _restrict(asker: Principal, key: ApiKey, *, is_mode_asked: bool) -> None:
    """Fill in the asker's restrictions where none were asked for."""
    own = asker.restrictions
    if own is None:
        return
    asked = (key.allowed_cidrs, key.allowed_countries, key.allowed_hours)
    if not is_mode_asked and own.is_report and asked == (None, None, None):
        key.restrictions_mode = REPORT
    if key.allowed_cidrs is None and own.addresses is not None:
        key.allowed_cidrs = [str(network) for network in own.addresses.networks]
    if key.allowed_countries is None and own.countries is not None:
        key.allowed_countries = sorted(own.countries)
    if key.allowed_hours is None and own.hours is not None:
        key.allowed_hours = own.hours.column()


def _role_beyond(asker: Principal, role: str) -> frozenset[str]:
    """Return what is behind a role that the asker has neither by its scopes nor by its own role."""
    none: frozenset[str] = frozenset()
    return ROLES.get(role, none) - ROLES.get(asker.role, none) - asker.scopes
