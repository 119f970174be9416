"""Who is told of alerts: a row for each alert, channel and reader, from its start to its end.

Each ends by itself, told or given up, whatever became of the others; what it began with is what the
settings said when the alert was made.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Engine, select, update
from sqlmodel import col

from app.columns import utc_now
from app.keys.database import reading, writing
from app.protect.models import Alert, AlertDelivery

PENDING, TOLD, GIVEN_UP, NOBODY = "pending", "told", "given_up", "nobody"
# What is older is no longer news, also for a channel that is in the settings no more.
GIVE_UP = timedelta(days=3)


class NotTold(Exception):
    """Nobody was told of an alert; the text says why, without any secret."""


class Recipient(NamedTuple):
    """Who is told, and how; without a `reader`, all whom the channel reaches."""

    channel: str
    reader: str = ""


def begun(recipients: Iterable[Recipient]) -> list[AlertDelivery]:
    """Give the rows of an alert that nobody was told of yet."""
    return [AlertDelivery(**one._asdict(), state=PENDING) for one in dict.fromkeys(recipients)]


def told(deliveries: Sequence[AlertDelivery]) -> str:
    """Say who was told of an alert: `pending:webhook,mail` while it waits for these.

    `given_up` says that somebody was never told.
    """
    # In reverse, since it has always been shown so.
    waiting = {one.channel for one in deliveries if one.state == PENDING}
    if waiting:
        return f"{PENDING}:{','.join(sorted(waiting, reverse=True))}"
    if any(one.state == GIVEN_UP for one in deliveries):
        return GIVEN_UP
    return TOLD if deliveries else NOBODY


def read_pending(engine: Engine, channel: str) -> list[tuple[Alert, str]]:
    """Read the alerts that a channel is to tell of, each with its reader, the oldest first."""
    wanted = (
        select(Alert, col(AlertDelivery.reader))
        .join(AlertDelivery, col(AlertDelivery.alert_id) == col(Alert.alert_id))
        .where(col(AlertDelivery.state) == PENDING, col(AlertDelivery.channel) == channel)
        .where(col(Alert.at) >= utc_now() - GIVE_UP)
        .order_by(col(Alert.at), col(AlertDelivery.reader))
    )
    with reading(engine) as session:
        return [(alert, reader) for alert, reader in session.execute(wanted)]


def mark_told(engine: Engine, alert_id: UUID, recipient: Recipient) -> None:
    """Write down that somebody was told of an alert."""
    with writing(engine) as session:
        session.execute(
            update(AlertDelivery)
            .where(
                col(AlertDelivery.alert_id) == alert_id,
                col(AlertDelivery.channel) == recipient.channel,
                col(AlertDelivery.reader) == recipient.reader,
            )
            .values(state=TOLD)
        )


def give_up(engine: Engine) -> None:
    """Give up what has been tried for GIVE_UP, or would have been."""
    old = select(col(Alert.alert_id)).where(col(Alert.at) < utc_now() - GIVE_UP)
    waiting = (col(AlertDelivery.state) == PENDING, col(AlertDelivery.alert_id).in_(old))
    # Looked at first: to begin a write of nothing would hold up others.
    with reading(engine) as session:
        is_any = session.scalar(select(col(AlertDelivery.channel)).where(*waiting).limit(1))
    if is_any is not None:
        with writing(engine) as session:
            session.execute(
                update(AlertDelivery).where(*waiting).values(state=GIVEN_UP),
                execution_options={"synchronize_session": False},
            )
