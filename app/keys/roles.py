"""Roles: named sets of scopes."""

from collections.abc import Collection

SCOPES: frozenset[str] = frozenset(
    {"logs:write", "logs:read", "logs:query", "usage:read", "keys:manage", "audit:read"}
)

# `owner` and `admin` hold the same scopes; what sets admin apart is its reach: every client.
ROLES: dict[str, frozenset[str]] = {
    "client": frozenset({"logs:write", "logs:read", "usage:read"}),
    "ingest": frozenset({"logs:write"}),
    "viewer": frozenset({"logs:read"}),
    "analyst": frozenset({"logs:read", "logs:query", "usage:read"}),
    "owner": SCOPES,
    "admin": SCOPES,
}
ADMIN = "admin"
MANAGEMENT = "keys:manage"


def effective_scopes(role: str, scopes: Collection[str] | None) -> frozenset[str]:
    """Say what a key may do: its explicit scopes, or else those of its role.

    A role or scope that this version does not know gives nothing: a database written by a newer
    version must not widen what an older worker allows.
    """
    if scopes is None:
        return ROLES.get(role, frozenset())
    return SCOPES.intersection(scopes)
