"""The two mails: what they say, in text and in HTML, and what never gets into them."""

from datetime import timedelta
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.columns import utc_now
from app.delivery.mail import (
    ONBOARDING,
    ROTATION,
    Handover,
    check_headers,
    compose,
    write_eml,
)
from app.delivery.smtp import BadAddress, Mail, Mailbox, mailbox
from app.delivery.templates import SAMPLES, utc_text
from app.keys.models import ApiKey
from app.keys.signing import ED25519, HMAC_SHA256
from tests.delivery.mail_sink import mailboxes, part, read_message, texts_by_id

URL = "https://logs.example.com"
SENDER = Mailbox("Logger", "logger@example.com")
TO = Mailbox("Acme, Inc.", "ops@acme.example")
NAMES = ("Subject", "From", "To", "Date", "Message-ID", "Content-Type", "MIME-Version")
UNTIL = utc_now() + timedelta(hours=72)
LINK = Handover(claim_url=f"{URL}/claim/cl_claim_abc", claim_until=UNTIL)
INLINE = Handover(text="cl_live_acme_the-text-of-the-key")


def _key(key_id: str = "NewKeyOfAcme", **columns: Any) -> ApiKey:
    return ApiKey(
        key_id=key_id,
        key_prefix=f"cl_live_acme_{key_id}***",
        client_id="acme",
        name="test",
        role="client",
        **columns,
    )


def _mail(handover: Handover, old: ApiKey | None = None, to: Mailbox = TO) -> EmailMessage:
    mail = compose(_key(), handover, url=URL, sender=SENDER, to=to, old=old)
    return read_message(mail.content)


def _parts(message: EmailMessage) -> tuple[str, str]:
    assert message.get_content_type() == "multipart/alternative"
    return part(message, "plain"), part(message, "html")


def test_the_headers() -> None:
    """A mail names its two ends, its subject, its time and itself."""
    message = _mail(LINK)
    assert message["Subject"] == "Your Logger API Credentials" == ONBOARDING
    assert message["From"] == "Logger <logger@example.com>"
    assert message["To"] == '"Acme, Inc." <ops@acme.example>'
    sent_at = parsedate_to_datetime(message["Date"])
    assert abs(sent_at - utc_now()) < timedelta(minutes=5)
    assert message["Message-ID"].endswith("@example.com>")
    assert message["Message-ID"] != _mail(LINK)["Message-ID"]


def test_both_parts_say_what_a_client_needs() -> None:
    """Greeting, endpoint, ids, header, samples and documentation are in text and in HTML."""
    for body in _parts(_mail(LINK)):
        for fact in (
            *("Hello Acme, Inc.,", f"{URL}/api/v1/logs", "acme", "NewKeyOfAcme", "X-API-Key"),
            *(f"LOGGER_API_URL={URL}\n", "LOGGER_API_KEY=", f"{URL}/docs", "out of code"),
        ):
            assert fact in body, fact
    text, html = _parts(_mail(LINK))
    shown = texts_by_id(html)
    for name, sample in SAMPLES.items():
        assert sample in text
        assert shown[name] == sample


def test_a_link_in_place_of_the_key() -> None:
    """With a link the mail holds the link and its end, and no key."""
    text, html = _parts(_mail(LINK))
    for body in (text, html):
        assert LINK.claim_url in body
        assert utc_text(UNTIL) in body
    assert texts_by_id(html)["env"].endswith("LOGGER_API_KEY=<the key behind the link>")


def test_the_key_itself() -> None:
    """Inline, the lines of .env are complete, and there is no link."""
    text, html = _parts(_mail(INLINE))
    lines = f"LOGGER_API_URL={URL}\nLOGGER_API_KEY={INLINE.text}"
    assert f"\n{lines}\n" in text
    assert texts_by_id(html)["env"] == lines
    assert "/claim/" not in text + html


def test_a_key_that_was_handed_over_separately() -> None:
    """Without link and key the mail says that it comes another way, and how it begins."""
    for body in _parts(_mail(Handover())):
        assert "handed to you separately" in body
        assert "cl_live_acme_NewKeyOfAcme" in body
        assert "/claim/" not in body


def test_a_rotation_names_the_old_key_and_its_end() -> None:
    """The mail of a rotation names the old key_id and when it stops, beside the new one's link."""
    until = utc_now() + timedelta(hours=1)
    message = _mail(LINK, old=_key("OldKeyOfAcme", grace_until=until))
    assert message["Subject"] == "API Key Rotation - Action Required" == ROTATION
    for body in _parts(message):
        for fact in ("OldKeyOfAcme", utc_text(until), "NewKeyOfAcme", LINK.claim_url):
            assert fact in body


def test_a_key_s_own_end_is_told() -> None:
    """A key that expires says when."""
    end = utc_now() + timedelta(days=30)
    mail = compose(_key(expires_at=end), LINK, url=URL, sender=SENDER, to=TO)
    for body in _parts(read_message(mail.content)):
        assert utc_text(end) in body


