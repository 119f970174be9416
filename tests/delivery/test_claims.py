"""Claim links: sealed, shown once, and no help to whoever guesses."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from zlib import crc32

import pytest
from sqlalchemy import Engine, text
from sqlmodel import col, select

from app.columns import utc_now
from app.delivery.claims import Claimed, check_open, claim
from app.errors import Gone, NotFound
from app.keys.clients import update_client
from app.keys.database import reading, writing
from app.keys.lifecycle import deactivate_key, delete_key, update_key
from app.keys.models import ApiKey, Claim
from app.keys.token import base62, mint, parse
from app.keys.verifier import Peppers
from tests.support import BY, create_claim, rotate_key

URL = "https://logs.example.com"
Made = tuple[ApiKey, str]

_claim = partial(claim, by=BY)


def _link(engine: Engine, made: Made, **options: Any) -> str:
    return create_claim(engine, *made, URL, by=BY, **options)


def _row(engine: Engine) -> Claim:
    with reading(engine) as session:
        return session.exec(select(Claim)).one()


def test_a_key_is_claimed_once(engine: Engine, made: Made) -> None:
    """The first claim gives key and URL, every later one is Gone, and nothing sealed stays."""
    token = _link(engine, made)
    for _ in range(3):
        check_open(engine, token)
    claimed = _claim(engine, token)
    assert (claimed.text, claimed.url, claimed.key.id) == (made[1], URL, made[0].id)
    for step in (_claim, check_open, _claim):
        with pytest.raises(Gone):
            step(engine, token)
    assert _row(engine).sealed is None
    assert _row(engine).claimed_at is not None


def test_the_database_does_not_open_a_claim(engine: Engine, made: Made) -> None:
    """No column holds the key, the link's secret, or anything that stands for either."""
    token = _link(engine, made)
    parsed = parse(token)
    assert parsed is not None
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM claims")).all()
    stored = str(rows)
    assert parsed.key_id in stored
    for secret in (made[1], made[1][-49:-6], parsed.secret, token):
        assert secret not in stored


def test_a_claim_that_was_moved_does_not_open(engine: Engine, made: Made) -> None:
    """What is sealed opens in its own row alone, and only as it was sealed."""
    token = _link(engine, made)
    sealed = _row(engine).sealed
    assert sealed is not None
    other = _link(engine, made)
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for changed in (flipped, b"", sealed[:20]):
        with writing(engine) as session:
            for row in session.exec(select(Claim)):
                row.sealed = changed
        with pytest.raises(NotFound):
            _claim(engine, token)
    with writing(engine) as session:
        for row in session.exec(select(Claim)):
            row.sealed = sealed
    with pytest.raises(NotFound):
        _claim(engine, other)
    assert _claim(engine, token).text == made[1]


@pytest.mark.parametrize("is_used", [False, True])
def test_a_bad_secret_finds_and_burns_nothing(engine: Engine, made: Made, is_used: bool) -> None:
    """With a known public id and another secret a link is unknown, used or not, and lives on."""
    token = _link(engine, made)
    if is_used:
        _claim(engine, token)
    parsed = parse(token)
    assert parsed is not None
    other = parse(mint("cl_claim", None).text)
    assert other is not None
    signed = f"cl_claim_{parsed.key_id}{other.secret}"
    forged = signed + base62(crc32(signed.encode()), 6)
    assert parse(forged) is not None
    for step in (check_open, _claim):
        with pytest.raises(NotFound):
            step(engine, forged)
    if not is_used:
        assert _claim(engine, token).text == made[1]


def test_what_is_no_link_is_not_found(engine: Engine, made: Made) -> None:
    """Garbage, a mistyped link, one never made and a key are all unknown."""
    token = _link(engine, made)
    mistyped = token[:-1] + ("0" if token[-1] != "0" else "1")
    for bad in ("", "x", "é" * 70, "\0", mistyped, mint("cl_claim", None).text, made[1], token * 2):
        for step in (check_open, _claim):
            with pytest.raises(NotFound):
                step(engine, bad)
    check_open(engine, token)


def test_a_claim_expires(engine: Engine, made: Made) -> None:
    """After its time a link is Gone, and the next one to be made wipes what it held."""
    token = _link(engine, made, ttl_s=-1)
    for step in (check_open, _claim):
        with pytest.raises(Gone):
            step(engine, token)
    fresh = _link(engine, made)
    with reading(engine) as session:
        sealed = session.exec(select(Claim).order_by(col(Claim.expires_at))).all()
    assert [row.sealed is None for row in sealed] == [True, False]
    assert _claim(engine, fresh).text == made[1]


def test_a_claim_lives_three_days(engine: Engine, made: Made) -> None:
    """Unless told otherwise a link works for 72 hours."""
    _link(engine, made)
    row = _row(engine)
    assert (row.expires_at - row.created_at).total_seconds() == 72 * 3600


def _rotate_without_grace(engine: Engine, key_id: str) -> object:
    return rotate_key(engine, Peppers(["another secret of this suite"]), key_id, grace_s=0, by=BY)


def _close_client(engine: Engine, _key_id: str) -> object:
    return update_client(engine, "acme", {"is_active": False}, by=BY)


ENDS = [
    partial(deactivate_key, by=BY),
    partial(delete_key, by=BY),
    _rotate_without_grace,
    _close_client,
]


@pytest.mark.parametrize("end", ENDS)
def test_a_key_that_does_not_work_is_gone(
    engine: Engine, made: Made, end: Callable[[Engine, str], object]
) -> None:
    """The link of a key that was ended, in any way, shows nothing."""
    token = _link(engine, made)
    end(engine, made[0].key_id)
    for step in (check_open, _claim):
        with pytest.raises(Gone):
            step(engine, token)


def test_a_key_switched_on_again_can_be_claimed(engine: Engine, made: Made) -> None:
    """A link that was refused for its key's sake was not used up by that."""
    token = _link(engine, made)
    deactivate_key(engine, made[0].key_id, by=BY)
    with pytest.raises(Gone):
        _claim(engine, token)
    update_key(engine, made[0].key_id, {"is_active": True}, by=BY)
    assert _claim(engine, token).text == made[1]


def test_of_many_that_race_one_gets_the_key(engine: Engine, made: Made) -> None:
    """Of claims at the same moment exactly one succeeds, all others are Gone."""
    token = _link(engine, made)
    barrier = threading.Barrier(8)
    outcomes: list[Claimed | BaseException] = []

    def race() -> None:
        barrier.wait()
        try:
            outcomes.append(_claim(engine, token))
        except BaseException as error:  # noqa: BLE001  # told to the test
            outcomes.append(error)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(one).__name__ for one in outcomes) == ["Claimed"] + ["Gone"] * 7
    claimed_at = _row(engine).claimed_at
    assert claimed_at is not None
    assert claimed_at <= utc_now()
