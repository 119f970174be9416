"""Who is calling, as the rest of the service sees it: no key, no row, nothing to change."""

from dataclasses import dataclass

from app.keys.restrictions import Restrictions
from app.keys.signing import Signing


@dataclass(frozen=True, slots=True)
class Limits:
    """What may pass in a minute; 0 = unlimited."""

    requests_per_minute: int
    logs_per_minute: int
    bytes_per_minute: int

    def capped(self, ceiling: "Limits") -> "Limits":
        """Give these limits, none of them above the ceiling's."""
        return Limits(
            _lower(self.requests_per_minute, ceiling.requests_per_minute),
            _lower(self.logs_per_minute, ceiling.logs_per_minute),
            _lower(self.bytes_per_minute, ceiling.bytes_per_minute),
        )


UNLIMITED = Limits(0, 0, 0)
ANONYMOUS = "anonymous"  # the key_id of callers without a key, where none is required


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated key.

    `client_id` is None exactly if `is_admin`: a platform key, which reaches every client. Its
    scopes may still be narrow, so `is_admin` never replaces a check of the scope.

    `own_limits` are those that the key itself was given, in the order of Limits, None = the
    default. `key_limits` are what binds it now: never above its client's.

    `restrictions` and `signing` are None if there are none: most keys cost a request one look at
    each.
    """

    id: str
    key_id: str
    client_id: str | None
    role: str
    scopes: frozenset[str]
    allowed_datasets: frozenset[str] | None
    is_admin: bool
    key_limits: Limits
    client_limits: Limits
    expires_at_s: float | None
    name: str
    own_limits: tuple[int | None, int | None, int | None] = (None, None, None)
    restrictions: Restrictions | None = None
    signing: Signing | None = None


def _lower(limit: int, ceiling: int) -> int:
    # 0 stands for "unlimited", the highest of all, so min() alone would be wrong.
    if limit == 0 or ceiling == 0:
        return limit or ceiling
    return min(limit, ceiling)
