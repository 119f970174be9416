"""SQL that renders a log as JSON, from `logs l` and `series s` with :client_id and :day."""

from app.logs.identity import ARRIVAL_BITS, ARRIVAL_MASK, SLOT_BITS
from app.logs.timestamp import MIN_US, US_PER_DAY, US_PER_S
from app.sqlite import sqlite3


def id_sql(alias: str) -> str:
    """Return SQL for the id of the log at `us` and `seq` of a table."""
    return f"""format('%015x%03x%04x%014x', {alias}.us - ({MIN_US}), {alias}.seq >> {ARRIVAL_BITS},
    :day, {alias}.seq & {ARRIVAL_MASK})"""


def _instant(us: str, ns: str) -> str:
    """Return SQL for the text of an instant that app.logs.timestamp.format_instant gives."""
    micro = f"((({us}) % {US_PER_S} + {US_PER_S}) % {US_PER_S})"
    second = f"strftime('%Y-%m-%dT%H:%M:%S', (({us}) - {micro}) / {US_PER_S}, 'unixepoch')"
    return f"""{second} || CASE
        WHEN {ns} <> 0 THEN format('.%06d%03d', {micro}, {ns})
        WHEN {micro} = 0 THEN ''
        WHEN {micro} % 1000 = 0 THEN format('.%03d', {micro} / 1000)
        ELSE format('.%06d', {micro}) END || 'Z'"""


def _text(column: str) -> str:
    return f"coalesce(json_quote({column}), 'null')"


_RECEIVED_US = f":day * {US_PER_DAY} + ((l.seq & {ARRIVAL_MASK}) >> {SLOT_BITS})"
# Texts that are JSON already are passed on as they are, numbers of any size too.
RENDER = "||".join(
    (
        f"""'{{"id":"' || {id_sql("l")}""",
        """ '","client_id":' || json_quote(:client_id)""",
        f""" ',"executed_at":"' || {_instant("l.us", f"(l.seq >> {ARRIVAL_BITS})")}""",
        f""" '","received_at":"' || {_instant(_RECEIVED_US, "0")}""",
        f""" '","environment":' || {_text("s.environment")}""",
        f""" ',"status":' || {_text("s.status")}""",
        f""" ',"dataset":' || {_text("s.dataset")}""",
        f""" ',"level":' || {_text("s.level")}""",
        f""" ',"workflow":' || {_text("s.workflow")}""",
        f""" ',"run_id":' || {_text("l.run_id")}""",
        f""" ',"message":' || {_text("l.message")}""",
        """ ',"duration_ms":' || CASE typeof(l.duration_ms) WHEN 'text' THEN l.duration_ms
            ELSE coalesce(json_quote(l.duration_ms), 'null') END""",
        """ ',"error":' || coalesce(l.error, 'null')""",
        f""" ',"external_id":' || {_text("l.external_id")}""",
        """ ',"metadata":' || coalesce(l.metadata, '{}') || '}'""",
    )
)

# The same of a record that was rejected, from `rejected l`.
RENDER_REJECTED = "||".join(
    (
        f"""'{{"received_at":"' || {_instant(_RECEIVED_US, "0")}""",
        """ '","index":' || l.number""",
        f""" ',"field":' || {_text("l.field")}""",
        f""" ',"detail":' || {_text("l.detail")}""",
        f""" ',"record":' || {_text("l.record")}""",
        f""" ',"key_id":' || {_text("l.key_id")} || '}}'""",
    )
)

# The bytes of a column without reading it, where SQLite can tell them (since 3.43).
_BYTES = (
    "octet_length({})" if sqlite3.sqlite_version_info >= (3, 43) else "length(CAST({} AS BLOB))"
)
# What a log's texts take, without its series' and with them.
SIZE, SERIES_SIZE = (
    " + ".join(f"coalesce({_BYTES.format(column)}, 0)" for column in columns)
    for columns in (
        ("run_id", "duration_ms", "external_id", "message", "error", "metadata"),
        ("s.dataset", "s.environment", "s.status", "s.level", "s.workflow"),
    )
)
