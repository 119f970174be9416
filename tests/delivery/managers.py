"""Secrets managers that speak their vendors' documented APIs, each on a port of its own."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"


class Manager(ThreadingHTTPServer):
    """What all have in common: what was stored, what was asked, and how puts are met.

    A refusal quotes the request, as some servers and proxies do. A held put gets no
    answer.
    """

    daemon_threads = True

    def __init__(self, handler: type["Conversation"]) -> None:
        self.stored: dict[str, list[Any]] = {}
        self.asked: list[str] = []
        self.refuse_puts: int | None = None
        self.hold_puts = False
        self.is_holding = threading.Event()
        self.let_go = threading.Event()
        super().__init__((HOST, 0), handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            self.let_go.set()
            self.shutdown()
            thread.join()
            self.server_close()


class Conversation(BaseHTTPRequestHandler):
    """Requests on one connection; subclasses give `answer`."""

    protocol_version = "HTTP/1.1"
    timeout = 20
    server: Any

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer."""
        self._converse()

    do_POST = do_PUT = do_GET  # noqa: N815

    def answer(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        """Give status and JSON."""
        raise NotImplementedError

    def _converse(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.server.asked.append(f"{self.command} {url.path}")
        self.extra_headers: dict[str, str] = {}
        is_put = self.command in {"POST", "PUT"}
        if is_put and self.server.hold_puts:
            self.server.is_holding.set()
            self.server.let_go.wait(self.timeout)
            self.close_connection = True
            return
        if is_put and self.server.refuse_puts:
            status, value = self.server.refuse_puts, {"errors": [body.decode()]}
        else:
            status, value = self.answer(url.path, parse_qs(url.query), body)
        sent = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        for name, text in self.extra_headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(sent)


class VaultServer(Manager):
    """HashiCorp Vault with KV version 2 at `kv`, and version 1 at `old`."""

    token = "hvs.token-of-the-test"
    namespace = "team-a"

    def __init__(self) -> None:
        super().__init__(_VaultConversation)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "VAULT_ADDR": self.url,
            "VAULT_TOKEN": self.token,
            "VAULT_NAMESPACE": self.namespace,
        }


class _VaultConversation(Conversation):
    def answer(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:  # noqa: ARG002
        if self.headers["X-Vault-Token"] != self.server.token:
            return 403, {"errors": ["permission denied"]}
        if self.headers["X-Vault-Namespace"] != self.server.namespace:
            return 404, {"errors": ["no such namespace"]}
        if (self.command, path) == ("GET", "/v1/auth/token/lookup-self"):
            return 200, {"data": {"id": self.server.token, "policies": ["default"]}}
        if path.startswith("/v1/old/"):
            self.server.stored[path.removeprefix("/v1/old/")] = [json.loads(body)["data"]]
            return 204, None
        if self.command in {"POST", "PUT"} and path.startswith("/v1/kv/data/"):
            versions = self.server.stored.setdefault(path.removeprefix("/v1/kv/data/"), [])
            versions.append(json.loads(body)["data"])
            return 200, {"data": {"version": len(versions), "destroyed": False}}
        return 404, {"errors": [f"no handler for route {path!r}"]}


class AzureServer(Manager):
    """A key vault, and the proxy through which its public name is found.

    So the library meets the name, the certificate and the challenge that it insists on.
    """

    name = "acme-vault"
    token = "token-of-the-managed-identity"

    def __init__(self, directory: Path) -> None:
        self.ca_file = directory / "vault.pem"
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, key = _certificate(f"{self.name}.vault.azure.net")
        self.ca_file.write_bytes(certificate)
        key_file = directory / "vault-key.pem"
        key_file.write_bytes(key)
        self.tls.load_cert_chain(self.ca_file, key_file)
        self.identity = ManagedIdentity(self.token)
        super().__init__(_AzureConversation)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the block ends, the identity's endpoint too."""
        with super().running(), self.identity.running():
            yield

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "HTTPS_PROXY": self.url,
            "NO_PROXY": HOST,
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
            "IDENTITY_ENDPOINT": f"{self.identity.url}/msi/token",
            "IDENTITY_HEADER": self.identity.header,
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
        }


class _AzureConversation(Conversation):
    def do_CONNECT(self) -> None:
        """Be the proxy, and at once the server behind it."""
        self.server.asked.append(f"CONNECT {self.path}")
        if self.path != f"{self.server.name}.vault.azure.net:443":
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        try:
            self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        except (ssl.SSLError, OSError):
            self.close_connection = True
            return
        self.rfile.close()
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def finish(self) -> None:
        """Close what the connection became, too."""
        super().finish()
        self.connection.close()

    def answer(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.extra_headers["WWW-Authenticate"] = (
                'Bearer authorization="https://login.microsoftonline.com/tenant", '
                'resource="https://vault.azure.net"'
            )
            return 401, {"error": {"code": "Unauthorized", "message": "no bearer token"}}
        if "api-version" not in query:
            return 400, {"error": {"code": "BadParameter", "message": "api-version"}}
        name = path.removeprefix("/secrets/").removesuffix("/versions")
        versions = self.server.stored.setdefault(name, [])
        secret_id = f"https://{self.server.name}.vault.azure.net/secrets/{name}/{len(versions)}"
        if self.command == "PUT":
            versions.append(json.loads(body))
            return 200, {"value": "", "id": secret_id, "attributes": {"enabled": True}}
        if path.endswith("/versions"):
            return 200, {"value": [{"id": secret_id}] if versions else [], "nextLink": None}
        return 404, {"error": {"code": "SecretNotFound", "message": "not found"}}


class ManagedIdentity(Manager):
    """The endpoint at which App Service gives tokens to what runs in it."""

    header = "header-of-the-test"

    def __init__(self, token: str) -> None:
        self.token = token
        super().__init__(_IdentityConversation)


class _IdentityConversation(Conversation):
    def answer(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:  # noqa: ARG002
        if self.headers["X-IDENTITY-HEADER"] != self.server.header:
            return 401, {"statusCode": 401, "message": "wrong header"}
        if query.get("resource") != ["https://vault.azure.net"]:
            return 400, {"statusCode": 400, "message": "wrong resource"}
        expires_on = int((datetime.now(UTC) + timedelta(hours=1)).timestamp())
        return 200, {
            "access_token": self.server.token,
            "expires_on": str(expires_on),
            "resource": "https://vault.azure.net",
            "token_type": "Bearer",
        }


def _certificate(host: str) -> tuple[bytes, bytes]:
    """Make a certificate that vouches for itself; give it and its key as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
