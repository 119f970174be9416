"""Signals that ask a command to end: it puts in order what it has begun, and says so.

Imported before all that takes its time: until a command begins Ctrl-C has nothing to put in order,
and ends it without a traceback.
"""

import signal
from types import FrameType

# Ctrl-C, a polite kill, and a terminal that is gone.
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# The signals that have come, by which a command's exit status says why it ended.
received: list[int] = []


def heed_signals() -> None:
    """Raise KeyboardInterrupt at each from now on, but for those that this process is to ignore."""
    for number in _ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ask)


def _ask(number: int, _frame: FrameType | None) -> None:
    is_first = not received
    received.append(number)
    # A closed terminal says so twice, its shell and the system: what is put in order meanwhile must
    # not be disturbed. A second Ctrl-C means that it takes too long.
    if is_first or number == signal.SIGINT:
        raise KeyboardInterrupt


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
