"""What the commands that write mails share: who to, where a mail goes, and what is told of it."""

import os
import sys
from datetime import timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path
from typing import Any, NamedTuple

from _wiring import ControlPlane, Refused

from app.delivery.claims import TTL_S, create_claim
from app.delivery.mail import Handover, write_eml
from app.delivery.smtp import BadAddress, NotSent, mailbox, parse_mailbox, send
from app.errors import NotFound, StorageUnavailable
from app.keys.clients import get_client
from app.keys.models import ApiKey, Client, utc_now
from app.settings import EXAMPLES, BadSetting, Settings

# A file has to name a sender, and somebody looks at it before it goes anywhere.
UNSET_SENDER = "central-logger <no-reply@localhost>"


class Route(NamedTuple):
    """Who writes to whom, and how the mail gets there: by a server, into a file, or both."""

    settings: Settings
    sender: Address
    to: Address
    is_sent: bool
    output: Path | None

    def dispatch(
        self, message: EmailMessage, handover: Handover, default_output: str
    ) -> dict[str, Any]:
        """Send or write a message, so that a failure leaves it in a file; say where it is."""
        output = self.output or (None if self.is_sent else Path(default_output))
        if output is not None:
            _write(message, output, handover)
        if self.is_sent:
            try:
                send(message, self.settings.smtp_url, self.settings.smtp_timeout_s)
            except (NotSent, KeyboardInterrupt) as error:
                # The key is made, and its text is in this mail alone.
                if output is None:
                    output = Path(default_output)
                    _write(message, output, handover)
                reason = str(error) or "interrupted"
                raise Refused(f"not sent: {reason}; the mail is in {output}") from None
        return {
            "to": self.to.addr_spec,
            "output": None if output is None else str(output),
            "sent": self.is_sent,
        }


def find_client(plane: ControlPlane, client_id: str | None) -> Client | None:
    """Find a client, if there is one."""
    try:
        return None if client_id is None else get_client(plane.engine, client_id)
    except NotFound:
        return None


def open_route(
    settings: Settings, to: str, name: str, *, is_sent: bool, output: Path | None
) -> Route:
    """Check all that can be checked before a key is made; raise BadSetting or Refused."""
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
        _check_writable(output)
    return Route(settings, sender, recipient, is_sent, output)


def link(plane: ControlPlane, key: ApiKey, text: str) -> Handover:
    """Put a key behind a link."""
    url = plane.settings.reachable_url
    claim_until = utc_now() + timedelta(seconds=TTL_S)
    try:
        token = create_claim(plane.engine, key, text, url)
    except StorageUnavailable as error:
        # The key is made, and its text is nowhere else.
        raise Refused(f"no link could be made ({error.reason}); the key itself: {text}") from None
    return Handover(claim_url=f"{url}/claim/{token}", claim_until=claim_until)


def tell(letter: dict[str, Any]) -> str:
    """Say in one line where a mail is."""
    places = []
    if letter["sent"]:
        places.append(f"was sent to {letter['to']}")
    if letter["output"]:
        places.append(f"to {letter['to']} is in {letter['output']}")
    return f"The mail {' and '.join(places)}."


def _check_writable(output: Path | None) -> None:
    directory = Path() if output is None else output.parent
    if output is not None and (output.exists() or output.is_symlink()):
        raise Refused(f"{output} exists already")
    if not (directory.is_dir() and os.access(directory, os.W_OK)):
        raise Refused(f"no file can be made in {directory.absolute()}")


def _write(message: EmailMessage, output: Path, handover: Handover) -> None:
    try:
        write_eml(message, output)
    except OSError as error:
        # The key is made, and its text is nowhere else.
        rest = f"; the claim link is {handover.claim_url}" if handover.claim_url else ""
        raise Refused(f"{output}: {error.strerror}{rest}") from None
