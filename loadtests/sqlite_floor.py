"""The baseline of the batch bench: a plain loop that commits rows into one SQLite file.

One thread, nothing but SQLite: for each batch BEGIN, multi-row INSERTs, COMMIT. Schema, pragmas,
statements and rows come from the caller, who passes the product's own. The parameters of each
statement are laid out before the clock starts, so that only SQLite's work is in the figure.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.sqlite import sqlite3

SECONDS_MAX = 300.0


class FloorError(Exception):
    """The loop did not run to its end."""


@dataclass(frozen=True)
class Workload:
    """What the loop commits: `batches` of rows, `rows_per_statement` of them in each INSERT."""

    pragmas: Sequence[str]
    create_statements: Sequence[str]
    insert_sql: Callable[[int], str]  # gives the INSERT of so many rows
    batches: Sequence[Sequence[Sequence[Any]]]
    rows_per_statement: int = 250


@dataclass(frozen=True)
class FloorResult:
    """How much was committed, and how long that took."""

    logs: int
    elapsed_s: float
    file_bytes: int
    sqlite_version: str

    @property
    def logs_per_s(self) -> float:
        """Give the throughput."""
        return self.logs / self.elapsed_s


def commit_all(path: Path, workload: Workload) -> FloorResult:
    """Commit every batch of `workload` into a new file at `path`, one transaction for each."""
    if path.exists():
        raise FloorError(f"{path} exists: the loop measures a new file")
    prepared = [_statements(batch, workload) for batch in workload.batches]
    connection = sqlite3.connect(str(path), isolation_level=None)
    try:
        for statement in (*workload.pragmas, *workload.create_statements):
            connection.execute(statement)
        execute = connection.execute
        started_s = time.perf_counter()
        for batch in prepared:
            execute("BEGIN IMMEDIATE")
            for statement, parameters in batch:
                execute(statement, parameters)
            execute("COMMIT")
        elapsed_s = time.perf_counter() - started_s
    finally:
        connection.close()
    return FloorResult(
        logs=sum(map(len, workload.batches)),
        elapsed_s=elapsed_s,
        file_bytes=path.stat().st_size,
        sqlite_version=str(sqlite3.sqlite_version),
    )


def run_in_process(build: Callable[..., Workload], path: Path, *arguments: Any) -> FloorResult:
    """Build a workload and commit it in a process of its own.

    `build`, called there with `arguments`, must be a function at the top of a module.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, build, path, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS_MAX):
            raise FloorError(f"the loop did not end within {SECONDS_MAX:.0f} s")
        answer = ours.recv()
    except EOFError:
        raise FloorError("the process of the loop died") from None
    finally:
        process.join(1)
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, FloorResult):
        return answer
    raise FloorError(str(answer))


def _statements(batch: Sequence[Sequence[Any]], workload: Workload) -> list[tuple[str, list[Any]]]:
    size = workload.rows_per_statement
    cuts = [batch[start : start + size] for start in range(0, len(batch), size)]
    return [(workload.insert_sql(len(cut)), [v for row in cut for v in row]) for cut in cuts]


def _child(
    pipe: Connection, build: Callable[..., Workload], path: Path, arguments: tuple[Any, ...]
) -> None:
    try:
        pipe.send(commit_all(path, build(*arguments)))
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent has to tell
        pipe.send(f"{type(error).__name__}: {error}")
