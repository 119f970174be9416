"""JSON bodies of management requests, read by the route itself.

FastAPI would read and parse a declared body before it asks who calls.
"""

import json
import re
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from fastapi import Request

from app.api.arrival import read_body
from app.api.dependencies import authorize_again
from app.errors import Invalid, MalformedBody, UnsupportedMedia, fault
from app.keys.principal import Principal

# A message of msgspec ends in the place of the fault: "... - at `$.limits.logs_per_minute`".
_PLACE = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)

UNKEPT = "the body holds a number that is too large, or half of a surrogate pair"

T = TypeVar("T")


class Asked(NamedTuple, Generic[T]):
    """What a request says, the bytes of it, and who says it now that all of it is here."""

    form: T
    body: bytes
    caller: Principal


async def read_json(request: Request, form: type[T], *, empty: bytes = b"") -> Asked[T]:
    """Read the body as a `form`, a msgspec Struct.

    `empty` stands for an absent body. Raises MalformedBody, TooLarge, UnsupportedMedia, Invalid;
    and whatever `authorize` raises for a key that has lost its rights while its body was awaited.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {"", "application/json"}:
        raise UnsupportedMedia(
            f"Content-Type {media_type!r} is not supported", supported=["application/json"]
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Content-Encoding is not supported here", supported=["identity"])
    body = await read_body(request) or empty
    caller = await authorize_again(request)
    try:
        try:
            return Asked(msgspec.json.decode(body, type=form), body, caller)
        except msgspec.ValidationError as error:
            msgspec.json.decode(body)  # the first fault may not be the worst: is it JSON at all?
            raise Invalid([_fault(str(error))]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if _is_json(body):
            raise Invalid([fault(None, UNKEPT)]) from None
        raise MalformedBody(f"Malformed JSON: {error}") from None


def _is_json(body: bytes) -> bool:
    """Say whether a body is JSON after all, though it holds what cannot be kept."""
    try:
        json.loads(body, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are none of JSON's


def read_query(request: Request, form: type[T]) -> T:
    """Read the query string as a `form`: no parameter twice, none that is unknown."""
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in values:
            raise Invalid.parameter(name, "is given twice")
        values[name] = value
    try:
        return msgspec.convert(values, form, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid([_fault(str(error))]) from None


def _fault(message: str) -> dict[str, Any]:
    """Turn a message of msgspec into a field and what is wrong with it."""
    placed = _PLACE.fullmatch(message)
    # Of a member of a map msgspec says no more than `limits[...]`.
    text, place = (placed[1], placed[2].replace("[...]", "")) if placed else (message, "")
    for pattern, detail in ((_UNKNOWN, "is not known"), (_MISSING, "is required")):
        if named := pattern.fullmatch(text):
            return fault(f"{place}.{named[1]}" if place else named[1], detail)
    return fault(place or None, text[:1].lower() + text[1:])
