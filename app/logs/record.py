"""One log record as a client sends it, and the rules that it must keep."""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

ABSENT = Raw()

# Lengths are in characters.
Environment = Annotated[str, Meta(max_length=64)]
Status = Annotated[str, Meta(max_length=32)]
ExternalId = Annotated[str, Meta(max_length=128)]


class LogRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The fields that are known by name; `error` and `metadata` stay the JSON they came as.

    Decoding into it fails on an unknown field: `validate` then does the record with all care,
    which takes ten times as long. Both give the same record (a test holds them together).
    """

    environment: Environment
    executed_at: str | int | float
    status: Status
    workflow: str | None = None
    run_id: str | None = None
    level: str | None = None
    message: str | None = None
    duration_ms: int | float | None = None
    error: Raw = ABSENT
    dataset: str | None = None
    id: ExternalId | None = None
    metadata: Raw = ABSENT


class Rejection(msgspec.Struct, frozen=True):
    """Why a record is not stored; `field` is None where the record as a whole is at fault.

    `dataset` is set where the only fault is that the key may not write to that dataset.
    """

    field: str | None
    detail: str
    dataset: str | None = None


REQUIRED = ("environment", "executed_at", "status")
MALFORMED = "Malformed JSON"
TOO_DEEP = "is nested too deeply"
NOT_UTF8 = "is not valid UTF-8"

_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode


def _text_decoder(max_length: int | None) -> Any:
    text = str if max_length is None else Annotated[str, Meta(max_length=max_length)]
    return msgspec.json.Decoder(text).decode


_FIELDS: dict[str, tuple[Any, str]] = {
    "environment": (_text_decoder(64), "must be a string of at most 64 characters"),
    "executed_at": (
        msgspec.json.Decoder(str | int | float).decode,
        "must be an RFC 3339 time with an offset, or an epoch number",
    ),
    "status": (_text_decoder(32), "must be a string of at most 32 characters"),
    "workflow": (_text_decoder(None), "must be a string"),
    "run_id": (_text_decoder(None), "must be a string"),
    "level": (_text_decoder(None), "must be a string"),
    "message": (_text_decoder(None), "must be a string"),
    "duration_ms": (msgspec.json.Decoder(int | float).decode, "must be a finite number"),
    "error": (lambda raw: raw, ""),
    "dataset": (_text_decoder(None), "must be a string"),
    "id": (_text_decoder(128), "must be a string of at most 128 characters"),
    "metadata": (lambda raw: raw, ""),
}


# An escape of half a surrogate pair: a first half without a second one behind it, or a second
# one without a first before it.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F][0-9a-fA-F]{2})",
    re.DOTALL,
)
# More of them than this are not put right: 10 ms.
_LONE_SURROGATES_MAX = 100_000


def mark_lone_surrogates(text: bytes) -> bytes:
    """Put bytes that are not UTF-8 in the place of each escape of half a surrogate pair.

    The grammar of JSON allows such an escape, JavaScript writes them, and the decoder takes them
    for a broken body. Marked, they are what they amount to: text that can't be UTF-8, which costs
    its own record and no other. A text with very many of them is given back as it is: malformed.
    """
    if b"\\ud" not in text and b"\\uD" not in text:
        return text
    # With escaped backslashes out of the way, every backslash begins an escape.
    plain = text.replace(b"\xfe", b"\xff").replace(rb"\\", b"\xfe\xfe")
    marked, count = _LONE_SURROGATE.subn(b"\xff" * 6, plain, _LONE_SURROGATES_MAX + 1)
    if not 0 < count <= _LONE_SURROGATES_MAX:
        return text
    return marked.replace(b"\xfe\xfe", rb"\\")


def malformed(error: Exception) -> str:
    """Say where JSON is malformed, in the words of the contract."""
    if isinstance(error, UnicodeDecodeError):
        return f"{MALFORMED}: {NOT_UTF8}"
    if isinstance(error, RecursionError):
        return f"{MALFORMED}: {TOO_DEEP}"
    reason = str(error).removeprefix("JSON is malformed: ")
    if reason == "Input data was truncated":
        reason = "it ends too early"
    return f"{MALFORMED}: {reason}"


def validate(raw: bytes | Raw) -> LogRecord | Rejection:  # noqa: PLR0911  # one for each fault
    """Decode one record member by member: unknown ones kept, every fault named by its field."""
    try:
        members = _decode_members(raw)
    except msgspec.ValidationError:
        return Rejection(None, "must be an object")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = bytes(raw)
        marked = mark_lone_surrogates(text)
        return Rejection(None, malformed(error)) if marked == text else validate(marked)
    known: dict[str, Any] = {}
    for name, (decode, rule) in _FIELDS.items():
        member = members.pop(name, None)
        if member is None or bytes(member) == b"null":
            if name in REQUIRED:
                return Rejection(name, "is required")
            continue
        try:
            known[name] = decode(member)
        except UnicodeDecodeError:
            return Rejection(name, NOT_UTF8)
        except (msgspec.DecodeError, RecursionError):
            return Rejection(name, rule)
    if members:
        kept = _keep_unknown(known.get("metadata"), members)
        if isinstance(kept, Rejection):
            return kept
        known["metadata"] = kept
    return LogRecord(**known)


def _keep_unknown(metadata: Raw | None, unknown: dict[str, Raw]) -> Raw | Rejection:
    """Put unknown members behind those of metadata; a name already there gets a leading `_`.

    The values stay the text that was sent: a number of any size survives.
    """
    inner = b""
    taken: set[str] = set()
    if metadata is not None:
        try:
            taken = set(_decode_members(metadata))
        except msgspec.ValidationError:
            return Rejection("metadata", "must be an object")
        except (UnicodeDecodeError, RecursionError):
            return Rejection("metadata", NOT_UTF8)
        inner = bytes(metadata).strip()[1:-1].strip()
    parts = [inner] if inner else []
    onward: dict[str, str] = {}
    for name, value in unknown.items():
        free = _free_name(name, taken, onward)
        taken.add(free)
        parts.append(_encode(free) + b":" + bytes(value))
    return Raw(b"{" + b",".join(parts) + b"}")


def _free_name(name: str, taken: set[str], onward: dict[str, str]) -> str:
    """Find the first free name; `onward` leads past those that an earlier search has passed.

    So a record of nothing but clashes costs little more than a look at each of its names.
    """
    passed: list[str] = []
    while name in taken:
        passed.append(name)
        name = onward.get(name) or f"_{name}"
    onward.update(dict.fromkeys(passed, name))
    return name
