"""Keys that must sign, made and rotated by commands."""

import json
import re
from base64 import b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from loadtests.server import free_port
from tests.scripts.runner import Runner, error_line
from tests.signing import Signer

TO = "ops@acme.example"
SIGNS = ("generate_api_key", "--client", "acme", "--sign", "hmac-sha256")


def test_a_secret_is_told_once(run: Runner) -> None:
    """A signing secret is printed when it is made and when it is renewed, and never again."""
    made = run.json(*SIGNS)
    assert made["require_signature"] is True
    assert made["signing"] == {"algorithm": "hmac-sha256", "public_key": None}
    secret = made["signing_secret"]
    assert len(b64decode(secret)) == 32
    rotated = run.json("rotate_api_key", made["key_id"])
    assert len(b64decode(rotated["signing_secret"])) == 32
    assert rotated["signing_secret"] != secret
    listed = run("list_api_keys", "--json").stdout
    assert secret not in listed
    assert "aes256gcm" not in listed

    letter = run(*SIGNS).stdout
    [line] = re.findall(r"^LOGGER_SIGNING_SECRET=(.{44})$", letter, re.MULTILINE)
    # Below it stands what may be sent on.
    assert letter.count(line) == 1
    assert "curl" not in letter
    key_id = re.findall(r"key id (\w{12})", letter)[0]
    renewed = run("rotate_api_key", key_id).stdout
    assert len(re.findall(r"^LOGGER_SIGNING_SECRET=.{44}$", renewed, re.MULTILINE)) == 1


def test_a_mail_does_not_hold_the_secret(run: Runner) -> None:
    """Whoever gets hold of a mail with a claim link has no signing secret."""
    made = run.json(*SIGNS)
    done = run.json("rotate_api_key", made["key_id"], "--notify", TO)
    assert len(b64decode(done["signing_secret"])) == 32
    # A line of the mail may end anywhere.
    mail = Path(run.cwd, done["output"]).read_text().replace("=\n", "").replace("\n", "")
    assert done["claim_url"] in mail
    assert done["signing_secret"][:40] not in mail


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_secret_outlives_a_mail_that_cannot_be_sent(
    run: Runner, options: tuple[str, ...]
) -> None:
    """When the server is away the new secret has been shown, and the error names the mail."""
    made = run.json(*SIGNS)
    away = {"SMTP_URL": f"smtp://127.0.0.1:{free_port()}", "MAIL_FROM": "logger@example.com"}
    done = run("rotate_api_key", made["key_id"], "--notify", TO, *options, **away)
    assert done.returncode == 1
    [mail] = run.cwd.glob("*.eml")
    assert error_line(done.stderr).endswith(f"; the mail is in {mail.name}")
    if options:
        told = json.loads(done.stdout)
        assert (told["sent"], told["output"]) == (False, mail.name)
        secret = told["signing_secret"]
    else:
        [secret] = re.findall(r"^    (.{44})$", done.stdout, re.MULTILINE)
    assert len(b64decode(secret)) == 32
    assert secret != made["signing_secret"]


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("how", ["full", "left"])
def test_a_secret_that_nobody_saw_undoes_the_rotation(
    run: Runner, how: str, options: tuple[str, ...]
) -> None:
    """When the secret cannot be shown, no mail goes out, and the old key goes on as it was."""
    made = run.json(*SIGNS)
    line = run.unheard(how, "rotate_api_key", made["key_id"], "--notify", TO, *options)
    assert f"the rotation was undone: {made['key_id']} works on as before" in line
    assert not list(run.cwd.glob("*.eml"))
    # One that was rotated could not be again.
    assert run.json("rotate_api_key", made["key_id"])["signing_secret"]


def test_a_public_key(run: Runner, tmp_path: Path) -> None:
    """A public key is read from a file, and a rotation keeps it."""
    path = tmp_path / "public.pem"
    path.write_text(Signer.ed25519().public_key)
    made = run.json("generate_api_key", "--client", "acme", "--sign", f"ed25519:{path}")
    assert made["signing"]["algorithm"] == "ed25519"
    rotated = run.json("rotate_api_key", made["key_id"])
    assert rotated["signing"] == made["signing"]
    assert "signing_secret" not in {*made, *rotated}


@pytest.mark.parametrize(
    ("sign", "status", "told"),
    [
        ("ed25519", 2, "ed25519:FILE"),
        ("hmac-sha256:FILE", 2, "ed25519:FILE"),
        ("rsa", 2, "ed25519:FILE"),
        ("ed25519:/no/such/file", 2, "No such file"),
        ("ed25519:/dev/null", 1, "signing.public_key"),
    ],
)
def test_what_cannot_be(run: Runner, sign: str, status: int, told: str) -> None:
    """What nobody could sign with is refused, and nothing is made."""
    run.prepare()
    done = run("generate_api_key", "--client", "acme", "--sign", sign)
    assert done.returncode == status
    assert told in (error_line(done.stderr) if status == 1 else done.stderr)
    assert run.json("list_api_keys")["api_keys"] == []


@pytest.mark.parametrize("form", ["ed25519:{}", "hmac-sha256:{}", "{}", "ed25519:/tmp/{}"])
def test_a_private_key_in_place_of_a_file_is_not_told(run: Runner, form: str) -> None:
    """Where a key itself is given by mistake, what is complained of holds nothing of it."""
    run.prepare()
    private_key = Signer.ed25519().private_key
    assert private_key is not None
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    done = run("generate_api_key", "--client", "acme", "--sign", form.replace("{}", pem))
    assert (done.returncode, done.stdout) == (2, "")
    assert "argument --sign: " in done.stderr
    assert pem.splitlines()[1] not in done.stderr
