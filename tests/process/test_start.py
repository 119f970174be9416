"""Starting and stopping the service as its operator does."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among the dependencies
import pytest

from app.keys.database import open_current
from app.sqlite import sqlite3
from app.storage.sqlite.schema import SCHEMA_VERSION, create_day, day_path
from loadtests.server import (
    HOST,
    ROOT,
    Server,
    free_port,
    make_admin_key,
    make_key,
    product_env,
    start_product,
)
from tests.process.service import PATH, Load, ask, check_stored, is_up, wait_until

KEY = re.compile(r"cl_(?:admin|live_demo)_[0-9A-Za-z]{61}")


def _output(server: Server) -> str:
    server.output.seek(0)
    return server.output.read().decode()


def _serve(data_dir: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Start a server that must not start."""
    return subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=product_env(data_dir, {"PORT": str(free_port())} | env),
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )


def _refused(data_dir: Path, **env: str) -> tuple[int, str]:
    """Start a server that must not start; give its exit code and its one line."""
    done = _serve(data_dir, **env)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return done.returncode, line


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_start_prints_its_keys_once(tmp_path: Path, workers: int) -> None:
    """The first start shows two keys and curls that work as they stand; the next one nothing."""
    with start_product(tmp_path, workers=workers) as server:
        shown = _output(server)
        keys = KEY.findall(shown)
        assert len(set(keys)) == 2
        assert shown.count("First start") == 1
        commands = re.findall(r"^curl .*?(?=\n\n)", shown, re.MULTILINE | re.DOTALL)
        assert len(commands) == 2
        if shutil.which("curl"):
            replies = [
                subprocess.run(["sh", "-c", one], capture_output=True, check=True, timeout=30)
                for one in commands
            ]
            stored, page = (json.loads(reply.stdout) for reply in replies)
            assert stored["client_id"] == "demo"
            assert [log["id"] for log in page["logs"]] == [stored["id"]]
        for key in set(keys):
            headers = {"X-API-Key": key}
            assert ask(server.port, "GET", f"{PATH}?client_id=demo", headers=headers)[0] == 200
        server.stop()
    with start_product(tmp_path, workers=workers) as server:
        assert "First start" not in _output(server)
        assert KEY.search(_output(server)) is None


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_port_that_the_system_chose_is_shown(tmp_path: Path, workers: str) -> None:
    """With PORT=0 the curls of the first start name the port that the service listens on."""
    with (tmp_path / "output").open("w") as output:
        server = psutil.Popen(
            [sys.executable, "-m", "app", "serve", "--port", "0", "--workers", workers],
            cwd=ROOT,
            env=product_env(tmp_path / "data"),
            stdout=output,
            stderr=output,
        )
    try:
        found: list[str] = []

        def is_shown() -> bool:
            found[:] = re.findall(
                r"curl -sS http://[^:]+:(\d+)/", (tmp_path / "output").read_text()
            )
            return len(found) == 2

        wait_until(is_shown, "the first keys")
        wait_until(lambda: is_up(int(found[0])), "the service at its port")
    finally:
        server.terminate()
        assert server.wait(20) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_logs_are_json_lines_without_a_key(tmp_path: Path, workers: int) -> None:
    """Whatever happens, each line of output is a JSON object, and no key is in any of them."""
    key = make_key(tmp_path, "acme")
    with start_product(tmp_path, env={"LOG_LEVEL": "debug"}, workers=workers) as server:
        for headers in ({"X-API-Key": key}, {"X-API-Key": key[:-1] + "_"}, {"Authorization": key}):
            for path in (PATH, f"/api/v1/{key}", f"{PATH}?cursor={key}", f"{PATH}/{key}"):
                for method in ("GET", "POST", "DELETE"):
                    body = json.dumps({"message": key}).encode()
                    assert ask(server.port, method, path, body, headers)[0] < 500
        [writer] = [one for one in server.tree() if "app.storage.sqlite.writer" in one.cmdline()]
        writer.kill()
        one = b'{"environment":"e","executed_at":0,"status":"s"}'
        headers = {"X-API-Key": key, "Content-Type": "application/json"}
        wait_until(
            lambda: ask(server.port, "POST", PATH, one, headers)[0] == 201, "the writer's return"
        )
        assert server.process.poll() is None
        server.process.terminate()
        assert server.process.wait(15) == 0
        lines = _output(server).splitlines()
    assert lines
    assert [line for line in lines if not line.startswith("{")] == []
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert not any(key[-61:] in line for line in lines)


