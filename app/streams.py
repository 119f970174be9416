"""The standard streams of a command: where they are closed, full, or left by their reader."""

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import TextIO


def prepare_streams() -> bool:
    """See that both outputs can be written to; False if stdout is closed, and nobody reads it."""
    is_open = sys.stdout is not None
    # `>&-` and `2>&-`: the next file that is opened would take their number, and print() without a
    # stderr take stdout for it.
    if not is_open:
        sys.stdout = _open_nowhere()
    if sys.stderr is None:
        sys.stderr = _open_nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A name that a terminal can't show must not cost the key that stands beside it.
            stream.reconfigure(errors="backslashreplace")
    return is_open


def let_go(*, may_wait: bool = True) -> None:
    """Leave nothing to the interpreter's own flush at the end, which complains of a failure.

    Unless it `may_wait`, what stdout has not taken is lost: nobody may be reading.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            if stream is sys.stderr or may_wait:
                stream.flush()
                continue
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_nowhere() -> TextIO:
    # For as long as the process lives: nobody is to be warned that it was never closed.
    return open(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
