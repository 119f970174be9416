"""Alerts from outside: told by webhook and by mail, and what follows on them for real requests."""

import asyncio
import hmac
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog.testing
from sqlalchemy import Engine, select

from app.activity.database import open_activity
from app.columns import utc_now
from app.delivery.smtp import Mailbox
from app.keys.database import writing
from app.keys.token import mint
from app.protect.alert_list import AlertFilter, as_object, read_alerts
from app.protect.alerts import AlertLog, Policy
from app.protect.deliveries import GIVE_UP, NotTold, Recipient, begun
from app.protect.messenger import Channel, MailChannel, Messenger
from app.protect.models import Alert
from app.protect.webhook import Webhook, parse_webhook, webhook_secret
from loadtests.server import ROOT, free_port
from tests.delivery.mail_sink import HOST, Sink, make_certificate, part, running_sink
from tests.protect.receiver import HOLD, Receiver, running_receiver
from tests.support import Json, Service, eventually, key_id_of, problem, record, running

SECRET = "the secret of a server under test"
BOTH = (Recipient("webhook"), Recipient("mail", "ops@example.com"))
WAIT_S = 15.0


@pytest.fixture
def activity(engine: Engine) -> Iterator[Engine]:
    """Give a database for alerts."""
    activity = open_activity(engine)
    yield activity
    activity.dispose()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Run a receiver that takes all."""
    with running_receiver() as receiver:
        yield receiver


def alert(*recipients: Recipient, **changes: Any) -> Alert:
    """Give an alert that waits to be told; by the webhook, if not by others."""
    now = utc_now()
    columns: Json = {
        "at": now,
        "last_at": now,
        "count": 3,
        "rule": "unusual_address",
        "severity": "medium",
        "action": "quarantine",
        "client_id": "acme",
        "key_id": "Zk3Zk3Zk3Zk3",
        "source_ip": "203.0.113.7",
        "detail": json.dumps({"explanation": "It was used elsewhere.", "seen": ["203.0.113.0/24"]}),
    }
    deliveries = begun(recipients or [Recipient("webhook")])
    return Alert(**columns | changes, deliveries=deliveries)


def add(activity: Engine, *alerts: Alert) -> None:
    """Store alerts."""
    with writing(activity) as session:
        session.add_all(alerts)


def told(activity: Engine) -> list[str]:
    """Say who was told of each alert, the oldest first."""
    return [as_object(one)["told"] for one in reversed(read_alerts(activity, AlertFilter()))]


def tell(activity: Engine, *channels: Channel, until: Callable[[], bool]) -> None:
    """Tell of what waits, as one worker does, until something is true."""

    async def scenario() -> None:
        messenger = Messenger(activity, channels, look_s=0.02, backoff_s=0.02)
        messenger.start()
        async with asyncio.timeout(WAIT_S):
            while not until():  # noqa: ASYNC110  # what it waits for is in a database
                await asyncio.sleep(0.01)
        await messenger.aclose()

    asyncio.run(scenario())


def are_told(activity: Engine) -> Callable[[], bool]:
    """Say whether all alerts are told."""
    return lambda: set(told(activity)) == {"told"}


# --- the webhook ---------------------------------------------------------------------------------


def test_the_webhook_is_signed(activity: Engine, receiver: Receiver) -> None:
    """An alert is POSTed once, as JSON, with the HMAC of its very bytes and its id."""
    add(activity, alert())
    tell(activity, Webhook(receiver.url, SECRET), until=are_told(activity))
    tell(activity, Webhook(receiver.url, SECRET), until=are_told(activity))
    (body,), (headers,) = receiver.bodies, receiver.headers
    key = webhook_secret(SECRET).encode()
    assert headers["x-signature-256"] == "sha256=" + hmac.digest(key, body, "sha256").hex()
    assert headers["content-type"] == "application/json"
    assert receiver.paths == ["/hooks/path-secret?to=ops"]
    said = json.loads(body)
    assert said["id"] == headers["idempotency-key"]
    assert (said["rule"], said["key_id"], said["count"]) == ("unusual_address", "Zk3Zk3Zk3Zk3", 3)
    assert said["detail"]["seen"] == ["203.0.113.0/24"]
    assert "unusual_address" in said["text"]
    assert SECRET not in body.decode()
    assert "told" not in said


def test_a_failing_receiver_gets_it_later(activity: Engine, receiver: Receiver) -> None:
    """After answers of 500, a redirect and none at all the alert is taken once, and told once."""
    receiver.answers = [500, 302, HOLD, 429, 200]
    add(activity, alert())
    with structlog.testing.capture_logs() as logs:
        tell(activity, Webhook(receiver.url, SECRET, 0.2), until=are_told(activity))
    assert len(receiver.bodies) == 5
    assert len(set(receiver.bodies)) == 1
    assert "/elsewhere" not in receiver.paths
    reasons = [one["reason"] for one in logs]
    assert reasons == ["answered 500", "answered 302", "no answer within 0 s", "answered 429"]
    assert "path-secret" not in str(logs)


def test_a_receiver_that_is_down(activity: Engine) -> None:
    """While nobody listens the alert waits, over a restart too, and is told when somebody does."""
    port = free_port()
    url = f"http://{HOST}:{port}/hooks/path-secret?to=ops"
    add(activity, alert())
    with structlog.testing.capture_logs() as logs:
        tell(activity, Webhook(url, SECRET), until=lambda: len(logs) >= 2)
    assert told(activity) == ["pending:webhook"]
    with running_receiver(port) as receiver:
        tell(activity, Webhook(url, SECRET), until=are_told(activity))
        assert len(receiver.bodies) == 1


def test_one_that_is_never_taken_holds_nobody_up(activity: Engine, receiver: Receiver) -> None:
    """An alert that is refused each time goes behind the others."""
    receiver.answers = [400, 200, 400, 200]
    add(activity, alert(), alert(rule="spike"))
    tell(activity, Webhook(receiver.url, SECRET), until=are_told(activity))
    rules = [json.loads(body)["rule"] for body in receiver.bodies]
    assert rules == ["unusual_address", "spike", "unusual_address", "unusual_address"]


def test_what_nobody_takes_is_given_up(activity: Engine, receiver: Receiver) -> None:
    """An alert of days ago is no longer news, also for who is in the settings no more."""
    old = utc_now() - GIVE_UP - timedelta(minutes=1)
    add(activity, alert(at=old), alert(*BOTH, at=old + timedelta(seconds=1)), alert())
    tell(
        activity,
        Webhook(receiver.url, SECRET),
        until=lambda: told(activity) == ["pending:webhook", "pending:webhook,mail", "told"],
    )
    AlertLog(activity, Policy(), print).prune()
    assert told(activity) == ["given_up", "given_up", "told"]
    assert len(receiver.bodies) == 1


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    """Nothing is sent to a server whose certificate can't be verified."""
    with (
        running_receiver(certificate=make_certificate(tmp_path)) as receiver,
        pytest.raises(NotTold, match="SSLCertVerificationError"),
    ):
        asyncio.run(Webhook(receiver.url, SECRET).tell(alert()))
    assert receiver.bodies == []


