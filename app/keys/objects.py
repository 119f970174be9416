"""Keys and clients as replies and `--json` show them: everything but what could help to guess."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from app.columns import utc_now
from app.keys.models import LIMIT_NAMES, ApiKey, Client, KeySource, KeyUse
from app.keys.roles import ADMIN, effective_scopes
from app.keys.signing import public_key

_DAY_S = 86_400


class RotationPolicy(NamedTuple):
    """After how many days a key is due for rotation, by environment; 0 = never."""

    live_days: int
    test_days: int

    def due_at(self, key: ApiKey) -> datetime | None:
        """Say when a key is due; one that has been rotated already never is."""
        days = self.test_days if key.environment == "test" else self.live_days
        if not days or key.rotated_to is not None:
            return None
        return key.created_at + timedelta(days=days)


class _Unknown:
    """Stands for a use that can't be read."""


UNKNOWN_USE = _Unknown()
# None: it was never used.
Use = KeyUse | _Unknown | None


def key_object(key: ApiKey, policy: RotationPolicy, use: Use = None) -> dict[str, Any]:
    """Show a key; without `use` it was never used."""
    return {
        "id": str(key.id),
        "key_id": key.key_id,
        "key_prefix": key.key_prefix,
        "client_id": key.client_id,
        "name": key.name,
        "description": key.description,
        "environment": key.environment,
        "role": key.role,
        "scopes": sorted(effective_scopes(key.role, key.scopes)),
        "is_admin": key.role == ADMIN,
        "allowed_datasets": key.allowed_datasets,
        "limits": _limits(key),
        "metadata": key.extra,
        "allowed_cidrs": key.allowed_cidrs,
        "allowed_countries": key.allowed_countries,
        "allowed_hours": key.allowed_hours,
        "restrictions_mode": key.restrictions_mode,
        "require_signature": key.require_signature,
        "signing": _signing(key),
        "is_active": key.is_active,
        "quarantined_at": iso_time(key.quarantined_at),
        "created_at": iso_time(key.created_at),
        "created_by": key.created_by,
        "expires_at": iso_time(key.expires_at),
        "grace_until": iso_time(key.grace_until),
        "rotation_due_at": iso_time(policy.due_at(key)),
        "rotated_to": None if key.rotated_to is None else str(key.rotated_to),
        "rotated_from": None if key.rotated_from is None else str(key.rotated_from),
        **_use(use),
    }


def source_objects(sources: Iterable[KeySource]) -> list[dict[str, Any]]:
    """Show where a key is used from."""
    return [
        {
            "source_ip": source.source_ip,
            "user_agent": source.user_agent,
            "requests": source.requests,
            "first_seen_at": iso_time(source.first_seen_at),
            "last_seen_at": iso_time(source.last_seen_at),
        }
        for source in sources
    ]


def client_object(client: Client) -> dict[str, Any]:
    """Show a client."""
    return {
        "client_id": client.client_id,
        "name": client.name,
        "contact_email": client.contact_email,
        "is_active": client.is_active,
        "retention_days": client.retention_days,
        "dataset_retention_days": client.dataset_retention_days,
        "limits": _limits(client),
        "metadata": client.extra,
        "created_at": iso_time(client.created_at),
        "updated_at": iso_time(client.updated_at),
    }


def iso_time(moment: datetime | None) -> str | None:
    """Write a moment as RFC 3339 in UTC, to the millisecond."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _signing(key: ApiKey) -> dict[str, Any] | None:
    if key.signing_key is None:
        return None
    public = public_key(key.signature_algorithm, key.signing_key)
    return {"algorithm": key.signature_algorithm, "public_key": public}


def _limits(owner: ApiKey | Client) -> dict[str, int | None]:
    return {name: getattr(owner, name) for name in LIMIT_NAMES}


def _use(use: Use) -> dict[str, Any]:
    if use is None or isinstance(use, _Unknown):
        is_known = use is None
        return {
            "total_requests": 0 if is_known else None,
            "avg_requests_per_day": 0.0 if is_known else None,
            "last_used_at": None,
            "last_source_ip": None,
            "last_user_agent": None,
        }
    # Of the days since the first use, and of one at least: a key of an hour has no daily average.
    days = max(1.0, (utc_now() - use.first_used_at).total_seconds() / _DAY_S)
    return {
        "total_requests": use.requests,
        "avg_requests_per_day": round(use.requests / days, 2),
        "last_used_at": iso_time(use.last_used_at),
        "last_source_ip": use.last_source_ip or None,
        "last_user_agent": use.last_user_agent or None,
    }
