"""Pages of lists, bounded in bytes as pages of logs are, and rendered an item at a time."""

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from app.logs.query import PAGE_BYTES_MAX

Item = TypeVar("Item")


def render_page(
    name: str,
    items: Iterable[Item],
    limit: int,
    *,
    show: Callable[[Item], Any],
    cursor_of: Callable[[Item], str],
) -> bytes:
    """Render `{name: [...], "next_cursor": ...}`, to be called in a thread.

    It has `limit` items at most, and fewer where PAGE_BYTES_MAX ends it; one is always let in. Of
    `items` one more is read than is shown, if it is there, and no more than that.

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
