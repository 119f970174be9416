"""A key's secret is in its first reply and nowhere else, whatever is done with the key."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from loadtests.server import ROOT, Server, make_admin_key, make_key, product_env, start_product
from tests.process.service import PATH, Reply, ask

KEYS = "/api/v1/api-keys"
LOG = b'{"environment":"dev","executed_at":0,"status":"OK"}'


class Caller:
    """Asks a server with a key, and remembers every reply."""

    def __init__(self, server: Server, key: str) -> None:
        self._port = server.port
        self._key = key
        self.replies: list[bytes] = []

    def __call__(self, method: str, path: str, body: Any = None, key: str = "") -> Reply:
        """Ask with another key, if it is given."""
        headers = {"X-API-Key": key or self._key, "Content-Type": "application/json"}
        content = body if isinstance(body, bytes) else b"" if body is None else encode(body)
        reply = ask(self._port, method, path, content, headers)
        self.replies.append(reply[2])
        return reply

    def new_key(self, method: str, path: str, body: Any = None) -> tuple[str, str]:
        """Ask for a new key; give its id and its text, and forget that reply."""
        status, _, reply = self(method, path, body)
        assert status == 201, reply
        self.replies.pop()
        made = json.loads(reply)
        return made["id"], made["key"]


def encode(value: Any) -> bytes:
    """Write JSON."""
    return json.dumps(value).encode()


def rotate_by_mail(data_dir: Path, key_id: str, directory: Path) -> str:
    """Rotate a key with the script; give the claim token that its mail carries."""
    script = str(ROOT / "scripts" / "rotate_api_key.py")
    command = [sys.executable, script, key_id, "--notify", "a@b.de"]
    done = subprocess.run(
        command,
        cwd=directory,
        env=product_env(data_dir),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = re.search(r"/claim/(\S+)", done.stdout)
    assert found, done.stdout
    return found[1]


def test_no_secret_is_anywhere(tmp_path: Path) -> None:
    """Files, logs, metrics and later replies hold no part of a key's secret, nor of a link's."""
    data_dir, desk = tmp_path / "data", tmp_path / "desk"
    desk.mkdir()
    client_key, admin_key = make_key(data_dir, "acme"), make_admin_key(data_dir)
    with start_product(data_dir, {"LOG_LEVEL": "debug"}, workers=2) as server:
        admin = Caller(server, admin_key)
        made_id, made = admin.new_key("POST", KEYS, {"client_id": "acme", "role": "owner"})
        rotated_id, rotated = admin.new_key("POST", f"{KEYS}/{made_id}/rotate")
        texts = [client_key, admin_key, made, rotated]
        for key in texts:
            admin("POST", PATH, LOG, key)
            admin("POST", f"{PATH}?client_id=acme", b"[{}," + LOG + b"]", key)
            admin("POST", PATH, b'{"message": "' + key.encode(), key)
            admin("GET", f"{KEYS}/verify/current", None, key)
            admin("GET", f"{KEYS}/{key}")
            admin("GET", f"/api/v1/logs?workflow={key}", None, key)
            admin("GET", PATH, None, key[:-1])
            admin("GET", PATH, None, key + "x")
            admin("GET", PATH, None, "x" + key)
            admin("POST", f"{PATH}?dataset={key}", LOG, key[:-9])
            admin("PATCH", f"{KEYS}/{made_id}", {"name": 5}, key)
        token = rotate_by_mail(data_dir, rotated_id, desk)
        status, _, page = ask(server.port, "POST", f"/claim/{token}")
        assert status == 200
        texts += re.findall(r"cl_live_acme_\w{61}", page.decode())[:1]
        assert len(texts) == 5
        for method in ("GET", "POST"):
            assert ask(server.port, method, f"/claim/{token}")[0] == 410
        admin("GET", KEYS)
        admin("GET", "/metrics")
        admin("GET", "/api/v1/audit/access?limit=1000")
        admin("POST", f"{KEYS}/{rotated_id}/deactivate")
        admin("DELETE", f"{KEYS}/{made_id}")
        secrets = {text[-49:-6] for text in [*texts, token]}
        places = {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
        log = server.log_tail(10**9)
    assert {"control.db", "activity.db"} <= {path.name for path in places}
    for secret in secrets:
        assert len(secret) == 43
        assert secret not in log
        assert not [path for path, content in places.items() if secret.encode() in content]
        assert not [reply for reply in admin.replies if secret.encode() in reply]
