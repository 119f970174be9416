"""Each duration and run of the logs of a day file, for percentiles and distinct runs.

Blocks hold their durations packed, which is what most questions are answered from, in a sixth of
the time that rows take. Rows tell of the logs that wait, of runs and times, and of a client's logs
while one of its blocks is of an earlier version or still holds an erased log.
"""

import json
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import msgspec
import zstandard

from app.logs.aggregation import (
    DURATION_MS_MAX,
    GROUP_BYTES_MAX,
    TIME,
    Aggregation,
    Key,
    Sums,
    countable_ms,
    run_of,
    too_many_groups,
)
from app.logs.identity import format_id
from app.logs.timestamp import MIN_US, US_PER_MINUTE
from app.storage.sqlite.block import run_hash
from app.storage.sqlite.durations import Durations, code_of
from app.storage.sqlite.schema import CLIENT_SHIFT
from app.storage.sqlite.sources import (
    BLOCKS_STEP,
    Files,
    conditions,
    id_of,
    instant_bounds,
    read_blocks,
    series_conditions,
    values,
)
from app.storage.sqlite.sources import Key as Place

# Logs, and blocks, read in one step: the interpreter is held while they are decoded.
STEP_LOGS = 65_536
STEP_BLOCKS = 256
# Of the names of all series of a client in a file, each once.
_NAMES_BYTES_MAX = 2 * GROUP_BYTES_MAX

# See countable_ms; min() of SQLite is null if one of two is.
COUNTABLE = f"min(CAST(duration_ms AS REAL), {DURATION_MS_MAX!r})"
# As they are stored: texts, of those with too many digits, are for Python to read.
_EACH = f"iif(typeof(duration_ms) = 'real', min(duration_ms, {DURATION_MS_MAX!r}), duration_ms)"

_decode_clients = msgspec.json.Decoder(list[tuple[int, str]]).decode
_decode_codes = msgspec.json.Decoder(list[int | tuple[int, int]]).decode
_decode_values = msgspec.json.Decoder(list[float | str | None]).decode
_decode_runs = msgspec.json.Decoder(list[int | str | None]).decode
_decode_blocks = msgspec.json.Decoder(list[tuple[int, bool, int]]).decode


class _Client(NamedTuple):
    """A client in the file of a day, and the dimensions of each series asked for, but the time."""

    day: int
    number: int
    keys: dict[int, Key]


def read_samples(files: Files, query: Aggregation, day: int) -> Iterator[tuple[Key, Sums]]:
    """Yield the durations and runs of one file that are asked for, some at a time.

    A group is named if any log of it is asked for, also one without either. SQL would sort all logs
    to group them, which takes ten times as long as to read them.
    """
    [found] = (
        files.db(day)
        .execute(
            """SELECT json_group_array(json_array(id, client_id)) FROM clients
            WHERE :client_id IS NULL OR client_id = :client_id""",
            {"client_id": query.client_id},
        )
        .fetchone()
    )
    for number, client_id in _decode_clients(found):
        client = _Client(day, number, _keys_of_series(files, query, day, number, client_id))
        yield from _of_rows(files, query, client, "logs", "run_id")
        if _is_packed(files, query, client):
            yield from _of_blocks(files, query, client)
        else:
            yield from _of_rows(files, query, client, "sealed", "run")


def _keys_of_series(
    files: Files, query: Aggregation, day: int, client: int, client_id: str
) -> dict[int, Key]:
    """Give the key of each series, one object for all that have the same."""
    columns = [name for name in query.dimensions if name not in {TIME, "client_id"}]
    length = " + ".join(["0", *(f"coalesce(length({name}), 0)" for name in columns)])
    [found] = (
        files.db(day)
        .execute(
            f"""WITH named AS MATERIALIZED (
                SELECT {", ".join(["json_group_array(id) AS ids", *columns])} FROM series
                WHERE {" AND ".join(["client = :client", *series_conditions(query)])}
                GROUP BY {", ".join(columns) or "1 = 1"})
            SELECT iif(total({length}) > {_NAMES_BYTES_MAX}, NULL,
                json_group_array(json_array({", ".join(["json(ids)", *columns])}))) FROM named""",
            {**values(query), "client": client},
        )
        .fetchone()
    )
    if found is None:
        raise too_many_groups()
    keys: dict[int, Key] = {}
    for ids, *cells in json.loads(found):
        named = dict(zip(columns, cells, strict=True)) | {"client_id": client_id, TIME: None}
        keys |= dict.fromkeys(ids, tuple(named[name] for name in query.dimensions))
    return keys


