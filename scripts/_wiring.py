"""What the commands in this directory share: the control plane, questions, and how they end.

Exit status: 0 done, 1 refused or not possible, 2 wrong usage or a bad setting.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import TextIOWrapper
from typing import Any, NamedTuple, NoReturn

from sqlalchemy import Engine

from app.errors import Invalid, LoggerError, StorageUnavailable
from app.keys.bootstrap import open_secrets
from app.keys.database import StartRefused, open_current
from app.keys.objects import RotationPolicy
from app.keys.verifier import Peppers
from app.settings import BadSetting, Settings, load_settings


class Refused(Exception):
    """The command does not do it; the text is for its user."""


class ControlPlane(NamedTuple):
    """What a command works on."""

    settings: Settings
    engine: Engine
    peppers: Peppers

    @property
    def rotation_policy(self) -> RotationPolicy:
        """Give the policy by which key objects say when they are due."""
        return RotationPolicy(self.settings.rotation_days_live, self.settings.rotation_days_test)


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Open the control plane as the server would from this directory, running or not."""
    settings = load_settings()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("app").setLevel(logging.INFO)
    # The database first: a secret is of no use where no database can be made.
    engine = open_current(settings.database_url, settings.data_dir)
    try:
        peppers = Peppers(open_secrets(settings.data_dir, settings.secret_key))
        yield ControlPlane(settings, engine, peppers)
    finally:
        engine.dispose()


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and end the process as its outcome asks: one line, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A name that a terminal can't show must not cost the key that stands beside it.
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
        sys.stdout.flush()
    except BadSetting as error:
        _end(2, str(error))
    except Invalid as error:
        faults = error.members["errors"]
        _end(1, "; ".join(f"{fault['field']} {fault['detail']}" for fault in faults))
    except StorageUnavailable as error:
        _end(1, f"the control database cannot be used: {error.reason}")
    except (Refused, StartRefused, LoggerError) as error:
        _end(1, str(error))
    except BrokenPipeError:
        # The reader (`| head`) has enough; the interpreter's own flush must not complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, UnicodeError) as error:
        _end(1, f"{type(error).__name__}: {error}")
    sys.exit(0)


def ask(question: str, *, to_stderr: bool) -> str:
    """Ask for a value; the empty text if there is no answer.

    The question goes to stderr where stdout is for a machine.
    """
    print(question, end="", file=sys.stderr if to_stderr else sys.stdout, flush=True)
    line = sys.stdin.readline() if sys.stdin is not None else ""
    if not (line.endswith("\n") and sys.stdin.isatty()):
        # Nobody typed the line break that would end the question's line.
        print(file=sys.stderr if to_stderr else sys.stdout)
    return line.strip()


def print_json(value: Any) -> None:
    """Print one JSON value, alone on its line."""
    print(json.dumps(value))


def moment(text: str) -> datetime:
    """Read RFC 3339 (UTC if no zone is given), a date, or days from now as `90d`."""
    try:
        if text.endswith("d"):
            return datetime.now(UTC) + timedelta(days=int(text[:-1]))
        parsed = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"not a time: {text!r} (examples: 2027-01-31T12:00:00Z, 2027-01-31, 90d)"
        ) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _end(status: int, message: str) -> NoReturn:
    print(f"Error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
