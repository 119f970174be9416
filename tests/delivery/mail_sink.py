"""A mail server that keeps what it gets, and a certificate that nobody but the test trusts."""

import asyncio
import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loadtests.server import free_port

HOST = "127.0.0.1"
USER, PASSWORD = "mailer", "pass-word-of-the-test"
READY_S_MAX = 20.0
HELD_S_MAX = 30.0


def make_certificate(directory: Path) -> Path:
    """Write a self-signed certificate of this machine's, with its key; give the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail sink")])
    now = dt.datetime.now(dt.UTC)
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address(HOST)),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = directory / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + pem)
    return path


@dataclass
class Sink:
    """What the server got, and how it answers."""

    port: int = field(default_factory=free_port)
    messages: list[EmailMessage] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    was_private: list[bool] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    password: str = PASSWORD
    refusal: str = ""
    login_refusal: str = ""
    is_holding: threading.Event | None = None  # to be set by a mail, which then gets no answer
    is_smtps: bool = False

    # The name is aiosmtpd's.
    async def handle_DATA(self, _server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """Keep a message, or refuse it."""
        if self.is_holding is not None:
            self.is_holding.set()
            await asyncio.sleep(HELD_S_MAX)
        if self.refusal:
            return self.refusal
        self.raw.append(envelope.content)
        self.recipients.append(envelope.rcpt_tos)
        self.was_private.append(self.is_smtps or session.ssl is not None)
        self.messages.append(read_message(envelope.content))
        return "250 OK"

    def authenticate(
        self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, login: Any
    ) -> AuthResult:
        """Accept the one user."""
        assert isinstance(login, LoginPassword)
        self.users.append(login.login.decode())
        good = (login.login, login.password) == (USER.encode(), self.password.encode())
        if self.login_refusal:
            return AuthResult(success=False, handled=False, message=self.login_refusal)
        return AuthResult(success=good, handled=False)


@contextmanager
def running_sink(certificate: Path | None = None, *, is_smtps: bool = False) -> Iterator[Sink]:
    """Run a server: with STARTTLS and a login, with TLS from the first byte, or quite open."""
    sink = Sink(is_smtps=is_smtps)
    options: dict[str, Any] = {}
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        options["ssl_context" if is_smtps else "tls_context"] = context
        options["authenticator"] = sink.authenticate
        # Of a connection that was private from the start aiosmtpd does not know that it is.
        for name in ("auth_required", "auth_require_tls", "require_starttls"):
            options[name] = not is_smtps
    controller = Controller(
        sink, hostname=HOST, port=sink.port, ready_timeout=READY_S_MAX, **options
    )
    controller.start()
    try:
        yield sink
    finally:
        controller.stop()


def read_message(raw: bytes) -> EmailMessage:
    """Read a mail as its reader's program does."""
    message = message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def mailboxes(raw: bytes, header: str) -> list[tuple[str, str]]:
    """Give the names and addresses of a header, each name decoded once.

    By the older half of the library: the newer one puts spaces between encoded words.
    """
    found = getaddresses([str(one) for one in message_from_bytes(raw).get_all(header, [])])
    return [(str(make_header(decode_header(name))), address) for name, address in found]


def part(message: EmailMessage, kind: str) -> str:
    """Give the text or the HTML of a mail."""
    body = message.get_body((kind,))
    assert body is not None
    text: str = body.get_content().replace("\r\n", "\n")
    return text


class _Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self._open: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in {"a", "code", "pre"}:
            name = dict(attributes).get("id") or ""
            self._open.append((tag, name))
            self.texts.setdefault(name, "")

    def handle_data(self, text: str) -> None:
        if self._open:
            self.texts[self._open[-1][1]] += text

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            self._open.pop()


def texts_by_id(page: str) -> dict[str, str]:
    """Give what a page shows, by the id of the element that shows it."""
    parser = _Ids()
    parser.feed(page)
    return parser.texts
