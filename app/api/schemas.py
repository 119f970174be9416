"""The description of keys and clients for OpenAPI: forms from their Structs, objects by hand."""

from typing import Any

import msgspec

from app.api.forms import (
    PAGE_ITEMS,
    PAGE_ITEMS_MAX,
    ClientCreate,
    ClientPatch,
    KeyCreate,
    KeyPatch,
    KeyRotate,
)
from app.keys.lifecycle import GRACE_S_DEFAULT
from app.keys.models import LIMIT_NAMES
from app.keys.restrictions import DAYS, MODES
from app.keys.roles import ROLES
from app.keys.signing import ALGORITHMS
from app.protect.threats import RULES

JsonSchema = dict[str, Any]

_TEXT: JsonSchema = {"type": "string"}
_MAYBE_TEXT: JsonSchema = {"type": ["string", "null"]}
_TIME: JsonSchema = {"type": "string", "format": "date-time"}
_MAYBE_TIME: JsonSchema = {"type": ["string", "null"], "format": "date-time"}
_MAYBE_TEXTS: JsonSchema = {"type": ["array", "null"], "items": _TEXT}
_MAYBE_OBJECT: JsonSchema = {"type": ["object", "null"]}
_BOOLEAN: JsonSchema = {"type": "boolean"}
_LIMITS: JsonSchema = {
    "type": "object",
    "description": "0 = unlimited, null = the default.",
    "properties": {name: {"type": ["integer", "null"], "minimum": 0} for name in LIMIT_NAMES},
}
_KEY_PROPERTIES: JsonSchema = {
    "id": {"type": "string", "format": "uuid"},
    "key_id": _TEXT,
    "key_prefix": {"type": "string", "description": "All of the key that is ever shown again."},
    "client_id": _MAYBE_TEXT,
    "name": _TEXT,
    "description": _TEXT,
    "environment": {"type": "string", "enum": ["live", "test"]},
    "role": {"type": "string", "enum": list(ROLES)},
    "scopes": {"type": "array", "items": _TEXT},
    "is_admin": _BOOLEAN,
    "allowed_datasets": _MAYBE_TEXTS | {"description": "null = all."},
    "limits": _LIMITS,
    "metadata": {"type": "object"},
    "allowed_cidrs": _MAYBE_TEXTS | {"description": "Addresses and networks; null = all."},
    "allowed_countries": _MAYBE_TEXTS | {"description": "ISO 3166-1 alpha-2; null = all."},
    "allowed_hours": _MAYBE_OBJECT
    | {
        "description": (
            "null = always. The end is exclusive; with `end` before `start` the window crosses"
            " midnight, and `days` are those on which it starts."
        ),
        "properties": {
            "start": {"type": "string", "examples": ["09:00"]},
            "end": {"type": "string", "examples": ["17:00"]},
            "timezone": {"type": "string", "description": "Of IANA; UTC if absent."},
            "days": {"type": "array", "items": {"enum": list(DAYS)}},
        },
    },
    "restrictions_mode": {
        "type": "string",
        "enum": list(MODES),
        "description": "`report`: what the restrictions would refuse is only reported.",
    },
    "require_signature": _BOOLEAN | {"description": "Each request, by RFC 9421."},
    "signing": _MAYBE_OBJECT
    | {
        "description": "What requests are signed with; null = nothing.",
        "required": ["algorithm", "public_key"],
        "properties": {
            "algorithm": {"type": "string", "enum": list(ALGORITHMS)},
            "public_key": _MAYBE_TEXT | {"description": "Of ed25519, in base64."},
        },
    },
    "is_active": _BOOLEAN,
    "quarantined_at": _MAYBE_TIME | {"description": "When it was switched off for suspicion."},
    "created_at": _MAYBE_TIME,
    "created_by": _MAYBE_TEXT,
    "expires_at": _MAYBE_TIME,
    "grace_until": _MAYBE_TIME | {"description": "Until when a rotated key still works."},
    "rotation_due_at": _MAYBE_TIME,
    "rotated_to": _MAYBE_TEXT,
    "rotated_from": _MAYBE_TEXT,
    "total_requests": {"type": ["integer", "null"], "description": "null = not known now."},
    "avg_requests_per_day": {"type": ["number", "null"]},
    "last_used_at": _MAYBE_TIME,
    "last_source_ip": _MAYBE_TEXT,
    "last_user_agent": _MAYBE_TEXT,
}
_SOURCES: JsonSchema = {
    "type": ["array", "null"],
    "description": "Where the key is used from, the latest first.",
    "items": {
        "type": "object",
        "properties": {
            "source_ip": _TEXT,
            "user_agent": _TEXT,
            "requests": {"type": "integer"},
            "first_seen_at": _TIME,
            "last_seen_at": _TIME,
        },
    },
}
_RECEIPT: JsonSchema = {
    "effective_at": _MAYBE_TIME
    | {"description": "When every worker had dropped the key; null if one did not say so in time."},
    "workers": {"type": "integer", "description": "How many of them confirmed."},
    "ms": {"type": "number", "description": "From the change to `effective_at`."},
    "unconfirmed": {"type": "integer"},
}
_SIGNING_SECRET: JsonSchema = {
    "signing_secret": {
        "type": "string",
        "description": "A new one of hmac-sha256: 32 bytes in base64, in this reply alone.",
    }
}
_CLIENT_PROPERTIES: JsonSchema = {
    "client_id": _TEXT,
    "name": _TEXT,
    "contact_email": _MAYBE_TEXT,
    "is_active": _BOOLEAN,
    "retention_days": {"type": ["integer", "null"]},
    "dataset_retention_days": _MAYBE_OBJECT,
    "limits": _LIMITS,
    "metadata": {"type": "object"},
    "created_at": _TIME,
    "updated_at": _TIME,
}


