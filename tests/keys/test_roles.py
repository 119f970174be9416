"""Roles, scopes and limits."""

import pytest

from app.keys.principal import UNLIMITED, Limits
from app.keys.roles import ROLES, SCOPES, effective_scopes


def test_roles_are_the_documented_ones() -> None:
    """Each role holds exactly the scopes that the documentation gives it."""
    assert {role: sorted(scopes) for role, scopes in ROLES.items()} == {
        "client": ["logs:read", "logs:write", "usage:read"],
        "ingest": ["logs:write"],
        "viewer": ["logs:read"],
        "analyst": ["logs:query", "logs:read", "usage:read"],
        "owner": sorted(SCOPES),
        "admin": sorted(SCOPES),
    }


def test_explicit_scopes_replace_those_of_the_role() -> None:
    """Explicit scopes are all that counts, and none of them means none."""
    assert effective_scopes("client", ["logs:query"]) == {"logs:query"}
    assert effective_scopes("owner", []) == frozenset()


def test_the_unknown_gives_nothing() -> None:
    """A role or scope of some later version opens nothing here."""
    assert effective_scopes("emperor", None) == frozenset()
    assert effective_scopes("client", ["everything", "logs:read"]) == {"logs:read"}


@pytest.mark.parametrize(
    ("own", "ceiling", "expected"), [(5, 3, 3), (3, 5, 3), (0, 5, 5), (5, 0, 5), (0, 0, 0)]
)
def test_limits_never_exceed_the_ceiling(own: int, ceiling: int, expected: int) -> None:
    """The lower limit holds, and 0 is higher than any."""
    capped = Limits(own, own, own).capped(Limits(ceiling, ceiling, ceiling))
    assert capped == Limits(expected, expected, expected)
    assert UNLIMITED.capped(UNLIMITED) == UNLIMITED
