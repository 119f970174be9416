"""Request ids: unique across processes and restarts, cheap to make, and telling of nothing."""

import os
from collections.abc import Iterator

_BYTES = 12
_AT_ONCE = 1024


def new_request_id() -> str:
    """Return a new id; the service's own, never a caller's, so that it is safe to log and trust.

    Random to its end: a count would tell each client how many requests of others there were.
    """
    return next(_IDS)


def _ids() -> Iterator[str]:
    # The system is asked for a thousand at once; by itself it would take longer than the rest.
    length = 2 * _BYTES
    while True:
        pool = os.urandom(_BYTES * _AT_ONCE).hex()
        for start in range(0, len(pool), length):
            yield pool[start : start + length]


_IDS = _ids()
