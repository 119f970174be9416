"""onboarding_email.py and rotate_api_key.py: files, real mail servers, and a real service."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from app.delivery.claims import Claimed, claim
from app.errors import Gone, InvalidKey
from app.keys.clients import update_client
from loadtests.server import Server, free_port, start_product
from tests.delivery.mail_sink import (
    PASSWORD,
    USER,
    Sink,
    mailboxes,
    make_certificate,
    part,
    read_message,
    running_sink,
    texts_by_id,
)
from tests.scripts.runner import Runner, error_line
from tests.support import BY

KEY = re.compile(r"cl_(?:live|test)_\w{61,}")
FROM = "Logger <logger@example.com>"
TO = "ops@acme.example"
ACME = ("--client", "acme", "--to", TO)


@pytest.fixture(autouse=True)
def _prepared(run: Runner) -> None:
    """See that there is a database: these commands make none."""
    run.prepare()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate that only SSL_CERT_FILE vouches for."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def _claim(run: Runner, url: str) -> Claimed:
    with run.control() as engine:
        return claim(engine, url.rpartition("/claim/")[2], by=BY)


def _mail(path: Path) -> EmailMessage:
    return read_message(path.read_bytes())


def _mails(run: Runner) -> list[Path]:
    return sorted(run.cwd.glob("*.eml"))


def _mail_settings(sink: Sink, certificate: Path) -> dict[str, str]:
    return {
        "SMTP_URL": f"smtp://{USER}:{PASSWORD}@localhost:{sink.port}",
        "MAIL_FROM": FROM,
        "SSL_CERT_FILE": str(certificate),
    }


# onboarding_email.py


def test_a_new_client_gets_a_key_behind_a_link(run: Runner) -> None:
    """Alone with client and address the command makes both and writes an .eml with the link."""
    made = run.json("onboarding_email", *ACME)
    output = run.cwd / f"onboarding-acme-{made['key_id']}.eml"
    assert (made["output"], made["sent"], made["to"]) == (output.name, False, TO)
    assert "key" not in made
    assert output.stat().st_mode & 0o777 == 0o600
    mail = _mail(output)
    assert mail["Subject"] == "Your Logger API Credentials"
    for body in (part(mail, "plain"), part(mail, "html")):
        assert made["claim_url"] in body
        assert made["key_id"] in body
        assert not KEY.search(body)
    claimed = _claim(run, made["claim_url"])
    assert run.resolve(claimed.text).client_id == "acme"
    assert made["claim_url"].startswith("http://127.0.0.1:8000/claim/")
    with pytest.raises(Gone):
        _claim(run, made["claim_url"])


def test_the_output_for_people(run: Runner) -> None:
    """Without --json the command names the file and the link, never the key."""
    done = run(
        "onboarding_email", *ACME, "--output", "a.eml", PUBLIC_URL="https://logs.example.com"
    )
    assert done.returncode == 0, done.stderr
    assert f"The mail to {TO} is in a.eml." in done.stdout
    (link,) = re.findall(r"https://logs\.example\.com/claim/\w+", done.stdout)
    text = _claim(run, link).text
    assert text not in done.stdout
    assert "LOGGER_API_URL=https://logs.example.com\n" in part(_mail(run.cwd / "a.eml"), "plain")


def test_it_asks_for_what_is_missing(run: Runner) -> None:
    """Client and address are asked for; without an answer nothing is made."""
    done = run("onboarding_email", answer=f"acme\n{TO}\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Enter client_id (e.g., 'acme_corp'): ")
    assert "Enter the client's mail address: " in done.stdout
    assert len(_mails(run)) == 1
    refused = run("onboarding_email", answer="\n")
    assert (refused.returncode, refused.stderr) == (1, "Error: client_id is required\n")
    refused = run("onboarding_email", answer="globex\n\n")
    assert refused.returncode == 1
    assert "a mail address is required" in refused.stderr
    assert len(run.json("list_api_keys")["api_keys"]) == 1


def test_a_contact_is_written_to_by_name(run: Runner) -> None:
    """Without --to the client's contact_email counts, and its name is greeted."""
    run.json("generate_api_key", "--client", "acme")
    with run.control() as engine:
        update_client(engine, "acme", {"contact_email": TO, "name": "Acme, Inc. & Söhne"}, by=BY)
    made = run.json("onboarding_email", "--client", "acme")
    mail = _mail(run.cwd / made["output"])
    assert [(one.display_name, one.addr_spec) for one in mail["To"].addresses] == [
        ("Acme, Inc. & Söhne", TO)
    ]
    assert "Hello Acme, Inc. & Söhne," in part(mail, "plain")
    assert "Hello Acme, Inc. &amp; Söhne," in part(mail, "html")


