"""Alerts: findings recorded, each once, with what follows on them.

What goes on is one alert that counts, until it has been quiet for a while. Of what was recorded
before a restart nothing is counted again: attempts are told apart by their moments, all else by
what was seen.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import Engine, delete, func, select, tuple_
from sqlmodel import Session, col

from app.columns import utc_now
from app.errors import LoggerError, StorageUnavailable
from app.keys.database import reading, writing
from app.keys.objects import iso_time
from app.protect.models import AddressBlock, Alert
from app.protect.threats import (
    ALERT,
    BLOCK,
    OFF,
    QUARANTINE,
    RULES,
    Finding,
)

# Who was told: `pending:webhook,mail` until both were, `nobody` where nobody is to be.
PENDING, TOLD, GIVEN_UP, NOBODY = "pending:", "told", "given_up", "nobody"
# What goes on for longer is told once more.
LIFE = timedelta(days=1)
# New alerts of a rule in an hour: an attack from everywhere must not fill mailboxes, nor the disk.
# Beyond it they are one alert, without key and address.
PER_HOUR_MAX = 100
MANY = "too many at a time to tell them apart"
SEEN_MAX = 50
# Each worker holds them in memory.
BLOCKS_MAX = 50_000
_SOURCE_LENGTH_MAX = 45

log = structlog.get_logger(__name__)


class NotTold(Exception):
    """Nobody was told of an alert; the text says why, without any secret."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What follows on a finding: an action for each rule that has another than `alert`."""

    actions: Mapping[str, str] = field(default_factory=dict)
    block_minutes: int = 15
    quiet_minutes: int = 60
    kept_days: int = 365
    channels: Sequence[str] = ()  # by which alerts are told

    def action_of(self, rule: str) -> str:
        """Give what follows on a finding of a rule."""
        return self.actions.get(rule, ALERT)


class AlertLog:
    """Where findings become alerts; used by one thread at a time.

    `quarantine` switches a key off; a LoggerError says that this can't be done.
    """

    def __init__(self, engine: Engine, policy: Policy, quarantine: Callable[[str], object]) -> None:
        self._engine = engine
        self._policy = policy
        self._quarantine = quarantine

    def record(self, findings: Iterable[Finding]) -> None:
        """Record what is new of findings, and do what follows; raise StorageUnavailable.

        It may be given the same again: what was recorded is not counted twice.
        """
        for finding in findings:
            if self._policy.action_of(finding.rule) != OFF:
                self._record(finding)

    def _record(self, finding: Finding) -> None:
        now = utc_now()
        with reading(self._engine) as session:
            former = _latest(session, finding.rule, finding.key_id, finding.source_ip)
            is_open = _is_open(former, now, self._policy)
            is_many = not is_open and _opened(session, finding.rule, now) >= PER_HOUR_MAX
            new = finding if is_many else _new_of(finding, former)
            if not (new.moments or new.seen):
                return
            if is_many:
                former = _latest(session, finding.rule, None, "")
                is_open = _is_open(former, now, self._policy)
                new = new._replace(key_id=None, client_id=None, source_ip="", seen=(MANY,))
        action, fault = self._policy.action_of(finding.rule), ""
        # Before the alert is written: of an alert that is there the action has been taken.
        if action == QUARANTINE and finding.key_id is not None and (is_many or not is_open):
            fault = self._switch_off(finding.key_id)
            action = ALERT if fault else action
        with writing(self._engine) as session:
            if former is None or not is_open:
                alert = _made(new, action, fault, self._policy, now)
            else:
                alert = session.get_one(Alert, former.alert_id)
                _count(alert, new, now)
            session.add(alert)
            if action == BLOCK:
                self._block(session, new, alert.alert_id, now)
        if not is_open:
            _tell_log(alert)

    def _switch_off(self, key_id: str) -> str:
        """Quarantine a key; say why not, if that can't be done."""
        try:
            self._quarantine(key_id)
        except StorageUnavailable:
            raise
        except LoggerError:
            return "the key is not in the database: only its settings can switch it off"
        return ""

    def _block(self, session: Session, new: Finding, alert_id: UUID, now: datetime) -> None:
        until = now + timedelta(minutes=self._policy.block_minutes)
        session.execute(delete(AddressBlock).where(col(AddressBlock.until) <= now))
        room = BLOCKS_MAX - (session.scalar(select(func.count()).select_from(AddressBlock)) or 0)
        for address in new.sources[: max(room, 0)]:
            session.merge(AddressBlock(address=address, until=until, alert_id=alert_id))

    def prune(self) -> None:
        """Let go of alerts that have been kept for their time."""
        cutoff = utc_now() - timedelta(days=self._policy.kept_days)
        with reading(self._engine) as session:
            oldest = session.scalar(select(func.min(col(Alert.at))))
        if oldest is not None and oldest < cutoff:
            with writing(self._engine) as session:
                session.execute(
                    delete(Alert).where(col(Alert.at) < cutoff),
                    execution_options={"synchronize_session": False},
                )


