"""The commands `central-logger audit verify` and `audit export`.

They read the databases as they lie there, under a running server too, and write nothing there.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from app.activity.notary import books_of
from app.audit.book import Book, read_as_it_is
from app.audit.chain import ACTIVITY, BOOK_STARTED, ChainKeys, Checkpoint, same
from app.audit.checkpoints import is_signed, logged
from app.audit.export import Damaged, Export, write_export
from app.audit.verify import Checker, Fault
from app.errors import StorageUnavailable
from app.keys.bootstrap import SECRET_FILE, open_secrets
from app.keys.database import (
    StartRefused,
    embedded_url,
    is_current,
    open_engine,
    sqlite_engine,
    sqlite_path,
    translated_faults,
)
from app.keys.sealing import chain_keys, signers
from app.settings import Settings


class Refused(Exception):
    """It can't be checked, or exported; the text is one line."""


class _Proofs(NamedTuple):
    """What seals and signatures are held against."""

    keys: Callable[[str], ChainKeys]
    public_keys: list[bytes]


def verify(
    settings: Settings, tell: Callable[[str], None], client_id: str | None, log: Path | None
) -> bool:
    """Check the databases, and the checkpoints in a log; tell the outcome, say if all is well."""
    proofs = _proofs(settings)
    with _books(settings) as books:
        by_name = {book.name: book for book in books}
        checker = Checker(
            proofs.keys,
            proofs.public_keys,
            is_whole=client_id is None,
            announces=lambda book, chain: by_name[book].announces(chain),
            begun=_begun(books[0]) if client_id is None else (),
        )
        sections = (section for book in books for section in book.sections(client_id))
        is_well = _tell_all(tell, checker.check(sections))
        _check_found(checker.chains, client_id)
        signed = _Signed(by_name, proofs, client_id)
        if log is not None:
            with log.open("rb") as lines:
                is_well = _tell_all(tell, signed.check(lines)) and is_well
            if not signed.found:
                # To say that all is well would be to say so of a log that was not read.
                tell(f"{log}: no checkpoint was found; is it the service's log, as plain text?")
                return False
    if is_well:
        tell(_summary(checker, None if log is None else signed.found))
    return is_well


def verify_export(settings: Settings, tell: Callable[[str], None], file: Path) -> bool:
    """Check an export; tell the outcome, say if all is well."""
    proofs = _proofs(settings)
    with file.open("rb") as opened:
        export = Export(opened, proofs.keys)
        if not export.is_export:
            raise Refused(f"{file} is no export of an audit")
        checker = Checker(proofs.keys, proofs.public_keys, is_whole=export.is_whole)
        is_well = _tell_all(tell, checker.check(export.sections()))
        is_well = _tell_all(tell, export.faults()) and is_well
    if is_well:
        tell(_summary(checker))
    return is_well


def export(settings: Settings, output: Path, client_id: str | None) -> str:
    """Write an export, whole or not at all; give one line about it."""
    proofs = _proofs(settings)
    with _books(settings) as books, _written_whole(output) as file:
        sections = (section for book in books for section in book.sections(client_id))
        keys = proofs.keys(books[0].name)
        by_name = {book.name: book for book in books}
        try:
            counts = write_export(
                file,
                sections,
                keys,
                proofs.public_keys,
                client_id,
                lambda book, chain: by_name[book].announces(chain),
            )
        except Damaged as error:
            raise Refused(f"not exported: {error}; audit verify says more") from None
        _check_found(counts.chains, client_id)
    return f"{counts.events} events in {counts.chains} chains: {output}"


def _begun(control: Book) -> list[str]:
    """Name the books that must be there: one that was emptied, or removed, is missed by that."""
    with control.engine.connect() as connection:
        is_used = connection.execute(
            text("SELECT EXISTS (SELECT 1 FROM clients) OR EXISTS (SELECT 1 FROM api_keys)")
        ).scalar()
    others = [ACTIVITY] if control.announces(ACTIVITY, BOOK_STARTED) else []
    return [control.name, *others] if is_used or others else []


