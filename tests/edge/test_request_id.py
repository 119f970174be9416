"""Request ids."""

import re
from itertools import pairwise

from app.edge.request_id import new_request_id

SOME = 10_000  # more than are made at once


def test_ids_are_alike_and_never_the_same() -> None:
    """Every id has the same form, and none comes twice."""
    ids = [new_request_id() for _ in range(SOME)]
    assert len(set(ids)) == SOME
    assert all(re.fullmatch("[0-9a-f]{24}", one) for one in ids)


def test_an_id_tells_of_no_other() -> None:
    """Nothing in an id grows with the requests that were answered, or stays from one to another."""
    numbers = [int(new_request_id(), 16) for _ in range(SOME)]
    for shift in range(0, 96, 8):
        places = [number >> shift & 0xFF for number in numbers]
        assert len(set(places)) == 256
        steps = sum(later > former for former, later in pairwise(places))
        assert 0.4 < steps / SOME < 0.6
