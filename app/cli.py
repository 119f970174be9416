"""The command `central-logger`."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from app import __version__
from app.errors import StorageUnavailable
from app.journal import redacted
from app.settings import SERVER_LOCK, BadSetting, Settings, load_settings, with_example
from app.streams import let_go, prepare_streams

if TYPE_CHECKING:
    from uvicorn import Config

DRAIN_S_MAX = 7  # of the 10 s that a stop may take; closing the store may take 2 of them

cli = typer.Typer(
    help="Centralized log ingestion with per-client API keys.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


audit = typer.Typer(help="Check or export the audit.", no_args_is_help=True)
cli.add_typer(audit, name="audit")

alerts = typer.Typer(help="What alerts are told with.", no_args_is_help=True)
cli.add_typer(alerts, name="alerts")

DataDir = Annotated[Path | None, typer.Option(help="Where embedded storage lives.")]
ClientId = Annotated[str | None, typer.Option(help="This client's chains alone.")]


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

    config = uvicorn.Config(
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
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=DRAIN_S_MAX,
        ssl_certfile=settings.tls_certificate or None,
        ssl_keyfile=settings.tls_key or None,
        ssl_context_factory=_tls_1_2 if settings.tls_certificate else None,
    )
    try:
        serve_it = _serve_by_workers if settings.workers > 1 else _serve_alone
        is_served = serve_it(config, _sockets(config))
    finally:
        held.close()
        if metrics_dir is not None:
            shutil.rmtree(metrics_dir, ignore_errors=True)
    if not is_served:
        raise typer.Exit(1)


def _sockets(config: "Config") -> list[socket.socket]:
    """Bind the port for several workers, or to learn which one it is; else the server does."""
    if config.workers == 1 and config.port:
        return []
    bound = config.bind_socket()
    # With PORT=0 the system has chosen one, and the first start shows it.
    os.environ["PORT"] = str(bound.getsockname()[1])
    return [bound]


def _serve_alone(config: "Config", sockets: list[socket.socket]) -> bool:
    """Serve in this process; say whether it came to that."""
    import uvicorn  # noqa: PLC0415  # as in serve

    config.load_app()
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        server.run(sockets or None)
    return server.started


def _serve_by_workers(config: "Config", sockets: list[socket.socket]) -> bool:
    """Serve in worker processes; False if none of them could start."""
    from app.supervisor import Supervisor  # noqa: PLC0415  # as in serve

    supervisor = Supervisor(config, sockets)
    with suppress(KeyboardInterrupt):
        supervisor.run()
    return not supervisor.is_refused


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


@audit.command(name="verify")
def verify_audit(
    *,
    data_dir: DataDir = None,
    client: ClientId = None,
    export: Annotated[
        Path | None, typer.Option(help="Check this export, not the databases.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="The service's own log: check its checkpoints too.")
    ] = None,
) -> None:
    """Check the seals of the audit; if not all hold, exit 1 with a line for each fault."""
    from app import audit_command  # noqa: PLC0415  # as in migrate

    settings = _settings(DATA_DIR=data_dir)
    if export is not None and (client is not None or log is not None):
        _refuse("--export checks all that is in the file, and nothing else", code=2)
    with _refused_in_a_line(audit_command.FAULTS):
        if export is None:
            holds = audit_command.verify(settings, typer.echo, client, log)
        else:
            holds = audit_command.verify_export(settings, typer.echo, export)
    if not holds:
        raise typer.Exit(1)


@audit.command(name="export")
def export_audit(
    *,
    output: Annotated[Path, typer.Option(help="The file to write: NDJSON.")],
    data_dir: DataDir = None,
    client: ClientId = None,
) -> None:
    """Write the audit to a file that `audit verify --export` can check anywhere."""
    from app import audit_command  # noqa: PLC0415  # as in migrate

    settings = _settings(DATA_DIR=data_dir)
    with _refused_in_a_line(audit_command.FAULTS):
        typer.echo(audit_command.export(settings, output, client))


@alerts.command(name="secret")
def show_alert_secret(*, data_dir: DataDir = None) -> None:
    """Print what signs the POSTs to ALERT_WEBHOOK_URL: whoever has it can make them up."""
    from app.keys.bootstrap import SECRET_FILE, open_secrets  # noqa: PLC0415  # as in migrate
    from app.keys.database import StartRefused  # noqa: PLC0415
    from app.protect.webhook import webhook_secret  # noqa: PLC0415

    settings = _settings(DATA_DIR=data_dir)
    if not settings.secret_key and not (settings.data_dir / SECRET_FILE).exists():
        _refuse(f"there is no SECRET_KEY, and no {SECRET_FILE} in {settings.data_dir}")
    with _refused_in_a_line((StartRefused, OSError)):
        secrets = open_secrets(settings.data_dir, settings.secret_key)
        typer.echo(webhook_secret(secrets[0]))


@contextmanager
def _refused_in_a_line(faults: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except faults as error:
        _refuse(getattr(error, "reason", None) or str(error))


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
    from app.keys.configured import check_file  # noqa: PLC0415
    from app.keys.database import StartRefused  # noqa: PLC0415
    from app.keys.keys_file import KeysFile  # noqa: PLC0415
    from app.protect.countries import Countries  # noqa: PLC0415
    from app.storage.open import check_store  # noqa: PLC0415

    if settings.tls_certificate:
        _check_certificate(settings)
    try:
        _check_database(settings, open_secrets(settings.data_dir, settings.secret_key))
        if settings.api_keys_file:
            entries = KeysFile(settings.api_keys_file).read()
            platform = settings.api_key_admin, settings.api_key_default, settings.initial_admin_key
            check_file(settings.api_keys, *platform, entries)
        if settings.geoip_database:
            Countries(settings.geoip_database)
    except StartRefused as error:
        _refuse(with_example(str(error)), code=2)
    except StorageUnavailable as error:
        _refuse(f"the control database cannot be used: {error.reason}")
    try:
        check_store(settings.data_dir)
    except StorageUnavailable as error:
        _refuse(f"the logs cannot be used: {error.reason}")
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            name = "PORT" if error.errno in {errno.EADDRINUSE, errno.EACCES} else "HOST"
            example = "8000" if name == "PORT" else "127.0.0.1"
            _refuse(f"{name}: {error.strerror}; example: {name}={example}", code=2)


def _check_database(settings: Settings, secrets: tuple[str, ...]) -> None:
    """Refuse one that is not ours to migrate, or whose keys don't go with the settings."""
    from app.keys.bootstrap import (  # noqa: PLC0415  # as in migrate
        check_initial_admin,
        check_secrets,
    )
    from app.keys.database import (  # noqa: PLC0415
        control_file,
        embedded_url,
        is_current,
        open_current,
        open_engine,
    )
    from app.keys.verifier import Peppers  # noqa: PLC0415

    if settings.database_url:
        engine = open_current(settings.database_url, settings.data_dir)
    elif control_file(settings.data_dir).exists():
        engine = open_engine(embedded_url(settings.data_dir))
    else:
        return
    try:
        if is_current(engine):  # else it is the worker's to bring up to date, and to look at
            peppers = Peppers(secrets)
            check_secrets(engine, peppers)
            check_initial_admin(engine, peppers, settings.initial_admin_key)
    finally:
        engine.dispose()


