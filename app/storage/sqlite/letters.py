"""Pages of rejected records from day files, rendered by SQL."""

import json

from app.logs.dead_letters import RejectedQuery, letter_place
from app.logs.identity import format_id
from app.logs.query import PAGE_BYTES_MAX, Page
from app.storage.sqlite.render import RENDER_REJECTED
from app.storage.sqlite.sources import Files

# A day's records of a client are bounded when they are written.
_READ = f"""
    SELECT json_group_array(seq), group_concat(letter, char(10)) FROM (
        SELECT seq, {RENDER_REJECTED} AS letter FROM rejected l
        WHERE client = (SELECT id FROM clients WHERE client_id = :client_id)
            AND seq >= :low AND seq < :high
            AND (:datasets IS NULL OR dataset IN (SELECT value FROM json_each(:datasets)))
        ORDER BY seq DESC LIMIT :limit)"""  # the part is a constant


def read_rejected(files: Files, query: RejectedQuery) -> Page:
    """Return a page, the newest first; day after day, since arrivals go by them."""
    datasets = query.filters.get("dataset")
    bound = {
        "client_id": query.client_id,
        "datasets": None if datasets is None else json.dumps(datasets),
        "limit": query.limit + 1,
    }
    letters: list[str] = []
    last_id = ""
    size = 0
    for day in sorted(files.days(), reverse=True):
        low, high = query.arrivals(day)
        if low >= high:
            continue
        days_own = bound | {"day": day, "low": low, "high": high}
        arrivals, rendered = files.db(day).execute(_READ, days_own).fetchone()
        for arrival, letter in zip(
            json.loads(arrivals), (rendered or "").split("\n"), strict=False
        ):
            size += len(letter)
            if letters and (len(letters) == query.limit or size > PAGE_BYTES_MAX):
                return Page(",".join(letters), last_id)
            letters.append(letter)
            place = letter_place(day, arrival)
            last_id = format_id(place.us, day, place.seq)
    return Page(",".join(letters))
