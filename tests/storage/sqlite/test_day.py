"""Tests of app.storage.sqlite.day: what a writing connection keeps in memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.logs.batch import Idempotency
from app.logs.identity import ArrivalClock
from app.storage.sqlite.day import DayFile
from app.storage.sqlite.schema import day_path
from app.storage.sqlite.writer import DayFiles
from tests.storage.batches import make_batch, record

DAY = 20_000


def _cache_kib(file: DayFile) -> int:
    [[negative]] = file._db.execute("PRAGMA cache_size").fetchall()  # noqa: SLF001
    return -int(negative)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[DayFiles]:
    """Give the files of an empty directory."""
    opened = DayFiles(tmp_path, dedup_window_days=7)
    yield opened
    opened.drop()


def test_long_names_are_not_kept(tmp_path: Path) -> None:
    """However long the workflows that clients think of, the writer's memory stays small."""
    clock = ArrivalClock()
    file = DayFile(day_path(tmp_path, DAY), DAY, lambda _: [])
    tracemalloc.start()
    try:
        for n in range(100):
            sent = [record(workflow=f"{n}-" + "w" * 100_000)]
            file.commit([make_batch(clock, "acme", sent, day=DAY)])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        file.close()
    assert kept < 1_000_000


def test_only_a_file_that_is_written_has_a_large_cache(files: DayFiles) -> None:
    """Of all the files that are asked for ids, those of other days are kept small."""
    clock = ArrivalClock()

    def write(day: int) -> None:
        files.get(day).commit([make_batch(clock, "acme", [record(id="one")], day=day)])

    for day in range(DAY, DAY + 3):
        write(day)
        caches = [_cache_kib(files.get(one)) for one in range(DAY, day + 1)]
        assert caches == [2048] * (day - DAY) + [32_768]
    write(DAY + 1)  # as after midnight, for a moment
    assert [_cache_kib(files.get(DAY + n)) for n in range(3)] == [2048, 32_768, 32_768]


def test_an_idempotency_key_is_stored_nowhere(tmp_path: Path) -> None:
    """An API key that was sent as Idempotency-Key finds its outcome, and is not in the file."""
    sent = "cl_live_acme_" + "s" * 61
    path = day_path(tmp_path, DAY)
    file = DayFile(path, DAY, lambda _: [])
    batch = make_batch(ArrivalClock(), "acme", [record()], day=DAY)
    batch.idempotency = Idempotency(sent, b"digest", b"outcome")
    file.commit([batch])
    assert file.find_outcome("acme", sent) is not None
    assert file.find_outcome("acme", sent[:-1]) is None
    file.close()
    assert sent.encode() not in path.read_bytes()
