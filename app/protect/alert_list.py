"""Alerts read and shown, as the API and the channels do."""

import json
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Engine, select, tuple_
from sqlmodel import col

from app.keys.database import reading
from app.keys.objects import iso_time
from app.protect.deliveries import told
from app.protect.models import Alert


class AlertFilter(NamedTuple):
    """Which alerts to read, of all clients without one; `after` goes on behind an alert."""

    client_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    rule: str | None = None
    after: tuple[datetime, UUID] | None = None
    limit: int | None = None


def read_alerts(engine: Engine, wanted: AlertFilter) -> list[Alert]:
    """Read alerts, the newest first."""
    name = (col(Alert.at), col(Alert.alert_id))
    conditions: list[Any] = []
    if wanted.client_id is not None:
        conditions.append(col(Alert.client_id) == wanted.client_id)
    if wanted.start is not None:
        conditions.append(name[0] >= wanted.start)
    if wanted.end is not None:
        conditions.append(name[0] < wanted.end)
    if wanted.rule is not None:
        conditions.append(col(Alert.rule) == wanted.rule)
    if wanted.after is not None:
        conditions.append(tuple_(*name) < tuple_(*wanted.after))
    selected = select(Alert).where(*conditions).order_by(*(one.desc() for one in name))
    with reading(engine) as session:
        return list(session.scalars(selected.limit(wanted.limit)))


def as_object(alert: Alert) -> dict[str, Any]:
    """Show an alert, as the API and the webhook do."""
    return {
        "id": str(alert.alert_id),
        "at": iso_time(alert.at),
        "last_at": iso_time(alert.last_at),
        "count": alert.count,
        "rule": alert.rule,
        "severity": alert.severity,
        "action": alert.action,
        "client_id": alert.client_id,
        "key_id": alert.key_id,
        "source_ip": alert.source_ip,
        "detail": detail_of(alert),
        "told": told(alert.deliveries),
    }


def summary(alert: Alert) -> str:
    """Say in a line what an alert is about."""
    shown = as_object(alert)
    whose = f" Key {alert.key_id}" if alert.key_id else ""
    whose += f" of {alert.client_id}." if alert.client_id else "." if whose else ""
    where = f" From {alert.source_ip}." if alert.source_ip else ""
    explanation = shown["detail"].get("explanation", "")
    return f"[{alert.severity}] {alert.rule}: {explanation}{whose}{where} Action: {alert.action}."


def detail_of(alert: Alert) -> dict[str, Any]:
    """Give what an alert holds beside its columns."""
    try:
        detail = json.loads(alert.detail)
    except ValueError:  # somebody wrote into the row
        return {}
    return detail if isinstance(detail, dict) else {}
