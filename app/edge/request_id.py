"""Request ids: unique across processes and restarts, cheap to make."""

import os
from itertools import count

_FORM = f"{os.urandom(8).hex()}-%x"
_NUMBERS = count(1)


def new_request_id() -> str:
    """Return a new id; the service's own, never a caller's, so that it is safe to log and trust."""
    return _FORM % next(_NUMBERS)
