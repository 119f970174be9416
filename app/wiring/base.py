"""What every part stands on: settings, secrets, the databases, and what closes all of it."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine

from app.activity.database import open_activity
from app.activity.notary import books_of
from app.audit.book import Book
from app.audit.chain import ChainKeys
from app.keys.bootstrap import open_secrets
from app.keys.database import open_current
from app.keys.sealing import chain_keys
from app.settings import Settings


class Background(Protocol):
    """What goes on by itself between these two."""

    def start(self) -> None:
        """Begin."""

    async def aclose(self) -> None:
        """Stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Opened first, closed last; `stack` closes what stands on it in the opposite order."""

    settings: Settings
    secrets: Sequence[str]  # the present one first
    control: Engine
    activity: Engine
    seals: ChainKeys  # of what is done
    books: tuple[Book, ...]  # the audit's
    stack: AsyncExitStack

    @property
    def refusals(self) -> Book:
        """Give the book that refusals are written to."""
        return self.books[-1]

    def seals_of(self, book: str) -> ChainKeys:
        """Give what seals the chains of a book, by its name."""
        return chain_keys(self.secrets, book)

    def start(self, one: Background) -> None:
        """Begin what goes on by itself, and have it stopped."""
        one.start()
        self.stack.push_async_callback(one.aclose)


def open_base(settings: Settings, stack: AsyncExitStack) -> Base:
    """Open the secrets and the databases; raise StartRefused and StorageUnavailable."""
    secrets = open_secrets(settings.data_dir, settings.secret_key)
    control = open_current(settings.database_url, settings.data_dir)
    stack.callback(control.dispose)
    activity = open_activity(control)
    stack.callback(activity.dispose)
    return Base(
        settings=settings,
        secrets=secrets,
        control=control,
        activity=activity,
        seals=chain_keys(secrets),
        books=books_of(control, activity),
        stack=stack,
    )