def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    """Limits and sessions of two servers would add up: the second one says so and ends."""
    with start_product(tmp_path) as server:
        code, line = _refused(tmp_path)
        assert code == 1
        assert line.startswith("central-logger: DATA_DIR: another server runs on it")
        assert is_up(server.port)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("WORKERS", "0"),
        ("API_KEYS", "key:client"),
        ("API_KEYS", '{"key": "Not A Slug"}'),
        ("SECRET_KEY", "short"),
        ("SECRET_KEY", "\udcff" * 20),
        ("INITIAL_ADMIN_KEY", "k" * 600),
        ("LOG_STORE_URL", "mongodb://x"),
        ("DATABASE_URL", "mysql://x"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,home"),
        ("MAX_BODY_BYTES", "20MB"),
        ("REQUIRE_API_KEY", "perhaps"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_setting_stops_the_start(tmp_path: Path, name: str, value: str) -> None:
    """One line names the setting, its fault and an example."""
    code, line = _refused(tmp_path, **{name: value})
    assert code == 2
    assert line.startswith(f"central-logger: {name}: ")
    assert f"example: {name}=" in line


def test_a_data_directory_that_is_none(tmp_path: Path) -> None:
    """What cannot be a directory is refused with one line too."""
    (tmp_path / "file").touch()
    code, line = _refused(tmp_path / "file")
    assert code == 1
    assert line.startswith("central-logger: DATA_DIR: ")
    assert line.endswith("example: DATA_DIR=./data")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_only_the_opening_would_find_stops_the_start(tmp_path: Path, workers: str) -> None:
    """Settings that contradict files or databases are one line too, before any worker is there."""
    file = tmp_path / "keys.yaml"
    file.write_text("api_keys: [{key: twice, tenant: acme}]")
    stored = make_key(tmp_path / "data", "acme")
    for name, env in (
        ("API_KEYS_FILE", {"API_KEYS_FILE": str(file), "API_KEYS": '{"twice": "acme"}'}),
        ("API_KEYS_FILE", {"API_KEYS_FILE": str(file), "INITIAL_ADMIN_KEY": "twice"}),
        ("INITIAL_ADMIN_KEY", {"INITIAL_ADMIN_KEY": stored}),
        ("API_KEY_DEFAULT", {"API_KEY_DEFAULT": "twice", "API_KEY_ADMIN": "twice"}),
        ("GEOIP_DATABASE", {"GEOIP_DATABASE": str(file)}),
        ("DATABASE_URL", {"DATABASE_URL": f"sqlite:///{tmp_path}/none.db", "SECRET_KEY": "s" * 20}),
    ):
        code, line = _refused(tmp_path / "data", WORKERS=workers, **env)
        assert code == 2
        assert line.startswith(f"central-logger: {name}: ")
        assert line.count("example: ") == line.count(f"example: {name}=") == 1
        assert stored not in line
    assert not (tmp_path / "none.db").exists()


def test_another_secret_stops_the_start(tmp_path: Path) -> None:
    """A lost secret is not replaced, and with another one no key would work: one line says so."""
    make_key(tmp_path, "acme")
    secret = tmp_path / "secret.key"
    assert _refused(tmp_path, SECRET_KEY="s" * 20)[0] == 2
    secret.unlink()
    code, line = _refused(tmp_path)
    assert code == 2
    assert line.startswith(f"central-logger: {secret} is not there")
    assert not secret.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_first_keys_that_could_not_be_shown(tmp_path: Path, workers: int) -> None:
    """Where the output fails the start does too, and the next one shows keys."""
    command = [sys.executable, "-m", "app", "serve", "--workers", str(workers)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--port", str(free_port())],
            cwd=ROOT,
            env=product_env(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            text=True,
        )
    assert done.returncode != 0
    assert "the first keys could not be written to standard output: No space" in done.stderr
    assert "Traceback" not in done.stderr
    assert KEY.search(done.stderr) is None
    with start_product(tmp_path, workers=workers) as server:
        assert len(set(KEY.findall(_output(server)))) == 2


def test_workers_that_cannot_start_are_no_success(tmp_path: Path) -> None:
    """What only the workers find ends the server with a failure, as with one worker."""
    open_current("", tmp_path).dispose()
    database = sqlite3.connect(tmp_path / "control.db")
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.commit()
    database.close()
    for workers in ("1", "2"):
        done = _serve(tmp_path, WORKERS=workers)
        assert done.returncode != 0
        assert "another version of central-logger" in done.stdout


def test_a_secret_that_cannot_be_used(tmp_path: Path) -> None:
    """A fault that only the opening finds stops the start with a line that names it."""
    (tmp_path / "secret.key").write_text("short\n")
    done = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--port", str(free_port())],
        cwd=ROOT,
        env=product_env(tmp_path),
        capture_output=True,
        timeout=30,
        check=False,
        text=True,
    )
    assert done.returncode != 0
    assert "secret.key" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_uvicorn_serves_it_too(tmp_path: Path) -> None:
    """`uvicorn app.main:app` is the same service: logs go in, and nothing is lost at its end."""
    key = make_key(tmp_path, "acme")
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)]
    with (tmp_path / "output").open("wb") as output:
        server = psutil.Popen(
            command, cwd=ROOT, env=product_env(tmp_path), stdout=output, stderr=output
        )
        try:
            wait_until(lambda: is_up(port), "the server")
            load = Load(port, key, "load")
            with load.running():
                load.wait_for_more(500)
                tree = server.children(recursive=True)
                server.terminate()
                server.wait(15)
            assert tree
            _, alive = psutil.wait_procs(tree, timeout=10)
            assert not alive
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    check_stored(tmp_path, "acme", load)


