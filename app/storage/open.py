"""`open_store` is the one place that knows which URL means which log store."""

from contextlib import suppress
from pathlib import Path

from app.errors import StorageUnavailable
from app.logs.store import LogStore
from app.storage.sqlite.schema import UnknownVersion, check_version, list_days
from app.storage.sqlite.store import SqliteLogStore

FOLDER = "logs"


def check_store(data_dir: Path) -> None:
    """Raise StorageUnavailable for files that only another release of the service can use.

    No process has to be started to learn that.
    """
    try:
        for path in list_days(data_dir / FOLDER).values():
            with suppress(FileNotFoundError):  # the writer of other workers may unlink it now
                check_version(path)
    except (UnknownVersion, OSError) as error:
        raise StorageUnavailable(str(error)) from error


async def open_store(url: str, data_dir: Path, dedup_window_days: int) -> LogStore:
    """Open the store of LOG_STORE_URL; empty means day files under `data_dir`/logs.

    Raises StorageUnavailable.
    """
    if url:
        raise ValueError(url)
    directory = data_dir / FOLDER
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_store(data_dir)
    store = SqliteLogStore(directory, dedup_window_days)
    await store.open()
    return store
