"""One of several processes of a machine, by the lock of a file."""

import fcntl
from pathlib import Path
from typing import TextIO


class LeaderLock:
    """This process's part in it: who holds the lock keeps it to its end, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    @property
    def is_held(self) -> bool:
        """Say whether this process holds it, without trying to."""
        return self._file is not None

    def take(self) -> bool:
        """Say whether this process holds it, by now."""
        if self._file is None:
            file = self._path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            self._file = file
        return True

    def close(self) -> None:
        """Let another one have it."""
        if self._file is not None:
            self._file.close()
            self._file = None
