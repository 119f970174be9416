"""The command `central-logger`."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from app import __version__
from app.errors import StorageUnavailable
from app.settings import SERVER_LOCK, BadSetting, Settings, load_settings

DRAIN_S_MAX = 7  # of the 10 s that a stop may take; closing the store may take 2 of them
# Longer than the idle time of common clients' pools: else they reuse a connection as it closes.
KEEP_ALIVE_S = 75

cli = typer.Typer(
    help="Centralized log ingestion with per-client API keys.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"central-logger {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=lambda v: _version(wanted=v), is_eager=True)
    ] = False,
) -> None:
    """Centralized log ingestion with per-client API keys."""


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where embedded storage lives.")] = None,
    workers: Annotated[int | None, typer.Option(help="HTTP worker processes.")] = None,
) -> None:
    """Run the service; stops on SIGTERM after what it has accepted is stored."""
    settings = _settings(HOST=host, PORT=port, DATA_DIR=data_dir, WORKERS=workers)
    held = _hold(settings)
    _check_start(settings)
    metrics_dir = _share_metrics() if settings.workers > 1 else None
    # The server raises the signal once more when it has drained: that is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    import uvicorn  # noqa: PLC0415  # only this command needs it

    try:
        uvicorn.run(
            "app.main:app",
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # TRUSTED_PROXIES decides, and only where an address matters
            http="app.edge.protocol:EdgeProtocol",
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S_MAX,
        )
    finally:
        held.close()
        if metrics_dir is not None:
            shutil.rmtree(metrics_dir, ignore_errors=True)


@cli.command()
def migrate() -> None:
    """Bring the control database up to date."""
    from app.keys.database import (  # noqa: PLC0415  # --version needs no database
        StartRefused,
        embedded_url,
        open_engine,
        upgrade,
    )

    settings = _settings()
    try:
        engine = open_engine(settings.database_url or embedded_url(settings.data_dir))
        upgrade(engine)
    except StartRefused as error:
        _refuse(str(error))
    except StorageUnavailable as error:
        _refuse(f"{error.detail}: {error.reason}")
    typer.echo("The control database is up to date.")


def _settings(**overrides: Any) -> Settings:
    """Read the settings; options go before the environment, for the worker processes too."""
    for name, value in overrides.items():
        if value is not None:
            os.environ[name] = str(value)
    try:
        return load_settings()
    except BadSetting as error:
        _refuse(str(error), code=2)


def _check_start(settings: Settings) -> None:
    """Refuse in one line here what would else be refused by each worker."""
    from app.keys.bootstrap import open_secrets  # noqa: PLC0415  # as in migrate
    from app.keys.database import StartRefused  # noqa: PLC0415
    from app.keys.keys_file import KeysFile  # noqa: PLC0415

    try:
        open_secrets(settings.data_dir, settings.secret_key)
        if settings.api_keys_file:
            KeysFile(settings.api_keys_file).read()
    except StartRefused as error:
        _refuse(str(error), code=2)
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            name = "PORT" if error.errno in {errno.EADDRINUSE, errno.EACCES} else "HOST"
            example = "8000" if name == "PORT" else "127.0.0.1"
            _refuse(f"{name}: {error.strerror}; example: {name}={example}", code=2)


def _hold(settings: Settings) -> TextIO:
    """Take DATA_DIR for this server alone: in-process limits of two would add up."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = (settings.data_dir / SERVER_LOCK).open("w")
    except OSError as error:
        _refuse(f"DATA_DIR: {error}")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _refuse(f"DATA_DIR: another server runs on {settings.data_dir}")
    return held


def _share_metrics() -> str:
    """Let the workers' metrics be summed; read by prometheus_client when it is imported."""
    directory = tempfile.mkdtemp(prefix="central-logger-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    return directory


def _refuse(message: str, *, code: int = 1) -> NoReturn:
    typer.echo(f"central-logger: {message}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line."""
    cli()