def test_an_existing_key_that_is_pasted(run: Runner) -> None:
    """A key given on standard input is checked and put behind a link, or into the mail."""
    key = run.json("generate_api_key", "--client", "acme")
    arguments = ("--key-id", key["key_id"], "--to", TO, "--json")
    done = run("onboarding_email", *arguments, answer=f"{key['key']}\n")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Paste the API key (empty to leave it out): ")
    made = json.loads(done.stdout)
    assert (made["id"], key["key"] in done.stdout) == (key["id"], False)
    assert _claim(run, made["claim_url"]).text == key["key"]
    options = ("--inline-key", "--output", "inline.eml")
    done = run("onboarding_email", *arguments, *options, answer=key["key"])
    assert json.loads(done.stdout)["claim_url"] is None
    assert key["key"] not in done.stdout + done.stderr
    shown = texts_by_id(part(_mail(run.cwd / "inline.eml"), "html"))
    assert f"LOGGER_API_KEY={key['key']}" in shown["env"]
    assert len(run.json("list_api_keys")["api_keys"]) == 1


def test_an_existing_key_that_is_left_out(run: Runner) -> None:
    """With nothing pasted the mail says that the key comes separately, and how it begins."""
    key = run.json("generate_api_key", "--client", "acme")
    made = run.json("onboarding_email", *ACME, "--key-id", key["key_id"])
    assert made["claim_url"] is None
    text = part(_mail(run.cwd / made["output"]), "plain")
    assert "handed to you separately" in text
    assert key["key_prefix"].rstrip("*") in text
    assert key["key"] not in text


def test_another_key_is_not_mailed(run: Runner) -> None:
    """What is pasted must be that very key; the refusal does not repeat it."""
    key = run.json("generate_api_key", "--client", "acme")
    other = run.json("generate_api_key", "--client", "acme")
    for pasted in (other["key"], "garbage", key["key"][:-1], "clé"):
        done = run("onboarding_email", *ACME, "--key-id", key["key_id"], answer=f"{pasted}\n")
        assert done.returncode == 1
        assert f"Error: that is not key {key['key_id']}" in done.stderr
        assert pasted not in done.stdout + done.stderr
    assert _mails(run) == []


def test_a_key_that_cannot_be_mailed(run: Runner) -> None:
    """Unknown, foreign, platform and revoked keys are refused, each by its reason."""
    key = run.json("generate_api_key", "--client", "acme")
    admin = run.json("create_admin_key", "--name", "a")
    for arguments, reason in (
        ((*ACME, "--key-id", "nope"), "no key 'nope'"),
        (("--client", "globex", "--key-id", key["key_id"]), "not one of client 'globex'"),
        (("--key-id", admin["key_id"]), "the platform's"),
    ):
        done = run("onboarding_email", *arguments)
        assert (done.returncode, reason in done.stderr) == (1, True), done.stderr
    run.json("revoke_api_key", key["key_id"], "--yes")
    done = run("onboarding_email", *ACME, "--key-id", key["key_id"])
    assert (done.returncode, "inactive" in done.stderr) == (1, True)
    assert _mails(run) == []


@pytest.mark.parametrize(
    ("arguments", "status", "part_of_it"),
    [
        (["--to", "ops@acme.example\nBcc: x@y.z"], 1, "not one mail address"),
        (["--to", "ops"], 1, "not one mail address"),
        (["--to", "=?utf-8?q?a?=@b.com", "--send"], 1, "not one mail address"),
        (["--to", TO, "--output", "there.eml"], 1, "there.eml exists already"),
        (["--to", TO, "--output", "no/such/a.eml"], 1, "no file can be made"),
    ],
)
def test_nothing_is_made_that_could_not_be_mailed(
    run: Runner, arguments: list[str], status: int, part_of_it: str
) -> None:
    """A bad address or file is refused before a key or client is made."""
    (run.cwd / "there.eml").write_text("mine")
    done = run("onboarding_email", "--client", "acme", *arguments)
    assert done.returncode == status
    assert part_of_it in error_line(done.stderr)
    assert run.json("list_api_keys")["api_keys"] == []
    assert (run.cwd / "there.eml").read_text() == "mine"


def test_a_client_s_name_with_a_line_break_is_refused(run: Runner) -> None:
    """A name that got into the database past every check gets into no mail."""
    run.json("generate_api_key", "--client", "acme")
    with run.control() as engine, engine.connect() as connection:
        connection.exec_driver_sql("UPDATE clients SET name = 'a' || char(13, 10) || 'Bcc: x@y.z'")
        connection.commit()
    done = run("onboarding_email", *ACME)
    assert (done.returncode, "line break" in done.stderr) == (1, True)
    assert _mails(run) == []