def _object(properties: JsonSchema, *optional: str) -> JsonSchema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def _page(name: str, item: JsonSchema) -> JsonSchema:
    return _object({name: {"type": "array", "items": item}, "next_cursor": _MAYBE_TEXT})


_, _FORMS = msgspec.json.schema_components(
    [KeyCreate, KeyPatch, KeyRotate, ClientCreate, ClientPatch],
    ref_template="#/components/schemas/{name}",
)
SCHEMAS: JsonSchema = {
    **_FORMS,
    "ApiKey": _object(
        {**_KEY_PROPERTIES, **_SIGNING_SECRET, "sources": _SOURCES, **_RECEIPT},
        *(*_SIGNING_SECRET, "sources", *_RECEIPT),
    ),
    "NewApiKey": _object(
        {
            **_KEY_PROPERTIES,
            "key": {"type": "string", "description": "The key itself: in this reply alone."},
            **_SIGNING_SECRET,
            "old_key_id": {"type": "string", "description": "After a rotation."},
            "sources": _SOURCES,
            **_RECEIPT,
        },
        *("key", *_SIGNING_SECRET, "old_key_id", "sources", *_RECEIPT),
    ),
    "ApiKeyPage": _page("api_keys", {"$ref": "#/components/schemas/ApiKey"}),
    "Client": _object({**_CLIENT_PROPERTIES, **_RECEIPT}, *_RECEIPT),
    "ClientPage": _page("clients", {"$ref": "#/components/schemas/Client"}),
}


def _form(name: str, example: JsonSchema) -> JsonSchema:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"content": {"application/json": {"schema": schema, "example": example}}}


KEY_CREATE = _form(
    "KeyCreate",
    {
        "client_id": "acme_corp",
        "name": "nightly etl",
        "role": "ingest",
        "allowed_datasets": ["orders"],
        "limits": {"requests_per_minute": 600},
        "expires_at": "2027-12-31T00:00:00Z",
    },
)
KEY_PATCH = _form("KeyPatch", {"name": "hourly etl", "limits": {"logs_per_minute": 10_000}})
KEY_ROTATE = _form("KeyRotate", {"grace_seconds": GRACE_S_DEFAULT})
CLIENT_CREATE = _form(
    "ClientCreate",
    {"client_id": "acme_corp", "name": "Acme Corporation", "contact_email": "ops@acme.example"},
)
CLIENT_PATCH = _form("ClientPatch", {"contact_email": "it@acme.example"})


def _parameter(name: str, schema: JsonSchema, description: str) -> JsonSchema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


