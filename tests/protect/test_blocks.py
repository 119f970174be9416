"""Blocks of addresses as a worker knows them."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine, delete

from app.columns import utc_now
from app.keys.database import upgrade, writing
from app.protect.blocks import Blocks
from app.protect.models import AddressBlock
from tests.support import DEADLINE_S, postgresql

ONE, OTHER = "192.0.2.7", "2001:db8::/64"
NO_BLOCK = -1


@pytest.fixture(params=["sqlite", "postgresql"])
def blocked(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Give a database of each kind."""
    if request.param == "sqlite":
        yield request.getfixturevalue("engine")
        return
    with postgresql() as engine:
        upgrade(engine)
        yield engine


class NoFailures:
    """Takes every failure, and says that it was asked."""

    async def count(self, _source: str) -> int:
        """Count nothing."""
        return NO_BLOCK


def block(engine: Engine, address: str, until: datetime) -> None:
    """Block an address, or go on to."""
    with writing(engine) as session:
        session.merge(AddressBlock(address=address, until=until, alert_id=uuid4()))


def test_blocks_come_and_go(blocked: Engine) -> None:
    """An address is told the seconds that are left, and nothing any more when its block is over."""
    blocks = Blocks(blocked, NoFailures(), look_s=0.01)

    async def seconds(address: str, least: int, most: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not least <= await blocks.count(address) <= most:  # noqa: ASYNC110  # in a database
                await asyncio.sleep(0.01)

    async def scenario() -> None:
        blocks.start()
        block(blocked, ONE, utc_now() + timedelta(seconds=100))
        await seconds(ONE, 90, 101)
        await seconds(OTHER, NO_BLOCK, NO_BLOCK)
        block(blocked, ONE, utc_now() + timedelta(seconds=1000))
        block(blocked, OTHER, utc_now() + timedelta(seconds=1))
        await seconds(ONE, 990, 1001)
        await seconds(OTHER, 1, 2)
        await seconds(OTHER, NO_BLOCK, NO_BLOCK)
        with writing(blocked) as session:
            session.execute(delete(AddressBlock))
        await seconds(ONE, NO_BLOCK, NO_BLOCK)
        await blocks.aclose()

    asyncio.run(scenario())
