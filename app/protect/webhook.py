"""ALERT_WEBHOOK_URL: alerts are POSTed there as JSON, signed by HMAC-SHA256."""

import asyncio
import hmac
import json
import re
import ssl
from urllib.parse import SplitResult, urlsplit

from app import __version__
from app.keys.verifier import hkdf_sha256
from app.protect.alert_list import as_object, summary
from app.protect.deliveries import NotTold
from app.protect.models import Alert

# Of a whole request: a receiver that answers letter by letter is no reason to wait.
TIMEOUT_S = 10.0
_HEAD_BYTES_MAX = 16 * 1024
_SUCCESS = re.compile(rb"HTTP/1\.[01] 2\d\d\b")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")


def webhook_secret(secret: str) -> str:
    """Give the text that signs what is POSTed, from a secret of the server."""
    return hkdf_sha256(secret.encode(), b"central-logger alert webhook", 32).hex()


def parse_webhook(url: str) -> SplitResult:
    """Read ALERT_WEBHOOK_URL; raise ValueError, without repeating it: its path may be a secret."""
    try:
        parts = urlsplit(url)
        is_bad = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:
        is_bad = True
    if is_bad or not re.fullmatch(r"[!-~]+", url):
        raise ValueError("is not an http or https URL in ASCII")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("has a user, a password or a fragment, which is not supported")
    return parts


class Webhook:
    """POSTs alerts as JSON, signed by HMAC-SHA256; follows nobody anywhere."""

    name = "webhook"
    readers = ("",)

    def __init__(self, url: str, secret: str, timeout_s: float = TIMEOUT_S) -> None:
        self._parts = parse_webhook(url)
        self._secret = webhook_secret(secret).encode()
        self._timeout_s = timeout_s
        is_tls = self._parts.scheme == "https"
        self._tls = ssl.create_default_context() if is_tls else None
        self._port = self._parts.port or (443 if is_tls else 80)

    async def tell(self, alert: Alert, reader: str = "") -> None:  # noqa: ARG002  # there is one
        """Do what Channel says: all of it within the timeout."""
        shown = {key: value for key, value in as_object(alert).items() if key != "told"}
        body = json.dumps({"text": summary(alert), **shown}).encode()
        try:
            async with asyncio.timeout(self._timeout_s):
                head = await self._post(body, str(alert.alert_id))
        except TimeoutError:
            raise NotTold(f"no answer within {self._timeout_s:.0f} s") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise NotTold(type(error).__name__) from None
        if _SUCCESS.match(head) is None:
            status = _STATUS.match(head)
            raise NotTold(f"answered {status[1].decode()}" if status else "is no HTTP server")

    async def _post(self, body: bytes, alert_id: str) -> bytes:
        """Send the request, and give the head of the answer.

        By hand: a client of the library has a time limit for each step, and not for all of them.
        """
        host = self._parts.hostname or ""
        reader, writer = await asyncio.open_connection(
            host, self._port, ssl=self._tls, limit=_HEAD_BYTES_MAX
        )
        try:
            writer.write(self._head(body, alert_id) + body)
            await writer.drain()
            head = await reader.readuntil(b"\n")
            while re.match(rb"HTTP/1\.[01] 1", head):  # 100 Continue and the like come before
                await reader.readuntil(b"\r\n\r\n")
                head = await reader.readuntil(b"\n")
            return head
        finally:
            writer.transport.abort()

    def _head(self, body: bytes, alert_id: str) -> bytes:
        parts = self._parts
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        signature = hmac.digest(self._secret, body, "sha256").hex()
        lines = (
            f"POST {target} HTTP/1.1",
            f"Host: {parts.netloc}",
            f"User-Agent: central-logger/{__version__}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            f"Idempotency-Key: {alert_id}",
            f"X-Signature-256: sha256={signature}",
            "Connection: close",
        )
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode()
