"""Settings and `.env.example`."""

from dataclasses import fields
from pathlib import Path

import pytest
from dotenv import dotenv_values

from app.protect.threats import Thresholds
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
        ("API_KEYS", '{"k": "Not A Slug"}', "entry 1: what follows the key is no client_id"),
        ("API_KEYS", '{"k": "a", "l": "b", "k": "c"}', "entry 3: the same key as in entry 1"),
        ("API_KEYS", '{"k": {"l": "a"}}', "entry 1: what follows the key is no client_id"),
        ("API_KEYS", '[["k", "a"]]', "JSON map"),
        ("API_KEYS", "[" * 100_000, "JSON map"),
        ("API_KEYS", f'{{"k": "a", "cl_live_a_{"0" * 61}": "a"}}', "entry 2: a key is mistyped"),
        ("API_KEY_ADMIN", f"cl_admin_{'0' * 61}", "checksum"),
        ("INITIAL_ADMIN_KEY", "k" * 600, "512"),
        ("SECRET_KEY", "\udcff" * 20, "UTF-8"),
        ("DEDUP_WINDOW_DAYS", "99999999999", "36500"),
        ("ROTATION_DAYS_LIVE", "99999999999", "36500"),
        ("DEFAULT_LOGS_PER_MINUTE", "9" * 30, str(2**62)),
        ("HEAD_TIMEOUT_S", "inf", "86400"),
        ("TLS_KEY", "k" * 5000, "is not a file that can be read"),
        ("TRUSTED_PROXIES", "\udcff", "UTF-8"),
        ("HOST", "\udcff", "UTF-8"),
        ("HOST", "", "is empty"),
        ("DATA_DIR", "", "is empty"),
        ("DATA_DIR", " ", "is empty"),
        ("KEY_HASHER", "", "is empty"),
        ("REQUIRE_API_KEY", "", "is empty"),
        ("MAX_BODY_BYTES", "", "is empty"),
        ("PORT", "http", "valid integer"),
        ("PORT", "70000", "65535"),
        ("REQUIRE_API_KEY", "perhaps", "boolean"),
        ("TRUSTED_PROXIES", "::1,10.0.0.0/99", "entry 2 is no address"),
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
        ("CORS_ORIGINS", "*", "origin"),
        ("CORS_ORIGINS", "https://app.example.com/", "origin"),
        ("TLS_KEY", "/no/such/file", "read"),
        ("SELF_SCAN_ACTION", "delete", "quarantine"),
        ("HEAD_TIMEOUT_S", "0", "greater"),
        ("GEOIP_DATABASE", "/no/such/file", "read"),
        ("TRUSTED_PROXY_HEADER", "X-Real-IP", "forwarded"),
        (
            "ALERT_ACTIONS",
            "spike:off,guesses:block",
            "entry 2 names no rule; they are failed_attempts",
        ),
        ("ALERT_ACTIONS", "spike", "entry 1: spike takes alert, block, quarantine, off"),
        ("ALERT_ACTIONS", "failed_attempts_on_key:quarantine", "alert, block, off"),
        ("ALERT_ACTIONS", "spike:off,spike:block", "entry 2: spike is there twice"),
        ("ALERT_SPIKE_FACTOR", "nan", "1000000000"),
        ("ALERT_WEBHOOK_URL", "ftp://hooks.example.com", "http"),
        ("ALERT_MAIL_TO", "ops@example.com", "SMTP_URL"),
        ("ALERT_MAIL_TO", "ops", "mail address"),
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