def test_uvicorn_lends_nobody_an_address(tmp_path: Path) -> None:
    """Where uvicorn believes X-Forwarded-For, what it says lets nobody in."""
    key = make_key(tmp_path, "acme")
    admin = make_admin_key(tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)]
    path = f"/api/v1/api-keys/{key[-61:-49]}"
    with (tmp_path / "output").open("wb") as output:
        server = psutil.Popen(
            command, cwd=ROOT, env=product_env(tmp_path), stdout=output, stderr=output
        )
        try:
            wait_until(lambda: is_up(port), "the server")
            headers = {"X-API-Key": admin, "Content-Type": "application/json"}
            body = b'{"allowed_cidrs": ["10.0.0.0/8"]}'
            assert ask(port, "PATCH", path, body, headers)[0] == 200
            log = b'{"environment":"dev","executed_at":0,"status":"OK"}'
            for forwarded in ("10.0.0.1", "10.0.0.1:1234", "1.2.3.4, 10.0.0.1"):
                lent = {"X-API-Key": key, "X-Forwarded-For": forwarded}
                assert ask(port, "POST", "/api/v1/logs", log, lent)[0] == 403
                assert ask(port, "GET", "/api/v1/logs", headers=lent)[0] == 403
        finally:
            server.terminate()
            server.wait(15)


def test_uvicorn_refuses_a_bad_setting_with_one_line(tmp_path: Path) -> None:
    """Without our command too, a bad setting is one line and no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(free_port())],
        cwd=ROOT,
        env=product_env(tmp_path, {"API_KEYS": "key:client"}),
        capture_output=True,
        timeout=30,
        check=False,
        text=True,
    )
    assert done.returncode != 0
    [line] = (done.stdout + done.stderr).splitlines()
    assert line.startswith("central-logger: API_KEYS: ")


def test_the_version_needs_no_settings(tmp_path: Path) -> None:
    """`--version` answers whatever the environment holds."""
    done = subprocess.run(
        [sys.executable, "-m", "app", "--version"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PORT": "eighty"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert re.fullmatch(r"central-logger \d+\.\d+\.\d+\n", done.stdout)
    assert HOST == "127.0.0.1"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_day_file_of_a_newer_release_stops_the_start(tmp_path: Path, workers: str) -> None:
    """One line names the file and its version, no worker has to find it out, and it stays."""
    logs = tmp_path / "logs"
    logs.mkdir()
    path = day_path(logs, 20_000)
    create_day(path)
    newer = SCHEMA_VERSION + 1
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
    connection.close()
    stored = path.read_bytes()
    code, line = _refused(tmp_path, WORKERS=workers)
    assert code == 1
    told = f"central-logger: the logs cannot be used: {path} is a day file of version {newer}, "
    assert line.startswith(told)
    assert [one.name for one in logs.iterdir()] == [path.name]
    assert path.read_bytes() == stored
