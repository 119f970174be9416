"""Mail servers, addresses, and sending to servers that are strict, open or away."""

from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.delivery.smtp import (
    BadAddress,
    Mail,
    Mailbox,
    NotSent,
    Server,
    mailbox,
    parse_mailbox,
    parse_server,
    send,
)
from loadtests.server import free_port
from tests.delivery.mail_sink import HOST, PASSWORD, USER, mailboxes, read_message, running_sink

WAIT_S = 20.0
# This machine, by a name that does not tell that it is.
OTHER_NAME = "0.0.0.0"  # noqa: S104
LOGIN = f"{USER}:{PASSWORD}@"
SHORT = "sh-rt"  # no form of it looks like a key


MAIL = Mail(
    Mailbox("Logger", "logger@example.com"),
    Mailbox("Acme", "ops@acme.example"),
    b"Subject: a test\r\n\r\na line\r\n.\r\nand another\r\n",
)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.example.com", Server(False, "mail.example.com", 25, "", "")),
        ("smtp://u:p@mail.example.com", Server(False, "mail.example.com", 587, "u", "p")),
        ("smtp://u%40x:p%2F%3A%40@h:2525/", Server(False, "h", 2525, "u@x", "p/:@")),
        ("smtps://u:p@h", Server(True, "h", 465, "u", "p")),
        ("smtp://[::1]:1025", Server(False, "::1", 1025, "", "")),
    ],
)
def test_a_server_is_read(url: str, server: Server) -> None:
    """A URL gives host, login and the port that is usual for its kind."""
    assert parse_server(url) == server


@pytest.mark.parametrize(
    "url",
    [
        *("", "mail.example.com", "http://u:hunter2@h", "smtp://", "smtp://u:hunter2@"),
        *("smtp://u:hun/ter2@h", "smtp://u:hunter2@h:port", "smtp://u:hunter2@h:0"),
        *("smtp://u:hunter2@h:99999", "smtp://u:hunter2@h/path", "smtp://u:hunter2@h?x=1"),
        *("smtp://u:hunter2@h\n", "smtp://u:hun ter2@h", "smtp://u:hunter2é@h", "smtp://hunter2@h"),
        *("smtp://:hunter2@h", "smtp://u:hunter2%C3%A9@h", "smtp://u:hunter2@[h", "smtp://a_b^c"),
        *("smtp://u:hunter2#h", "smtp://u:hunter2@h#x"),
    ],
)
def test_a_bad_server_is_refused_without_its_password(url: str) -> None:
    """What is no URL of a mail server is refused, and the reason repeats no part of it."""
    with pytest.raises(ValueError, match=r"\w") as refused:
        parse_server(url)
    for piece in ("hunter2", "hun", "ter2"):
        assert piece not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "name", "header"),
    [
        ("ops@acme.com", "", "ops@acme.com"),
        ("Logger <ops@acme.com>", "Logger", "Logger <ops@acme.com>"),
        ('  "Acme, Inc." <ops@acme.com> ', "Acme, Inc.", '"Acme, Inc." <ops@acme.com>'),
        ('a"b\\c <ops@acme.com>', 'a"b\\c', '"a\\"b\\\\c" <ops@acme.com>'),
        ("Müller <ops@acme.com>", "Müller", "=?utf-8?b?TcO8bGxlcg==?=\r\n <ops@acme.com>"),
        ("=?x <ops@acme.com>", "=?x", "=?utf-8?b?PT94?=\r\n <ops@acme.com>"),
    ],
)
def test_a_mailbox_is_read(text: str, name: str, header: str) -> None:
    """An address may have a name before it, which a header holds as its reader sees it."""
    found = parse_mailbox(text)
    assert (found, found.header) == (Mailbox(name, "ops@acme.com"), header)
    assert parse_mailbox("o.p+s@a-b.example.com").domain == "a-b.example.com"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        *(("", bad) for bad in ("", "ops", "@acme.com", "ops@", "a b@acme.com", "ops@acme..com")),
        *(("", bad) for bad in (".ops@acme.com", "a@b@c", "ops@acme.com,x@y.z", "<ops@acme.com>")),
        *(("", bad) for bad in ("ops@acme.com\r\nBcc: x@y.z", "ops\n@acme.com", "ops@acme.com\n")),
        *(("", bad) for bad in ("=?utf-8?q?a?=@b.com", "a=?b@c.com", "a@=?b", "=?x?q?=3C?=@b.com")),
        *(("", bad) for bad in ("öps@acme.com", "ops@äcme.com", f"{'a' * 250}@acme.com")),
        *((bad, "ops@acme.com") for bad in ("a\nb", "a\r\nBcc: x@y.z", "a\0", "\u2028", "a" * 256)),
    ],
)
def test_a_bad_name_or_address_is_refused(name: str, address: str) -> None:
    """What is not one address, or has a line break in its name, is BadAddress."""
    with pytest.raises(BadAddress):
        mailbox(name, address)


