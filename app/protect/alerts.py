"""Alerts: findings recorded, each once, with what follows on them.

What goes on is one alert that counts, until it has been quiet for a while. Of what was recorded
before a restart nothing is counted again: attempts are told apart by their moments, all else by
what was seen.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Engine, delete, func, select
from sqlmodel import Session, col

from app.columns import utc_now
from app.errors import LoggerError, StorageUnavailable
from app.keys.database import reading, writing
from app.protect.alert_list import detail_of
from app.protect.deliveries import Recipient, begun, give_up
from app.protect.models import AddressBlock, Alert
from app.protect.threats import ALERT, BLOCK, OFF, QUARANTINE, RULES, Finding

# What goes on for longer is told once more.
LIFE = timedelta(days=1)
# New alerts of a rule in an hour: an attack from everywhere must not fill mailboxes, nor the disk.
# Beyond it they are one alert, without key and address. What befalls one client's keys its own
# administrator can bring about: so each client has a share, and its rest is an alert of its own.
PER_HOUR_MAX = 100
OF_CLIENT_PER_HOUR_MAX = 20
# What a client is told of by name, though all of them together are beyond PER_HOUR_MAX.
OF_CLIENT_ALWAYS = 1
MANY = "too many at a time to tell them apart"
SEEN_MAX = 50
# Each worker holds them in memory.
BLOCKS_MAX = 50_000
_SOURCE_LENGTH_MAX = 45

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """What follows on a finding: an action for each rule that has another than `alert`."""

    actions: Mapping[str, str] = field(default_factory=dict)
    block_minutes: int = 15
    quiet_minutes: int = 60
    kept_days: int = 365
    recipients: Sequence[Recipient] = ()

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
            former = _latest(session, finding)
            is_open = _is_open(former, now, self._policy)
            is_many = not is_open and _are_many(session, finding, now)
            new = finding if is_many else _new_of(finding, former)
            if not (new.moments or new.seen):
                return
            if is_many:
                new = new._replace(key_id=None, source_ip="", seen=(MANY,))
                former = _latest(session, new)
                is_open = _is_open(former, now, self._policy)
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
        """Let go of alerts that have been kept for their time, and tell nobody of what is old."""
        give_up(self._engine)
        cutoff = utc_now() - timedelta(days=self._policy.kept_days)
        with reading(self._engine) as session:
            oldest = session.scalar(select(func.min(col(Alert.at))))
        if oldest is not None and oldest < cutoff:
            with writing(self._engine) as session:
                session.execute(
                    delete(Alert).where(col(Alert.at) < cutoff),
                    execution_options={"synchronize_session": False},
                )


def _latest(session: Session, finding: Finding) -> Alert | None:
    """Find the last alert of a rule about a key; of none: about a client's address, or nobody's."""
    rule = col(Alert.rule) == finding.rule
    wanted = select(Alert).where(rule, col(Alert.at) >= utc_now() - 2 * LIFE)
    if finding.key_id is None:
        wanted = wanted.where(
            col(Alert.key_id).is_(None),
            col(Alert.client_id) == finding.client_id,
            col(Alert.source_ip) == finding.source_ip,
        )
    else:
        wanted = wanted.where(col(Alert.key_id) == finding.key_id)
    return session.scalar(wanted.order_by(col(Alert.at).desc()).limit(1))


def _is_open(alert: Alert | None, now: datetime, policy: Policy) -> bool:
    if alert is None:
        return False
    return now - alert.last_at <= timedelta(minutes=policy.quiet_minutes) and now - alert.at <= LIFE


def _are_many(session: Session, finding: Finding, now: datetime) -> bool:
    """Say whether a rule has made as many alerts within the hour as are told apart."""
    lately = (col(Alert.rule) == finding.rule, col(Alert.at) >= now - timedelta(hours=1))
    counted = select(func.count()).select_from(Alert).where(*lately)
    if finding.client_id is None:
        nobodys = counted.where(col(Alert.client_id).is_(None))
        return (session.scalar(nobodys) or 0) >= PER_HOUR_MAX
    of_client = session.scalar(counted.where(col(Alert.client_id) == finding.client_id)) or 0
    if of_client < OF_CLIENT_ALWAYS:
        return False
    return of_client >= OF_CLIENT_PER_HOUR_MAX or (session.scalar(counted) or 0) >= PER_HOUR_MAX


def _new_of(finding: Finding, former: Alert | None) -> Finding:
    """Leave of a finding what was not recorded before."""
    if former is None:
        return finding
    if finding.moments:
        last_s = former.last_at.timestamp()
        moments = tuple(one for one in finding.moments if one > last_s)
        return finding._replace(moments=moments, seen=finding.seen if moments else ())
    seen = set(detail_of(former).get("seen", ()))
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
        deliveries=begun(policy.recipients),
    )


def _count(alert: Alert, new: Finding, now: datetime) -> None:
    """Add to an alert what has come since."""
    alert.count += len(new.moments) or len(new.seen)
    alert.last_at = datetime.fromtimestamp(max(new.moments), UTC) if new.moments else now
    if new.key_id is not None:
        alert.source_ip = new.source_ip[:_SOURCE_LENGTH_MAX]
    detail = detail_of(alert)
    # The latest: what was seen first has been told.
    detail["seen"] = list(dict.fromkeys([*detail.get("seen", ()), *new.seen]))[-SEEN_MAX:]
    alert.detail = json.dumps({**detail, **new.numbers})


def _tell_log(alert: Alert) -> None:
    named = {"key_id": alert.key_id or "", "client_id": alert.client_id or ""}
    log.warning("alert", rule=alert.rule, action=alert.action, source_ip=alert.source_ip, **named)
