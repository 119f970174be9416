"""The mails that bring a client its credentials, at first and at each rotation."""

import os
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid
from pathlib import Path
from typing import NamedTuple

from app.delivery.templates import render
from app.keys.models import ApiKey, utc_now

ONBOARDING = "Your Logger API Credentials"
ROTATION = "API Key Rotation - Action Required"


class Handover(NamedTuple):
    """How the key gets to the reader: in the mail, behind a link, or, with none, by another way."""

    text: str = ""
    claim_url: str = ""
    claim_until: datetime | None = None

    def placeholder(self, key: ApiKey) -> str:
        """Give what stands for the key in the lines of `.env`."""
        if self.claim_url:
            return "<the key behind the link>"
        return self.text or f"<your key {key.key_prefix}>"


def compose(  # noqa: PLR0913  # each a fact of the mail
    key: ApiKey,
    handover: Handover,
    *,
    url: str,
    sender: Address,
    to: Address,
    name: str = "",
    old: ApiKey | None = None,
) -> EmailMessage:
    """Write the mail for a new key; with `old`, for one that takes over from it.

    `url` is the service's own. Text and HTML say the same.
    """
    subject = ONBOARDING if old is None else ROTATION
    values = {
        **handover._asdict(),
        "key": key,
        "old": old,
        "url": url,
        "name": name or to.display_name or key.client_id or to.addr_spec,
        "subject": subject,
        "shown": handover.placeholder(key),
    }
    message = EmailMessage(policy=SMTP)
    message["Subject"] = subject
    message["From"] = sender
    message["To"] = to
    message["Date"] = format_datetime(utc_now())
    message["Message-ID"] = make_msgid(domain=sender.domain)
    message.set_content(render("mail.txt", **values))
    message.add_alternative(render("mail.html", **values), subtype="html")
    return message


def write_eml(message: EmailMessage, path: Path) -> None:
    """Write a message to a new file that only its owner can read.

    Raises OSError, FileExistsError for a file that is there among them; a part is not left.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(message.as_bytes())
    except BaseException:
        path.unlink()
        raise
