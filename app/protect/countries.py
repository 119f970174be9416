"""GEOIP_DATABASE: which country an address is in, by a file in MaxMind's format.

The file may be replaced at any time, as those who publish it do every week. It is held in memory
as it was read: whoever overwrites it in place would pull a mapped one away under our feet.
"""

import asyncio
import logging
import os
import stat
from io import BytesIO
from ipaddress import IPv6Address
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.addresses import parse_address
from app.keys.database import StartRefused

if TYPE_CHECKING:
    from maxminddb import Reader

SETTING = "GEOIP_DATABASE"
# Countries move slowly: a new file may wait for two of these.
FILE_POLL_S = 5.0
# The biggest there are, of cities, have 130 MB.
FILE_BYTES_MAX = 512 * 1024**2
# So many networks tell whether a file names countries at all; one of ASNs names none.
SAMPLE_NETWORKS = 100

log = logging.getLogger(__name__)

_Identity = tuple[int, ...]


class Countries:
    """The file as it was read last; to be followed from the event loop that asks it."""

    def __init__(self, path: str | Path, poll_s: float = FILE_POLL_S) -> None:
        """Read it; raises StartRefused, in one line, for what names no countries."""
        self._path = Path(path)
        self._poll_s = poll_s
        try:
            self._seen, self._reader = _read(self._path)
        except OSError as error:
            raise StartRefused(f"{SETTING}: {error.strerror}") from None
        except ValueError as error:
            raise StartRefused(f"{SETTING}: {error}") from None
        self._task: asyncio.Task[None] | None = None
        self.generation = 0  # grows when other answers may be given

    def country(self, address: str) -> str | None:
        """Return the ISO 3166-1 alpha-2 code of an address; None if it is not known.

        It takes 15 to 40 µs.
        """
        parsed = parse_address(address)
        if parsed is None:
            return None
        if isinstance(parsed, IPv6Address) and not int(parsed) >> 32:
            return None  # where the file keeps what it knows of v4
        try:
            return _code(self._reader.get(parsed))
        except (ValueError, RuntimeError, LookupError, TypeError):
            # v6, where the file has v4 alone; or what is asked for is damaged in it.
            return None

    def start(self) -> None:
        """Begin to follow the file."""
        self._task = asyncio.create_task(self._follow())

    async def aclose(self) -> None:
        """Follow it no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _follow(self) -> None:
        settling: _Identity | None = None
        complained = ""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                found = await asyncio.to_thread(_identity, self._path)
                if found == self._seen:
                    continue
                if found != settling:  # whoever is writing it may go on until it rests
                    settling = found
                    continue
                read, reader = await asyncio.to_thread(_read, self._path)
                if read != found:
                    continue
                self._seen, self._reader = read, reader
                self.generation += 1
                complained = ""
                log.info("%s: a new database is in use", SETTING)
            except Exception as error:  # noqa: BLE001  # whatever it is, the last one serves on
                if str(error) != complained:
                    log.error("%s: %s; the one read before serves on", SETTING, error)  # noqa: TRY400
                complained = str(error)


def _read(path: Path) -> tuple[_Identity, "Reader"]:
    """Read a file; raises OSError, or ValueError, without its path, for no such database."""
    try:
        import maxminddb  # noqa: PLC0415  # an extra
    except ImportError:
        raise ValueError("needs: pip install 'central-logger[geoip]'") from None
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would be to wait for its writer
        raise ValueError("is not a file")
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"has more than {FILE_BYTES_MAX} bytes")
    try:
        reader = maxminddb.open_database(BytesIO(content), maxminddb.MODE_FD)
        names_any = any(_code(record) for _, record in islice(reader, SAMPLE_NETWORKS))
    except (RuntimeError, LookupError, TypeError):  # its own are RuntimeErrors
        raise ValueError("is not a MaxMind database") from None
    if not names_any:
        raise ValueError(f"names no countries; its type is {reader.metadata().database_type}")
    return _identity_of(found), reader


def _code(record: Any) -> str | None:
    """Return the country in which an address is used, not the one that it is registered in."""
    country = record.get("country") if isinstance(record, dict) else None
    code = country.get("iso_code") if isinstance(country, dict) else None
    return code if isinstance(code, str) else None


def _identity(path: Path) -> _Identity:
    return _identity_of(path.stat())


def _identity_of(found: os.stat_result) -> _Identity:
    # The last of them is the system's own: a file's times can be set back, this one can't.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
