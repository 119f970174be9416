"""What the commands in this directory share: the control plane, options, questions, their end.

Exit status: 0 done, 1 refused or not possible, 2 wrong usage or a bad setting, 128 and its number
for a signal.
"""

import argparse
import json
import logging
import os
import pwd
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from getpass import getpass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from _signals import heed_signals, ignore_signals, received
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from app.errors import Invalid, LoggerError, NotFound, StorageUnavailable
from app.journal import redacted
from app.keys.bootstrap import check_secrets, open_secrets
from app.keys.changes import Author
from app.keys.clients import get_client
from app.keys.database import StartRefused, embedded_url, open_current, sqlite_path
from app.keys.models import ApiKey, Client
from app.keys.objects import RotationPolicy
from app.keys.registry import get_key
from app.keys.sealing import chain_keys
from app.keys.verifier import Peppers
from app.protect.signing_keys import SigningKeys
from app.settings import BadSetting, Settings, load_settings
from app.streams import let_go, prepare_streams


class Refused(Exception):
    """The command does not do it; the text is for its user."""


class ControlPlane(NamedTuple):
    """What a command works on."""

    settings: Settings
    engine: Engine
    peppers: Peppers
    by: Author
    signing_keys: SigningKeys

    @property
    def rotation_policy(self) -> RotationPolicy:
        """Give the policy by which key objects say when they are due."""
        return RotationPolicy(self.settings.rotation_days_live, self.settings.rotation_days_test)


@contextmanager
def control_plane(*, may_create: bool = False) -> Iterator[ControlPlane]:
    """Open the control plane as the server would from this directory, running or not.

    A database is made only by what a first use may need: anything else would find it empty, and
    hide that the real one is elsewhere.
    """
    settings = load_settings()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("app").setLevel(logging.INFO)
    if not may_create:
        _check_there(settings)
    # The database first: a secret is of no use where no database can be made.
    engine = open_current(settings.database_url, settings.data_dir)
    try:
        secrets = open_secrets(settings.data_dir, settings.secret_key)
        peppers = Peppers(secrets)
        check_secrets(engine, peppers)
        by = Author(chain_keys(secrets), f"script:{Path(sys.argv[0]).stem} ({_user()})")
        yield ControlPlane(settings, engine, peppers, by, SigningKeys(secrets))
    finally:
        engine.dispose()


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and end the process as its outcome asks: one line, no traceback."""
    if not prepare_streams():
        _end(1, "standard output is closed")
    heed_signals()
    try:
        command()
        sys.stdout.flush()
        ignore_signals()
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
        pass  # the reader (`| head`) has enough
    except KeyboardInterrupt:
        _end(1, "interrupted")
    except OSError as error:
        _end(1, error.strerror or str(error))
    except UnicodeError as error:
        _end(1, f"{type(error).__name__}: {error}")
    finally:
        # After a signal nobody may be reading, and a flush would wait for ever.
        let_go(may_wait=not received)
    sys.exit(0)


class Parser(argparse.ArgumentParser):
    """A parser that repeats no key in what it complains of."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and how the command is used; end with 2."""
        super().error(redacted(message))


def open_parser(
    description: str | None, json_help: str = "print one JSON object", *, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Give a parser of options, --json among them, that leaves the lines of texts as they are."""
    parser = Parser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help=json_help)
    return parser


def add_client_id(parser: argparse.ArgumentParser) -> None:
    """Add the option that `client_id_of` reads."""
    parser.add_argument("--client", metavar="ID", help="client_id, such as acme_corp; asked for")


def add_key_id(parser: argparse.ArgumentParser) -> None:
    """Add the argument that `key_id_of` reads."""
    parser.add_argument("key_id", nargs="?", metavar="KEY_ID", help="key_id or UUID; asked for")


def add_expires(parser: argparse.ArgumentParser) -> None:
    """Add the end of a key."""
    parser.add_argument("--expires", type=_moment, metavar="T", help="RFC 3339, a date, or 90d")


def client_id_of(arguments: argparse.Namespace) -> str:
    """Give the client_id that is meant, asked for if it was left out."""
    question = "Enter client_id (e.g., 'acme_corp'): "
    return needed(arguments.client, "client_id", question, to_stderr=arguments.json)


def key_id_of(arguments: argparse.Namespace) -> str:
    """Give the key_id or UUID that is meant, asked for if it was left out."""
    return needed(arguments.key_id, "key_id", "Enter key_id: ", to_stderr=arguments.json)


def needed(value: str | None, name: str, question: str, *, to_stderr: bool) -> str:
    """Give a value, asked for if it was left out; Refused if there is none."""
    found = value or ask(question, to_stderr=to_stderr)
    if not found:
        raise Refused(f"{name} is required")
    return found


def ask(question: str, *, to_stderr: bool, is_secret: bool = False) -> str:
    """Ask for a value; the empty text if there is no answer.

    The question goes to stderr where stdout is for a machine. A terminal does not show a secret.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    line = ""
    try:
        if is_secret and is_typed:
            return getpass(question, stream).strip()
        print(question, end="", file=stream, flush=True)
        line = sys.stdin.readline() if sys.stdin is not None else ""
    except EOFError:
        return ""
    finally:
        if not is_secret and not (is_typed and line.endswith("\n")):
            # Nobody typed the line break that would end the question's line.
            print(file=stream, flush=True)
    return line.strip()


def known_key(plane: ControlPlane, key_id: str) -> ApiKey:
    """Find a key by its key_id or UUID; Refused if there is none."""
    try:
        return get_key(plane.engine, key_id)
    except NotFound:
        raise Refused(f"no key {key_id!r}; list_api_keys.py shows them") from None


def known_client(plane: ControlPlane, client_id: str) -> Client:
    """Find a client; Refused if there is none."""
    try:
        return get_client(plane.engine, client_id)
    except NotFound:
        raise Refused(f"no client {client_id!r}; usage_report.py shows them") from None


def active_client(plane: ControlPlane, client_id: str | None) -> Client | None:
    """Find a client, if there is one; Refused if it is deactivated, so that no key of it works."""
    try:
        client = None if client_id is None else get_client(plane.engine, client_id)
    except NotFound:
        return None
    if client is not None and not client.is_active:
        raise Refused(f"client {client_id} is deactivated: no key of it would work")
    return client


def print_json(value: Any) -> None:
    """Print one JSON value, alone on its line."""
    print(json.dumps(value))


def text_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Give rows with their cells below each other, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _moment(text: str) -> datetime:
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


def _user() -> str:
    """Name who runs the command, as the system knows: the environment says what one likes."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as a number without a name
        return str(os.getuid())


def _check_there(settings: Settings) -> None:
    url = make_url(settings.database_url or embedded_url(settings.data_dir))
    if url.get_backend_name() == "sqlite" and not sqlite_path(url).exists():
        setting = "DATABASE_URL" if settings.database_url else "DATA_DIR"
        path = sqlite_path(url).absolute()
        raise Refused(f"there is no control database at {path}; is {setting} the server's?")
    if url.get_backend_name() == "sqlite" and not sqlite_path(url).stat().st_size:
        raise Refused(f"{sqlite_path(url).absolute()} is no control database: it is empty")


def _end(status: int, message: str) -> NoReturn:
    with suppress(OSError):  # a terminal that is gone
        print(f"Error: {redacted(' '.join(message.split()))}", file=sys.stderr)
    ignore_signals()
    sys.exit(128 + received[0] if received else status)