def _check_certificate(settings: Settings) -> None:
    """Refuse a pair of files that can't be served with, or whose key has a passphrase."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(
            settings.tls_certificate, settings.tls_key, password=_refuse_passphrase
        )
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        fault = f"TLS_CERTIFICATE: does not make a pair with TLS_KEY ({reason})"
        _refuse(f"{fault}; example: TLS_CERTIFICATE=/etc/ssl/logger/fullchain.pem", code=2)


def _refuse_passphrase() -> str:
    raise ValueError("the key has a passphrase")  # else the server would ask at its terminal


def _tls_1_2(_config: Any, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Make the server's TLS context; whatever the machine's defaults are, nothing older serves."""
    context = make()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _hold(settings: Settings) -> TextIO:
    """Take DATA_DIR for this server alone: in-process limits of two would add up."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = (settings.data_dir / SERVER_LOCK).open("w")
    except OSError as error:
        _refuse(with_example(f"DATA_DIR: {error.strerror}"))
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _refuse("DATA_DIR: another server runs on it")
    return held


def _share_metrics() -> str:
    """Let the workers' metrics be summed; read by prometheus_client when it is imported."""
    directory = tempfile.mkdtemp(prefix="central-logger-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    return directory


def _refuse(message: str, *, code: int = 1) -> NoReturn:
    typer.echo(redacted(f"central-logger: {message}"), err=True)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line; output that fails ends it with 1 and a line, not with a traceback."""
    is_server = sys.argv[1:2] == ["serve"]  # its output is its journal, which it can do without
    is_heard = prepare_streams()
    try:
        if not (is_heard or is_server):
            _fail("standard output is closed")
        cli()
    except OSError as error:
        if is_server:
            raise
        _fail(error.strerror or str(error))
    finally:
        let_go()


def _fail(message: str) -> NoReturn:
    """End with 1 and a line where no command can say so."""
    with suppress(OSError):  # stderr may be what fails
        typer.echo(redacted(f"central-logger: {message}"), err=True)
    sys.exit(1)
