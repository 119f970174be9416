"""Settings: the environment first, then `.env`, then the defaults below.

`.env.example` lists every one; a test holds the two together. A bad value stops the start with one
line that names the setting, the fault and an example.
"""

import json
import os
import re
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from app.delivery.smtp import parse_mailbox, parse_server
from app.edge.redis_url import check_redis_url
from app.keys.token import token_fault
from app.keys.verifier import SECRET_LENGTH_MIN
from app.protect.signatures import AGE_S_BOUND, AGE_S_MAX
from app.protect.threats import RULES
from app.protect.webhook import parse_webhook

# In DATA_DIR, held by the one server that runs on it.
SERVER_LOCK = "server.lock"

ENV_FILE = ".env"

SLUG = r"[a-z0-9][a-z0-9_-]{0,62}"

EXAMPLES = {
    "PORT": "8000",
    "DATA_DIR": "./data",
    "WORKERS": "2",
    "DATABASE_URL": "sqlite:///./data/control.db",
    "LOG_STORE_URL": "empty for embedded storage under DATA_DIR",
    "API_KEYS": """'{"my-key": "acme_corp"}' (a JSON map of key to client_id, quoted)""",
    "API_KEYS_FILE": "./api_keys.yaml",
    "REQUIRE_API_KEY": "true",
    "RATE_LIMIT_STORAGE_URL": "rediss://user:password@redis.example.com:6379/0",
    "TRUSTED_PROXIES": "10.0.0.0/8,127.0.0.1",
    "TRUSTED_PROXY_HEADER": "forwarded",
    "GEOIP_DATABASE": "/var/lib/GeoIP/GeoLite2-Country.mmdb",
    "KEY_HASHER": "auto",
    "SECRET_KEY": "48 random characters, as from `openssl rand -base64 36`",
    "LOG_LEVEL": "info",
    "INITIAL_ADMIN_KEY": "a key of at least 20 random ASCII characters",
    "API_KEY_ADMIN": "a key of at least 20 random ASCII characters",
    "API_KEY_DEFAULT": "a key of at least 20 random ASCII characters",
    "HOST": "127.0.0.1",
    "PUBLIC_URL": "https://logs.example.com",
    "SMTP_URL": "smtp://user:password@mail.example.com:587",
    "MAIL_FROM": "Logger <logger@example.com>",
    "ALERT_ACTIONS": "failed_attempts:block,unusual_country:quarantine,spike:off",
    "ALERT_WEBHOOK_URL": "https://hooks.example.com/logger",
    "ALERT_MAIL_TO": "ops@example.com,security@example.com",
    "CORS_ORIGINS": "https://app.example.com,http://localhost:3000",
    "TLS_CERTIFICATE": "/etc/ssl/logger/fullchain.pem",
    "TLS_KEY": "/etc/ssl/logger/privkey.pem",
}

# Names of files are bytes, and may hold what is no text.
_PATHS = {"data_dir", "api_keys_file", "geoip_database", "tls_certificate", "tls_key"}

# No user, query or fragment; its path in the characters of RFC 3986.
_BASE_URL = re.compile(
    r"https?://(?P<host>\[[^]/]*\]|[^][/?#@:\s]+)(:[0-9]{1,5})?(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?"
)
# As RFC 1123 has it, and with the underscore of names within a Compose file.
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?")

# Lists are comma-separated, not JSON: NoDecode leaves the parsing to the validators below.
TextList = Annotated[tuple[str, ...], NoDecode]
# Upper bounds are beyond all use, and below what sums of numbers and times can hold.
Count = Annotated[int, Field(ge=0, le=2**62)]
Bytes = Annotated[int, Field(ge=1, le=2**40)]
Days = Annotated[int, Field(ge=1, le=36_500)]
Seconds = Annotated[int, Field(ge=1, le=86_400)]


