"""The SQLite that this process uses: pysqlite3's bundled one where a wheel exists, else Python's.

Before 3.51.3, two or more connections that write or checkpoint one WAL database could corrupt it
(https://sqlite.org/wal.html#walresetbug). Python links whatever the system has, often an older
one, so WAL with several writing connections is used only where `SQLITE_SAFE_WAL` says so.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        from pysqlite3 import dbapi2 as sqlite3
    except ImportError:
        import sqlite3

SQLITE_SAFE_WAL: bool = sqlite3.sqlite_version_info >= (3, 51, 3)

__all__ = ["SQLITE_SAFE_WAL", "sqlite3"]
