"""The mails that bring a client its credentials, at first and at each rotation."""

import os
import re
from collections.abc import Sequence
from datetime import datetime
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.policy import SMTP
from email.utils import format_datetime, getaddresses, make_msgid
from pathlib import Path
from typing import NamedTuple

from app.columns import utc_now
from app.delivery.smtp import BadAddress, Mail, Mailbox
from app.delivery.templates import render
from app.keys.models import ApiKey

ONBOARDING = "Your Logger API Credentials"
ROTATION = "API Key Rotation - Action Required"

# Not every server takes eight.
_SEVEN_BITS = SMTP.clone(cte_type="7bit")
# A line break that some take for one and some do not, and what is no character of a header.
_NOT_PLAIN = re.compile(rb"\r(?!\n)|(?<!\r)\n|[^\r\n\t\x20-\x7e]")


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
    sender: Mailbox,
    to: Mailbox,
    old: ApiKey | None = None,
) -> Mail:
    """Write the mail for a new key; with `old`, for one that takes over from it.

    `url` is the service's own. Text and HTML say the same.
    """
    subject = ONBOARDING if old is None else ROTATION
    values = {
        **handover._asdict(),
        "key": key,
        "old": old,
        "url": url,
        "name": to.name or key.client_id or to.address,
        "subject": subject,
        "shown": handover.placeholder(key),
    }
    headers = {
        "Subject": subject,
        "From": sender.header,
        "To": to.header,
        "Date": format_datetime(utc_now()),
        "Message-ID": make_msgid(domain=sender.domain),
    }
    body = EmailMessage(policy=_SEVEN_BITS)
    body.set_content(render("mail.txt", **values))
    body.add_alternative(render("mail.html", **values), subtype="html")
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    mail = Mail(sender, to, head.encode("ascii") + body.as_bytes())
    check_headers(mail, [*headers, *body.keys()])
    return mail


def check_headers(mail: Mail, names: Sequence[str]) -> None:
    """Raise BadAddress unless a mail has these headers, each once, and its own two ends.

    A net: what a client calls itself stands among them.
    """
    head = mail.content.partition(b"\r\n\r\n")[0]
    parsed = BytesHeaderParser().parsebytes(head)
    ends = [getaddresses(parsed.get_all(name, [])) for name in ("From", "To")]
    wanted = [[mail.sender.address], [mail.to.address]]
    if (
        _NOT_PLAIN.search(head)
        or sorted(parsed.keys()) != sorted(names)
        or [[address for _, address in end] for end in ends] != wanted
    ):
        raise BadAddress("the headers of the mail are not those that it should have")


def write_eml(mail: Mail, path: Path) -> None:
    """Write a mail to a new file that only its owner can read.

    Raises OSError, FileExistsError for a file that is there among them; a part is not left.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(mail.content)
    except BaseException:
        path.unlink()
        raise
