"""`open_store` is the one place that knows which URL means which log store."""

from pathlib import Path

from app.logs.store import LogStore
from app.storage.sqlite.store import SqliteLogStore


async def open_store(url: str, data_dir: Path, dedup_window_days: int) -> LogStore:
    """Open the store of LOG_STORE_URL; empty means day files under `data_dir`/logs.

    Raises StorageUnavailable.
    """
    if url:
        raise ValueError(url)
    directory = data_dir / "logs"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = SqliteLogStore(directory, dedup_window_days)
    await store.open()
    return store
