"""Settings and `.env.example`."""

from pathlib import Path

import pytest
from dotenv import dotenv_values

from app.settings import BadSetting, Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / ".env.example"


def test_example_lists_every_setting() -> None:
    """`.env.example` names each setting of the class, and nothing else."""
    assert set(dotenv_values(EXAMPLE)) == {name.upper() for name in Settings.model_fields}


def test_example_shows_the_defaults() -> None:
    """A copy of `.env.example` changes nothing."""
    assert load_settings(_env_file=EXAMPLE) == load_settings(_env_file=None)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("API_KEYS", "k:v,k:v", "JSON map"),
        ("API_KEYS", '{"k": "Not A Slug"}', "client_id"),
        ("PORT", "http", "valid integer"),
        ("PORT", "70000", "65535"),
        ("REQUIRE_API_KEY", "perhaps", "boolean"),
        ("TRUSTED_PROXIES", "10.0.0.0/99", "10.0.0.0/99"),
        ("SECRET_KEY", "short", "16"),
        ("PUBLIC_URL", "nourl", "URL"),
        ("SMTP_URL", "mail.example.com", "smtp://"),
        ("SMTP_URL", "smtp://user@mail.example.com", "password"),
        ("MAIL_FROM", "Logger", "mail address"),
        ("MAIL_FROM", "Log\nger <logger@example.com>", "line break"),
        ("MAX_BODY_BYTES", "-1", "greater"),
        ("DATABASE_URL", "mysql://x", "sqlite"),
        ("LOG_STORE_URL", "mongodb://x", "embedded"),
        ("API_KEY_ADMIN", "clé", "ASCII"),
        ("API_KEYS_FILE", "/no/such/file", "read"),
        ("API_KEYS_FILE", "/", "read"),
    ],
)
def test_bad_value_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    """A bad value stops with one line: the setting, the fault, an example."""
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSetting) as refused:
        load_settings()
    line = str(refused.value)
    assert line.startswith(f"{name}: ")
    assert told in line
    assert "example: " in line
    assert "\n" not in line


def test_bad_value_of_a_secret_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line about a bad secret does not hold the secret."""
    for name, value in (
        ("API_KEYS", '{"hunter2-hunter2": 5}'),
        ("SMTP_URL", "smtp://user:hunter2/@mail.example.com"),
        ("SMTP_URL", "smtp://user:hunter2@mail.example.com:x"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(BadSetting, match=name) as refused:
                load_settings()
        assert "hunter2" not in str(refused.value)


def test_multi_line_json_in_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """API_KEYS may span lines in `.env` when it is quoted."""
    (tmp_path / ".env").write_text('API_KEYS=\'{\n "k1": "acme_corp",\n "k2": "globex"\n}\'\n')
    monkeypatch.chdir(tmp_path)
    assert load_settings().api_keys == {"k1": "acme_corp", "k2": "globex"}


def test_environment_goes_before_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the environment beats the same name in `.env`."""
    (tmp_path / ".env").write_text("PORT=9001\nWORKERS=3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", "9002")
    settings = load_settings()
    assert (settings.port, settings.workers) == (9002, 3)
