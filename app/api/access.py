"""Who may call what: one row a route, and no route without a row.

`authorize` stands before every route of the control application and knows only this table, so a
route that is forgotten here answers nobody. The hot path (app/edge/ingest.py) is in the table for
completeness; it asks for the same scope by itself.
"""

from typing import NamedTuple

from fastapi import Request

from app.edge import ingest
from app.errors import Forbidden, KeyRequired
from app.keys.principal import ANONYMOUS, Principal
from app.keys.roles import MANAGEMENT


class Rule(NamedTuple):
    """What a route asks of its caller."""

    needs_key: bool = True
    scope: str | None = None
    is_platform: bool = False  # a key of the platform, not of a client
    is_metrics: bool = False  # open to all if METRICS_PUBLIC says so

    @property
    def manages(self) -> bool:
        """Say whether it is about keys, or more than one client."""
        return self.is_platform or self.scope == MANAGEMENT


PUBLIC = Rule(needs_key=False)
ANY_KEY = Rule()
READ = Rule(scope="logs:read")
QUERY = Rule(scope="logs:query")
USAGE = Rule(scope="usage:read")
AUDIT = Rule(scope="audit:read")
MANAGE = Rule(scope=MANAGEMENT)
MANAGE_PLATFORM = Rule(scope=MANAGEMENT, is_platform=True)

_KEYS = "/api/v1/api-keys"
_KEY = f"{_KEYS}/{{id_or_key_id}}"
_CLIENTS = "/api/v1/clients"
_CLIENT = f"{_CLIENTS}/{{client_id}}"
_AUDIT = "/api/v1/audit"
_ALERTS = "/api/v1/alerts"

RULES: dict[tuple[str, str], Rule] = {
    ("POST", ingest.PATH): Rule(scope=ingest.SCOPE),
    ("GET", ingest.PATH): READ,
    ("GET", f"{ingest.PATH}/export"): READ,
    ("GET", f"{ingest.PATH}/tail"): READ,
    ("GET", f"{ingest.PATH}/rejected"): READ,
    ("GET", f"{ingest.PATH}/{{log_id}}"): READ,
    ("POST", "/api/v1/query"): QUERY,
    ("GET", "/api/v1/usage"): USAGE,
    ("POST", _KEYS): MANAGE,
    ("GET", _KEYS): MANAGE,
    ("GET", f"{_KEYS}/verify/current"): ANY_KEY,
    ("GET", _KEY): MANAGE,
    ("PATCH", _KEY): MANAGE,
    ("DELETE", _KEY): MANAGE,
    ("POST", f"{_KEY}/deactivate"): MANAGE,
    ("POST", f"{_KEY}/activate"): MANAGE,
    ("POST", f"{_KEY}/rotate"): MANAGE,
    ("POST", _CLIENTS): MANAGE_PLATFORM,
    ("GET", _CLIENTS): MANAGE,
    ("GET", _CLIENT): MANAGE,
    ("PATCH", _CLIENT): MANAGE,
    ("DELETE", f"{_CLIENT}/logs"): MANAGE_PLATFORM,
    ("GET", _AUDIT): AUDIT,
    ("GET", f"{_AUDIT}/denials/{{request_id}}"): AUDIT,
    ("GET", f"{_AUDIT}/access"): AUDIT,
    ("GET", _ALERTS): AUDIT,
    # Any key of the platform, whatever its scopes: they tell of no client, and the key that
    # Prometheus holds should be one that may do nothing else.
    ("GET", "/metrics"): Rule(is_platform=True, is_metrics=True),
    ("GET", "/health/live"): PUBLIC,
    ("GET", "/health/ready"): PUBLIC,
    ("GET", "/docs"): PUBLIC,
    ("GET", "/redoc"): PUBLIC,
    ("GET", "/openapi.json"): PUBLIC,
    ("GET", "/claim/{token}"): PUBLIC,
    ("POST", "/claim/{token}"): PUBLIC,
}
NOBODY = Rule(scope="no row in app/api/access.py")


def rule_of(request: Request) -> Rule:
    """Return the row of the route that a request has reached."""
    rule = RULES.get((request.method, request.scope["route"].path), NOBODY)
    if rule.is_metrics and request.app.state.metrics_public:
        return PUBLIC
    return rule


def check(rule: Rule, principal: Principal) -> None:
    """Raise Forbidden for a caller who lacks what the route asks for."""
    if principal.key_id == ANONYMOUS and rule.manages:
        raise KeyRequired  # REQUIRE_API_KEY=false opens logs, never the management of keys
    if rule.is_platform and not principal.is_admin:
        raise Forbidden("Admin key required")
    if rule.scope is not None and rule.scope not in principal.scopes:
        raise Forbidden(f"Requires scope '{rule.scope}'")