@pytest.mark.parametrize(
    "url",
    [
        *("hooks.example.com", "ftp://hooks.example.com/x", "file:///etc/passwd", "https://", ""),
        *("https://user:hunter2@h.example/", "https://h.example/#x", "https://h.example:0/"),
        *("https://h.example/a b", "https://h.example/a\r\nX: y", "https://h.ex\u00e4mple/"),
        *("https://[::1/x", "https://h.example:99999/"),
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    """A webhook is http or https, in ASCII, and its fault does not repeat it."""
    with pytest.raises(ValueError, match=r"^(is not|has a) ") as refused:
        parse_webhook(url)
    assert "hunter2" not in str(refused.value)


def test_the_secret_is_shown_by_a_command(tmp_path: Path) -> None:
    """`central-logger alerts secret` prints what signs, and makes no secret where there is none."""

    def ask(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app", "alerts", "secret", "--data-dir", str(tmp_path)],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = ask(SECRET_KEY=f"{SECRET},one that is older")
    assert (done.returncode, done.stdout) == (0, f"{webhook_secret(SECRET)}\n")
    refused = ask()
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "secret.key").exists()


# --- mail ----------------------------------------------------------------------------------------


def test_mail(activity: Engine) -> None:
    """An alert is mailed as text that says all, and the webhook is told of by itself."""
    add(activity, alert(*BOTH))
    with running_sink() as sink, running_receiver() as receiver:
        webhook = Webhook(receiver.url, SECRET)
        tell(activity, webhook, until=lambda: told(activity) == ["pending:mail"])
        tell(activity, mail_channel(sink, "ops@example.com"), until=are_told(activity))
        assert len(receiver.bodies) == 1
    (message,) = sink.messages
    assert message["Subject"] == "Logger alert: unusual_address (medium)"
    assert message["To"] == "ops@example.com"
    text = part(message, "plain")
    assert "Key Zk3Zk3Zk3Zk3 of acme. From 203.0.113.7. Action: quarantine." in text
    assert '"203.0.113.0/24"' in text


def test_a_mail_that_is_refused(activity: Engine) -> None:
    """Everybody of ALERT_MAIL_TO gets an alert once, though the server refuses some at first."""
    add(activity, alert(*(Recipient("mail", f"{one}@example.com") for one in ("guard", "ops"))))
    refusals = ["250 OK", "451 later", "250 OK"]

    async def take(_server: Any, _session: Any, envelope: Any, to: str, _options: Any) -> str:
        envelope.rcpt_tos.append(to)
        return refusals.pop(0)

    with running_sink() as sink:
        sink.handle_RCPT = take  # type: ignore[attr-defined]  # where aiosmtpd looks for it
        channel = mail_channel(sink, "ops@example.com", "guard@example.com")
        with structlog.testing.capture_logs() as logs:
            tell(activity, channel, until=are_told(activity))
    assert sink.recipients == [["guard@example.com"], ["ops@example.com"]]
    assert ["451 later" in one["reason"] for one in logs] == [True]


def test_the_order_of_the_ends_makes_no_difference(activity: Engine) -> None:
    """Where one reader was told and another never will be, it is given up, whichever was first."""
    add(activity, alert(*BOTH), alert(*BOTH[::-1]))
    with running_sink() as sink:
        channel = mail_channel(sink, "ops@example.com")
        tell(activity, channel, until=lambda: told(activity) == ["pending:webhook"] * 2)
    with writing(activity) as session:
        for one in session.scalars(select(Alert)):
            one.at = utc_now() - GIVE_UP - timedelta(minutes=1)
    AlertLog(activity, Policy(), print).prune()
    assert told(activity) == ["given_up"] * 2


def test_mail_of_an_earlier_version(activity: Engine) -> None:
    """What waits for no reader by name goes to all of them."""
    add(activity, alert(Recipient("mail")))
    with running_sink() as sink:
        channel = mail_channel(sink, "ops@example.com", "guard@example.com")
        tell(activity, channel, until=are_told(activity))
    assert sink.recipients == [["ops@example.com"], ["guard@example.com"]]


def test_a_mail_that_comes_twice_can_be_told(activity: Engine) -> None:
    """What is mailed anew for want of an answer has the Message-ID that it had; others have not."""
    again = alert()
    with running_sink() as sink:
        channel = mail_channel(sink, "ops@example.com")
        for one in (again, again, alert()):
            asyncio.run(channel.tell(one, "ops@example.com"))
    first, second, other = (message["Message-ID"] for message in sink.messages)
    assert first == second == f"<alert-{again.alert_id}@example.com>"
    assert other != first


def mail_channel(sink: Sink, *to: str) -> MailChannel:
    """Give what mails to these addresses."""
    sender, readers = Mailbox("Logger", "logger@example.com"), [Mailbox("", one) for one in to]
    return MailChannel(f"smtp://{HOST}:{sink.port}", sender, readers, 10)


# --- what follows, from outside ------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Receiver]]:
    """Run a service that blocks and quarantines at once, and tells a receiver."""
    with (
        running_receiver() as receiver,
        running(
            tmp_path_factory.mktemp("alerts"),
            alert_actions={"failed_attempts": "block", "unusual_address": "quarantine"},
            alert_failures_per_address=5,
            alert_learning_days=0,
            alert_block_minutes=7,
            alert_webhook_url=receiver.url,
        ) as service,
    ):
        yield service, receiver


def post_from(service: Service, address: str, key: str) -> httpx.Response:
    """Send a log from an address."""
    client = service.client(address)
    return service.run(client.post("/api/v1/logs", json=record(), headers={"X-API-Key": key}))


def pause(service: Service) -> None:
    """Let the service's own tasks go on."""
    service.run(asyncio.sleep(0.1))


def test_a_block_from_outside(hooked: tuple[Service, Receiver]) -> None:
    """After failures an address gets 429 for a while, with its /64; a good key works from there."""
    service, receiver = hooked
    key, wrong = service.key("acme"), mint("cl_live", "acme").text
    for number in range(5):
        problem(post_from(service, f"2001:db8::{number}", wrong), 401, "Invalid API key")

    def refused() -> httpx.Response:
        pause(service)
        return post_from(service, "2001:db8::77", wrong)

    response = eventually(refused, lambda one: one.status_code == 429)
    problem(response, 429, "Rate limit exceeded")
    assert 6 * 60 < int(response.headers["retry-after"]) <= 7 * 60
    assert response.json()["violated"] == ["auth_failures"]
    assert post_from(service, "2001:db8::77", key).status_code == 201
    assert post_from(service, "2001:db8:1::77", wrong).status_code == 401
    admin = service.key(None)
    (found,) = service.get("/api/v1/alerts?rule=failed_attempts", admin).json()["alerts"]
    assert (found["action"], found["source_ip"]) == ("block", "2001:db8::/64")

    def hooks() -> list[str]:
        pause(service)
        return [json.loads(body)["id"] for body in receiver.bodies]

    assert eventually(hooks, bool) == [found["id"]]


def test_a_quarantine_from_outside(hooked: tuple[Service, Receiver]) -> None:
    """A key that is used from elsewhere stops, says why, and works again when it is activated."""
    service, _ = hooked
    key, admin = service.key("globex"), service.key(None)
    assert post_from(service, "198.51.100.9", key).status_code == 201
    path = f"/api/v1/audit/access?key_id={key_id_of(key)}"

    def seen() -> list[Json]:
        pause(service)
        found: list[Json] = service.get(path, admin).json()["access"]
        return found

    eventually(seen, bool)
    numbers = itertools.count()

    def elsewhere() -> httpx.Response:
        # What the detector sees in one look with the first address is as usual as that.
        pause(service)
        return post_from(service, f"203.0.{next(numbers)}.7", key)

    refused = eventually(elsewhere, lambda one: one.status_code == 401)
    shown = service.get(f"/api/v1/api-keys/{key_id_of(key)}", admin).json()
    assert not shown["is_active"]
    assert shown["quarantined_at"]
    request_id = refused.headers["x-request-id"]

    def denial() -> Json:
        pause(service)
        found: Json = service.get(f"/api/v1/audit/denials/{request_id}", admin).json()
        return found

    assert eventually(denial, lambda one: "reason" in one)["reason"] == "quarantined"
    events = service.get("/api/v1/audit?client_id=globex", admin).json()["events"]
    (event,) = [one for one in events if one["action"] == "key.deactivated"]
    assert (event["actor"], event["target"]) == ("detector", key_id_of(key))
    path = f"/api/v1/api-keys/{key_id_of(key)}/activate"
    assert service.request("POST", path, admin).status_code == 200
    assert post_from(service, "203.0.113.7", key).status_code == 201
    assert key.rpartition("_")[2] not in service.get("/api/v1/alerts", admin).text
