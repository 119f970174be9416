"""What the commands that write mails share: who to, where a mail goes, and what is told of it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from _handover import telling
from _wiring import ControlPlane, Refused
from sqlmodel import Session

from app.columns import utc_now
from app.delivery.claims import TTL_S, add_claim
from app.delivery.mail import Handover, write_eml
from app.delivery.smtp import BadAddress, Mail, Mailbox, NotSent, mailbox, parse_mailbox, send
from app.keys.models import ApiKey
from app.settings import EXAMPLES, BadSetting, Settings

# A file has to name a sender, and somebody looks at it before it goes anywhere.
UNSET_SENDER = "central-logger <no-reply@localhost>"


class Letter(NamedTuple):
    """Where a mail is now; `fault` says why it was not sent, though it should have been."""

    to: str
    output: Path | None
    is_sent: bool
    fault: str = ""

    def as_object(self) -> dict[str, Any]:
        """Give its JSON members."""
        output = None if self.output is None else str(self.output)
        return {"to": self.to, "output": output, "sent": self.is_sent}

    @contextmanager
    def telling(self, *, is_begun: bool = False) -> Iterator[None]:
        """Refuse to tell of one that was not sent; what could not be told says where it is.

        What `is_begun` is told to its end before that.
        """
        unsent = Refused(f"not sent: {self.fault}; the mail is in {self.output}")
        if self.fault and not is_begun:
            raise unsent
        with telling(self):
            yield
        if self.fault:
            raise unsent

    def __str__(self) -> str:
        """Say in one line where it is."""
        places = []
        if self.is_sent:
            places.append(f"was sent to {self.to}")
        if self.output:
            places.append(f"to {self.to} is in {self.output}")
        return f"The mail {' and '.join(places)}."


class Route(NamedTuple):
    """Who writes to whom, and how the mail gets there: by a server, into a file, or both."""

    settings: Settings
    sender: Mailbox
    to: Mailbox
    is_sent: bool
    output: Path | None

    def dispatch(self, mail: Mail, handover: Handover, default_output: str) -> Letter:
        """Send or write a mail; one that can't be sent is in a file, or Refused is raised.

        The file is there before the server is asked: in the middle of that, nothing but what is on
        disk outlives a kill.
        """
        output = self.output or Path(default_output)
        unwritten: Refused | None = None
        try:
            _write(mail, output)
        except Refused as error:
            if self.output or not self.is_sent:
                raise
            unwritten = error
        if not self.is_sent:
            return Letter(mail.to.address, output, is_sent=False)
        try:
            send(mail, self.settings.smtp_url, self.settings.smtp_timeout_s)
        except (NotSent, KeyboardInterrupt) as error:
            fault = str(error) or "interrupted"
            if handover.text:
                fault = fault.replace(handover.text, "***")
            if unwritten:
                raise Refused(f"not sent: {fault}; {unwritten}") from None
            return Letter(mail.to.address, output, is_sent=False, fault=fault)
        if not (self.output or unwritten):
            output.unlink(missing_ok=True)
        return Letter(mail.to.address, self.output, is_sent=True)


def open_route(  # noqa: PLR0913  # each a fact of the way
    settings: Settings,
    to: str,
    name: str,
    *,
    is_sent: bool,
    output: Path | None = None,
    default_output: str | None = None,
) -> Route:
    """Check all that can be checked before a key is made; raise BadSetting or Refused.

    `default_output` is the file without an `output`, where its name is known by now.
    """
    try:
        recipient = mailbox(name, to)
    except BadAddress as error:
        raise Refused(f"the recipient: {error}") from None
    if is_sent and not settings.smtp_url:
        print("SMTP_URL is not set: the mail is written to a file, not sent.", file=sys.stderr)
        is_sent = False
    if is_sent and not settings.mail_from:
        raise BadSetting(
            f"MAIL_FROM: is required to send mail; example: MAIL_FROM={EXAMPLES['MAIL_FROM']}"
        )
    sender = parse_mailbox(settings.mail_from or UNSET_SENDER)
    if output is not None or not is_sent:
        _check_writable(output or (default_output and Path(default_output)) or None)
    return Route(settings, sender, recipient, is_sent, output)


def link(plane: ControlPlane, session: Session, key: ApiKey, text: str) -> Handover:
    """Put a key behind a link, in the transaction that may have made the key.

    In another one, a fault between the two would leave a key whose text nobody has.
    """
    url = plane.settings.reachable_url
    claim_until = utc_now() + timedelta(seconds=TTL_S)
    token = add_claim(session, key, text, url, by=plane.by)
    return Handover(claim_url=f"{url}/claim/{token}", claim_until=claim_until)


def _check_writable(output: Path | None) -> None:
    directory = Path() if output is None else output.parent
    if output is not None and (output.exists() or output.is_symlink()):
        raise Refused(f"{output} exists already")
    if not (directory.is_dir() and os.access(directory, os.W_OK)):
        raise Refused(f"no file can be made in {directory.absolute()}")


def _write(mail: Mail, output: Path) -> None:
    try:
        write_eml(mail, output)
    except OSError as error:
        raise Refused(f"{output}: {error.strerror}") from None