class BadSetting(Exception):
    """One line: the setting, the value's fault, an example."""


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its repeated names, which a dict would drop."""


class Settings(BaseSettings):
    """All settings; a limit of 0 means unlimited."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding="utf-8", extra="ignore", case_sensitive=False
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    data_dir: Path = Path("./data")
    database_url: str = ""
    log_store_url: str = ""
    rate_limit_storage_url: str = ""
    # A request waits for it twice at most; Redis next door takes 1 ms.
    rate_limit_timeout_ms: Annotated[int, Field(ge=1, le=60_000)] = 100
    public_url: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    secret_key: TextList = ()
    require_api_key: bool = True
    initial_admin_key: str = ""
    api_keys: Annotated[dict[str, str], NoDecode] = {}
    api_keys_file: str = ""
    api_key_admin: str = ""
    api_key_default: str = ""
    key_hasher: Literal["auto", "argon2id"] = "auto"
    auth_failures_per_minute: Count = 60
    trusted_proxies: TextList = ()
    trusted_proxy_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"

    # About what one two-core machine takes: a runaway loop meets them, an honest client does not.
    default_requests_per_minute: Count = 600_000
    default_logs_per_minute: Count = 12_000_000
    default_bytes_per_minute: Count = 6 * 1024**3

    max_body_bytes: Bytes = 20 * 1024**2
    max_record_bytes: Bytes = 1024**2
    max_batch_records: Annotated[int, Field(ge=1, le=10**6)] = 10_000
    max_inflight_bytes: Bytes = 64 * 1024**2
    # Thirty full pages: beyond it those who read fast are served on, not those who do not read.
    max_unread_bytes: Bytes = 256 * 1024**2
    dedup_window_days: Days = 7

    # A key that is older is due for rotation; 0 = never.
    rotation_days_live: Annotated[int, Field(ge=0, le=36_500)] = 90
    rotation_days_test: Annotated[int, Field(ge=0, le=36_500)] = 30
    # In use, as far as the API makes them: every worker reads the keys of all clients after each
    # change of anybody's, and no client's own administrator is to make that long.
    keys_per_client_max: Count = 1_000
    # Of one key on the routes of keys and clients, each route by itself.
    management_requests_per_minute: Annotated[int, Field(ge=1, le=10**9)] = 600
    smtp_timeout_s: Seconds = 20

    # Of refused requests, and of what each key did in each minute.
    denials_kept_days: Days = 30
    access_kept_days: Days = 30

    # A signed request is good for so long; its nonce is kept for the longest that this may be.
    signature_age_s_max: Annotated[int, Field(ge=10, le=AGE_S_BOUND)] = AGE_S_MAX
    # Keys that have a signing key need it wherever keys are managed.
    sign_management: bool = False

    # What a slow client may take: for the head of a request, for its body, between two requests.
    head_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 10
    body_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120
    # Of a reply that waits for its client, who takes nothing of it.
    unread_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 60
    # Longer than the idle time of common clients' pools: else they reuse a connection as it closes.
    keep_alive_s: Seconds = 75
    # Of one address, in each worker; far more than a pool of connections, far fewer than there are.
    connections_per_address: Count = 1_000

    cors_origins: TextList = ()
    docs_enabled: bool = True
    tls_certificate: str = ""
    tls_key: str = ""
    self_scan_action: Literal["redact", "quarantine"] = "redact"

    # What follows on a rule, where it is not `alert`; the rest are its thresholds: why these
    # defaults, is told in app/protect/threats.py.
    alert_actions: Annotated[dict[str, str], NoDecode] = {}
    alert_window_minutes: Annotated[int, Field(ge=1, le=1440)] = 5
    alert_failures_per_address: Annotated[int, Field(ge=0, le=100_000)] = 30
    alert_failures_per_key: Annotated[int, Field(ge=0, le=100_000)] = 10
    alert_revoked_key_attempts: Annotated[int, Field(ge=0, le=100_000)] = 1
    alert_learning_days: Annotated[int, Field(ge=0, le=36_500)] = 7
    alert_spike_factor: Annotated[float, Field(ge=1, le=10**9)] = 10
    alert_spike_floor: Count = 600
    alert_spike_hours: Annotated[int, Field(ge=1, le=720)] = 6
    alert_dormant_days: Annotated[int, Field(ge=0, le=36_500)] = 30
    # Long enough to make guessing pointless, short enough for a job that was mended meanwhile.
    alert_block_minutes: Annotated[int, Field(ge=1, le=10_080)] = 15
    # What comes again sooner is the same alert.
    alert_quiet_minutes: Annotated[int, Field(ge=1, le=1440)] = 60
    alerts_kept_days: Days = 365
    alert_webhook_url: str = ""
    alert_mail_to: TextList = ()

    metrics_public: bool = False
    smtp_url: str = ""
    mail_from: str = ""
    geoip_database: str = ""

    @field_validator(
        "secret_key", "trusted_proxies", "cors_origins", "alert_mail_to", mode="before"
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part for part in (p.strip() for p in value.split(",")) if part)
        return value

    @field_validator("trusted_proxy_header", mode="before")
    @classmethod
    def _header_name(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # Told by number, as of all lists: what stands there by mistake may be a secret.
        for number, part in enumerate(value, 1):
            try:
                ip_network(part, strict=False)
            except ValueError:
                raise ValueError(f"entry {number} is no address or CIDR") from None
        return value

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, origin in enumerate(value, 1):
            if not re.fullmatch(
                r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?", origin
            ):
                raise ValueError(f"entry {number} is not an origin as browsers send it")
        return value

    @field_validator("secret_key")
    @classmethod
    def _strong_secrets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(secret) < SECRET_LENGTH_MIN for secret in value):
            raise ValueError(f"a secret is shorter than {SECRET_LENGTH_MIN} characters")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _key_map(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not value.strip():
            return {}
        try:
            pairs = json.loads(value, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError):
            pairs = None  # the JSON error would quote the value, which is a secret
        if not isinstance(pairs, _Pairs):
            raise ValueError("not a JSON map of key to client_id")  # noqa: TRY004
        keys: dict[str, str] = {}
        numbers: dict[str, int] = {}
        for number, (key, client_id) in enumerate(pairs, 1):
            # Told by number: written the wrong way round, it is the client_id that is the secret.
            if detail := token_fault(key):
                raise ValueError(f"entry {number}: a key {detail}")
            if not isinstance(client_id, str) or not re.fullmatch(SLUG, client_id):
                raise ValueError(f"entry {number}: what follows the key is no client_id ({SLUG})")
            if (first := numbers.setdefault(key, number)) != number:
                raise ValueError(f"entry {number}: the same key as in entry {first}")
            keys[key] = client_id
        return keys

    @field_validator("api_key_admin", "api_key_default", "initial_admin_key")
    @classmethod
    def _acceptable(cls, value: str) -> str:
        if value and (detail := token_fault(value)):
            raise ValueError(f"a key {detail}")
        return value

    @field_validator("rate_limit_storage_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        if not value:
            return value
        check_redis_url(value)
        if find_spec("redis") is None:
            raise ValueError("needs pip install 'central-logger[redis]'")
        return value

    @field_validator("api_keys_file", "geoip_database", "tls_certificate", "tls_key")
    @classmethod
    def _readable(cls, value: str) -> str:
        try:
            is_readable = not value or (Path(value).is_file() and os.access(value, os.R_OK))
        except OSError:  # too long for a name, say
            is_readable = False
        if not is_readable:
            raise ValueError("is not a file that can be read")
        return value

    @field_validator("public_url")
    @classmethod
    def _absolute(cls, value: str) -> str:
        # Paths are appended to it, in mails and commands that others follow.
        if value and not _is_base_url(value):
            raise ValueError("is not an http or https URL of host, port and path alone")
        return value.rstrip("/")

    @field_validator("smtp_url")
    @classmethod
    def _mail_server(cls, value: str) -> str:
        if value:
            parse_server(value)  # its error does not repeat the value, which holds a password
        return value

    @field_validator("mail_from")
    @classmethod
    def _mail_sender(cls, value: str) -> str:
        if value:
            parse_mailbox(value)
        return value

    @field_validator("alert_mail_to")
    @classmethod
    def _mail_readers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            parse_mailbox(part)
        return value

    @field_validator("alert_webhook_url")
    @classmethod
    def _webhook(cls, value: str) -> str:
        if value:
            parse_webhook(value)  # its error does not repeat the value, which may hold a secret
        return value

    @field_validator("alert_actions", mode="before")
    @classmethod
    def _action_map(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        actions: dict[str, str] = {}
        parts = filter(None, (one.strip() for one in value.split(",")))
        for number, part in enumerate(parts, start=1):
            rule, _, action = (one.strip() for one in part.partition(":"))
            if rule not in RULES:
                raise ValueError(f"entry {number} names no rule; they are {', '.join(RULES)}")
            if action not in RULES[rule].actions:
                raise ValueError(f"entry {number}: {rule} takes {', '.join(RULES[rule].actions)}")
            if actions.setdefault(rule, action) != action:
                raise ValueError(f"entry {number}: {rule} is there twice")
        return actions

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value and not value.startswith("sqlite:///"):
            raise ValueError("only sqlite:/// is built in")
        return value

    @field_validator("log_store_url")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if value:
            raise ValueError("only embedded storage is built in")
        return value

    # Of validators that come before the field's own the last one is the first to run.
    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: Any, info: ValidationInfo) -> Any:
        # Bytes that are no text come as lone surrogates, and would fail wherever they are encoded.
        if isinstance(value, str) and info.field_name not in _PATHS:
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("is not UTF-8 text") from None
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _is_given(cls, value: Any, info: ValidationInfo) -> Any:
        # As a variable that was never filled in gives it: HOST= would listen on every address, and
        # DATA_DIR= mean the current directory. Where the default is empty, empty means that.
        default = cls.model_fields[info.field_name or ""].default
        if isinstance(value, str) and not value.strip() and default not in ("", (), {}):
            raise ValueError("is empty")
        return value

    @model_validator(mode="after")
    def _keys_that_differ(self) -> Self:
        named = {
            "API_KEY_ADMIN": self.api_key_admin,
            "API_KEY_DEFAULT": self.api_key_default,
            "INITIAL_ADMIN_KEY": self.initial_admin_key,
        }
        former: dict[str, str] = {}
        for name, key in named.items():
            if key and key in self.api_keys:
                raise ValueError(f"API_KEYS: the same key as in {name}")
            if key and key in former:
                raise ValueError(f"{name}: the same key as in {former[key]}")
            former[key] = name
        return self

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_key):
            missing, given = "TLS_CERTIFICATE", "TLS_KEY"
            if self.tls_certificate:
                missing, given = given, missing
            raise ValueError(f"{missing}: is required with {given}")
        return self

    @model_validator(mode="after")
    def _mails_with_a_server(self) -> Self:
        if self.alert_mail_to and not (self.smtp_url and self.mail_from):
            raise ValueError("ALERT_MAIL_TO: needs SMTP_URL and MAIL_FROM")
        return self

    @model_validator(mode="after")
    def _secret_off_embedded(self) -> Self:
        if not self.embedded and not self.secret_key:
            raise ValueError("SECRET_KEY: is required with DATABASE_URL")
        return self

    @property
    def reachable_url(self) -> str:
        """Give the URL by which clients reach the service."""
        if self.public_url:
            return self.public_url
        # An address to listen on is not always one to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        scheme = "https" if self.tls_certificate else "http"
        return (
            f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"
        )

    @property
    def embedded(self) -> bool:
        """Say whether the control database is ours to make and to bring up to date."""
        return not self.database_url


def _is_base_url(value: str) -> bool:
    found = _BASE_URL.fullmatch(value)
    if found is None:
        return False
    try:
        port = urlsplit(value).port
        return port != 0 and _is_host(found["host"])
    except ValueError:
        return False


def _is_host(host: str) -> bool:
    """Say whether a text is the host of a URL; ValueError for an address that is none."""
    if host.startswith("["):
        return "%" not in host and bool(IPv6Address(host[1:-1]))
    labels = host.encode("idna").decode("ascii").removesuffix(".").split(".")
    if labels[-1].isdigit():
        return bool(IPv4Address(host))
    return all(_HOST_LABEL.fullmatch(label) for label in labels)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raise BadSetting with one line if one of them is bad."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        fault = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            name = str(first["loc"][0]).upper()
        else:
            name, _, fault = fault.partition(": ")
    except SettingsError as error:
        name, fault = "settings", str(error)
    except UnicodeDecodeError:
        name, fault = ENV_FILE, "is not UTF-8 text"
    except OSError as error:
        name, fault = ENV_FILE, f"cannot be read: {error.strerror}"
    raise BadSetting(with_example(f"{name}: {fault}"))


def with_example(fault: str) -> str:
    """Add an example to a line that begins with the name of a setting."""
    name = fault.partition(":")[0]
    if name in {ENV_FILE, "settings"}:
        return f"{fault}; example: PORT=8000"
    field = Settings.model_fields.get(name.lower())
    if field is None:
        return fault
    return f"{fault}; example: {name}={EXAMPLES.get(name, field.default)}"