# From blocks.


def _is_packed(files: Files, query: Aggregation, client: _Client) -> bool:
    """Say whether a client's blocks tell all that is asked."""
    if query.needs_runs or "run_id" in query.filters or TIME in query.dimensions:
        return False
    if (query.min_duration_ms or 0.0) > DURATION_MS_MAX:
        return False  # beyond it durations are not told apart
    # Of a client, blocks of earlier versions, which lack theirs, come before all others.
    [lacking, stale] = (
        files.db(client.day)
        .execute(
            """SELECT
                (SELECT min(id) FROM words WHERE id BETWEEN :first AND :last) IS NOT
                (SELECT min(id) FROM durations WHERE id BETWEEN :first AND :last),
                EXISTS (SELECT 1 FROM stale WHERE id >= :first AND id < :last)""",
            _blocks_of(client),
        )
        .fetchone()
    )
    return not (lacking or stale)


def _blocks_of(client: _Client) -> dict[str, int]:
    first = client.number << CLIENT_SHIFT
    return {"first": first, "last": first | (1 << CLIENT_SHIFT) - 1}


# Whole are those of which each log is in the time asked for, whatever its `seq`.
_READ_BLOCKS = f"""
    SELECT json_group_array(json_array(id - :first, json(is_whole), length(packed))),
        CAST(group_concat(CAST(packed AS TEXT), '') AS BLOB)
    FROM (
        SELECT id, packed, iif((first_us, 0) >= (:low_us, :low_seq) AND last_us < :high_us,
            'true', 'false') AS is_whole
        FROM durations
        WHERE id > :after AND id <= :last
            AND last_us >= :low_us AND (first_us, 0) < (:high_us, :high_seq)
        ORDER BY id LIMIT {STEP_BLOCKS})"""


def _of_blocks(files: Files, query: Aggregation, client: _Client) -> Iterator[tuple[Key, Sums]]:
    """Yield the durations in a client's blocks, a step's at a time."""
    low, high = instant_bounds(query)
    bound = _blocks_of(client) | {"low_us": low[0], "low_seq": low[1]}
    bound |= {"high_us": high[0], "high_seq": high[1], "after": bound["first"] - 1}
    while True:
        db = files.db(client.day)  # each time, for it says when time is up
        blocks, packed = db.execute(_READ_BLOCKS, bound).fetchone()
        decoded = _decode_blocks(blocks)
        decompressor = zstandard.ZstdDecompressor()
        whole: list[Durations] = []
        parts: dict[int, Durations] = {}
        at = 0
        for number, is_whole, length in decoded:
            durations = Durations.unpack(packed[at : at + length], decompressor)
            at += length
            if is_whole:
                whole.append(durations)
            else:
                parts[number] = durations
        yield from _grouped(query, client, chain(whole, _within(files, client, parts, (low, high))))
        if len(decoded) < STEP_BLOCKS:
            return
        bound["after"] = bound["first"] + decoded[-1][0]


def _within(
    files: Files, client: _Client, parts: dict[int, Durations], bounds: tuple[Place, Place]
) -> Iterator[Durations]:
    """Yield what of blocks is in the time asked for, by the ids in their lines."""
    # Of one instant, the id with the lowest day and arrival sorts before those of all logs.
    low, high = (format_id(max(us, MIN_US), 0, seq) for us, seq in bounds)
    numbers = list(parts)
    for at in range(0, len(numbers), BLOCKS_STEP):
        blocks = read_blocks(files.db(client.day), client.number, numbers[at : at + BLOCKS_STEP])
        for number, lines in blocks.items():
            ids = [id_of(lines[line]) for line in range(len(lines))]
            yield parts[number].only({line for line, id_ in enumerate(ids) if low <= id_ < high})


class _Group(NamedTuple):
    """A group in the making: one object of each, so that they are told apart by what they are."""

    key: Key
    sums: Sums


