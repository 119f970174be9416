"""The OpenAPI description: what FastAPI can't see, the hot path above all, is written here."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app import __version__
from app.api.schemas import SCHEMAS
from app.edge.headers import IDEMPOTENCY_KEY_LENGTH_MAX
from app.edge.ingest import MEDIA_TYPES, PATH
from app.logs.aggregation import DEFAULT_LIMIT as DEFAULT_ROWS
from app.logs.aggregation import DIMENSIONS, METRICS
from app.logs.aggregation import MAX_LIMIT as ROWS_MAX
from app.logs.query import DEFAULT_LIMIT, EXPORT_FORMATS, MAX_LIMIT
from app.logs.rows import SLUG
from app.logs.search import QUESTION_LENGTH_MAX
from app.logs.selection import FILTERS, METADATA_FILTERS_MAX, METADATA_NAME_LENGTH_MAX

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
REJECTED_PAGE = _json(
    {
        "type": "object",
        "required": ["rejected", "next_cursor"],
        "properties": {
            "rejected": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["received_at", "index", "field", "detail", "record", "key_id"],
                    "properties": {
                        "received_at": _TIME,
                        "index": {"type": "integer", "description": "Its place in the request."},
                        "field": _MAYBE_TEXT,
                        "detail": _TEXT,
                        "record": {"type": "string", "description": "As it was sent; may be cut."},
                        "key_id": _TEXT,
                    },
                },
            },
            "next_cursor": _MAYBE_TEXT,
        },
    }
)
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


_CELL: JsonSchema = {"type": ["string", "number", "null"]}
TABLE = _json(
    {
        "type": "object",
        "required": ["columns", "rows"],
        "properties": {
            "columns": {"type": "array", "items": _TEXT},
            "rows": {"type": "array", "items": {"type": "array", "items": _CELL}},
        },
        "examples": [
            {"columns": ["workflow", "count", "error_rate"], "rows": [["order-sync", 1204, 0.04]]}
        ],
    }
) | {"text/csv": {"schema": _TEXT}}
_FILTER: JsonSchema = {
    "anyOf": [_TEXT, {"type": "number"}, {"type": "array", "items": _TEXT, "minItems": 1}]
}
QUERY: JsonSchema = {
    "required": True,
    "content": _json(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "client_id": {**_TEXT, "description": "With an admin key; `*` for all."},
                "dataset": {**_FILTER, "description": "All that the key may read, if absent."},
                "metrics": {
                    "type": "array",
                    "items": {"type": "string", "enum": list(METRICS)},
                    "uniqueItems": True,
                    "default": ["count"],
                },
                "dimensions": {
                    "type": "array",
                    "items": {"type": "string", "examples": [*DIMENSIONS, "time:1h"]},
                    "description": (
                        f"{', '.join(DIMENSIONS)} (`client_id` with `*` alone), or `time:` with a"
                        " length that parts a day evenly: `time:5m`, `time:1h`, `time:1d`."
                    ),
                },
                "filters": {
                    "type": "object",
                    "additionalProperties": _FILTER,
                    "description": "Named as in GET /api/v1/logs: `status`, `q`, `metadata.NAME`.",
                },
                "from": {**_TEXT, "description": "As in GET /api/v1/logs."},
                "to": _TEXT,
                "order": {
                    "anyOf": [_TEXT, {"type": "array", "items": _TEXT}],
                    "description": (
                        "`column`, `-column`, or `asc`, `desc` of the time, or of the first metric."
                        " By the dimensions, if absent."
                    ),
                },
                "limit": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": ROWS_MAX,
                    "default": DEFAULT_ROWS,
                },
            },
            "examples": [
                {
                    "metrics": ["count", "error_rate", "p95_duration_ms"],
                    "dimensions": ["time:1h", "workflow"],
                    "filters": {"environment": "production"},
                    "from": "-7d",
                }
            ],
        }
    ),
}


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
    _parameter(
        "q",
        {"type": "string", "minLength": 1, "maxLength": QUESTION_LENGTH_MAX},
        'Whole words, all of which must be in the message, the error or the metadata; `"a phrase"`,'
        " `-not`.",
    ),
    _parameter("min_duration_ms", {"type": "number", "minimum": 0}, "Lasted so long at least."),
    {
        **_parameter(
            "metadata",
            {
                "type": "object",
                "propertyNames": {"pattern": rf"^metadata\..{{1,{METADATA_NAME_LENGTH_MAX}}}$"},
                "additionalProperties": {"type": "array", "items": _TEXT, "minItems": 1},
                "maxProperties": METADATA_FILTERS_MAX,
                "examples": [{"metadata.host": ["db-1", "db-2"]}],
            },
            "Any name with its values, as in `metadata.host=db-1`; a dot leads into an object.",
        ),
        "style": "form",
        "explode": True,
    },
    _parameter("order", {"type": "string", "enum": ["desc", "asc"], "default": "desc"}, "By time."),
    _parameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "Logs on a page.",
    ),
    _parameter("cursor", _TEXT, "`next_cursor` of the page before."),
    CLIENT_ID,
]

REJECTED_FILTERS = [
    _parameter("from", _TEXT, "Received at or after: RFC 3339, or relative like `-1h`, `-7d`."),
    _parameter("to", _TEXT, "Received before."),
    *(one for one in LOG_FILTERS if one["name"] in {"limit", "cursor", "client_id"}),
]

EXPORT = {"application/x-ndjson": {"schema": _TEXT}, "text/csv": {"schema": _TEXT}}
EXPORT_FILTERS = [
    _parameter(
        "format",
        {"type": "string", "enum": list(EXPORT_FORMATS), "default": "ndjson"},
        "One log of JSON a line, or a table.",
    ),
    *(one for one in LOG_FILTERS if one["name"] not in {"order", "limit", "cursor"}),
    _parameter("order", {"type": "string", "enum": ["asc", "desc"], "default": "asc"}, "By time."),
]

TAIL = {"text/event-stream": {"schema": _TEXT}}
TAIL_FILTERS: dict[str, Any] = {
    "parameters": [
        *(one for one in LOG_FILTERS if one["name"] not in {"order", "limit", "cursor"}),
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": _TEXT,
            "description": "The `id` of the last event that you have; any filters may follow it.",
        },
        _parameter("last_event_id", _TEXT, "The same, where a header can't be set."),
    ]
}

ERASURE_FILTERS = [
    one for one in LOG_FILTERS if one["name"] not in {"order", "limit", "cursor", "client_id"}
]
ERASED = _json(
    {
        "type": "object",
        "required": ["erased", "from", "to", "erased_at", "digest"],
        "properties": {
            "erased": {"type": "integer", "description": "How many logs."},
            "from": {**_MAYBE_TEXT, "description": "When the first of them was executed."},
            "to": {**_MAYBE_TEXT, "description": "When the last of them was executed."},
            "erased_at": _TIME,
            "digest": {
                "type": "string",
                "description": "SHA-256 in hex of their ids, sorted, joined by line breaks.",
            },
        },
    }
)

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
    # 403, since a key may be restricted to addresses, countries or hours.
    statuses = set(faults) if public else {401, 403, 429, 503, *faults}
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
            description=(
                "Centralized log ingestion with per-client API keys. Requests of keys with"
                " `require_signature` are signed by RFC 9421: `Signature-Input`, `Signature`, and"
                " `Content-Digest` where there is a body."
            ),
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
