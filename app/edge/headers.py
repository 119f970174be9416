"""What request headers say, where both planes read the same."""

from app.errors import Invalid

IDEMPOTENCY_KEY_LENGTH_MAX = 255


def combined(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Join the values of repeated headers as RFC 9110 (5.3) says: none of them hides another."""
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        if values.setdefault(name, value) != value:
            values[name] += b", " + value
    return values


def idempotency_key(headers: dict[bytes, bytes]) -> str | None:
    """Return the Idempotency-Key, if there is one; raise Invalid for what is none."""
    value = headers.get(b"idempotency-key")
    if value is None:
        return None
    key = value.decode("latin-1").strip()
    if not key or len(key) > IDEMPOTENCY_KEY_LENGTH_MAX or not key.isascii():
        detail = f"must be 1 to {IDEMPOTENCY_KEY_LENGTH_MAX} ASCII characters"
        raise Invalid.parameter("Idempotency-Key", detail)
    return key
