"""Mail servers and addresses: read from settings, and a mail sent over the standard library.

A password goes over TLS alone. STARTTLS is used wherever the server offers it, and a certificate
is always verified, by the system's authorities or those that SSL_CERT_FILE names.
"""

import re
import smtplib
import ssl
from base64 import b64encode
from contextlib import suppress
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from app.keys.faults import NAME_LENGTH_MAX, is_mail_address

# Of RFC 6409, RFC 8314, and what servers that ask no password listen on.
PORT_SUBMISSION, PORT_TLS, PORT_RELAY = 587, 465, 25

_MAILBOX = re.compile(r"(?P<name>[^<>]*)<(?P<address>[^<>]*)>")
# Servers quote what they refuse, with a line break of the mail's own inside a key or claim link
# perhaps: of its 61 characters one part has more than these, and what is left of it opens nothing.
_SECRET = re.compile(r"[0-9A-Za-z]{24,}")
# Of RFC 5322: what may stand before an address without quotes.
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_QUOTED_LENGTH_MAX = 60  # one line with the header's name
_WORD_BYTES_MAX = 45  # 72 characters when encoded, of the 75 that RFC 2047 allows
_URL_FORM = "is not smtp://[user:password@]host[:port] or smtps://..."


class BadAddress(ValueError):
    """A name or an address that must not get into a mail; the text does not repeat it."""


class NotSent(Exception):
    """The mail server did not take the message; the text says why, without password or keys."""


class Mailbox(NamedTuple):
    """A name, which may be empty, and an address, as `mailbox` lets them be."""

    name: str
    address: str

    @property
    def header(self) -> str:
        """Give what names it in a header, in ASCII.

        Not by the library's own: it decodes what looks encoded in a name, line breaks included,
        and writes down what comes out.
        """
        name = self.name
        if not name:
            return self.address
        if not name.isascii() or "=?" in name or len(name) > _QUOTED_LENGTH_MAX:
            return "\r\n ".join([*_encoded_words(name), f"<{self.address}>"])
        if not _PHRASE.fullmatch(name):
            name = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
        return f"{name} <{self.address}>"

    @property
    def domain(self) -> str:
        """Give the host of its address."""
        return self.address.rpartition("@")[2]


class Mail(NamedTuple):
    """A whole mail in seven bits, and between whom it goes."""

    sender: Mailbox
    to: Mailbox
    content: bytes


class Server(NamedTuple):
    """A mail server, and who we are to it."""

    is_tls: bool  # from the first byte
    host: str
    port: int
    user: str
    password: str

    @property
    def is_loopback(self) -> bool:
        """Say whether what is sent to it stays on this machine."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_server(url: str) -> Server:
    """Read a URL of a mail server; the text of the ValueError holds no part of it."""
    # urlsplit drops some control characters and quotes what it can't read: a password perhaps.
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ValueError("has spaces or characters that are not ASCII; write them as %XX")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError:
        raise ValueError(_URL_FORM) from None
    extra = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in {"smtp", "smtps"} or not host or port == 0 or extra:
        raise ValueError(_URL_FORM)
    if not re.fullmatch(r"[A-Za-z0-9.:-]+", host):
        raise ValueError("has a host that is no name or address")
    if bool(user) != bool(password):
        raise ValueError("has a user without a password, or the other way round")
    if not (user.isascii() and password.isascii()):
        raise ValueError("has a user or password that is not ASCII")
    is_tls = parts.scheme == "smtps"
    default = PORT_TLS if is_tls else PORT_SUBMISSION if user else PORT_RELAY
    return Server(is_tls, host, port or default, user, password)


def parse_mailbox(text: str) -> Mailbox:
    """Read `address` or `name <address>`; raise BadAddress."""
    placed = _MAILBOX.fullmatch(text.strip())
    if placed is None:
        return mailbox("", text.strip())
    name = placed["name"].strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = name[1:-1]
    return mailbox(name, placed["address"].strip())


def mailbox(name: str, address: str) -> Mailbox:
    """Join a name, which may be empty, and an address; raise BadAddress for what is not one.

    A line break would end the header, and the rest become headers of somebody else's making.
    """
    if not name.isprintable() or len(name) > NAME_LENGTH_MAX:
        raise BadAddress("the name has a line break or another character that is not printable")
    if not address.isascii():
        raise BadAddress("the mail address is not ASCII; write its domain in the form xn--...")
    if not is_mail_address(address):
        raise BadAddress("not one mail address such as ops@example.com")
    return Mailbox(name, address)


def send(mail: Mail, smtp_url: str, timeout_s: float) -> None:
    """Hand a mail to a server, which may take so long for each answer; raise NotSent."""
    server = parse_server(smtp_url)
    try:
        connection = _connect(server, timeout_s)
        try:
            _introduce(connection, server)
            connection.sendmail(mail.sender.address, [mail.to.address], mail.content)
            # It has the message: a fault in saying goodbye changes nothing.
            with suppress(OSError):
                connection.quit()
        finally:
            connection.close()
    except (OSError, ValueError) as error:  # those of smtplib and ssl are OSErrors
        reason = _presentable(_reason(error), server)
        raise NotSent(f"mail server {server.host}:{server.port}: {reason}") from None


def _encoded_words(text: str) -> list[str]:
    """Encode a text by RFC 2047, which wants whole characters in each word."""
    parts = [b""]
    for character in map(str.encode, text):
        if len(parts[-1] + character) > _WORD_BYTES_MAX:
            parts.append(b"")
        parts[-1] += character
    return [f"=?utf-8?b?{b64encode(part).decode()}?=" for part in parts]


def _presentable(reason: str, server: Server) -> str:
    """Leave out what must not be told, and what would be an order to a terminal."""
    if server.password:
        plain = f"\0{server.user}\0{server.password}"
        for sent in (plain, server.password):  # as AUTH PLAIN and LOGIN put it
            reason = reason.replace(b64encode(sent.encode()).decode().rstrip("="), "***")
        reason = reason.replace(server.password, "***")
    reason = "".join(c if c.isprintable() else "?" for c in " ".join(reason.split()))
    return _SECRET.sub("***", reason)


def _connect(server: Server, timeout_s: float) -> smtplib.SMTP:
    if server.is_tls:
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(server.host, server.port, timeout=timeout_s, context=context)
    return smtplib.SMTP(server.host, server.port, timeout=timeout_s)


def _introduce(connection: smtplib.SMTP, server: Server) -> None:
    connection.ehlo_or_helo_if_needed()
    is_private = server.is_tls
    if not is_private and connection.has_extn("starttls"):
        connection.starttls(context=ssl.create_default_context())
        connection.ehlo()
        is_private = True
    if server.password:
        if not (is_private or server.is_loopback):
            raise smtplib.SMTPException("it offers no STARTTLS, and a password goes over TLS alone")
        connection.login(server.user, server.password)


def _reason(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return "; ".join(f"{to}: {_reply(*said)}" for to, said in error.recipients.items())
    if isinstance(error, smtplib.SMTPAuthenticationError):
        # The server's words may hold what it was sent, in a form that nobody has thought of.
        return f"{error.smtp_code} the login was refused"
    if isinstance(error, smtplib.SMTPResponseException):
        return _reply(error.smtp_code, error.smtp_error)
    return str(error) or type(error).__name__


def _reply(code: int, text: bytes | str) -> str:
    return f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
