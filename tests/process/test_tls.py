"""The service behind a certificate of its own."""

import socket
import ssl
import subprocess
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from loadtests.server import HOST, ROOT, Server, free_port, make_key, product_env
from tests.support import LOGS, eventually, record


def make_pair(folder: Path, encryption: KeySerializationEncryption | None = None) -> dict[str, str]:
    """Make a certificate that signs itself, and its key; give the settings that name them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "logger")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    files = {"TLS_CERTIFICATE": folder / "certificate.pem", "TLS_KEY": folder / "key.pem"}
    files["TLS_CERTIFICATE"].write_bytes(certificate.public_bytes(Encoding.PEM))
    files["TLS_KEY"].write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    )
    return {name: str(file) for name, file in files.items()}


def start(data_dir: Path, settings: dict[str, str]) -> Server:
    """Start a server without waiting for it."""
    output = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
    port = free_port()
    process = psutil.Popen(
        [sys.executable, "-m", "app", "serve", "--port", str(port), "--workers", "2"],
        cwd=ROOT,
        env=product_env(data_dir, settings),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    return Server(process, port, 0.0, output)


def handshake(port: int, version: ssl.TLSVersion) -> str | None:
    """Offer one version of TLS and no other; give the one that was agreed on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # else this side refuses what is old
    context.minimum_version = context.maximum_version = version
    with socket.create_connection((HOST, port), timeout=20) as plain:
        try:
            with context.wrap_socket(plain) as wrapped:
                return wrapped.version()
        except (ssl.SSLError, ConnectionError):
            return None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_logs_over_tls(tmp_path: Path) -> None:
    """With a certificate all workers speak https, TLS 1.2 or newer, and nothing else."""
    pair = make_pair(tmp_path / "tls")
    data_dir = tmp_path / "data"
    key = make_key(data_dir, "acme")
    trust = ssl.create_default_context(cafile=pair["TLS_CERTIFICATE"])
    with (
        start(data_dir, pair | {"HEAD_TIMEOUT_S": "2", "UNREAD_TIMEOUT_S": "1"}) as server,
        httpx.Client(base_url=f"https://{HOST}:{server.port}", verify=trust) as http,
    ):

        def is_ready() -> bool:
            assert server.process.poll() is None, server.log_tail()
            try:
                return http.get("/health/ready").is_success
            except httpx.TransportError:
                return False

        eventually(is_ready, bool)
        headers = {"X-API-Key": key}
        for _ in range(3):
            assert http.post(LOGS, json=record(), headers=headers).status_code == 201
        large = [record(message="x" * 50_000) for _ in range(20)]
        assert http.post(LOGS, json=large, headers=headers).json()["accepted"] == 20
        assert len(http.get(LOGS, headers=headers).json()["logs"]) == 23
        assert handshake(server.port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert handshake(server.port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert handshake(server.port, ssl.TLSVersion.TLSv1_1) is None
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{HOST}:{server.port}/health/live")
        larger = [record(message="x" * 900_000) for _ in range(5)]
        for _ in range(2):
            assert http.post(LOGS, json=larger, headers=headers).json()["accepted"] == 5
        # TLS takes in what its client does not: it is let go as any such reply is.
        with socket.socket() as plain, closing(trust.wrap_socket(plain, server_hostname=HOST)) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            s.connect((HOST, server.port))
            s.sendall(f"GET {LOGS} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n".encode())
            eventually(lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), bool)
        assert "Traceback" not in server.log_tail(1000)
        http.close()  # a client that doesn't say good-bye is waited for
        assert server.stop() == 0


def test_a_bad_pair_stops_the_start(tmp_path: Path) -> None:
    """Files that don't belong together, or a key with a passphrase, are refused in one line."""
    one, other = make_pair(tmp_path / "one"), make_pair(tmp_path / "other")
    locked = make_pair(tmp_path / "locked", BestAvailableEncryption(b"secret"))
    for settings in (
        one | {"TLS_KEY": other["TLS_KEY"]},
        one | {"TLS_KEY": ""},
        locked,
    ):
        server = start(tmp_path / "data", settings)
        try:
            assert server.process.wait(30) == 2
            [line] = server.log_tail().splitlines()
            assert line.startswith("central-logger: TLS_")
            assert "example: TLS_" in line
        finally:
            server.stop()
