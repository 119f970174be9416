"""What becomes of a new key, or of a link to one, that did not get to anybody: it is taken back."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

from _signals import keep_out, let_in
from _wiring import ControlPlane, Refused

from app.delivery.claims import withdraw_claim
from app.delivery.mail import Handover
from app.delivery.templates import utc_text
from app.errors import LoggerError
from app.keys.lifecycle import Rotation, deactivate_key, undo_rotation
from app.keys.models import ApiKey

T = TypeVar("T")


class Undo(NamedTuple):
    """How to take something back, and what to tell when that was done or could not be."""

    step: Callable[[], object]
    done: str
    left: str


def switch_off(plane: ControlPlane, key: ApiKey) -> Undo:
    """Take a new key back."""
    return Undo(
        partial(deactivate_key, plane.engine, key.key_id, by=plane.by),
        f"key {key.key_id} was switched off again",
        f"key {key.key_id} is still active: revoke it",
    )


def unrotate(plane: ControlPlane, rotation: Rotation) -> Undo:
    """Take a rotation back, so that nobody is locked out at the end of the grace."""
    new, old = rotation.key.key_id, rotation.old.key_id
    until = rotation.old.ends_at
    if until is None or rotation.old.has_ended:
        left = f"nobody has the new key {new}, and {old} works no more: rotate {new} now"
    else:
        end = utc_text(until)
        left = f"nobody has the new key {new}, and {old} ends at {end}: rotate {new} before that"
    return Undo(
        partial(undo_rotation, plane.engine, rotation, by=plane.by),
        f"the rotation was undone: {old} works on as before, the new key {new} is off",
        left,
    )


def close_link(plane: ControlPlane, handover: Handover) -> Undo:
    """Take a claim link back, whose key somebody has already."""
    token = handover.claim_url.rpartition("/")[2]
    return Undo(
        partial(withdraw_claim, plane.engine, token, by=plane.by),
        "the claim link was taken back",
        "a claim link that nobody has is left, until its time is over",
    )


def hand_over(undo: Undo | None, give: Callable[[], T]) -> T:
    """Give somebody what was made under `held`, or take it back: Refused then.

    A signal counts as well, from the first moment to the last: a `with` would leave gaps at both
    ends of its block. What is printed has to be out, not in a buffer, before it is given.
    """
    try:
        try:
            let_in()
            given = give()
            sys.stdout.flush()
        finally:
            keep_out()
    except BaseException as error:
        if undo is None:
            raise
        raise Refused(f"{_reason(error)}; {_take_back(undo)}") from None
    return given


def _take_back(undo: Undo) -> str:
    try:
        undo.step()
    except LoggerError:
        return undo.left
    return undo.done


@contextmanager
def telling(outcome: object) -> Iterator[None]:
    """Tell in the block what was done; Refused says it in one line if the output fails.

    And if there is a signal, one that was held included.
    """
    try:
        let_in()
        yield
        sys.stdout.flush()
        keep_out()
    except (OSError, LoggerError, KeyboardInterrupt) as error:
        raise Refused(f"{_reason(error)}. {outcome}") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"the output could not be written ({error.strerror})"
    # Anything else may hold the key in its text.
    return type(error).__name__