@pytest.mark.parametrize(
    "name",
    [
        "=?utf-8?q?x=0D=0ABcc=3A_evil=40x=2Ey?=",
        "=?utf-8?b?eA0KU3ViamVjdDogWQ0KDQpib2R5?=",
        "=?utf-8?q?=3Ca=40evil=2Ecom=3E=2C?=",
    ],
)
def test_a_client_s_name_is_no_header(run: Runner, certificate: Path, name: str) -> None:
    """A name that looks encoded adds no header, body or recipient, in the file and when sent."""
    run.json("generate_api_key", "--client", "acme")
    with run.control() as engine:
        update_client(engine, "acme", {"name": name}, by=BY)
    with running_sink(certificate) as sink:
        settings = _mail_settings(sink, certificate)
        settings["MAIL_FROM"] = f"{name} <logger@example.com>"
        done = run("onboarding_email", *ACME, "--send", "--output", "a.eml", **settings)
    assert done.returncode == 0, done.stderr
    assert sink.recipients == [[TO]]
    for raw in (sink.raw[0], (run.cwd / "a.eml").read_bytes()):
        mail = read_message(raw)
        names = {"Subject", "From", "To", "Date", "Message-ID", "MIME-Version", "Content-Type"}
        assert set(mail.keys()) - {"X-Peer", "X-MailFrom", "X-RcptTo"} == names
        assert mail.get_all("Subject") == ["Your Logger API Credentials"]
        assert mailboxes(raw, "To") == [(name, TO)]
        assert mailboxes(raw, "From") == [(name, "logger@example.com")]
        assert f"Hello {name},\n" in part(mail, "plain")


def test_a_planted_address_is_refused(run: Runner) -> None:
    """A contact_email that got into the database past every check is one line, and no mail."""
    run.json("generate_api_key", "--client", "acme")
    with run.control() as engine, engine.connect() as connection:
        connection.exec_driver_sql("UPDATE clients SET contact_email = '=?utf-8?q?a?=@b.com'")
        connection.commit()
    done = run("onboarding_email", "--client", "acme")
    assert (done.returncode, _mails(run)) == (1, [])
    assert "not one mail address" in error_line(done.stderr)


