"""activity.db, where uses of keys are written: opened, and made anew where it has gone.

Every write to control.db tells every worker to forget the keys it has verified, so what is written
all the time stands in a second file of the same schema. It is evidence about keys: no log and no
start waits for it. So it is opened by its first use, which raises StorageUnavailable if that fails,
and the next use tries again.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from app.errors import StorageUnavailable
from app.keys.database import StartRefused, is_current, open_engine, sqlite_engine, upgrade
from app.keys.named_file import Meeting, NamedFile
from app.keys.side_files import Identity, identity

log = logging.getLogger(__name__)


def open_activity(control: Engine) -> Engine:
    """Open where uses of keys are written, beside the control database.

    Any other database than SQLite tells workers of changes by name, and has both.
    """
    if control.dialect.name != "sqlite":
        return control
    path = Path(control.url.database or "").with_name("activity.db")
    engine = sqlite_engine(path)
    event.listen(engine, "connect", _quickly)
    NamedFile(path, _made_sure).follow(engine)
    return engine


def _quickly(connection: Any, _record: Any) -> None:
    # In a write-ahead log, NORMAL can lose the last writes in a power cut and corrupts nothing.
    connection.execute("PRAGMA synchronous = NORMAL")


def _made_sure(met: Meeting) -> Identity | None:
    """Make the file if it is absent, and bring its schema up to date; say which one it is."""
    if met.former is not None:
        log.warning("%s was removed or replaced: going over to the new one", met.path)
    try:
        with _alone_in(met.path.parent):
            _remove_leftovers(met)
            engine = open_engine(f"sqlite:///{met.path}")
            try:
                if not is_current(engine):
                    upgrade(engine)
            finally:
                engine.dispose()
            return identity(met.path)
    except (OSError, StartRefused) as error:
        raise StorageUnavailable(f"{met.path}: {error}") from error


def _remove_leftovers(met: Meeting) -> None:
    """Remove the journal of a file that has gone: with a new file it would be read as its own.

    Beside a file that is there only what was beside the former one.
    """
    is_absent = identity(met.path) is None
    for path in met.side_files.paths:
        if met.side_files.is_left(path) or (is_absent and identity(path) is not None):
            Path(path).unlink()


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep all others out who make the file anew: one would remove the other's journal."""
    held = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
