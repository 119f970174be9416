"""Copies of a signed request, sent to a server of two workers and to the next one."""

import json
import threading
from collections import Counter
from pathlib import Path

from app.keys.bootstrap import open_secrets
from app.keys.database import open_current
from app.keys.registry import create_key
from app.keys.verifier import Peppers
from app.protect.signing_keys import SigningKeys
from loadtests.server import start_product
from tests.process.service import PATH, WAIT_S_MAX, ask
from tests.signing import Headers, Signer
from tests.support import BY, record

COPIES = 24
LOG = json.dumps(record()).encode()


def make_key(data_dir: Path) -> tuple[str, Signer]:
    """Make a key that must sign."""
    secrets = open_secrets(data_dir, ())
    signing = SigningKeys(secrets).new_secret()
    engine = open_current("", data_dir)
    _, key = create_key(
        engine,
        Peppers(secrets),
        by=BY,
        create_client=True,
        client_id="acme",
        name="test",
        require_signature=True,
        signing=signing,
    )
    engine.dispose()
    return key, Signer(signing.secret or "")


def send_copies(port: int, headers: Headers) -> Counter[int]:
    """Send a request many times at once, each on a connection of its own; count the answers."""
    statuses = Counter[int]()
    together = threading.Barrier(COPIES)

    def send() -> None:
        together.wait(WAIT_S_MAX)
        status, _, _ = ask(port, "POST", PATH, LOG, headers)
        statuses[status] += 1

    senders = [threading.Thread(target=send) for _ in range(COPIES)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(WAIT_S_MAX)
    return statuses


def test_one_of_many_copies_is_let_in(tmp_path: Path) -> None:
    """Of copies at once to two workers one is stored, and none after the server was killed."""
    key, signer = make_key(tmp_path)

    def signed() -> Headers:
        kind = {"X-API-Key": key, "Content-Type": "application/json"}
        return kind | signer.request("POST", PATH, LOG)

    used = [signed() for _ in range(3)]
    with start_product(tmp_path, workers=2) as server:
        for headers in used:
            assert send_copies(server.port, headers) == {201: 1, 403: COPIES - 1}
        for process in server.tree():
            process.kill()
    with start_product(tmp_path, workers=2) as server:
        for headers in used:
            assert send_copies(server.port, headers) == {403: COPIES}
        assert send_copies(server.port, signed())[201] == 1
