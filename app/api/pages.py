"""Pages of lists: their bounds of time, where they go on, and how they are rendered."""

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from app.errors import Invalid
from app.logs.query import PAGE_BYTES_MAX, Cursors
from app.logs.selection import parse_bound
from app.logs.timestamp import BadTime

Item = TypeVar("Item")
Place = TypeVar("Place")


def moment_asked(name: str, text: str | None) -> datetime | None:
    """Read a bound of time; raise Invalid for what is none."""
    if text is None:
        return None
    try:
        us, _ = parse_bound(text, time.time_ns() // 1000)
        return datetime.fromtimestamp(us / 1_000_000, UTC)
    except (BadTime, ValueError, OverflowError) as error:
        raise Invalid.parameter(name, str(error)) from None


def open_place(cursors: Cursors, bound: list[Any], cursor: str, place: type[Place]) -> Place:
    """Read a cursor of the list that is `bound`; raise Invalid for one that is not."""
    return msgspec.msgpack.decode(cursors.open_place(bound, cursor), type=place)


def render_page(
    name: str,
    items: Iterable[Item],
    limit: int,
    *,
    show: Callable[[Item], Any],
    cursor_of: Callable[[Item], str],
) -> bytes:
    """Render `{name: [...], "next_cursor": ...}`, to be called in a thread.

    It has `limit` items at most, and fewer where PAGE_BYTES_MAX ends it, as pages of logs do;
    one is always let in. Of `items` one more is read than is shown, if it is there, and no more.

    By itself each item is little: json.dumps gives the interpreter to nobody else until it is done,
    and a page at once would hold up every request for as long.
    """
    parts: list[bytes] = []
    size, last, cursor = 0, None, None
    for item in items:
        part = b"" if len(parts) == limit else json.dumps(show(item)).encode()
        size += len(part)
        if last is not None and (not part or size > PAGE_BYTES_MAX):
            cursor = cursor_of(last)
            break
        parts.append(part)
        last = item
    listed = b", ".join(parts)
    return b'{"%b": [%b], "next_cursor": %b}' % (
        name.encode(),
        listed,
        json.dumps(cursor).encode(),
    )
