"""Signals that ask a command to end: it puts in order what it has begun, and says so.

Imported before all that takes its time: until a command begins Ctrl-C has nothing to put in order,
and ends it without a traceback.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C, a polite kill, and a terminal that is gone.
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# The signals that have come, by which a command's exit status says why it ended.
received: list[int] = []


class _Door:
    """Whether a signal gets in, or waits until `let_in` asks for it."""

    is_watched = False  # inside of held()
    is_shut = False


_door = _Door()


def heed_signals() -> None:
    """Raise KeyboardInterrupt at each from now on, but for those that this process is to ignore."""
    for number in _ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ask)


@contextmanager
def held() -> Iterator[None]:
    """Have signals wait while something is made that must be handed over or taken back.

    Between the commit and the moment from which it would be taken back, one that got in would
    leave it made, and nobody with it. `let_in` says where one may get in, and it is one alone: what
    is put in order after that, or was begun, is not to be disturbed. None of it waits for long.

    A block that ends well leaves the door as it is: after `keep_out` nothing is left to be
    interrupted, and a signal that came so late would deny what is done.
    """
    _door.is_watched = _door.is_shut = True
    try:
        yield
    except BaseException:
        _door.is_shut = False
        raise
    finally:
        _door.is_watched = False


def keep_out() -> None:
    """Have signals wait again."""
    _door.is_shut = True


def ignore_signals() -> None:
    """Let no signal change the exit status any more, up to the interpreter's own last step."""
    for number in _ASKING:
        signal.signal(number, signal.SIG_IGN)


def let_in() -> None:
    """Let signals in; raises KeyboardInterrupt at once if one has come already."""
    _door.is_shut = False
    if received:
        _door.is_shut = _door.is_watched
        raise KeyboardInterrupt


def _ask(number: int, _frame: FrameType | None) -> None:
    is_first = not received
    received.append(number)
    if _door.is_shut:
        return
    # A closed terminal says so twice, its shell and the system: what is put in order meanwhile must
    # not be disturbed. A second Ctrl-C means that it takes too long.
    if is_first or number == signal.SIGINT:
        _door.is_shut = _door.is_watched
        raise KeyboardInterrupt


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
