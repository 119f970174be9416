"""Logs whose time is over: what a day file holds of them, and taking it out.

A file of which something stays loses its expired logs step by step, as an erasure does it; one of
which nothing stays is unlinked as a whole (see DayFiles.retire).
"""

from typing import NamedTuple

import msgspec

from app.sqlite import sqlite3
from app.storage.sqlite.erasing import ERASE_ROWS_MAX, Peaks, erase_logs, forget_ids, mark_rest
from app.storage.sqlite.wire import Expire, Key, Name

_NAMES = """
    SELECT json_group_array(json_array(client_id, dataset)) FROM (
        SELECT client_id, dataset FROM series s JOIN clients c ON c.id = s.client
        UNION SELECT client_id, dataset FROM rejected r JOIN clients c ON c.id = r.client)"""
_ID_OWNERS = """
    SELECT json_group_array(client_id) FROM clients c
    WHERE EXISTS (SELECT 1 FROM expired_ids WHERE client = c.id)"""
_IN_DATASETS = "EXISTS (SELECT 1 FROM json_each(:datasets) WHERE value IS dataset)"
_OF_DATASETS = f"""client = (SELECT id FROM clients WHERE client_id = :client_id)
    AND (us, seq) > (:us, :seq)
    AND series IN (SELECT id FROM series WHERE {_IN_DATASETS})"""
_PLACES = f"""
    SELECT json_group_array(json_array(us, seq)) FROM (
        SELECT us, seq FROM logs WHERE {_OF_DATASETS}
        UNION ALL SELECT us, seq FROM sealed WHERE {_OF_DATASETS}
        ORDER BY us, seq LIMIT {ERASE_ROWS_MAX})"""
_KEEP_IDS = " ".join(
    (
        "INSERT OR REPLACE INTO expired_ids",
        " UNION ALL ".join(
            f"""SELECT l.client, l.external_id, l.us, l.seq
            FROM json_each(:places) p CROSS JOIN {table} l ON l.client = :client
                AND l.us = p.value ->> 0 AND l.seq = p.value ->> 1
            WHERE l.external_id IS NOT NULL"""
            for table in ("logs", "sealed")
        ),
    )
)

_decode_names = msgspec.json.Decoder(list[Name]).decode
_decode_owners = msgspec.json.Decoder(list[str]).decode
_decode_places = msgspec.json.Decoder(list[Key]).decode


class Contents(NamedTuple):
    """Whose logs and rejected records a file may hold, and who has ids of expired logs in it."""

    names: list[Name]
    id_owners: list[str]


class Search(NamedTuple):
    """A client's logs of some datasets in the file of a day, after a place."""

    day: int
    client_id: str
    datasets: list[str | None]
    after: Key


def read_contents(db: sqlite3.Connection) -> Contents:
    """Tell what there may be; a dataset is named until the sealer has tidied up after its logs."""
    owners = _decode_owners(db.execute(_ID_OWNERS).fetchone()[0])
    return Contents(read_names(db), owners)


def read_names(db: sqlite3.Connection) -> list[Name]:
    """Tell whose logs and rejected records there may be."""
    return _decode_names(db.execute(_NAMES).fetchone()[0])


def find_places(db: sqlite3.Connection, search: Search) -> list[Key]:
    """Return the places of the first ERASE_ROWS_MAX logs."""
    bound = {
        "client_id": search.client_id,
        "datasets": msgspec.json.encode(search.datasets).decode(),
        "us": search.after[0],
        "seq": search.after[1],
    }
    return _decode_places(db.execute(_PLACES, bound).fetchone()[0])


def expire(
    db: sqlite3.Connection, client: int, asked: Expire, peaks: Peaks
) -> tuple[list[Key], bool]:
    """Delete what is asked for in the caller's transaction.

    Returns the places at which there were logs, and whether more ids are to be forgotten.
    """
    bound = {
        "client": client,
        "places": msgspec.json.encode(asked.places).decode(),
        "datasets": msgspec.json.encode(asked.datasets).decode(),
    }
    forgotten = 0
    if asked.keeps_ids:
        db.execute(_KEEP_IDS, bound)
    else:
        forgotten = forget_ids(db, client)
    gone = erase_logs(db, client, asked.places, peaks)
    letters = db.execute(
        f"DELETE FROM rejected WHERE client = :client AND {_IN_DATASETS}", bound
    ).rowcount
    if letters or forgotten:
        mark_rest(db, client)
    return gone, forgotten == ERASE_ROWS_MAX