@pytest.mark.parametrize(
    ("columns", "is_told", "is_sent_apart"),
    [
        ({"require_signature": True, "signature_algorithm": HMAC_SHA256}, True, True),
        ({"require_signature": True, "signature_algorithm": ED25519}, True, False),
        ({"signature_algorithm": HMAC_SHA256}, False, True),
    ],
)
def test_a_key_that_signs(columns: dict[str, Any], *, is_told: bool, is_sent_apart: bool) -> None:
    """Where requests must be signed the mail says so, and shows none that would be refused."""
    mail = compose(_key(**columns), LINK, url=URL, sender=SENDER, to=TO)
    for body in map(unescape, _parts(read_message(mail.content))):
        assert ("without a signature it is refused" in body) is is_told
        assert ("in the guide for clients" in body) is is_told
        assert ("LOGGER_SIGNING_SECRET" in body) is is_sent_apart
        for sample in SAMPLES.values():
            assert (sample in body) is not is_told


printable = st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs")), max_size=80)
# What is decoded twice, or once too early, becomes headers, a body, a recipient.
encoded = st.builds(
    "{}=?utf-8?{}?={}".format,
    st.sampled_from(["", "a ", '"']),
    st.one_of(
        st.sampled_from(["q?x=0D=0ABcc:_evil=40x.y", "b?eA0KU3ViamVjdDogWQ0KDQpib2R5", "q?"]),
        st.sampled_from(["q?=3Ca=40evil=2Ecom=3E=2C", "q?a=00b", "q?=22=2C_a=40b=2Cc", "x?", "q"]),
    ),
    st.sampled_from(["", " a", '"', " =?utf-8?q?=0D=0A?="]),
)


@given(name=st.one_of(printable, encoded))
@example(name="=?utf-8?q?x=0D=0ABcc=3A_evil=40x=2Ey?=")
@example(name="\\")
@example(name='"Acme" <a@evil.com>, b')
def test_a_name_is_text_in_every_part(name: str) -> None:
    """Whatever a client is called, headers hold nothing more and HTML shows it as it is."""
    to = mailbox(name, "ops@acme.example")
    raw = compose(_key(), LINK, url=URL, sender=SENDER, to=to).content
    message = read_message(raw)
    assert mailboxes(raw, "To") == [to]
    assert [one.addr_spec for one in message["To"].addresses] == [to.address]
    assert sorted(message.keys()) == sorted(NAMES)
    assert message["Subject"] == ONBOARDING
    text, html = _parts(message)
    assert f"Hello {name or 'acme'},\n" in text
    body = html.partition("<body>")[2]
    assert body.count("<") == _parts(_mail(LINK))[1].partition("<body>")[2].count("<")


@given(name=encoded)
def test_a_sender_s_name_is_text(name: str) -> None:
    """Whatever stands in MAIL_FROM, the mail comes from that one address."""
    sender = mailbox(name, "logger@example.com")
    raw = compose(_key(), LINK, url=URL, sender=sender, to=TO).content
    message = read_message(raw)
    assert mailboxes(raw, "From") == [sender]
    assert [one.addr_spec for one in message["From"].addresses] == [sender.address]
    assert sorted(message.keys()) == sorted(NAMES)


def test_a_mail_is_of_seven_bits_and_short_lines() -> None:
    """Names and greetings of any script reach servers that know no 8BITMIME."""
    to = mailbox("Žluťoučký kůň 🐎 " * 15, "ops@acme.example")
    content = compose(_key(), LINK, url=URL, sender=SENDER, to=to).content
    assert content.isascii()
    assert max(map(len, content.split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    "head",
    [
        b"From: logger@example.com\r\nTo: ops@acme.example\r\nBcc: x@y.z",
        b"From: logger@example.com\r\nTo: ops@acme.example\r\nTo: x@y.z",
        b"From: logger@example.com\r\nTo: ops@acme.example, x@y.z",
        b"From: logger@example.com\r\nTo: x@y.z",
        b"From: x@y.z\r\nTo: ops@acme.example",
        b"From: logger@example.com\r\nTo: a\n <ops@acme.example>",
        b"From: logger@example.com\r\nTo: a\rb <ops@acme.example>",
        b"From: logger@example.com\r\nTo: a\0 <ops@acme.example>",
        b"From: logger@example.com\r\nTo: \xc3\xa4 <ops@acme.example>",
        b"From: logger@example.com\r\n\r\nTo: ops@acme.example",
    ],
)
def test_headers_that_nobody_set_stop_a_mail(head: bytes) -> None:
    """One header or address too many, a bare line break or a strange byte are found."""
    names = ["From", "To"]
    good = b"From: logger@example.com\r\nTo: Acme\r\n <ops@acme.example>"
    check_headers(Mail(SENDER, TO, good + b"\r\n\r\nbody"), names)
    with pytest.raises(BadAddress):
        check_headers(Mail(SENDER, TO, head + b"\r\n\r\nbody"), names)


def test_a_file_is_its_owner_s_and_new(tmp_path: Path) -> None:
    """An .eml has mode 0600, holds the mail, and replaces nothing, a dangling link included."""
    path = tmp_path / "mail.eml"
    mail = compose(_key(), INLINE, url=URL, sender=SENDER, to=TO)
    write_eml(mail, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_message(path.read_bytes())["Subject"] == ONBOARDING
    before = path.read_bytes()
    (tmp_path / "link.eml").symlink_to(tmp_path / "elsewhere")
    for taken in (path, tmp_path / "link.eml"):
        with pytest.raises(FileExistsError):
            write_eml(mail, taken)
    assert path.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {"link.eml", "mail.eml"}