def _latest(session: Session, rule: str, key_id: str | None, source_ip: str) -> Alert | None:
    """Find the last alert of a rule about a key; of none: about an address."""
    wanted = select(Alert).where(col(Alert.rule) == rule, col(Alert.at) >= utc_now() - 2 * LIFE)
    if key_id is None:
        wanted = wanted.where(col(Alert.key_id).is_(None), col(Alert.source_ip) == source_ip)
    else:
        wanted = wanted.where(col(Alert.key_id) == key_id)
    return session.scalar(wanted.order_by(col(Alert.at).desc()).limit(1))


def _is_open(alert: Alert | None, now: datetime, policy: Policy) -> bool:
    if alert is None:
        return False
    return now - alert.last_at <= timedelta(minutes=policy.quiet_minutes) and now - alert.at <= LIFE


def _opened(session: Session, rule: str, now: datetime) -> int:
    """Count the alerts that a rule has made within the hour."""
    lately = (col(Alert.rule) == rule, col(Alert.at) >= now - timedelta(hours=1))
    return session.scalar(select(func.count()).select_from(Alert).where(*lately)) or 0


def _new_of(finding: Finding, former: Alert | None) -> Finding:
    """Leave of a finding what was not recorded before."""
    if former is None:
        return finding
    if finding.moments:
        last_s = former.last_at.timestamp()
        moments = tuple(one for one in finding.moments if one > last_s)
        return finding._replace(moments=moments, seen=finding.seen if moments else ())
    seen = set(_detail(former).get("seen", ()))
    return finding._replace(seen=tuple(one for one in finding.seen if one not in seen))


def _made(new: Finding, action: str, fault: str, policy: Policy, now: datetime) -> Alert:
    rule = RULES[new.rule]
    detail: dict[str, Any] = {
        "explanation": rule.explanation,
        "seen": list(new.seen[:SEEN_MAX]),
        **new.numbers,
    }
    if fault:
        detail["not_quarantined"] = fault
    return Alert(
        at=datetime.fromtimestamp(min(new.moments), UTC) if new.moments else now,
        last_at=datetime.fromtimestamp(max(new.moments), UTC) if new.moments else now,
        count=len(new.moments) or len(new.seen),
        rule=new.rule,
        severity=rule.severity,
        action=action,
        client_id=new.client_id,
        key_id=new.key_id,
        source_ip=new.source_ip[:_SOURCE_LENGTH_MAX],
        detail=json.dumps(detail),
        told=PENDING + ",".join(policy.channels) if policy.channels else NOBODY,
    )


def _count(alert: Alert, new: Finding, now: datetime) -> None:
    """Add to an alert what has come since."""
    alert.count += len(new.moments) or len(new.seen)
    alert.last_at = datetime.fromtimestamp(max(new.moments), UTC) if new.moments else now
    if new.key_id is not None:
        alert.source_ip = new.source_ip[:_SOURCE_LENGTH_MAX]
    detail = _detail(alert)
    # The latest: what was seen first has been told.
    detail["seen"] = list(dict.fromkeys([*detail.get("seen", ()), *new.seen]))[-SEEN_MAX:]
    alert.detail = json.dumps({**detail, **new.numbers})


def _tell_log(alert: Alert) -> None:
    named = {"key_id": alert.key_id or "", "client_id": alert.client_id or ""}
    log.warning("alert", rule=alert.rule, action=alert.action, source_ip=alert.source_ip, **named)


def _detail(alert: Alert) -> dict[str, Any]:
    try:
        detail = json.loads(alert.detail)
    except ValueError:  # somebody wrote into the row
        return {}
    return detail if isinstance(detail, dict) else {}


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


def read_pending(engine: Engine, since: datetime) -> list[Alert]:
    """Read alerts that somebody is to be told of, the oldest first."""
    wanted = select(Alert).where(col(Alert.at) >= since, col(Alert.told).startswith(PENDING))
    with reading(engine) as session:
        return list(session.scalars(wanted.order_by(col(Alert.at))))


def channels_left(alert: Alert) -> list[str]:
    """Name the channels by which an alert is still to be told."""
    if not alert.told.startswith(PENDING):
        return []
    return alert.told.removeprefix(PENDING).split(",")


def mark_told(engine: Engine, alert_id: UUID, channel: str, *, gave_up: bool = False) -> None:
    """Write down that a channel has told of an alert, or never will."""
    with writing(engine) as session:
        alert = session.get(Alert, alert_id)
        if alert is None:
            return
        left = [one for one in channels_left(alert) if one != channel]
        alert.told = PENDING + ",".join(left) if left else GIVEN_UP if gave_up else TOLD


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
        "detail": _detail(alert),
        "told": alert.told,
    }


def summary(alert: Alert) -> str:
    """Say in a line what an alert is about."""
    shown = as_object(alert)
    whose = f" Key {alert.key_id}" if alert.key_id else ""
    whose += f" of {alert.client_id}." if alert.client_id else "." if whose else ""
    where = f" From {alert.source_ip}." if alert.source_ip else ""
    explanation = shown["detail"].get("explanation", "")
    return f"[{alert.severity}] {alert.rule}: {explanation}{whose}{where} Action: {alert.action}."
