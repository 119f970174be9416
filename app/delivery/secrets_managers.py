"""Secrets managers that a new key can be put into, each through its vendor's own library.

A target is `manager:name`. The libraries are extras, imported when one is needed; each takes its
address and its credentials from where it always does, the environment first.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

# A manager that answers at all does so well within these.
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 20

_AZURE_VAULT_URL = "AZURE_KEY_VAULT_URL"


class NotDelivered(Exception):
    """A secret cannot be, or was not, put into its manager; one line without any secret."""


class Target(NamedTuple):
    """Where a secret goes: the name of a manager, and the secret's name in it."""

    manager: str
    name: str

    def __str__(self) -> str:
        return f"{self.manager}:{self.name}"


class SecretsManager(Protocol):
    """One secret in a manager; every method raises NotDelivered."""

    def check(self) -> None:
        """Find out whether it can be written, as far as reading tells."""

    def put(self, secret: Mapping[str, str]) -> None:
        """Store it, as a new version if it exists."""

    def close(self) -> None:
        """Give back the connections."""


def parse_target(text: str) -> Target:
    """Read `manager:name`; raise ValueError with one line."""
    manager, _, name = text.partition(":")
    if manager not in _MANAGERS:
        raise ValueError(f"no such manager: {manager!r} (there are {', '.join(_MANAGERS)})")
    pattern, form, _ = _MANAGERS[manager]
    if not re.fullmatch(pattern, name):
        raise ValueError(f"{manager} takes {manager}:{form}, not {text!r}")
    return Target(manager, name)


@contextmanager
def open_manager(target: Target) -> Iterator[SecretsManager]:
    """Open the manager of a target for a while, without asking it anything yet."""
    with _named(target):
        manager = _MANAGERS[target.manager].open(target)
    try:
        yield manager
    finally:
        manager.close()


class AwsSecretsManager:
    """A secret of AWS Secrets Manager, as JSON.

    Needs DescribeSecret, CreateSecret and PutSecretValue.
    """

    def __init__(self, target: Target) -> None:
        with _extra("aws"):
            import boto3  # type: ignore[import-untyped]  # noqa: PLC0415
            from botocore.config import Config  # type: ignore[import-untyped]  # noqa: PLC0415
        self._target = target
        self._exists = False
        self._client = boto3.client(
            "secretsmanager",
            config=Config(connect_timeout=_CONNECT_TIMEOUT_S, read_timeout=_READ_TIMEOUT_S),
        )

    def check(self) -> None:
        """Look at the secret, which also says whether to create it."""
        with _named(self._target):
            try:
                found = self._client.describe_secret(SecretId=self._target.name)
            except self._client.exceptions.ResourceNotFoundException:
                return
            if "DeletedDate" in found:
                raise NotDelivered("the secret is scheduled for deletion")
            self._exists = True

    def put(self, secret: Mapping[str, str]) -> None:
        """Create the secret, or give it a new version."""
        with _named(self._target):
            name, text = self._target.name, json.dumps(secret)
            if self._exists:
                self._client.put_secret_value(SecretId=name, SecretString=text)
            else:
                self._client.create_secret(Name=name, SecretString=text)

    def close(self) -> None:
        """Give back the connections."""
        self._client.close()


