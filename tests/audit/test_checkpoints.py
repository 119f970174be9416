"""Checkpoints: signed, stored once, and of use where the database is not to be believed."""

import json
from datetime import timedelta

import pytest
import structlog
from sqlalchemy import Engine

from app.audit import checkpoints
from app.audit.chain import CONTROL, Checkpoint
from app.audit.checkpoints import LOG_EVENT, due, is_signed, logged, of_json, store
from app.columns import utc_now
from app.keys.database import writing
from app.keys.sealing import signers
from tests.audit.books import CHAINS, FAR, PUBLIC_KEYS, SECRETS, fill, sign

SEAL = bytes(range(32))


def test_a_signature_is_of_all_that_is_said() -> None:
    """Another chain, number, moment, seal or book, or another's key, is not what was signed."""
    signed = signers(SECRETS)[0].sign(CONTROL, "acme", 7, SEAL)
    assert signed.public_key == PUBLIC_KEYS[0]
    assert is_signed(CONTROL, signed)
    changes = (
        {"chain": "beta"},
        {"seq": 8},
        {"at": signed.at + timedelta(microseconds=1)},
        {"seal": bytes(32)},
        {"public_key": PUBLIC_KEYS[1]},
        {"public_key": b"short"},
        {"signature": bytes(64)},
        {"signature": b""},
    )
    for change in changes:
        assert not is_signed(CONTROL, signed._replace(**change))
    assert not is_signed("activity", signed)


def test_what_grew_is_signed_once(engine: Engine) -> None:
    """A chain is due when it has grown since, and its last checkpoint is old enough."""
    with writing(engine) as session:
        fill(session, range(6), SECRETS)
    heads = due(engine, FAR)
    assert sign(engine) == len(CHAINS)
    with writing(engine) as session:
        assert store(session, CONTROL, signers(SECRETS)[0], heads) == 0  # another had them too
    assert due(engine, FAR) == []
    with writing(engine) as session:
        fill(session, range(6, 7), SECRETS)
    now = utc_now()
    assert due(engine, now - timedelta(minutes=1)) == []
    assert [head.chain for head in due(engine, now + timedelta(minutes=1))] == ["*"]


def test_each_is_a_line_of_the_log(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has all that it takes to check it, also within the line of a collector."""
    # A logger that was used before keeps to where it wrote then.
    monkeypatch.setattr(checkpoints, "log", structlog.get_logger())
    with writing(engine) as session:
        fill(session, range(6), SECRETS)
    with structlog.testing.capture_logs() as lines:
        sign(engine)
    assert {line["event"] for line in lines} == {LOG_EVENT}
    written = [json.dumps(line).encode() for line in lines]
    collected = [b"2026-06-01 host app: " + line for line in written]
    found = list(logged([b"{}", b"", collected[0], *written, LOG_EVENT.encode()]))
    assert len(found) == len(CHAINS) + 1
    assert all(is_signed(book, checkpoint) for book, checkpoint in found)


@pytest.mark.parametrize(
    "change", [{"seq": "7"}, {"at": "2026-06-01"}, {"seal": "x"}, {"signature": 5}, {"chain": None}]
)
def test_what_is_no_checkpoint_is_passed_over(change: dict[str, object]) -> None:
    """A line that is not one of ours is no error."""
    signed = signers(SECRETS)[0].sign(CONTROL, "acme", 7, SEAL)
    line = {"event": LOG_EVENT, "book": CONTROL, **_json(signed)}
    assert list(logged([json.dumps(line).encode()])) == [(CONTROL, signed)]
    assert list(logged([json.dumps(line | change).encode()])) == []


def _json(checkpoint: Checkpoint) -> dict[str, object]:
    named = {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in checkpoint._asdict().items()
    }
    made = named | {"at": checkpoint.at.isoformat()}
    assert of_json(made) == checkpoint
    return made