@given(name=st.text(max_size=40), address=st.text(max_size=40))
@example(name="a\r\nBcc: b@c.d", address="ops@acme.com")
@example(name="a", address="ops@acme.com\nBcc: b@c.d")
@example(name='" <x@y.z>, "', address="ops@acme.com")
@example(name="=?utf-8?q?x=0D=0ABcc=3A_evil=40x=2Ey?=", address="ops@acme.com")
@example(name="=?utf-8?b?eA0KU3ViamVjdDogWQ0KDQpib2R5?=", address="ops@acme.com")
@example(name="=?utf-8?q?=3Ca=40evil=2Ecom=3E=2C?=", address="=?utf-8?q?a?=@b.com")
def test_no_text_makes_another_header_or_recipient(name: str, address: str) -> None:
    """Whatever stands for name and address, a mail has the headers it was given, or is refused."""
    for text in (address, "ops@acme.com"):
        try:
            box = mailbox(name, text)
        except BadAddress:
            continue
        raw = f"To: {box.header}\r\n\r\nx".encode("ascii")
        message = read_message(raw)
        assert (message.keys(), message.get_content()) == (["To"], "x")
        assert [one.addr_spec for one in message["To"].addresses] == [text]
        assert mailboxes(raw, "To") == [(name, text)]


