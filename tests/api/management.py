"""What tests of the management routes ask, and how."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.support import Service

KEYS = "/api/v1/api-keys"
CLIENTS = "/api/v1/clients"
CURRENT = f"{KEYS}/verify/current"


def ask(
    service: Service, method: str, path: str, key: str, body: Any = None, **headers: str
) -> httpx.Response:
    """Send a request with a JSON body, if any."""
    content = None if body is None else json.dumps(body).encode()
    sent = headers if content is None else {"content-type": "application/json", **headers}
    return service.request(method, path, key, content=content, headers=sent)


@contextmanager
def without_tables(service: Service, *names: str) -> Iterator[None]:
    """Take tables of the control database away for a while."""

    def rename(old: str, new: str) -> None:
        with service.engine.connect() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")
            connection.commit()

    for name in names:
        rename(name, f"away_{name}")
    yield
    for name in names:
        rename(f"away_{name}", name)
