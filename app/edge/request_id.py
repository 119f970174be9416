"""Request ids: unique across processes and restarts, cheap to make."""

import os
from itertools import count

_PREFIX = os.urandom(8).hex()
_NUMBERS = count(1)


def new_request_id() -> str:
    """Return a new id; the service's own, never a caller's, so that it is safe to log and trust."""
    return f"{_PREFIX}-{next(_NUMBERS):x}"