def test_starttls_and_a_login(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server offers STARTTLS the login and the mail go over it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with running_sink(certificate) as sink:
        send(MAIL, f"smtp://{LOGIN}localhost:{sink.port}", WAIT_S)
    assert sink.users == [USER]
    assert sink.was_private == [True]
    assert sink.recipients == [["ops@acme.example"]]
    assert sink.messages[0]["Subject"] == "a test"


def test_tls_from_the_first_byte(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """smtps:// speaks TLS from the first byte."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with running_sink(certificate, is_smtps=True) as sink:
        send(MAIL, f"smtps://{LOGIN}localhost:{sink.port}", WAIT_S)
    assert (sink.users, sink.was_private) == ([USER], [True])


@pytest.mark.parametrize("is_smtps", [False, True])
def test_an_unknown_certificate_is_refused(certificate: Path, is_smtps: bool) -> None:
    """Nothing is said to a server whose certificate nobody vouches for, the password least."""
    scheme = "smtps" if is_smtps else "smtp"
    with (
        running_sink(certificate, is_smtps=is_smtps) as sink,
        pytest.raises(NotSent, match="certificate verify failed") as refused,
    ):
        send(MAIL, f"{scheme}://{LOGIN}localhost:{sink.port}", WAIT_S)
    assert PASSWORD not in str(refused.value)
    assert (sink.users, sink.raw) == ([], [])


def test_another_host_s_certificate_is_refused(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate counts for the names in it alone."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with running_sink(certificate) as sink, pytest.raises(NotSent, match="certificate"):
        send(MAIL, f"smtp://127.1:{sink.port}", WAIT_S)
    assert sink.raw == []


def test_a_server_of_this_machine_needs_no_tls() -> None:
    """Without STARTTLS a relay takes mail, on any host if no password is needed."""
    with running_sink() as sink:
        for host in (HOST, "localhost", OTHER_NAME):
            send(MAIL, f"smtp://{host}:{sink.port}", WAIT_S)
    assert sink.was_private == [False] * 3


def test_a_password_goes_over_tls_alone() -> None:
    """Without STARTTLS no password is sent to another host, nor any mail."""
    with running_sink() as sink, pytest.raises(NotSent, match="offers no STARTTLS") as refused:
        send(MAIL, f"smtp://{LOGIN}{OTHER_NAME}:{sink.port}", WAIT_S)
    assert PASSWORD not in str(refused.value)
    assert sink.raw == []


def test_a_wrong_password_is_not_told(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused login is told by its code, never with the password."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with running_sink(certificate) as sink, pytest.raises(NotSent, match="535") as refused:
        send(MAIL, f"smtp://{USER}:{quote('n0t-it/', safe='')}@localhost:{sink.port}", WAIT_S)
    assert "n0t-it" not in str(refused.value)
    assert sink.raw == []


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


@pytest.mark.parametrize("password", ["short", "a longer+password/of=some length"])
@pytest.mark.parametrize("user", ["a", "ab", "abc"])
def test_a_login_that_a_server_repeats_is_left_out(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, user: str, password: str
) -> None:
    """Words of a server against a login are not told: they may hold what it was sent."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    sent = (_base64(f"\0{user}\0{password}"), _base64(password), password)
    with running_sink(certificate) as sink:
        sink.login_refusal = f"535 5.7.8 {' '.join(sent)}"
        with pytest.raises(NotSent) as refused:
            send(MAIL, f"smtp://{user}:{quote(password, safe='')}@localhost:{sink.port}", WAIT_S)
    assert str(refused.value).endswith(": 535 the login was refused")


@pytest.mark.parametrize("sent", [SHORT, _base64(SHORT), _base64(f"\0{USER}\0{SHORT}").rstrip("=")])
def test_a_password_that_a_server_repeats_is_left_out(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    """Words of the server that hold the password, or what was sent of it, are told without it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with running_sink(certificate) as sink:
        sink.password, sink.refusal = SHORT, f"554 {sent} was your password"
        with pytest.raises(NotSent) as refused:
            send(MAIL, f"smtp://{USER}:{SHORT}@localhost:{sink.port}", WAIT_S)
    assert str(refused.value).replace("=", "").endswith("554 *** was your password")


def test_a_reply_is_no_order_to_a_terminal() -> None:
    """Control characters of a reply are told as question marks."""
    with running_sink() as sink:
        sink.refusal = "554 \x1b]0;owned\x07\x1b[2J no"
        with pytest.raises(NotSent) as refused:
            send(MAIL, f"smtp://{HOST}:{sink.port}", WAIT_S)
    assert str(refused.value).endswith(": 554 ?]0;owned??[2J no")


def test_a_refused_mail_says_why() -> None:
    """What the server says against a mail is in the one line that is told."""
    with running_sink() as sink:
        sink.refusal = "552 too much of it"
        with pytest.raises(NotSent, match=rf"mail server {HOST}:\d+: 552 too much of it"):
            send(MAIL, f"smtp://{HOST}:{sink.port}", WAIT_S)


def test_a_server_that_is_away() -> None:
    """No connection, no name: NotSent, with the host."""
    with pytest.raises(NotSent, match=rf"{HOST}:\d+: .*refused"):
        send(MAIL, f"smtp://{LOGIN}{HOST}:{free_port()}", WAIT_S)
    with pytest.raises(NotSent, match=r"nowhere\.invalid"):
        send(MAIL, "smtp://nowhere.invalid", WAIT_S)
