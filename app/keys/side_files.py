"""The files beside a SQLite database: those of a former database would be read as the new one's.

Whoever puts a backup in the place of an open database has to remove them. Where that was forgotten,
nobody may open the new file: closing it again would write the former one's journal into it.
"""

import os
from pathlib import Path

Identity = tuple[int, int]


def identity(path: Path | str) -> Identity | None:
    """Tell a file from another one of the same name, as long as one of the two is open."""
    try:
        found = os.stat(path)  # noqa: PTH116  # once a turn of the loop; Path.stat takes twice as long
    except OSError:
        return None
    return found.st_ino, found.st_dev


class SideFiles:
    """The journals (`-wal`, `-shm`) of one database."""

    def __init__(self, path: Path | str) -> None:
        # SQLite names them after the file that a symbolic link leads to.
        self.paths = [os.path.realpath(path) + end for end in ("-wal", "-shm")]
        self._known: dict[str, Identity | None] = {}

    def remember(self) -> None:
        """Take those that are there for those of the database that has just been opened."""
        self._known = {path: identity(path) for path in self.paths}

    def is_left(self, path: str) -> bool:
        """Say whether one of them still is the one that was remembered."""
        found = identity(path)
        return found is not None and found == self._known.get(path)

    def are_left(self) -> bool:
        """Say whether any of them is."""
        return any(map(self.is_left, self.paths))