@pytest.mark.parametrize(
    "value",
    [
        *(
            "http://h?x=1",
            "http://h/?",
            "http://h/#frag",
            "http://h#",
            "http://u@h",
            "http://u:p@h",
        ),
        *("http://[::1", "http://[::1%25lo]", "http://[1.2.3.4]", "http://::1", "http://h]"),
        *("http://h:99999", "http://h:0", "http://h:", "http://h:x", "http://1.2.3.256", "http://"),
        *("http://-", "http://a-.example", "http://a..b", "http://.", "http://h/a b", "ftp://h"),
        *("http://h/\\x", "http://h\\x", "HTTP:/h", "http:///x", "http://h/<b>", "http://h\n"),
    ],
)
def test_a_url_that_no_path_can_follow(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """PUBLIC_URL is a host that there can be, its port and a path, and nothing behind."""
    monkeypatch.setenv("PUBLIC_URL", value)
    with pytest.raises(BadSetting, match=r"^PUBLIC_URL: is not an http or https URL"):
        load_settings()


@pytest.mark.parametrize(
    "value",
    [
        *("https://logs.example.com", "http://localhost:8000/", "http://[::1]:8000/logs"),
        *("http://10.0.0.1", "http://my_app:80/a/b", "https://l\u00f6gs.example./x~y"),
    ],
)
def test_urls_that_paths_follow(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Names, addresses, ports and paths are taken, without the slash at the end."""
    monkeypatch.setenv("PUBLIC_URL", value)
    assert load_settings().reachable_url == value.rstrip("/")


def test_where_the_default_is_empty_empty_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is left empty in `.env.example` may be left empty."""
    empty = [name for name, value in dotenv_values(EXAMPLE).items() if value == ""]
    assert {"PUBLIC_URL", "API_KEYS", "SECRET_KEY"} <= set(empty)
    for name in empty:
        monkeypatch.setenv(name, "")
    assert load_settings(_env_file=None) == load_settings(_env_file=EXAMPLE)


def test_bad_value_of_a_secret_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line about a bad secret does not hold the secret."""
    for name, value in (
        ("API_KEYS", '{"hunter2-hunter2": 5}'),
        ("API_KEYS", '{"acme_corp": "Hunter2-hunter2"}'),
        ("API_KEYS", '{"hunter2-hunter2": "a", "hunter2-hunter2": "b"}'),
        ("SMTP_URL", "smtp://user:hunter2/@mail.example.com"),
        ("SMTP_URL", "smtp://user:hunter2@mail.example.com:x"),
        ("ALERT_WEBHOOK_URL", "https://hooks.example.com/hunter2#x"),
        ("ALERT_ACTIONS", "spike:hunter2"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(BadSetting, match=name) as refused:
                load_settings()
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", [name.upper() for name in Settings.model_fields])
def test_no_fault_repeats_a_value(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever setting a key is pasted into, alone or among other text, no fault shows it."""
    secret = f"cl_live_acme_{'hunter2' * 9}"
    forms = (
        *("{}", "1,{}", "https://x.example,{}", "/{}", "https://{}@x.example/?", "redis://{}/{}"),
        *("redis://x?{}={}", "smtp://x:{}", "smtp://{}", "x <{}>", '{"{}": "{}"}', "{{}"),
    )
    told = []
    for form in forms:
        with monkeypatch.context() as patch:
            patch.setenv(name, form.replace("{}", secret))
            try:
                load_settings()
            except BadSetting as refused:
                told.append(str(refused))
    assert not any("hunter2" in line for line in told)


@pytest.mark.parametrize(
    ("former", "name"),
    [
        ("API_KEY_ADMIN", "API_KEY_DEFAULT"),
        ("API_KEY_ADMIN", "API_KEYS"),
        ("API_KEY_DEFAULT", "API_KEYS"),
        ("INITIAL_ADMIN_KEY", "API_KEYS"),
        ("API_KEY_ADMIN", "INITIAL_ADMIN_KEY"),
        ("API_KEY_DEFAULT", "INITIAL_ADMIN_KEY"),
    ],
)
def test_a_key_stands_in_one_setting_only(
    monkeypatch: pytest.MonkeyPatch, former: str, name: str
) -> None:
    """Whose a key is, is never decided by the order in which settings are looked at."""
    monkeypatch.setenv(former, "k")
    monkeypatch.setenv(name, '{"k": "acme"}' if name == "API_KEYS" else "k")
    with pytest.raises(BadSetting) as refused:
        load_settings()
    assert str(refused.value).startswith(f"{name}: the same key as in {former}; example: {name}=")


def test_an_env_file_that_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.env` in another encoding is refused with one line, not a traceback."""
    (tmp_path / ".env").write_bytes(b"PUBLIC_URL=http://caf\xe9.example\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadSetting, match=r"^\.env: is not UTF-8 text; example: "):
        load_settings()


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


def test_thresholds_are_settings() -> None:
    """Each threshold of the rules is a setting with the same default."""
    settings = load_settings(_env_file=None)
    for name in (one.name for one in fields(Thresholds)):
        assert getattr(settings, f"alert_{name}") == getattr(Thresholds(), name)


def test_actions_of_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions are pairs with commas between, each rule with one that it can have."""
    monkeypatch.setenv("ALERT_ACTIONS", " spike : quarantine, failed_attempts:block,")
    assert load_settings().alert_actions == {"spike": "quarantine", "failed_attempts": "block"}