def test_a_deactivated_client_gets_no_mail(run: Runner) -> None:
    """Neither a new key nor one that exists is mailed while none of the client's keys works."""
    key = run.json("generate_api_key", "--client", "acme")
    with run.control() as engine:
        update_client(engine, "acme", {"is_active": False}, by=BY)
    for arguments in (
        ("onboarding_email", *ACME),
        ("onboarding_email", *ACME, "--key-id", key["key_id"]),
        ("rotate_api_key", key["key_id"], "--notify", TO),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert "client acme is deactivated" in done.stderr
    assert len(run.json("list_api_keys", "--include-inactive")["api_keys"]) == 1
    assert _mails(run) == []


def test_send_goes_by_the_mail_server(run: Runner, certificate: Path) -> None:
    """--send hands the mail over by STARTTLS and a login, and leaves no file."""
    with running_sink(certificate) as sink:
        settings = _mail_settings(sink, certificate)
        done = run("onboarding_email", *ACME, "--send", "--json", **settings)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        assert (made["sent"], made["output"], made["to"]) == (True, None, TO)
        done = run("onboarding_email", *ACME, "--send", "--output", "copy.eml", **settings)
        assert f"The mail was sent to {TO} and to {TO} is in copy.eml." in done.stdout
    assert sink.was_private == [True, True]
    assert sink.recipients == [[TO], [TO]]
    assert sink.messages[0]["From"] == FROM
    assert made["claim_url"] in part(sink.messages[0], "plain")
    assert _mails(run) == [run.cwd / "copy.eml"]
    assert _mail(run.cwd / "copy.eml")["Message-ID"] == sink.messages[1]["Message-ID"]


def test_send_goes_by_smtps(run: Runner, certificate: Path) -> None:
    """smtps:// works for the command as well."""
    with running_sink(certificate, is_smtps=True) as sink:
        settings = _mail_settings(sink, certificate)
        settings["SMTP_URL"] = settings["SMTP_URL"].replace("smtp:", "smtps:")
        done = run("onboarding_email", *ACME, "--send", **settings)
        assert done.returncode == 0, done.stderr
    assert [message["To"] for message in sink.messages] == [f"acme <{TO}>"]


def test_send_without_a_server_writes_the_file(run: Runner) -> None:
    """Without SMTP_URL the mail is written, and the command says so, not on a machine's stdout."""
    done = run("onboarding_email", *ACME, "--send", "--json")
    made = json.loads(done.stdout)
    assert (done.returncode, made["sent"]) == (0, False)
    assert "SMTP_URL is not set" in done.stderr
    assert _mails(run) == [run.cwd / made["output"]]


def test_send_needs_a_sender(run: Runner) -> None:
    """Without MAIL_FROM nothing is sent, nor made: a bad setting, in one line."""
    done = run("onboarding_email", *ACME, "--send", SMTP_URL="smtp://127.0.0.1:1")
    assert done.returncode == 2
    assert "MAIL_FROM" in error_line(done.stderr)
    assert run.json("list_api_keys")["api_keys"] == []


def test_what_could_not_be_sent_is_in_a_file(run: Runner, certificate: Path) -> None:
    """A server that is away or refuses costs nothing: 1, one line, and the .eml that it names."""
    away = f"smtp://{USER}:{PASSWORD}@127.0.0.1:{free_port()}"
    done = run("onboarding_email", *ACME, "--send", SMTP_URL=away, MAIL_FROM=FROM)
    assert done.returncode == 1
    assert PASSWORD not in done.stderr
    (output,) = _mails(run)
    assert f"the mail is in {output.name}" in error_line(done.stderr)
    (link,) = re.findall(r"http://\S+/claim/\w+", part(_mail(output), "plain"))
    assert run.resolve(_claim(run, link).text).client_id == "acme"
    with running_sink(certificate) as sink:
        sink.refusal = "550 nobody of that name"
        settings = _mail_settings(sink, certificate)
        options = ("--send", "--output", "mine.eml")
        done = run("onboarding_email", *ACME, *options, **settings)
    assert done.returncode == 1
    assert "550 nobody of that name; the mail is in mine.eml" in done.stderr
    assert _mails(run) == [run.cwd / "mine.eml", output]


# rotate_api_key.py


def test_rotate_shows_the_new_key_once(run: Runner) -> None:
    """The new key and the old one's deadline are printed; both work until then."""
    old = run.json("generate_api_key", "--client", "acme")
    done = run("rotate_api_key", old["key_id"])
    assert done.returncode == 0, done.stderr
    new = KEY.search(done.stdout)
    assert new is not None
    assert f"LOGGER_API_KEY={new[0]}" in done.stdout.splitlines()
    deadline = rf"The old key {re.escape(old['key_prefix'])} works until \d{{4}}-.* UTC"
    assert re.search(deadline, done.stdout)
    assert run.resolve(new[0]).client_id == run.resolve(old["key"]).client_id == "acme"


def test_rotate_with_json(run: Runner) -> None:
    """--json prints the new key object with its key, the old key_id and its deadline."""
    old = run.json("generate_api_key", "--client", "acme")
    new = run.json("rotate_api_key", old["id"], "--grace-seconds", "0")
    assert (new["old_key_id"], new["rotated_from"]) == (old["key_id"], old["id"])
    assert new["key"].startswith(f"cl_live_acme_{new['key_id']}")
    assert new["grace_until"] <= new["created_at"]
    assert run.resolve(new["key"]).id == new["id"]
    with pytest.raises(InvalidKey):
        run.resolve(old["key"])


def test_rotate_says_what_is_wrong(run: Runner) -> None:
    """No key, an unknown one, a bad grace and a second rotation are refused in one line."""
    assert "Error: key_id is required" in run("rotate_api_key").stderr
    asked = run("rotate_api_key", answer="nope\n")
    assert asked.stdout.startswith("Enter key_id: ")
    assert "Error: no key 'nope'" in asked.stderr
    old = run.json("generate_api_key", "--client", "acme")
    for arguments, reason in (
        (("--grace-seconds", "-1"), "grace_seconds must be"),
        (("--notify", "a@b\nBcc: x@y.z"), "not one mail address"),
        ((), ""),
        ((), "rotated already"),
        (("--notify", TO), "rotated already"),
    ):
        done = run("rotate_api_key", old["key_id"], *arguments)
        assert done.returncode == int(bool(reason)), done.stderr
        assert reason in done.stderr
    done = run("rotate_api_key", "nope", "--notify", TO)
    assert (done.returncode, "no key 'nope'" in done.stderr) == (1, True)
    assert len(run.json("list_api_keys")["api_keys"]) == 2
    assert _mails(run) == []


def test_rotate_and_notify_by_file(run: Runner) -> None:
    """--notify without a mail server writes the mail; the link is printed, the key is not."""
    old = run.json("generate_api_key", "--client", "acme")
    done = run("rotate_api_key", old["key_id"], "--notify", TO)
    assert done.returncode == 0, done.stderr
    assert not KEY.search(done.stdout)
    (output,) = _mails(run)
    (link,) = re.findall(r"http://\S+/claim/\w+", done.stdout)
    claimed = _claim(run, link)
    assert run.resolve(claimed.text).client_id == "acme"
    assert output.name == f"rotation-acme-{claimed.key.key_id}.eml"
    mail = _mail(output)
    assert mail["Subject"] == "API Key Rotation - Action Required"
    (until,) = re.findall(r"works until (.* UTC)", done.stdout)
    for body in (part(mail, "plain"), part(mail, "html")):
        for fact in (old["key_id"], until, link, claimed.key.key_id):
            assert fact in body


def test_rotate_and_notify_by_mail(run: Runner, certificate: Path) -> None:
    """--notify sends where a server is set; --json tells the link, and never the key."""
    old = run.json("generate_api_key", "--client", "acme")
    with running_sink(certificate) as sink:
        settings = _mail_settings(sink, certificate)
        arguments = (old["key_id"], "--notify", TO, "--json")
        done = run("rotate_api_key", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["sent"], told["output"], told["to"]) == (True, None, TO)
    assert (told["old_key_id"], "key" in told) == (old["key_id"], False)
    assert told["claim_url"] in part(sink.messages[0], "plain")
    assert _claim(run, told["claim_url"]).key.key_id == told["key_id"]


def test_a_rotation_that_could_not_be_mailed_is_not_lost(run: Runner) -> None:
    """When the server is away the new key's link is in the file that the error names."""
    old = run.json("generate_api_key", "--client", "acme")
    settings = {"SMTP_URL": f"smtp://127.0.0.1:{free_port()}", "MAIL_FROM": FROM}
    done = run("rotate_api_key", old["key_id"], "--notify", TO, **settings)
    (output,) = _mails(run)
    assert (done.returncode, output.name in done.stderr) == (1, True)
    (link,) = re.findall(r"http://\S+/claim/\w+", part(_mail(output), "plain"))
    assert run.resolve(_claim(run, link).text).client_id == "acme"


# A real service


@pytest.fixture
def server(run: Runner) -> Iterator[Server]:
    """Start the service on the runner's directory; the commands know its URL."""
    with start_product(run.data_dir) as server:
        run.environment["PUBLIC_URL"] = f"http://127.0.0.1:{server.port}"
        yield server


def _press(url: str) -> str:
    request = Request(url, method="POST")  # noqa: S310  # a URL of our own service
    with urlopen(request, timeout=20) as response:  # noqa: S310  # as above
        page: str = response.read().decode()
    return page


def test_from_the_mail_to_the_first_log(run: Runner, server: Server) -> None:
    """Mail, link, button: the key on the page stores a log at the URL beside it."""
    made = run.json("onboarding_email", *ACME)
    link = texts_by_id(part(_mail(run.cwd / made["output"]), "html"))["claim"]
    with urlopen(link, timeout=20) as response:  # noqa: S310  # as above
        assert response.status == 200
    page = texts_by_id(_press(link))
    variables = dict(line.split("=", 1) for line in page["env"].splitlines())
    done = _run_sample(["sh", "-c", page["curl"]], variables, run.cwd)
    assert json.loads(done)["client_id"] == "acme"


def _run_sample(command: list[str], variables: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], **variables},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "program"),
    [("curl", "curl"), ("python", sys.executable), ("javascript", "node")],
)
def test_the_samples_of_the_mail_work(run: Runner, server: Server, name: str, program: str) -> None:
    """Each sample stores a log when the lines of .env are set, and nothing else."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed, so the mail's {name} sample did not run")
    made: dict[str, Any] = run.json("onboarding_email", *ACME, "--inline-key")
    shown = texts_by_id(part(_mail(run.cwd / made["output"]), "html"))
    variables = dict(line.split("=", 1) for line in shown["env"].splitlines())
    sample = run.cwd / "sample"
    sample.write_text(shown[name])
    command = {
        "curl": ["sh", "sample"],
        "python": [sys.executable, "-W", "error", "sample"],
        "javascript": ["node", "sample"],
    }[name]
    answer = _run_sample(command, variables, run.cwd)
    assert '"client_id":"acme"' in answer
    logs = Request(f"{variables['LOGGER_API_URL']}/api/v1/logs")  # noqa: S310  # as above
    logs.add_header("X-API-Key", variables["LOGGER_API_KEY"])
    with urlopen(logs, timeout=20) as response:  # noqa: S310  # as above
        assert len(json.load(response)["logs"]) == 1