def _grouped(
    query: Aggregation, client: _Client, blocks: Iterable[Durations]
) -> Iterator[tuple[Key, Sums]]:
    """Put the durations of blocks together by their keys."""
    groups = {key: _Group(key, Sums()) for key in client.keys.values()}
    by_code = {
        code_of(series, has_duration=has_duration): groups[key]
        for series, key in client.keys.items()
        for has_duration in (False, True)
    }
    least = query.min_duration_ms
    met: dict[Key, Sums] = {}
    for block in blocks:
        for (key, sums), found in _spans(block, by_code):
            if least is None:
                sums.values_ms += found
                met[key] = sums
            elif chosen := [value for value in found if value >= least]:
                sums.values_ms.extend(chosen)
                met[key] = sums
    yield from met.items()


def _spans(block: Durations, by_code: dict[int, _Group]) -> "Iterator[tuple[_Group, array[float]]]":
    """Yield the durations of neighbours of one group, be there any or none; never one by one."""
    group: _Group | None = None
    start = end = 0
    for code, length in zip(block.codes, block.lengths, strict=True):
        following = by_code.get(code)
        if following is not group:
            if group is not None:
                yield group, block.values[start:end]
            group, start = following, end
        if code & 1:
            end += length
    if group is not None:
        yield group, block.values[start:end]


# From rows.


def _of_rows(
    files: Files, query: Aggregation, client: _Client, table: str, run: str
) -> Iterator[tuple[Key, Sums]]:
    """Yield the durations and runs of a table's rows, a step's at a time."""
    low, high = instant_bounds(query)
    width = query.bucket_minutes * US_PER_MINUTE
    code = "series"
    if TIME in query.dimensions:
        code = f"json_array(series, us - ((us % {width}) + {width}) % {width})"
    bound = {**values(query), "client": client.number, "high_us": high[0], "high_seq": high[1]}
    where = " AND ".join(("client = :client", *conditions(query, run)))
    after = "(us, seq) >= (:low_us, :low_seq)"
    end: tuple[int, int] | None = low
    while end is not None:
        bound |= {"low_us": end[0], "low_seq": end[1]}
        db = files.db(client.day)  # each time, for it says when time is up
        end = db.execute(
            f"""SELECT us, seq FROM {table} WHERE client = :client AND {after}
            AND (us, seq) < (:high_us, :high_seq) ORDER BY us, seq LIMIT 1 OFFSET {STEP_LOGS}""",
            bound,
        ).fetchone()
        if end is not None:
            upper = {"high_us": end[0], "high_seq": end[1]}
        else:
            upper = {"high_us": high[0], "high_seq": high[1]}
        codes, durations, runs = db.execute(
            f"""SELECT json_group_array({code}),
                {f"json_group_array({_EACH})" if query.needs_values else "NULL"},
                {f"json_group_array({run})" if query.needs_runs else "NULL"}
            FROM {table} WHERE {where} AND {after} AND (us, seq) < (:high_us, :high_seq)""",
            {**bound, **upper},
        ).fetchone()
        yield from _gathered(query, client, codes, durations, runs)


def _gathered(
    query: Aggregation, client: _Client, codes: str, durations: str | None, runs: str | None
) -> Iterator[tuple[Key, Sums]]:
    """Yield what belongs to each code: a series, and where time is asked for the bucket."""
    decoded = _decode_codes(codes)
    found: dict[int | tuple[int, int], Sums] = {code: Sums() for code in set(decoded)}
    if durations is not None:
        lists: dict[int | tuple[int, int], list[float]] = {code: [] for code in found}
        for code, value in zip(decoded, _decode_values(durations), strict=True):
            if value is not None:
                lists[code].append(countable_ms(value) if isinstance(value, str) else value)
        for code, sums in found.items():
            sums.values_ms.extend(lists[code])
    if runs is not None:
        for code, run in zip(decoded, _decode_runs(runs), strict=True):
            if run is not None:
                number = run_hash(run) if isinstance(run, str) else run
                found[code].runs.add(run_of(query, client.number, number))
    for code, sums in found.items():
        if isinstance(code, int):
            yield client.keys[code], sums
        else:
            key = client.keys[code[0]]
            at = query.dimensions.index(TIME)
            yield (*key[:at], code[1], *key[at + 1 :]), sums
