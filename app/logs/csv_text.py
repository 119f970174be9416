"""Tables as CSV of RFC 4180, safe to be opened in a spreadsheet. Pure.

A cell of text that begins as a formula would be run by the spreadsheet that opens the file, and
what logs say comes from anywhere; so it gets a leading `'`, which shows it as text
(https://owasp.org/www-community/attacks/CSV_Injection). Numbers are left as they are.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

import msgspec

Cell = str | int | float | None

COLUMNS = (
    *("id", "client_id", "executed_at", "received_at", "environment", "status", "dataset"),
    *("level", "workflow", "run_id", "message", "duration_ms", "error", "external_id"),
    "metadata",
)
_FORMULA_STARTS = frozenset("=+-@\t\r")


class _Log(msgspec.Struct):
    """A rendered log: what is no plain text stays the JSON that it is."""

    id: str
    client_id: str
    executed_at: str
    received_at: str
    environment: str
    status: str
    dataset: str
    level: str | None
    workflow: str | None
    run_id: str | None
    message: str | None
    duration_ms: msgspec.Raw
    error: msgspec.Raw
    external_id: str | None
    metadata: msgspec.Raw


_decode_logs = msgspec.json.Decoder(_Log).decode_lines


def write_csv(rows: Iterable[Sequence[Cell]]) -> str:
    """Write rows, each ended by CR LF; None is an empty cell."""
    return _write([_safe(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)


def logs_as_csv(lines: bytes) -> bytes:
    """Write rendered logs, one a line, as rows of COLUMNS."""
    return _write(_rows(lines)).encode()


def _write(rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue()


def _rows(lines: bytes) -> Iterator[Sequence[Cell]]:
    for log in _decode_logs(lines):
        yield (
            log.id,
            log.client_id,
            log.executed_at,
            log.received_at,
            _safe(log.environment),
            _safe(log.status),
            log.dataset,
            _safe(log.level),
            _safe(log.workflow),
            _safe(log.run_id),
            _safe(log.message),
            _json(log.duration_ms),
            _json(log.error),
            _safe(log.external_id),
            _json(log.metadata),
        )


def _safe(text: str | None) -> str | None:
    return f"'{text}" if text and text[0] in _FORMULA_STARTS else text


def _json(raw: msgspec.Raw) -> str | None:
    """Give JSON as it is, a number or a text that begins with a quote or a bracket."""
    text = str(raw, "utf-8")
    return None if text == "null" else text
