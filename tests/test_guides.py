"""The guides' samples, run beside a real server as their readers would run them.

A block of docs/client.md or docs/provider.md is run if its language is one of `bash`, `python` or
`javascript`. What is only to be read, or needs a machine of its own, says `sh`; PowerShell comes
from nowhere that a test may install from.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from app.keys.roles import ROLES
from loadtests.server import Server, make_key, start_product

ROOT = Path(__file__).resolve().parents[1]
CLIENT = (ROOT / "docs/client.md").read_text()
PROVIDER = (ROOT / "docs/provider.md").read_text()
DEADLINE_S = 60


class Desk(NamedTuple):
    """Where a reader sits: a directory with an .env, and an environment."""

    directory: Path
    environment: dict[str, str]
    server: Server


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Start a server on a fresh directory, and give what its client has."""
    data_dir = tmp_path_factory.mktemp("data")
    directory = tmp_path_factory.mktemp("client")
    server = start_product(data_dir)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DATA_DIR": str(data_dir),
        "LOGGER_API_URL": f"http://127.0.0.1:{server.port}",
        "LOGGER_API_KEY": make_key(data_dir, "guided"),
    }
    try:
        yield Desk(directory, environment, server)
    finally:
        server.stop()


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def _run(desk: Desk, command: list[str], text: str = "", cwd: Path | None = None) -> str:
    done = subprocess.run(
        command,
        input=text,
        cwd=cwd or desk.directory,
        env=desk.environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _program(name: str) -> str:
    """Find a program, or skip and say so."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: the guide's sample for it was NOT run")
    return found


def _stored_count(desk: Desk) -> int:
    url = f"{desk.environment['LOGGER_API_URL']}/api/v1/usage"
    key = f"X-API-Key: {desk.environment['LOGGER_API_KEY']}"
    usage = _run(desk, [_program("curl"), "-sS", url, "-H", key])
    return int(json.loads(usage)["totals"]["logs"])


def test_shell_samples(desk: Desk) -> None:
    """Each block for the shell does what the text beside it says."""
    _program("curl")
    *blocks, _ = _blocks(CLIENT, "bash")
    one, array, _, ndjson, twice, read, searched, pages, usage = (
        _run(desk, ["bash", "-eu", "-o", "pipefail"], block) for block in blocks
    )
    assert json.loads(one)["client_id"] == "guided"
    for batch in (array, ndjson):
        assert json.loads(batch) == {"accepted": 2, "rejected": 0, "duplicates": 0, "errors": []}

    assert twice.count('"accepted":1') + twice.count('"accepted": 1') == 2
    assert twice.lower().count("idempotent-replayed: true") == 1

    page = json.loads(read)
    assert [log["status"] for log in page["logs"]] == ["SUCCESS", "FAILED"]
    assert page["next_cursor"]
    decoder = json.JSONDecoder()
    found, end = decoder.raw_decode(searched)
    assert [log["message"] for log in found["logs"]] == ["12 databases saved"]
    assert json.loads(searched[end:])["logs"] == []
    logs = [log for line in pages.splitlines() for log in json.loads(line)["logs"]]
    assert len({log["id"] for log in logs}) == len(logs) == 6
    assert "nightly-2026-01-15-1" in [log.get("external_id") for log in logs]
    assert json.loads(usage)["totals"]["logs"] == 6


@pytest.mark.parametrize("number", [0, 1])
def test_python_samples(desk: Desk, number: int) -> None:
    """Each sample in Python stores a log."""
    before = _stored_count(desk)
    printed = _run(desk, [sys.executable, "-W", "error", "-"], _blocks(CLIENT, "python")[number])
    assert re.fullmatch(r"[0-9a-f]{36}|1", printed.strip())
    assert _stored_count(desk) == before + 1


def test_signing_samples(desk: Desk) -> None:
    """Each sample that signs stores a log with a key that must sign, and reads it back."""
    _program("openssl")
    command = [sys.executable, str(ROOT / "scripts/generate_api_key.py")]
    made = _run(
        desk, [*command, "--client", "signing", "--sign", "hmac-sha256", "--json"], "", ROOT
    )
    key = json.loads(made)
    mine = {"LOGGER_API_KEY": key["key"], "LOGGER_SIGNING_SECRET": key["signing_secret"]}
    signer = desk._replace(environment=desk.environment | mine)
    shell = _blocks(CLIENT, "bash")[-1]
    stored = json.loads(_run(signer, ["bash", "-eu", "-o", "pipefail"], shell))
    assert stored["client_id"] == "signing"
    python = [sys.executable, "-W", "error", "-"]
    one, other = _run(signer, python, _blocks(CLIENT, "python")[-1]).split()
    assert re.fullmatch(r"[0-9a-f]{36}", one)
    assert one == other


def test_tail_sample(desk: Desk) -> None:
    """The sample that follows logs prints each failure that is stored while it runs, once."""
    sample = _blocks(CLIENT, "python")[2]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", sample],
        cwd=desk.directory,
        env=desk.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        lines = iter(following.stdout)
        failure = {"environment": "dev", "executed_at": 0, "status": "FAILED"}
        # It may not have begun yet when the first ones are stored.
        posted: list[str] = []
        poster = threading.Thread(target=_post_until, args=(desk, failure, posted, following))
        poster.start()
        try:
            seen = [next(lines).split()[-1] for _ in range(3)]
        finally:
            following.kill()
            poster.join(DEADLINE_S)
    first = posted.index(seen[0])
    assert seen == posted[first : first + 3]


def _post_until(
    desk: Desk, record: dict[str, object], posted: list[str], process: "subprocess.Popen[str]"
) -> None:
    url = f"{desk.environment['LOGGER_API_URL']}/api/v1/logs"
    headers = {"X-API-Key": desk.environment["LOGGER_API_KEY"]}
    until = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < until:
        message = f"failure-{len(posted)}"
        posted.append(message)
        httpx.post(url, json=record | {"message": message}, headers=headers)
        time.sleep(0.2)
    process.kill()


def test_javascript_sample(desk: Desk) -> None:
    """The sample in JavaScript stores a log."""
    node = _program("node")
    (sample,) = _blocks(CLIENT, "javascript")
    before = _stored_count(desk)
    assert re.fullmatch(r"[0-9a-f]{36}", _run(desk, [node, "-"], sample).strip())
    assert _stored_count(desk) == before + 1


def test_provider_commands(desk: Desk) -> None:
    """Each command of the provider's guide that is marked as run does what the text says."""
    made, admin, restricted, signs, revoke, due, audited, suggest = _blocks(PROVIDER, "bash")
    shown = _paste(desk, made)
    assert (
        len(set(re.findall(r"LOGGER_API_KEY=cl_live_acme_corp_\w{61}$", shown, re.MULTILINE))) == 2
    )
    listed = shown.splitlines()[-2:]
    key_ids = re.findall(r"cl_live_acme_corp_(\w{12})\*\*\*", "\n".join(listed))
    assert len(key_ids) == 2
    assert "cl_admin_" in _paste(desk, admin)
    assert "cl_live_acme_corp_" in _paste(desk, restricted)
    _program("openssl")
    signing = _paste(desk, signs.replace("acme_corp.pub", str(desk.directory / "acme_corp.pub")))
    assert len(re.findall("LOGGER_SIGNING_SECRET=.{44}$", signing, re.MULTILINE)) == 1
    assert len(re.findall("^LOGGER_API_KEY=cl_live_", signing, re.MULTILINE)) == 2
    assert "acme_corp" in _paste(desk, f"{due.strip()}0")  # the key that ends in 90 days
    assert key_ids[0] in _paste(desk, revoke.replace("KEY_ID", key_ids[0]))
    _paste(desk, due)
    checked = _run(desk, ["bash", "-eu", "-o", "pipefail"], audited)
    assert checked.count("all seals hold") == 2
    assert "not used in the last 30 days" in _paste(desk, suggest)


def _paste(desk: Desk, block: str) -> str:
    return _run(desk, ["bash", "-eu", "-o", "pipefail"], block, ROOT)


def test_every_variable_of_the_commands_is_one_that_the_reader_has() -> None:
    """Each variable of a sample is exported on the page or set in it, also where nothing is run."""
    blocks = _blocks(PROVIDER, "(?:ba)?sh")
    exported = {
        name
        for block in blocks
        for line in re.findall(r"^export (.*)$", block, re.MULTILINE)
        for name in re.findall(r"(\w+)=", line)
    }
    for block in blocks:
        known = exported | set(re.findall(r"^(\w+)=", block, re.MULTILINE))
        assert set(re.findall(r"\$\{?([A-Z_]+)", block)) <= known, block


def test_table_of_roles() -> None:
    """The provider's guide lists every role with the scopes that it has."""
    rows = re.findall(r"^\| `(\w+)` \| ((?:[a-z]+:[a-z]+ ?)+) \|", PROVIDER, re.MULTILINE)
    told = {role: set(scopes.split()) for role, scopes in rows}
    assert told == {role: ROLES[role] for role in ("client", "ingest", "viewer", "analyst")}
    assert set(re.findall(r"^\| `(\w+)` \|.*\|.*\|$", PROVIDER, re.MULTILINE)) >= set(ROLES)


def test_no_sample_is_left_out() -> None:
    """Every block of the guides is of a language that is run, or one that is only to be read."""
    languages = set(re.findall(r"^```(\w+)$", CLIENT + PROVIDER, re.MULTILINE))
    assert languages == {"bash", "python", "javascript", "powershell", "sh", "ini"}
    assert len(re.findall(r"^```", CLIENT + PROVIDER, re.MULTILINE)) % 2 == 0


def test_a_backup_is_its_owners_alone(tmp_path: Path) -> None:
    """The guide's commands make a backup and a copy of the secret that nobody else can read."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    for name in ("control.db", "secret.key"):
        (data_dir / name).write_text(name)
    (block,) = (one for one in _blocks(PROVIDER, "sh") if "backup-$(date" in one)
    block = block.replace("/somewhere/else", str(tmp_path))
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(data_dir)}
    script = ["sh", "-ec", f"umask 022\n{block}"]
    subprocess.run(script, cwd=tmp_path, env=environment, check=True, timeout=DEADLINE_S)
    (backup,) = tmp_path.glob("backup-*.tar.gz")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (backup, tmp_path / "secret.key")} == {
        0o600
    }
    with tarfile.open(backup) as archive:
        assert {one.name for one in archive} == {".", "./control.db"}


def test_what_holds_keys_and_logs_is_not_committed() -> None:
    """Files that our commands write beside the code are ignored by git."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    written = ("onboarding-acme-k.eml", "rotation-platform-k.eml", "audit.ndjson")
    for name in (*written, "audit-2026.ndjson", "backup-2026-01-15.tar.gz"):
        assert any(fnmatch(name, pattern) for pattern in ignored), name
