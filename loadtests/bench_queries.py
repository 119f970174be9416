"""What it costs to ask for many logs at once: to export them."""

import statistics
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

from app.sqlite import sqlite3
from app.storage.sqlite.schema import list_days
from app.storage.sqlite.sealing import WAITING_STRAYS, find_full
from loadtests.lab import INGEST, Lab, Row, bench
from loadtests.server import HOST, Server, ServerError

EXPORT_LOGS_PER_S_MIN = 200_000
EXPORT_RSS_MIB_MAX = 50.0
SEALED_S_MAX = 300.0
RECEIVE_BYTES = 1024 * 1024


class Exported(NamedTuple):
    """One export, as its client saw it."""

    logs: int
    bytes: int
    elapsed_s: float
    rss_bytes: int  # at most, while it ran

    @property
    def logs_per_s(self) -> float:
        """How fast it was, from the request to the last byte."""
        return self.logs / self.elapsed_s


@bench("export")
def export(lab: Lab) -> Row:
    """All logs of one client as lines of JSON over HTTP, read as fast as they come."""
    rounds, logs = (3, 100_000) if lab.quick else (5, 1_000_000)
    loaded = lab.load(clients=1, logs=logs)
    await_sealed(loaded.data_dir)
    before = loaded.server.rss_bytes()
    exports = [run_export(loaded.server, loaded.keys[0]) for _ in range(rounds)]
    table = run_export(loaded.server, loaded.keys[0], "?format=csv")
    packed = run_export(loaded.server, loaded.keys[0], encoding="zstd")
    loaded.server.stop()
    speed = statistics.median(one.logs_per_s for one in exports)
    grown_mib = (max(one.rss_bytes for one in exports) - before) / 2**20
    whole = all(one.logs == logs for one in exports)
    return Row(
        name=f"export of {logs:,} logs",
        figure=f"{speed:,.0f} logs/s, RSS +{grown_mib:.0f} MiB",
        baseline=f"CSV {logs / table.elapsed_s:,.0f}, zstd {logs / packed.elapsed_s:,.0f} logs/s",
        goal=f">= {EXPORT_LOGS_PER_S_MIN:,} logs/s, < +{EXPORT_RSS_MIB_MAX:.0f} MiB",
        passed=whole and speed >= EXPORT_LOGS_PER_S_MIN and grown_mib < EXPORT_RSS_MIB_MAX,
        detail={
            "logs_per_s": [one.logs_per_s for one in exports],
            "bytes": exports[0].bytes,
            "zstd_bytes": packed.bytes,
            "rss_before_mib": before / 2**20,
        },
    )


def run_export(server: Server, key: str, query: str = "", encoding: str = "identity") -> Exported:
    """Export all logs of a client; `logs` counts line breaks, whatever the form."""
    headers = {"X-API-Key": key, "Accept-Encoding": encoding}
    buffer = bytearray(RECEIVE_BYTES)
    size = breaks = rss_bytes = 0
    look_s = 0.0
    started_s = time.perf_counter()
    with closing(HTTPConnection(HOST, server.port, timeout=60)) as connection:
        connection.request("GET", f"{INGEST}/export{query}", headers=headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        while count := response.readinto(buffer):
            size += count
            breaks += buffer.count(b"\n", 0, count)
            if time.perf_counter() > look_s:
                rss_bytes = max(rss_bytes, server.rss_bytes())
                look_s = time.perf_counter() + 0.05
    return Exported(breaks, size, time.perf_counter() - started_s, rss_bytes)


def await_sealed(data_dir: Path) -> None:
    """Wait until what was stored is sealed, but for what waits for more of its like.

    Raises ServerError where it takes too long.
    """
    until_s = time.perf_counter() + SEALED_S_MAX
    while _has_waiting(data_dir / "logs"):
        if time.perf_counter() > until_s:
            raise ServerError("the logs are not sealed")
        time.sleep(1.0)


def _has_waiting(directory: Path) -> bool:
    for path in list_days(directory).values():
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            if find_full(db, WAITING_STRAYS):
                return True
        finally:
            db.close()
    return False
