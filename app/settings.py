"""Settings: the environment first, then `.env`, then the defaults below.

`.env.example` lists every one; a test holds the two together. A bad value stops the start with one
line that names the setting, the fault and an example.
"""

import json
import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from app.delivery.smtp import parse_mailbox, parse_server
from app.keys.verifier import SECRET_LENGTH_MIN

# In DATA_DIR, held by the one server that runs on it.
SERVER_LOCK = "server.lock"

SLUG = r"[a-z0-9][a-z0-9_-]{0,62}"

EXAMPLES = {
    "PORT": "8000",
    "WORKERS": "2",
    "DATABASE_URL": "sqlite:///./data/control.db",
    "LOG_STORE_URL": "empty for embedded storage under DATA_DIR",
    "API_KEYS": """'{"my-key": "acme_corp"}' (a JSON map of key to client_id, quoted)""",
    "API_KEYS_FILE": "./api_keys.yaml",
    "REQUIRE_API_KEY": "true",
    "TRUSTED_PROXIES": "10.0.0.0/8,127.0.0.1",
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
}

# Lists are comma-separated, not JSON: NoDecode leaves the parsing to the validators below.
TextList = Annotated[tuple[str, ...], NoDecode]
Count = Annotated[int, Field(ge=0)]


class BadSetting(Exception):
    """One line: the setting, the value's fault, an example."""


class Settings(BaseSettings):
    """All settings; a limit of 0 means unlimited."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", case_sensitive=False
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    data_dir: Path = Path("./data")
    database_url: str = ""
    log_store_url: str = ""
    rate_limit_storage_url: str = ""
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

    # About what one two-core machine takes: a runaway loop meets them, an honest client does not.
    default_requests_per_minute: Count = 600_000
    default_logs_per_minute: Count = 12_000_000
    default_bytes_per_minute: Count = 6 * 1024**3

    max_body_bytes: Annotated[int, Field(ge=1)] = 20 * 1024**2
    max_record_bytes: Annotated[int, Field(ge=1)] = 1024**2
    max_batch_records: Annotated[int, Field(ge=1)] = 10_000
    max_inflight_bytes: Annotated[int, Field(ge=1)] = 64 * 1024**2
    dedup_window_days: Annotated[int, Field(ge=1)] = 7

    # A key that is older is due for rotation; 0 = never.
    rotation_days_live: Count = 90
    rotation_days_test: Count = 30
    # Of one key on the routes of keys and clients, each route by itself.
    management_requests_per_minute: Annotated[int, Field(ge=1)] = 600
    smtp_timeout_s: Annotated[int, Field(ge=1)] = 20

    metrics_public: bool = False
    alert_webhook_url: str = ""
    smtp_url: str = ""
    mail_from: str = ""
    geoip_database: str = ""

    @field_validator("secret_key", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part for part in (p.strip() for p in value.split(",")) if part)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            ip_network(part, strict=False)
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
            parsed = json.loads(value)
        except ValueError:
            # The JSON error would quote the value, which is a secret.
            raise ValueError("not a JSON map of key to client_id") from None
        if not isinstance(parsed, dict):
            raise ValueError("not a JSON map of key to client_id")  # noqa: TRY004
        for key, client_id in parsed.items():
            if not key.isascii() or not key.strip():
                raise ValueError("a key is empty or not ASCII")
            if not isinstance(client_id, str) or not re.fullmatch(SLUG, client_id):
                raise ValueError(f"not a client_id ({SLUG}): {client_id!r}")
        return parsed

    @field_validator("api_key_admin", "api_key_default", "initial_admin_key")
    @classmethod
    def _sendable(cls, value: str) -> str:
        if not value.isascii() or value != value.strip():
            raise ValueError("a key must be ASCII without surrounding spaces")
        return value

    @field_validator("rate_limit_storage_url", "geoip_database")
    @classmethod
    def _not_built(cls, value: str) -> str:
        # Each promises protection or access: to ignore it would be to break the promise silently.
        if value:
            raise ValueError("is not supported by this version; leave it empty")
        return value

    @field_validator("api_keys_file")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value and not (Path(value).is_file() and os.access(value, os.R_OK)):
            raise ValueError("is not a file that can be read")
        return value

    @field_validator("public_url")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", value):
            raise ValueError("is not an http or https URL")
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
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def embedded(self) -> bool:
        """Say whether the control database is ours to make and to bring up to date."""
        return not self.database_url


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
    default = Settings.model_fields[name.lower()].default if name != "settings" else ""
    example = EXAMPLES.get(name, default)
    raise BadSetting(f"{name}: {fault}; example: {name}={example}")
