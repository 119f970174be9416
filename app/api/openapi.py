"""The OpenAPI description: what FastAPI can't see, the hot path above all, is written here."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app import __version__
from app.api.schemas import SCHEMAS
from app.edge.headers import IDEMPOTENCY_KEY_LENGTH_MAX
from app.edge.ingest import MEDIA_TYPES, PATH
from app.logs.query import DEFAULT_LIMIT, MAX_LIMIT
from app.logs.rows import SLUG
from app.logs.selection import FILTERS

JsonSchema = dict[str, Any]

_TEXT: JsonSchema = {"type": "string"}
_MAYBE_TEXT: JsonSchema = {"type": ["string", "null"]}
_TIME: JsonSchema = {"type": "string", "format": "date-time"}

_ERRORS: JsonSchema = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["index", "field", "detail"],
        "properties": {
            "index": {"type": "integer", "description": "The record's place, from 0."},
            "field": _MAYBE_TEXT,
            "detail": _TEXT,
        },
    },
}
_RECORD_IN: JsonSchema = {
    "type": "object",
    "required": ["environment", "executed_at", "status"],
    "additionalProperties": True,
    "description": "Unknown fields are kept under `metadata`.",
    "properties": {
        "environment": {"type": "string", "maxLength": 64},
        "executed_at": {
            "description": "RFC 3339 with an offset, or epoch seconds, ms, us or ns.",
            "anyOf": [_TIME, {"type": "number"}],
        },
        "status": {"type": "string", "maxLength": 32, "examples": ["SUCCESS"]},
        "workflow": _MAYBE_TEXT,
        "run_id": _MAYBE_TEXT,
        "level": _MAYBE_TEXT,
        "message": _MAYBE_TEXT,
        "duration_ms": {"type": ["number", "null"], "minimum": 0},
        "error": {"type": ["string", "object", "null"]},
        "dataset": {"type": ["string", "null"], "pattern": f"^{SLUG.pattern}$"},
        "id": {
            "type": ["string", "null"],
            "maxLength": 128,
            "description": "Your own id: a repeat is stored once.",
        },
        "metadata": {"type": ["object", "null"]},
    },
}
_STORED: JsonSchema = {
    "type": "object",
    "required": ["id", "client_id", "received_at"],
    "properties": {
        "id": _TEXT,
        "client_id": _TEXT,
        "received_at": _TIME,
        "duplicate": {"type": "boolean"},
    },
}
_BATCH_STORED: JsonSchema = {
    "type": "object",
    "required": ["accepted", "rejected", "duplicates", "errors"],
    "properties": {
        "accepted": {"type": "integer"},
        "rejected": {"type": "integer"},
        "duplicates": {"type": "integer"},
        "errors": {"$ref": "#/components/schemas/Errors"},
    },
}
_RECORD_OUT: JsonSchema = {
    "type": "object",
    "required": [
        *("id", "client_id", "executed_at", "received_at", "environment", "status", "dataset"),
        *("level", "workflow", "run_id", "message", "duration_ms", "error", "external_id"),
        "metadata",
    ],
    "properties": {
        "id": _TEXT,
        "client_id": _TEXT,
        "executed_at": _TIME,
        "received_at": _TIME,
        "environment": _TEXT,
        "status": _TEXT,
        "dataset": _TEXT,
        "level": _MAYBE_TEXT,
        "workflow": _MAYBE_TEXT,
        "run_id": _MAYBE_TEXT,
        "message": _MAYBE_TEXT,
        "duration_ms": {"type": ["number", "null"]},
        "error": {"type": ["string", "object", "null"]},
        "external_id": _MAYBE_TEXT,
        "metadata": {"type": "object"},
    },
}
_PROBLEM: JsonSchema = {
    "type": "object",
    "description": "RFC 9457.",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "request_id": _TEXT,
        "errors": {"$ref": "#/components/schemas/Errors"},
    },
}
COMPONENTS = {
    "schemas": {
        "LogRecord": _RECORD_IN,
        "StoredLog": _RECORD_OUT,
        "Stored": _STORED,
        "BatchStored": _BATCH_STORED,
        "Errors": _ERRORS,
        "Problem": _PROBLEM,
        **SCHEMAS,
    },
    "securitySchemes": {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    },
}
SECURITY: list[dict[str, list[str]]] = [{"ApiKey": []}, {"Bearer": []}]


def _ref(name: str) -> JsonSchema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: JsonSchema) -> JsonSchema:
    return {"application/json": {"schema": schema}}


LOG_RECORD = _json(_ref("StoredLog"))
LOG_PAGE = _json(
    {
        "type": "object",
        "required": ["logs", "next_cursor"],
        "properties": {
            "logs": {"type": "array", "items": _ref("StoredLog")},
            "next_cursor": _MAYBE_TEXT,
        },
    }
)
_COUNTS: JsonSchema = {
    "type": "object",
    "properties": {
        name: {"type": "integer"} for name in ("requests", "logs", "bytes", "rejected", "denied")
    },
}
USAGE = _json(
    {
        "type": "object",
        "required": ["usage", "totals"],
        "properties": {"usage": {"type": "array", "items": _COUNTS}, "totals": _COUNTS},
    }
)


def _parameter(name: str, schema: JsonSchema, description: str) -> JsonSchema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


CLIENT_ID = _parameter("client_id", _TEXT, "The client; needed with an admin key.")
LOG_FILTERS = [
    _parameter("from", _TEXT, "Executed at or after: RFC 3339, or relative like `-1h`, `-7d`."),
    _parameter("to", _TEXT, "Executed before."),
    *(
        _parameter(name, {"type": "array", "items": _TEXT}, "Any of these values.")
        for name in FILTERS
    ),
    _parameter("order", {"type": "string", "enum": ["desc", "asc"], "default": "desc"}, "By time."),
    _parameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "Logs on a page.",
    ),
    _parameter("cursor", _TEXT, "`next_cursor` of the page before."),
    CLIENT_ID,
]

_SUCCESSES = {200: "OK", 201: "Created"}
_FAULTS = {
    400: "Malformed body",
    401: "API key required, or Invalid API key",
    403: "Not authorized",
    404: "Not found",
    409: "State conflict",
    413: "Body too large",
    415: "Content type or encoding not supported",
    422: "Invalid record or parameter",
    429: "Rate limit exceeded",
    503: "Storage unavailable, or Overloaded",
}


# What may be wrong with a body of JSON.
BODY_FAULTS = (400, 413, 415, 422)
API_KEY = _json(_ref("ApiKey"))
API_KEY_PAGE = _json(_ref("ApiKeyPage"))
NEW_API_KEY = _json(_ref("NewApiKey"))
CLIENT = _json(_ref("Client"))
CLIENT_PAGE = _json(_ref("ClientPage"))


def _fault(status: int) -> JsonSchema:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    return {"description": _FAULTS[status], "content": content}


def documented(
    content: JsonSchema,
    *faults: int,
    status: int = 200,
    parameters: list[JsonSchema] | None = None,
    body: JsonSchema | None = None,
    public: bool = False,
) -> dict[str, Any]:
    """Return the arguments that describe a route: its answer, its faults, what it takes."""
    statuses = set(faults) if public else {401, 429, 503, *faults}
    responses: dict[int | str, Any] = {
        status: {"description": _SUCCESSES[status], "content": content}
    }
    responses |= {fault: _fault(fault) for fault in sorted(statuses)}
    extra: JsonSchema = {"security": [] if public else SECURITY}
    if parameters is not None:
        extra["parameters"] = parameters
    if body is not None:
        extra["requestBody"] = body
    return {"responses": responses, "openapi_extra": extra, "response_model": None}


def _ingest_operation() -> JsonSchema:
    one, many = _ref("LogRecord"), {"type": "array", "items": _ref("LogRecord")}
    envelope = {"type": "object", "required": ["logs"], "properties": {"logs": many}}
    bodies: JsonSchema = _json({"anyOf": [one, many, envelope]})
    for media_type in MEDIA_TYPES:
        bodies.setdefault(
            media_type, {"schema": {"type": "string", "description": "One record a line."}}
        )
    return {
        "tags": ["logs"],
        "summary": "Store logs",
        "operationId": "store_logs",
        "description": (
            'One record, an array, `{"logs": [...]}`, or NDJSON; `Content-Encoding` gzip, deflate'
            " or zstd. **201 means on disk.** A bad record never costs its neighbours."
        ),
        "security": SECURITY,
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "schema": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": IDEMPOTENCY_KEY_LENGTH_MAX,
                },
                "description": "A repeat within 24 h gets the first reply.",
            },
            {**CLIENT_ID, "schema": {"type": "string", "pattern": f"^{SLUG.pattern}$"}},
        ],
        "requestBody": {"required": True, "content": bodies},
        "responses": {
            "201": {
                "description": "On disk",
                "content": _json({"anyOf": [_ref("Stored"), _ref("BatchStored")]}),
            },
            **{
                str(status): _fault(status)
                for status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 503)
            },
        },
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the whole description, made once."""
    if not app.openapi_schema:
        schema = get_openapi(
            title="central-logger",
            version=__version__,
            description="Centralized log ingestion with per-client API keys.",
            routes=app.routes,
        )
        for kind, entries in COMPONENTS.items():
            schema.setdefault("components", {}).setdefault(kind, {}).update(entries)
        schema["paths"].setdefault(PATH, {})["post"] = _ingest_operation()
        for path in schema["paths"].values():
            for operation in path.values():
                # FastAPI promises its own form of 422; ours are problems.
                if "HTTPValidationError" in str(operation["responses"].get("422", "")):
                    operation["responses"]["422"] = _fault(422)
        for own in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(own, None)
        app.openapi_schema = schema
    return app.openapi_schema
