"""Secrets managers: their targets, and errors that tell no secret.

What each of them stores is tested through the command, in tests/scripts/test_deliver.py.
"""

from collections.abc import Iterator

import pytest

from app.delivery.secrets_managers import NotDelivered, Target, open_manager, parse_target
from tests.delivery.managers import Conversation, Manager, VaultServer

SECRET = {"LOGGER_API_KEY": "the-key-of-the-test", "client_id": "acme"}


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[VaultServer]:
    """Start a Vault, for this process to find."""
    server = VaultServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with server.running():
        yield server


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("aws-secrets-manager:acme/logger", ("aws-secrets-manager", "acme/logger")),
        (
            "aws-secrets-manager:arn:aws:secretsmanager:eu-central-1:1:secret:x-AbCdEf",
            ("aws-secrets-manager", "arn:aws:secretsmanager:eu-central-1:1:secret:x-AbCdEf"),
        ),
        ("vault:kv/acme", ("vault", "kv/acme")),
        ("vault:kv/acme/logger.live", ("vault", "kv/acme/logger.live")),
        ("azure-key-vault:acme-vault/logger", ("azure-key-vault", "acme-vault/logger")),
        ("azure-key-vault:logger", ("azure-key-vault", "logger")),
    ],
)
def test_a_target_is_read(text: str, target: tuple[str, str]) -> None:
    """A target is a manager and a name, and shows as it was written."""
    parsed = parse_target(text)
    assert (tuple(parsed), str(parsed)) == (target, text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no such manager: ''"),
        ("gcp:x", "no such manager: 'gcp'"),
        ("aws-secrets-manager:", "aws-secrets-manager:NAME"),
        ("aws-secrets-manager:a b", "aws-secrets-manager:NAME"),
        ("vault:kv", "vault:MOUNT/PATH"),
        ("vault:kv/", "vault:MOUNT/PATH"),
        ("vault:/kv/acme", "vault:MOUNT/PATH"),
        ("vault:kv/../sys/seal", "vault:MOUNT/PATH"),
        ("vault:kv/acme?x=1", "vault:MOUNT/PATH"),
        ("azure-key-vault:evil.example.com/logger", "azure-key-vault:VAULT/NAME"),
        ("azure-key-vault:acme/logger/1", "azure-key-vault:VAULT/NAME"),
        ("azure-key-vault:under_score", "azure-key-vault:VAULT/NAME"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(text: str, part: str) -> None:
    """What is not a target says which form it should have."""
    with pytest.raises(ValueError, match=r"no such manager|takes") as refusal:
        parse_target(text)
    assert part in str(refusal.value)


def test_a_secret_is_put_as_a_new_version(vault: VaultServer) -> None:
    """A check writes nothing; each put is another version."""
    with open_manager(Target("vault", "kv/acme")) as manager:
        manager.check()
        assert vault.stored == {}
        manager.put(SECRET)
        manager.put({**SECRET, "client_id": "demo"})
    assert vault.stored == {"acme": [SECRET, {**SECRET, "client_id": "demo"}]}


@pytest.mark.parametrize("status", [400, 403, 412, 429, 500, 502, 503])
def test_a_refusal_quotes_nothing(vault: VaultServer, status: int) -> None:
    """Whatever a manager answers, the error names the target and repeats no part of the answer."""
    vault.refuse_puts = status
    with open_manager(Target("vault", "kv/acme")) as manager:
        manager.check()
        with pytest.raises(NotDelivered) as refusal:
            manager.put(SECRET)
    text = str(refusal.value)
    assert text.startswith("vault:kv/acme: ")
    assert "\n" not in text
    assert "the-key-of-the-test" not in text
    assert vault.token not in text
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


class _Impostor(Conversation):
    """Answers as AWS would, with what it was sent in place of a code."""

    def answer(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, object]:  # noqa: ARG002
        return 400, {"__type": f"{body.decode()} {self.headers['Authorization']}"}


def test_a_code_that_is_no_code_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error code that an answer made up of the request is not told."""
    server = Manager(_Impostor)
    environment = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "AKIAOFTHETEST0000000",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (
        server.running(),
        open_manager(Target("aws-secrets-manager", "acme")) as manager,
        pytest.raises(NotDelivered) as refusal,
    ):
        manager.put(SECRET)
    assert str(refusal.value) == "aws-secrets-manager:acme: ClientError"