class Vault:
    """A secret of HashiCorp Vault's (or OpenBao's) KV version 2, field by field.

    The first part of the name is the mount. Needs create and update at its data path.
    """

    def __init__(self, target: Target) -> None:
        with _extra("vault"):
            import hvac  # type: ignore[import-untyped]  # noqa: PLC0415
        if not os.environ.get("VAULT_ADDR"):
            # The library would send the token to whatever listens on its default port.
            raise NotDelivered("VAULT_ADDR is not set")
        self._target = target
        self._mount, _, self._path = target.name.partition("/")
        self._client = hvac.Client(
            namespace=os.environ.get("VAULT_NAMESPACE") or None, timeout=_READ_TIMEOUT_S
        )
        if not self._client.token:
            raise NotDelivered("VAULT_TOKEN is not set")

    def check(self) -> None:
        """Have the token looked up."""
        with _named(self._target):
            self._client.auth.token.lookup_self()

    def put(self, secret: Mapping[str, str]) -> None:
        """Write a new version."""
        with _named(self._target):
            answer = self._client.secrets.kv.v2.create_or_update_secret(
                path=self._path, secret=dict(secret), mount_point=self._mount
            )
            if not isinstance(answer, dict) or "version" not in answer.get("data", {}):
                # Version 1 takes the same request as a secret named data/…, where nobody looks.
                raise NotDelivered(f"the mount {self._mount!r} is not KV version 2")

    def close(self) -> None:
        """Give back the connections."""
        self._client.adapter.close()


class AzureKeyVault:
    """A secret of Azure Key Vault, as JSON.

    Needs list and set on secrets, as the role Key Vault Secrets Officer gives them.
    """

    def __init__(self, target: Target) -> None:
        with _extra("azure"):
            from azure.identity import DefaultAzureCredential  # noqa: PLC0415
            from azure.keyvault.secrets import SecretClient  # noqa: PLC0415
        vault, _, name = target.name.rpartition("/")
        url = f"https://{vault}.vault.azure.net" if vault else os.environ.get(_AZURE_VAULT_URL)
        if not url:
            raise NotDelivered(f"name the vault, as VAULT/{name} or in {_AZURE_VAULT_URL}")
        self._target = target
        self._name = name
        self._credential = DefaultAzureCredential()
        self._client = SecretClient(
            url,
            self._credential,
            connection_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
        )

    def check(self) -> None:
        """Ask for the secret's versions, which needs a credential and shows no value."""
        from azure.core.exceptions import ResourceNotFoundError  # noqa: PLC0415

        with _named(self._target):
            try:
                next(iter(self._client.list_properties_of_secret_versions(self._name)), None)
            except ResourceNotFoundError:
                return

    def put(self, secret: Mapping[str, str]) -> None:
        """Write a new version."""
        with _named(self._target):
            self._client.set_secret(self._name, json.dumps(secret), content_type="application/json")

    def close(self) -> None:
        """Give back the connections."""
        self._client.close()
        self._credential.close()


class _Manager(NamedTuple):
    name_pattern: str
    form: str
    open: Callable[[Target], SecretsManager]


_MANAGERS = {
    "aws-secrets-manager": _Manager(r"\S{1,512}", "NAME", AwsSecretsManager),
    "vault": _Manager(r"[\w-]+(/(?!\.{1,2}(/|$))[\w.@+-]+)+", "MOUNT/PATH", Vault),
    "azure-key-vault": _Manager(
        r"([A-Za-z][A-Za-z0-9-]{2,23}/)?[A-Za-z0-9-]{1,127}", "VAULT/NAME", AzureKeyVault
    ),
}


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Import the libraries of an extra, or say how to get them."""
    try:
        yield
    except ImportError:
        raise NotDelivered(
            f"its library is not installed: pip install 'central-logger[{name}]'"
        ) from None


@contextmanager
def _named(target: Target) -> Iterator[None]:
    """Turn whatever a library raises into NotDelivered, which names the target.

    Only the kind of error and its code are told. Its text may hold the request, and so the key, a
    token, or an address with a password.
    """
    try:
        yield
    except NotDelivered as error:
        raise NotDelivered(f"{target}: {error}") from None
    except Exception as error:  # noqa: BLE001  # the libraries leak errors of what they build on
        raise NotDelivered(f"{target}: {_kind(error)}") from None


def _kind(error: Exception) -> str:
    name = type(error).__name__
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        code = str(response.get("Error", {}).get("Code"))
    else:
        code = str(getattr(error, "status_code", None))
    # Nothing that an answer made up: a code is a short word, or a status.
    return f"{name} ({code})" if re.fullmatch(r"[A-Za-z]{5,64}|\d{3}", code) else name
