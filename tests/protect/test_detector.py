"""Tests of app.protect.detector: evidence in activity.db becomes alerts, each once."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from sqlalchemy import Engine, select
from sqlmodel import Session

from app.activity import uses
from app.activity.access import Access, AccessLog
from app.activity.database import open_activity
from app.audit.models import Denial
from app.columns import utc_now
from app.errors import NotFound, StorageUnavailable
from app.keys.database import writing
from app.keys.models import ApiKey, Client
from app.keys.token import mint
from app.protect.alert_list import AlertFilter, as_object, read_alerts
from app.protect.alerts import OF_CLIENT_PER_HOUR_MAX, PER_HOUR_MAX, AlertLog, Policy
from app.protect.deliveries import Recipient
from app.protect.detector import FINDINGS_MAX, Detector
from app.protect.evidence import Sources
from app.protect.messenger import Messenger
from app.protect.models import AddressBlock, Alert, AlertDelivery
from app.protect.threats import MINUTES_PER_DAY, RULES, Finding, Thresholds
from tests.support import DEADLINE_S, Json

KEY, OTHER = "Zk3Zk3Zk3Zk3", "Qq9Qq9Qq9Qq9"
USUAL, STRANGE = "198.51.100.9", "203.0.113.7"
T = Thresholds(failures_per_address=5, failures_per_key=3)


class Desk:
    """The databases of a service, and what looks for threats in them."""

    def __init__(self, control: Engine, activity: Engine, directory: Path) -> None:
        self.control = control
        self.activity = activity
        self.directory = directory
        self.now = int(time.time() // 60)
        self.quarantined: list[str] = []
        self.lost: list[int] = []
        self.numbers = iter(range(10**9))

    def detector(self, policy: Policy | None = None, **changes: Any) -> Detector:
        """Give a detector as after a start."""
        settings: Json = {
            "thresholds": T,
            "stop": self.quarantined.append,
            "country": None,
            "findings_max": FINDINGS_MAX,
        } | changes
        return Detector(
            Sources(self.control, self.activity, 30, country=settings["country"]),
            settings["thresholds"],
            AlertLog(self.activity, policy or Policy(), settings["stop"]),
            Messenger(self.activity, []),
            directory=self.directory,
            lost=self.lost.append,
            findings_max=settings["findings_max"],
        )

    def refuse(self, count: int, *, ago_s: float = 10.0, **what: Any) -> None:
        """Write refusals of one source, a millisecond apart, so long ago."""
        at = utc_now() - timedelta(seconds=ago_s)
        row: Json = {"status": 401, "reason": "malformed", "explanation": "", "endpoint": "POST /x"}
        row |= {"source_ip": STRANGE, "user_agent": "", **what}
        with writing(self.activity) as session:
            for number in range(count):
                moment = at + timedelta(milliseconds=number)
                session.add(Denial(request_id=f"r{next(self.numbers)}", at=moment, **row))

    def use(self, *minutes: int, source_ip: str = USUAL, requests: int = 1, **what: str) -> None:
        """Write uses of the key in minutes before now, as a worker does."""
        row = {"key_id": KEY, "endpoint": "POST /x", "dataset": "orders", "outcome": "201"} | what
        AccessLog(self.activity, 365).write(
            Access(
                **{"user_agent": "", **row},
                minute=self.now - one,
                source_ip=source_ip,
                requests=requests,
            )
            for one in minutes
        )
        moments = [datetime.fromtimestamp((self.now - one) * 60, UTC) for one in minutes]
        uses.record(
            self.activity,
            [uses.Sighting(row["key_id"], source_ip, "", requests, one, one) for one in moments],
        )

    def alerts(self) -> list[Json]:
        """Give all alerts, the oldest first."""
        return [as_object(one) for one in reversed(read_alerts(self.activity, AlertFilter()))]

    def told(self) -> list[tuple[str, int]]:
        """Name the rules of all alerts, with their counts."""
        return [(one["rule"], one["count"]) for one in self.alerts()]


@pytest.fixture
def desk(engine: Engine, tmp_path: Path) -> Iterator[Desk]:
    """Give databases with two keys of a client, made a year ago."""
    activity = open_activity(engine)
    made = utc_now() - timedelta(days=365)
    with writing(engine) as session:
        session.add(Client(client_id="acme", name="acme"))
        session.flush()
        for key_id in (KEY, OTHER):
            session.add(
                ApiKey(
                    key_id=key_id,
                    key_prefix=key_id,
                    client_id="acme",
                    name="a key",
                    role="client",
                    created_at=made,
                )
            )
    yield Desk(engine, activity, tmp_path)
    activity.dispose()


def learned(desk: Desk) -> None:
    """Have the key be used daily for 40 days, on one dataset and from one network."""
    desk.use(*(day * MINUTES_PER_DAY for day in range(1, 40)))


def spike(desk: Desk) -> None:
    """Have the key make far more requests in a minute than before, on two endpoints."""
    desk.use(*range(2, 20), requests=3)
    desk.use(1, requests=400)
    desk.use(1, requests=400, endpoint="GET /y")


def too_few(desk: Desk) -> None:
    """Refuse fewer requests than either threshold."""
    desk.refuse(2)
    desk.refuse(2, reason="wrong_secret", key_id=KEY)


def nobodys(desk: Desk) -> None:
    """Have requests without a key come from elsewhere, where none is required."""
    desk.use(*(day * MINUTES_PER_DAY for day in range(1, 40)), key_id="anonymous")
    desk.use(0, key_id="anonymous", source_ip=STRANGE)


FIRES: dict[str, Callable[[Desk], None]] = {
    "failed_attempts": lambda desk: desk.refuse(5),
    "failed_attempts_on_key": lambda desk: desk.refuse(
        3, reason="wrong_secret", key_id=KEY, client_id="acme"
    ),
    "revoked_key": lambda desk: desk.refuse(1, reason="deactivated", key_id=KEY, client_id="acme"),
    "unusual_address": lambda desk: desk.use(0, source_ip=STRANGE),
    "unusual_dataset": lambda desk: desk.use(0, dataset="payroll"),
    "spike": spike,
    "dormant_key": lambda desk: desk.use(0, key_id=OTHER),
}
CALM: dict[str, Callable[[Desk], None]] = {
    "too few": too_few,
    "too long ago": lambda desk: desk.refuse(50, ago_s=3600),
    "no authentication": lambda desk: desk.refuse(50, status=403, reason="scope_missing"),
    "over a limit": lambda desk: desk.refuse(50, status=429, reason="rate_limit_requests"),
    "the usual": lambda desk: desk.use(0, 1, 2, source_ip="198.51.100.77", requests=100),
    "a dataset refused": lambda desk: desk.use(0, dataset="payroll", outcome="403"),
    "nobody's": nobodys,
}


@pytest.mark.parametrize("rule", FIRES)
def test_each_rule_fires(desk: Desk, rule: str) -> None:
    """Evidence of each threat becomes one alert of its rule, however often it is looked at."""
    learned(desk)
    FIRES[rule](desk)
    detector = desk.detector()
    for _ in range(3):
        detector.detect()
    (alert,) = [one for one in desk.alerts() if one["rule"] == rule]
    assert alert["severity"] == RULES[rule].severity
    assert alert["detail"]["explanation"] == RULES[rule].explanation
    assert (alert["action"], alert["told"]) == ("alert", "nobody")
    # Attempts from an address are nobody's: what they were sent with opens nothing.
    assert alert["client_id"] == (None if rule == "failed_attempts" else "acme")
    # Others are told of what they find, and not of this.
    assert {one["rule"] for one in desk.alerts()} <= {rule, "failed_attempts"}


@pytest.mark.parametrize("what", CALM)
def test_nothing_fires(desk: Desk, what: str) -> None:
    """What is usual, too little, or no threat at all, is no alert."""
    learned(desk)
    CALM[what](desk)
    desk.detector().detect()
    assert desk.told() == []


def test_an_unusual_country(desk: Desk) -> None:
    """With a database of countries one that is new is an alert; without one there is none."""
    learned(desk)
    desk.use(0, source_ip=STRANGE)
    desk.detector(country={USUAL: "DE", STRANGE: "FR"}.get).detect()
    assert desk.told() == [("unusual_address", 1), ("unusual_country", 1)]
    assert desk.alerts()[1]["detail"]["seen"] == ["FR"]


def test_a_key_that_is_learned(desk: Desk) -> None:
    """A key that is new comes from wherever it likes."""
    desk.use(*range(1, 100))
    desk.use(0, source_ip=STRANGE, dataset="payroll")
    desk.detector().detect()
    assert desk.told() == []


def test_a_key_that_was_never_used_awakes(desk: Desk) -> None:
    """A key made long ago and used for the first time is told, where uses have been on record."""
    desk.use(0, key_id=OTHER)
    desk.detector().detect()
    assert desk.told() == []  # of before today nothing is known
    desk.use(40 * MINUTES_PER_DAY)
    desk.use(0, key_id=OTHER, source_ip=STRANGE)
    desk.detector().detect()
    assert desk.told() == [("dormant_key", 1)]


def test_what_was_pruned_is_remembered(desk: Desk) -> None:
    """A key used long ago, of which no minute is kept, sleeps no longer than it is known to."""
    old = datetime.fromtimestamp((desk.now - 50 * MINUTES_PER_DAY) * 60, UTC)
    uses.record(desk.activity, [uses.Sighting(KEY, USUAL, "", 1, old, old)])
    desk.use(0)
    desk.detector().detect()
    assert desk.told() == [("dormant_key", 1)]


def test_what_goes_on_is_one_alert_that_counts(desk: Desk) -> None:
    """Attempts that go on are counted to the last one, by the same detector and by the next."""
    detector = desk.detector()
    desk.refuse(3, ago_s=60)
    detector.detect()
    desk.refuse(4, ago_s=50)
    detector.detect()
    desk.refuse(5, ago_s=40)
    detector.detect()
    assert desk.told() == [("failed_attempts", 12)]
    desk.refuse(6, ago_s=20)
    for _ in range(2):
        desk.detector().detect()  # each as after a restart
    assert desk.told() == [("failed_attempts", 18)]
    (alert,) = desk.alerts()
    first, last = (datetime.fromisoformat(alert[name]) for name in ("at", "last_at"))
    assert timedelta(seconds=35) < last - first < timedelta(seconds=45)


def test_nothing_is_told_again_after_a_restart(desk: Desk) -> None:
    """A detector that starts anew finds what it finds recorded, whichever rule it was."""
    learned(desk)
    for fire in FIRES.values():
        fire(desk)
    desk.detector().detect()
    before = desk.alerts()
    assert {one["rule"] for one in before} >= set(FIRES)
    for _ in range(2):
        desk.detector().detect()
    assert desk.alerts() == before


def test_after_a_quiet_time_it_is_a_new_alert(desk: Desk) -> None:
    """What comes again after the quiet time is told again."""
    desk.refuse(5)
    desk.detector().detect()
    with Session(desk.activity) as session:
        alert = session.get_one(Alert, read_alerts(desk.activity, AlertFilter())[0].alert_id)
        alert.at = alert.last_at = utc_now() - timedelta(minutes=61)
        session.add(alert)
        session.commit()
    desk.refuse(5)
    desk.detector().detect()
    assert [one for one, _ in desk.told()] == ["failed_attempts"] * 2


def test_more_networks_are_the_same_alert(desk: Desk) -> None:
    """A key that turns up in one network after the other is one alert that names them."""
    learned(desk)
    detector = desk.detector()
    for number in range(3):
        desk.use(0, source_ip=f"203.0.{number}.7")
        detector.detect()
    (alert,) = desk.alerts()
    assert alert["detail"]["seen"] == [f"203.0.{number}.0/24" for number in range(3)]
    assert (alert["count"], alert["source_ip"]) == (3, "203.0.2.7")


def test_a_flood_of_alerts_is_one(desk: Desk) -> None:
    """An attack from everywhere makes so many alerts in an hour, and one for all the rest."""
    for number in range(PER_HOUR_MAX + 20):
        desk.refuse(1, source_ip=f"10.0.{number}.1")
    desk.detector(
        Policy({"failed_attempts": "block"}), thresholds=Thresholds(failures_per_address=1)
    ).detect()
    found = desk.alerts()
    assert len(found) == PER_HOUR_MAX + 1
    assert [one["count"] for one in found if not one["source_ip"]] == [20]
    assert len(blocks(desk)) == PER_HOUR_MAX + 20


def test_one_clients_flood_is_its_own(desk: Desk) -> None:
    """However many alerts the keys of others make, a client is told of its own."""
    clients = [*("evil" for _ in range(PER_HOUR_MAX + 10)), "acme"]
    clients += [f"c{number // 10}" for number in range(PER_HOUR_MAX)]
    clients += ["globex", "globex", "evil"]
    for number, client in enumerate(clients):
        ago_s = 60 - number / 10
        desk.refuse(1, ago_s=ago_s, reason="deleted", key_id=f"k{number}", client_id=client)
    desk.detector().detect()
    found = [one for one in desk.alerts() if one["rule"] == "revoked_key"]
    of_evil = [one for one in found if one["client_id"] == "evil"]
    assert len(of_evil) == OF_CLIENT_PER_HOUR_MAX + 1
    others = clients.count("evil") - OF_CLIENT_PER_HOUR_MAX
    assert (of_evil[-1]["key_id"], of_evil[-1]["count"]) == (None, others)
    for client in ("acme", "globex"):
        own = [one["key_id"] for one in found if one["client_id"] == client]
        assert own[0] == f"k{clients.index(client)}"
    # The second of a client is not told apart any more, but the client is told of it.
    assert own[1:] == [None]
    assert {one["client_id"] for one in found} == set(clients)


def blocks(desk: Desk) -> dict[str, datetime]:
    """Give the blocks by address."""
    with Session(desk.activity) as session:
        return {one.address: one.until for one in session.scalars(select(AddressBlock))}


def test_a_block(desk: Desk) -> None:
    """Who is to be blocked is, as a party, for the minutes from the last attempt on."""
    detector = desk.detector(Policy({"failed_attempts": "block"}, block_minutes=5))
    desk.refuse(5, source_ip="2001:db8::7")
    desk.refuse(5, source_ip="::ffff:192.0.2.7")
    detector.detect()
    first = blocks(desk)
    assert first.keys() == {"2001:db8::/64", "192.0.2.7"}
    assert timedelta(minutes=4) < first["192.0.2.7"] - utc_now() < timedelta(minutes=6)
    assert {one["action"] for one in desk.alerts()} == {"block"}
    desk.refuse(1, source_ip="192.0.2.7", ago_s=5)
    detector.detect()
    assert blocks(desk)["192.0.2.7"] > first["192.0.2.7"]


def test_a_quarantine_is_done_once(desk: Desk) -> None:
    """A key is switched off by the first finding; who activates it is not overruled by the next."""
    learned(desk)
    policy = Policy({"unusual_address": "quarantine"})
    for number in range(3):
        desk.use(0, source_ip=f"203.0.{number}.7")
        desk.detector(policy).detect()
    assert desk.quarantined == [KEY]
    (alert,) = desk.alerts()
    assert alert["action"] == "quarantine"


def test_a_key_that_cannot_be_quarantined(desk: Desk) -> None:
    """Of a key that is in the settings alone the alert says that it could not be switched off."""

    def stop(_: str) -> None:
        raise NotFound

    learned(desk)
    desk.use(0, source_ip=STRANGE)
    desk.detector(Policy({"unusual_address": "quarantine"}), stop=stop).detect()
    (alert,) = desk.alerts()
    assert alert["action"] == "alert"
    assert "settings" in alert["detail"]["not_quarantined"]


def test_a_rule_that_is_off(desk: Desk) -> None:
    """A rule that is off says nothing, and the others do."""
    learned(desk)
    desk.use(0, source_ip=STRANGE, dataset="payroll")
    desk.detector(Policy({"unusual_address": "off"})).detect()
    assert desk.told() == [("unusual_dataset", 1)]


def test_what_can_not_be_recorded_is_kept(desk: Desk) -> None:
    """A finding whose recording fails is recorded when the database is back."""
    is_away = [True]

    def stop(_: str) -> None:
        if is_away[0]:
            raise StorageUnavailable("away")

    learned(desk)
    detector = desk.detector(Policy({"unusual_address": "quarantine"}), stop=stop)
    desk.use(0, source_ip=STRANGE)
    with pytest.raises(StorageUnavailable):
        detector.detect()
    assert desk.told() == []
    is_away.clear()
    is_away.append(False)
    detector.detect()
    assert desk.told() == [("unusual_address", 1)]


def test_findings_that_are_too_many_are_counted(desk: Desk) -> None:
    """What is found beyond what can be kept is not lost unseen: the oldest go, and are counted."""
    for number in range(5):
        desk.refuse(5, source_ip=f"10.0.{number}.1", ago_s=20 - number)
    with structlog.testing.capture_logs() as logs:
        desk.detector(findings_max=2).detect()
    assert [one["source_ip"] for one in desk.alerts()] == ["10.0.3.1", "10.0.4.1"]
    assert desk.lost == [3]
    assert [one["count"] for one in logs if one["log_level"] == "error"] == [3]


def test_old_alerts_go(desk: Desk) -> None:
    """Alerts are kept for their days, and who was told of them as long."""
    desk.refuse(5)
    desk.detector(Policy(recipients=[Recipient("webhook")])).detect()
    with writing(desk.activity) as session:
        for alert in session.scalars(select(Alert)):
            alert.at = utc_now() - timedelta(days=366)
    AlertLog(desk.activity, Policy(kept_days=367), print).prune()
    assert len(desk.told()) == 1
    AlertLog(desk.activity, Policy(kept_days=365), print).prune()
    assert desk.told() == []
    with Session(desk.activity) as session:
        assert session.scalars(select(AlertDelivery)).all() == []


def test_nothing_secret_is_in_an_alert(desk: Desk) -> None:
    """What somebody sent beside an address or an id, a key perhaps, is in no alert and no log."""
    secret = mint("cl_live", "acme").text
    sent: Json = {"user_agent": secret, "endpoint": f"POST /{secret}", "explanation": f"({secret})"}
    desk.refuse(5, source_ip='"}<script>', **sent)
    desk.refuse(3, reason="wrong_secret", key_id=KEY, **sent)
    learned(desk)
    desk.use(0, source_ip=STRANGE, user_agent=secret, endpoint=f"POST /{secret}")
    with structlog.testing.capture_logs() as logs:
        desk.detector().detect()
    alerts = desk.alerts()
    assert {one["rule"] for one in alerts} == {
        *("failed_attempts", "failed_attempts_on_key", "unusual_address")
    }
    assert [one["source_ip"] for one in alerts if "script" in one["source_ip"]] == ['"}<script>']
    assert len(logs) == len(alerts)
    with Session(desk.activity) as session:
        rows = session.connection().exec_driver_sql("SELECT * FROM alerts").all()
    for told in (json.dumps(alerts), str(logs), str(rows)):
        assert secret[-40:] not in told


class Counting(AlertLog):
    """Counts what one of several detectors gives it."""

    findings = 0

    def record(self, findings: Iterable[Finding]) -> None:
        """Record and count."""
        given = list(findings)
        self.findings += len(given)
        super().record(given)


def test_one_detector_at_a_time(desk: Desk) -> None:
    """Of two workers one looks for threats, and the other one when the first has gone."""
    logs = [Counting(desk.activity, Policy(), desk.quarantined.append) for _ in range(2)]
    sources = Sources(desk.control, desk.activity, 30)
    detectors = [
        Detector(
            *(sources, T, log, Messenger(desk.activity, [])),
            directory=desk.directory,
            lost=desk.lost.append,
            every_s=0.02,
        )
        for log in logs
    ]

    async def found(log: Counting) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not log.findings:  # noqa: ASYNC110  # what it waits for is in a database
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)  # ten looks of another one

    async def scenario() -> None:
        for detector in detectors:
            detector.start()
        desk.refuse(5)
        await found(logs[0])
        assert logs[1].findings == 0
        await detectors[0].aclose()
        await found(logs[1])
        await detectors[1].aclose()

    asyncio.run(scenario())
    assert desk.told() == [("failed_attempts", 5)]