def _check_found(chains: int, client_id: str | None) -> None:
    if client_id is not None and not chains:
        raise Refused(f"nothing was ever recorded of client {client_id!r}")


def _proofs(settings: Settings) -> _Proofs:
    if not settings.secret_key and not (settings.data_dir / SECRET_FILE).exists():
        # To make one, as a server would, would only hide that this is another directory.
        raise Refused(f"there is no SECRET_KEY, and no {SECRET_FILE} in {settings.data_dir}")
    secrets = open_secrets(settings.data_dir, settings.secret_key)
    return _Proofs(partial(chain_keys, secrets), [one.public_key for one in signers(secrets)])


@contextmanager
def _books(settings: Settings) -> Iterator[Sequence[Book]]:
    """Open the databases that are there; no file is made."""
    url = make_url(settings.database_url or embedded_url(settings.data_dir))
    path = sqlite_path(url) if url.get_backend_name() == "sqlite" else None
    if path is not None and not path.exists():
        raise Refused(f"there is no control database at {path.absolute()}")
    with ExitStack() as stack, translated_faults():
        control = _opened(open_engine(url.render_as_string(hide_password=False)), stack)
        if not is_current(control):
            raise Refused("the control database is not up to date: `central-logger migrate`")
        books = books_of(control, control)
        beside = None if path is None else path.with_name("activity.db")
        if beside is not None and beside.exists():
            activity = _opened(sqlite_engine(beside), stack)
            if is_current(activity):
                books = books_of(control, activity)
        yield books


def _opened(engine: Engine, stack: ExitStack) -> Engine:
    stack.callback(engine.dispose)
    read_as_it_is(engine)
    return engine


def _tell_all(tell: Callable[[str], None], faults: Iterable[Fault]) -> bool:
    is_well = True
    for fault in faults:
        tell(str(fault))
        is_well = False
    return is_well


class _Signed:
    """Holds what was signed, and logged where no database is, against the databases; counts it."""

    def __init__(self, books: Mapping[str, Book], proofs: _Proofs, client_id: str | None) -> None:
        self.found = 0
        self._books = books
        self._proofs = proofs
        self._client_id = client_id

    def check(self, lines: BinaryIO) -> Iterator[Fault]:
        """Give the faults that the checkpoints in a log tell of."""
        for name, checkpoint in logged(lines):
            if self._client_id in {None, checkpoint.chain}:
                self.found += 1
                yield from self._check(name, checkpoint)

    def _check(self, name: str, checkpoint: Checkpoint) -> Iterator[Fault]:
        place = (name, checkpoint.chain, checkpoint.seq)
        keys = self._proofs.public_keys
        if checkpoint.public_key not in keys or not is_signed(name, checkpoint):
            yield Fault(*place, "a checkpoint of the log was not signed by this installation")
            return
        book = self._books.get(name)
        seal = None if book is None else book.seal_at(checkpoint.chain, checkpoint.seq)
        if not isinstance(seal, bytes):
            yield Fault(*place, "missing: a checkpoint of the log was signed for it")
        elif not same(seal, checkpoint.seal):
            yield Fault(*place, "is not what a checkpoint of the log was signed for")


@contextmanager
def _written_whole(output: Path) -> Iterator[BinaryIO]:
    """Write a file of the user's own under another name, until all of it is there."""
    descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.absolute().parent)
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        draft.replace(output)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _summary(checker: Checker, signed: int | None = None) -> str:
    what = f"{checker.events} events in {checker.chains} chains"
    if signed is not None:
        what += f", {signed} checkpoints in the log"
    return f"{what}: all seals hold"


# What the command line turns into one line.
FAULTS = (Refused, StartRefused, StorageUnavailable, OSError)