_PAGING = [
    _parameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": PAGE_ITEMS_MAX, "default": PAGE_ITEMS},
        "Of one page.",
    ),
    _parameter("cursor", _TEXT, "`next_cursor` of the page before."),
]
KEY_LIST = [
    _parameter("client_id", _TEXT, "Only this client's."),
    _parameter("include_inactive", _BOOLEAN, "Those that were switched off too."),
    _parameter(
        "due",
        {"type": "integer", "minimum": 0},
        "Only those that end, or are to be rotated, within so many days.",
    ),
    *_PAGING,
]
CLIENT_LIST = _PAGING
DENIAL = {
    "application/json": {
        "schema": _object(
            {
                "request_id": _TEXT,
                "at": _TIME,
                "status": {"type": "integer"},
                "reason": {"type": "string", "examples": ["expired", "wrong_secret"]},
                "explanation": _TEXT,
                "client_id": _MAYBE_TEXT,
                "key_id": _MAYBE_TEXT | {"description": "As it was named, if it was well-formed."},
                "endpoint": {"type": "string", "examples": ["POST /api/v1/logs"]},
                "source_ip": _TEXT,
                "user_agent": _TEXT,
            }
        )
    }
}
_ACCESS: JsonSchema = {
    "minute": _TIME,
    "key_id": _TEXT,
    "endpoint": _TEXT,
    "dataset": {"type": "string", "description": "`*`: all that the key may read."},
    "source_ip": _TEXT,
    "user_agent": _TEXT,
    "outcome": {"type": "string", "description": "The status.", "examples": ["201"]},
    "requests": {"type": "integer"},
}
ACCESS_PAGE = {"application/json": {"schema": _page("access", _object(_ACCESS))}}
ACCESS_LIST = [
    _parameter("key_id", _TEXT, "Only this key's."),
    _parameter("from", _TEXT, "From this minute: RFC 3339, or relative like `-1h`, `-7d`."),
    _parameter("to", _TEXT, "Before this minute."),
    *_PAGING,
]
_EVENT: JsonSchema = {
    "at": _TIME,
    "action": {"type": "string", "examples": ["key.created", "key.deactivated", "denied"]},
    "actor": {
        "type": "string",
        "description": "A key_id, or what else acted.",
        "examples": ["script:revoke_api_key (root)"],
    },
    "client_id": _MAYBE_TEXT | {"description": "null = the platform."},
    "target": {"type": "string", "description": "A key_id, a client_id, or what else it is about."},
    "source_ip": _TEXT,
    "user_agent": _TEXT,
    "request_id": _TEXT,
    "detail": {
        "type": "object",
        "description": "Of a change: each column that changed, with its values before and after.",
        "examples": [{"is_active": [True, False]}],
    },
    "chain": {"type": "string", "description": "The client_id, or `*` for the platform's own."},
    "seq": {"type": "integer", "description": "Its number in the chain."},
}
AUDIT_PAGE = {"application/json": {"schema": _page("events", _object(_EVENT))}}
AUDIT_LIST = [
    _parameter("client_id", _TEXT, "Only this client's; with an admin key, `*` for all."),
    _parameter("from", _TEXT, "At or after: RFC 3339, or relative like `-1h`, `-7d`."),
    _parameter("to", _TEXT, "Before."),
    _parameter(
        "action", {"type": "string", "minLength": 1, "maxLength": 64}, "Only this action's."
    ),
    *_PAGING,
]
_ALERT: JsonSchema = {
    "id": {"type": "string", "format": "uuid"},
    "at": _TIME,
    "last_at": _TIME,
    "count": {"type": "integer", "description": "How often until `last_at`."},
    "rule": {"type": "string", "enum": list(RULES)},
    "severity": {"type": "string", "enum": ["low", "medium", "high"]},
    "action": {"type": "string", "enum": ["alert", "block", "quarantine"]},
    "client_id": _MAYBE_TEXT | {"description": "null = the platform's, or nobody's."},
    "key_id": _MAYBE_TEXT,
    "source_ip": {"type": "string", "description": "An address, or the /64 of a v6 one."},
    "detail": {
        "type": "object",
        "description": "`explanation`, and what was `seen`.",
        "examples": [{"explanation": RULES["spike"].explanation, "requests": 1200}],
    },
    "told": {"type": "string", "examples": ["told", "pending:webhook,mail", "nobody"]},
}
ALERT_PAGE = {"application/json": {"schema": _page("alerts", _object(_ALERT))}}
ALERT_LIST = [
    _parameter("client_id", _TEXT, "Only this client's; with an admin key, `*` for all."),
    _parameter("from", _TEXT, "At or after: RFC 3339, or relative like `-1h`, `-7d`."),
    _parameter("to", _TEXT, "Before."),
    _parameter("rule", {"type": "string", "enum": list(RULES)}, "Only this rule's."),
    *_PAGING,
]
