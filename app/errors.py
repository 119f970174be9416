"""Every error that reaches a caller, and nothing about HTTP.

LoggerError                      what went wrong, as `detail`, plus `members` for machines
├── MalformedBody                the body is not JSON, or does not decompress
├── Unauthenticated
│   ├── KeyRequired              no usable credential
│   └── InvalidKey               unknown, mistyped, revoked, inactive, expired: never says which
├── Forbidden                    known caller, not allowed
│   └── InvalidSignature         a signature that does not hold: never says why
├── NotFound                     absent
│   └── Elsewhere                not the caller's own: another's, or none at all
├── Conflict                     the state does not allow it
├── Gone                         was here: shown once already, or its time is over
├── TooLarge                     body, record, batch, or a cost above a whole limit
├── UnsupportedMedia             content type or encoding
├── Invalid                      valid JSON, invalid record or parameter
├── RateLimited                  over a limit; cost nothing
└── Unavailable
    ├── StorageUnavailable       the store cannot take or give it now
    └── Overloaded               too much at once

`app/edge/problem.py` holds the one map from these to status codes.
"""

from typing import Any


class LoggerError(Exception):
    """Base of the tree; `detail` is the text for the caller, `members` extra JSON members."""

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members


class MalformedBody(LoggerError):
    """The body is not what its headers say it is."""


class Unauthenticated(LoggerError):
    """The caller is not known."""


class KeyRequired(Unauthenticated):
    """No usable credential; `hint` tells a caller that came close how to send it."""

    def __init__(self, **members: Any) -> None:
        super().__init__("API key required", **members)


class InvalidKey(Unauthenticated):
    """One text for every reason, so that an answer teaches nothing about which keys exist."""

    def __init__(self, **members: Any) -> None:
        super().__init__("Invalid API key", **members)


class Forbidden(LoggerError):
    """The caller is known and may not do this."""


class InvalidSignature(Forbidden):
    """A signature that does not hold; `cause` is for those who look after the key."""

    def __init__(self, cause: str) -> None:
        super().__init__("Invalid signature")
        self.cause = cause


class NotFound(LoggerError):
    """Absent, or another client's: the two look alike."""

    def __init__(self) -> None:
        super().__init__("Not found")


class Elsewhere(NotFound):
    """Not the caller's own: another client's or absent, which nothing tells apart; a refusal."""


class Conflict(LoggerError):
    """The present state does not allow it."""


class Gone(LoggerError):
    """Was here, and is not any more: shown once already, or its time is over."""

    def __init__(self) -> None:
        super().__init__("Gone")


class TooLarge(LoggerError):
    """`detail` begins with "Body too large"."""


class UnsupportedMedia(LoggerError):
    """`supported` lists what would have been understood."""


def fault(field: str | None, detail: str, index: int = 0) -> dict[str, Any]:
    """Return one of the errors of Invalid."""
    return {"index": index, "field": field, "detail": detail}


class Invalid(LoggerError):
    """`errors` is a list of {index, field, detail}."""

    def __init__(
        self, errors: list[dict[str, Any]], detail: str = "Invalid request", **members: Any
    ) -> None:
        super().__init__(detail, errors=errors, **members)

    @classmethod
    def parameter(cls, field: str, detail: str) -> "Invalid":
        """Refuse one parameter of a request."""
        return cls([fault(field, detail)])


class RateLimited(LoggerError):
    """`violated` names the policies; `retry_after_s` is a whole number of seconds."""

    def __init__(self, violated: list[str], retry_after_s: int) -> None:
        super().__init__("Rate limit exceeded", violated=violated)
        self.retry_after_s = retry_after_s


class Unavailable(LoggerError):
    """A transient fault: shippers retry this, and drop a batch on anything worse."""

    retry_after_s = 1


class StorageUnavailable(Unavailable):
    """The store cannot take or give it now; `reason` is for the log, not for the caller."""

    def __init__(self, reason: str = "") -> None:
        super().__init__("Storage unavailable")
        self.reason = reason


class Overloaded(Unavailable):
    """More is in flight than the service may hold in memory."""

    def __init__(self) -> None:
        super().__init__("Overloaded")
