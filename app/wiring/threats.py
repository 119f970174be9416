"""What watches: threats and who is told of them, countries of addresses, keys found in logs."""

from dataclasses import fields
from functools import partial

import structlog

from app.delivery.smtp import parse_mailbox
from app.edge import metrics
from app.keys.changes import Author
from app.keys.keyring import Keyring
from app.keys.lifecycle import quarantine_key
from app.protect.alerts import AlertLog, Policy
from app.protect.countries import Countries
from app.protect.deliveries import Recipient
from app.protect.detector import Detector
from app.protect.evidence import Sources
from app.protect.findings import Findings
from app.protect.messenger import Channel, MailChannel, Messenger
from app.protect.threats import Thresholds
from app.protect.webhook import Webhook
from app.settings import Settings
from app.wiring.base import Base

log = structlog.get_logger(__name__)


def open_countries(base: Base) -> Countries | None:
    """Open GEOIP_DATABASE, if there is one."""
    if not base.settings.geoip_database:
        return None
    countries = Countries(base.settings.geoip_database)
    base.start(countries)
    return countries


def open_detector(base: Base, keyring: Keyring, countries: Countries | None) -> Detector:
    """Open this worker's part in the search for threats, and in telling of them."""
    settings = base.settings
    sources = Sources(
        base.control,
        base.activity,
        settings.access_kept_days,
        lambda: keyring.configured.keys,
        None if countries is None else countries.country,
    )
    channels = _channels(settings, base.secrets[0])
    policy = Policy(
        settings.alert_actions,
        settings.alert_block_minutes,
        settings.alert_quiet_minutes,
        settings.alerts_kept_days,
        [Recipient(one.name, reader) for one in channels for reader in one.readers],
    )
    thresholds = {one.name: getattr(settings, f"alert_{one.name}") for one in fields(Thresholds)}
    quarantine = partial(quarantine_key, base.control, by=Author(base.seals, "detector"))
    return Detector(
        sources,
        Thresholds(**thresholds),
        AlertLog(base.activity, policy, quarantine),
        Messenger(base.activity, channels),
        directory=settings.data_dir,
        lost=metrics.evidence_lost.inc,
    )


def _channels(settings: Settings, secret: str) -> list[Channel]:
    channels: list[Channel] = []
    if settings.alert_webhook_url:
        channels.append(Webhook(settings.alert_webhook_url, secret))
    if settings.alert_mail_to:
        to = [parse_mailbox(one) for one in settings.alert_mail_to]
        sender = parse_mailbox(settings.mail_from)
        channels.append(MailChannel(settings.smtp_url, sender, to, settings.smtp_timeout_s))
    return channels


def open_findings(base: Base, keyring: Keyring) -> Findings:
    """Open what follows on keys that are found in logs."""
    stop = partial(quarantine_key, base.control, by=Author(base.seals, "self-scan"))
    findings = Findings(
        keyring.resolve,
        keyring.live_of,
        found=lambda key_id, sender: log.warning("leaked key", key_id=key_id, sender=sender),
        quarantine=stop if base.settings.self_scan_action == "quarantine" else None,
    )
    base.stack.push_async_callback(findings.aclose)
    return findings
