"""A request whose body is held back gives nothing once its key has been revoked."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from loadtests.server import Server, make_admin_key, make_key, start_product
from tests.edge.test_server import Wire
from tests.process.service import PATH, ask, stored_logs

KEYS = "/api/v1/api-keys"
LOG = b'{"environment":"dev","executed_at":0,"status":"OK","run_id":"held"}'


class Site(NamedTuple):
    """A running server and a key of the platform."""

    server: Server
    data_dir: Path
    admin: str

    def manage(self, method: str, path: str, body: bytes = b"") -> int:
        """Ask as the platform; give the status."""
        headers = {"X-API-Key": self.admin, "Content-Type": "application/json"}
        return ask(self.server.port, method, path, body, headers)[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start the product with two workers."""
    data_dir = tmp_path_factory.mktemp("held")
    admin = make_admin_key(data_dir)
    with start_product(data_dir, workers=2) as server:
        yield Site(server, data_dir, admin)


ENDS = {
    "deactivated": ("POST", KEYS + "/{key_id}/deactivate", b""),
    "deleted": ("DELETE", KEYS + "/{key_id}", b""),
    "demoted": ("PATCH", KEYS + "/{key_id}", b'{"role":"viewer"}'),
    "without its client": ("PATCH", "/api/v1/clients/{client_id}", b'{"is_active":false}'),
}
HELD = {
    "create": ("POST", KEYS, b'{"role":"owner"}'),
    "revive": ("PATCH", KEYS + "/{key_id}", b'{"is_active":true}'),
    "rotate": ("POST", KEYS + "/{key_id}/rotate", b'{"grace_seconds":9}'),
    "rename": ("PATCH", "/api/v1/clients/{client_id}", b'{"name":"mine"}'),
    "log": ("POST", PATH, LOG),
    "batch": ("POST", PATH, b"[" + LOG + b"]"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("held", HELD)
def test_nothing_is_given_by_a_key_that_has_ended(site: Site, end: str, held: str) -> None:
    """What was begun with a live key and completed with a dead one is refused as any other."""
    client_id = f"held-{held}-{end}".replace(" ", "-")
    key = make_key(site.data_dir, client_id, role="owner")
    names = {"key_id": key[-61:-49], "client_id": client_id}
    method, path, body = HELD[held]
    head = (
        f"{method} {path.format(**names)} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with closing(Wire(site.server.port)) as wire:
        wire.send(head + body[:1])
        # Known to have been begun with only once another request of the same connection's worker
        # was answered would be exact; the end below takes longer than that in any case.
        end_method, end_path, end_body = ENDS[end]
        assert site.manage(end_method, end_path.format(**names), end_body) == 200
        wire.send(body[1:])
        answer = wire.answer()
    assert answer.status == (403 if end == "demoted" else 401), answer.body
    assert stored_logs(site.data_dir, client_id) == []
    headers = {"X-API-Key": site.admin}
    found = ask(site.server.port, "GET", f"{KEYS}?client_id={client_id}", headers=headers)[2]
    alive = [one["key_id"] for one in json.loads(found)["api_keys"]]
    kept = end in {"demoted", "without its client"}
    assert alive == ([names["key_id"]] if kept else [])
