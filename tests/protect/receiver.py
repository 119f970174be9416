"""A receiver of webhooks: a real HTTP server that keeps what it gets and answers as it is told."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from loadtests.server import HOST, free_port

# An answer that is none: the connection is held until the receiver ends.
HOLD = 0


@dataclass
class Receiver:
    """What came, and the statuses of the next answers; the last one stays."""

    port: int
    scheme: str = "http"
    answers: list[int] = field(default_factory=lambda: [200])
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Give its address, with a path that nobody is to be told."""
        return f"{self.scheme}://{HOST}:{self.port}/hooks/path-secret?to=ops"

    def next_answer(self) -> int:
        """Give the status of the next answer."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def running_receiver(port: int = 0, certificate: Path | None = None) -> Iterator[Receiver]:
    """Run a receiver, with TLS if there is a certificate."""
    receiver = Receiver(port or free_port(), "https" if certificate else "http")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # http.server's name
            receiver.paths.append(self.path)
            receiver.headers.append({name.lower(): text for name, text in self.headers.items()})
            receiver.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            status = receiver.next_answer()
            if status == HOLD:
                receiver.is_over.wait(30)
                return
            self.send_response(status)
            self.send_header("Location", f"http://{HOST}:{receiver.port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET

        def handle_error(self, *_: Any) -> None:
            pass  # who goes away in the middle is what is tested

    server = Server((HOST, receiver.port), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()
