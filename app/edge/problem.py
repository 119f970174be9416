"""The one map from errors to HTTP: application/problem+json of RFC 9457."""

from http import HTTPStatus
from typing import Any

import orjson

from app import errors
from app.errors import LoggerError
from app.journal import redacted

Headers = list[tuple[bytes, bytes]]

STATUS: dict[type[LoggerError], int] = {
    errors.MalformedBody: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.Invalid: 422,
    errors.RateLimited: 429,
    errors.Unavailable: 503,
}
CONTENT_TYPE = (b"content-type", b"application/problem+json")
CHALLENGE = (b"www-authenticate", b'ApiKey realm="central-logger"')


def status_of(error: LoggerError) -> int:
    """Return the status of an error: that of its nearest ancestor in the map."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def retry_after(error: LoggerError) -> int:
    """Return after how many seconds to try again; 0: that would not help."""
    return error.retry_after_s if isinstance(error, errors.RateLimited | errors.Unavailable) else 0


def problem(error: LoggerError, request_id: str) -> tuple[int, Headers, bytes]:
    """Return status, headers and body for an error."""
    status = status_of(error)
    headers = [CONTENT_TYPE]
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append(CHALLENGE)
    wait_s = retry_after(error)
    if wait_s:
        headers.append((b"retry-after", b"%d" % wait_s))
    return status, headers, problem_body(status, error.detail, request_id, error.members)


def problem_body(status: int, detail: str, request_id: str, members: dict[str, Any]) -> bytes:
    """Return the JSON of a problem; its own members win over a member of the same name.

    What it repeats of a request may be a key that was put in the wrong place: a reply is shown and
    logged where no key belongs.
    """
    return orjson.dumps(
        _without_keys(members)
        | {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": redacted(detail),
            "request_id": request_id,
        }
    )


def _without_keys(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {name: _without_keys(one) for name, one in value.items()}
    return [_without_keys(one) for one in value] if isinstance(value, list) else value
