"""Pages of lists: bounded in items and in bytes, none of which is skipped or repeated."""

import json
import math
from itertools import islice
from typing import Any

from app.api.pages import render_page
from app.keys.database import writing
from app.keys.registry import KeyFilter, key_portions, new_key
from app.logs.query import PAGE_BYTES_MAX
from tests.api.management import CLIENTS, KEYS, ask
from tests.support import Json, Service

AUDIT = "/api/v1/audit"
# As much as the metadata of a key may be.
LARGE = {"x": "y" * 16_000}
KEYS_OF_A_PAGE = PAGE_BYTES_MAX // 16_000


def page_of(items: list[str], limit: int) -> tuple[list[str], str | None, int]:
    """Render a page; give its items, the last of them if there are more, and how many were read."""
    rest = iter(items)
    body = render_page("items", rest, limit, show=str, cursor_of=lambda item: item[:1])
    page = json.loads(body)
    assert len(body) <= max(PAGE_BYTES_MAX, len(items[0]) if items else 0) + 10_000
    return page["items"], page["next_cursor"], len(items) - len(list(rest))


def test_a_page_ends_by_its_items_or_its_bytes() -> None:
    """A page has what fits, one item at least, and a cursor if something is behind it."""
    small = list("abcdef")
    assert page_of([], 3) == ([], None, 0)
    assert page_of(small, 6) == (small, None, 6)
    assert page_of(small, 3) == (["a", "b", "c"], "c", 4)
    large = [letter * 3_000_000 for letter in "abcdef"]
    assert page_of(large, 6) == (large[:2], "b", 3)
    huge = ["a" * (PAGE_BYTES_MAX + 1), "b"]
    assert page_of(huge, 6) == (huge[:1], "a", 2)
    assert page_of(huge[:1], 6) == (huge[:1], None, 1)


def read_all(service: Service, path: str, name: str, key: str) -> list[list[Json]]:
    """Read all pages of a list, each of as many items as may be asked for."""
    pages: list[list[Json]] = []
    cursor: str | None = None
    while cursor is not None or not pages:
        params: dict[str, Any] = {"limit": 1_000} | ({"cursor": cursor} if cursor else {})
        response = service.get(path, key, params=params)
        assert response.status_code == 200, response.text
        assert len(response.content) <= PAGE_BYTES_MAX + 10_000
        pages.append(response.json()[name])
        cursor = response.json()["next_cursor"]
    return pages


def test_lists_of_large_rows(service: Service, client_id: str) -> None:
    """Keys, clients and events of 16 MB come in three short pages, whole and in their order."""
    owner = service.key(client_id, role="owner")
    count = math.ceil(2.2 * KEYS_OF_A_PAGE)
    names = [f"{number:04}" for number in range(count)]
    with writing(service.engine) as session:
        for name in names:
            key, _ = new_key(
                service.peppers, "auto", client_id=client_id, name=name, metadata=LARGE
            )
            session.add(key)
            session.flush()
            service.by.record(session, "key.created", key, {"name": [None, name], "x": [LARGE]})
    pages = read_all(service, KEYS, "api_keys", owner)
    assert [key["name"] for page in pages for key in page] == ["test", *names]
    assert len(pages) == 3
    pages = read_all(service, AUDIT, "events", owner)
    told = [event["detail"]["name"][1] for page in pages for event in page]
    assert [name for name in told if name in names] == names[::-1]
    assert len(pages) == 3


def test_no_more_is_read_than_is_shown(service: Service, client_id: str) -> None:
    """What a page leaves out is not read: of keys that are too much for one, only a few more."""
    service.key(client_id)
    with writing(service.engine) as session:
        for _ in range(300):
            key, _ = new_key(service.peppers, "auto", client_id=client_id, name="x")
            session.add(key)
    wanted = KeyFilter(client_id)
    first, second = islice(key_portions(service.engine, wanted), 2)
    assert len(first) == len(second) < 100
    assert sum(map(len, key_portions(service.engine, wanted))) == 301


def test_clients_are_listed_whole(service: Service, admin: str) -> None:
    """Pages of clients have all of them, each once."""
    for number in range(5):
        body = {"client_id": f"large-{number}", "metadata": {"x": "y" * 10_000}}
        assert ask(service, "POST", CLIENTS, admin, body).status_code == 201
    whole = [one["client_id"] for one in service.get(CLIENTS, admin).json()["clients"]]
    found: list[str] = []
    page: Json = {"next_cursor": ""}
    while page["next_cursor"] is not None:
        params = {"limit": 2, "cursor": page["next_cursor"]}
        page = service.get(CLIENTS, admin, params=params).json()
        found += [client["client_id"] for client in page["clients"]]
    assert found == whole
    assert len(set(found) & {f"large-{number}" for number in range(5)}) == 5
