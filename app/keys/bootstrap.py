"""The first start: the server's secret, the clients that settings name, the first keys."""

import os
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, inspect, or_
from sqlmodel import Session, col, select

from app.audit.chain import ChainKeys
from app.audit.models import AuditHead
from app.errors import Invalid, StorageUnavailable
from app.keys.changes import Author
from app.keys.clients import add_client
from app.keys.configured import DEFAULT_CLIENT_ID, INITIAL_ADMIN_KEY, ConfiguredKeys
from app.keys.database import StartRefused, control_file, reading, sqlite_engine, writing
from app.keys.imports import KEY_IMPORTED, find_stored, prepare_import
from app.keys.models import ApiKey, Client
from app.keys.registry import add_key, any_key, new_key
from app.keys.roles import ADMIN
from app.keys.verifier import SECRET_LENGTH_MIN, Peppers

SECRET_FILE = "secret.key"  # noqa: S105 (its name, not its content)
SECRET_BYTES = 48
DEMO_CLIENT_ID = "demo"
FIRST_START = "first start"


@dataclass(frozen=True, slots=True)
class FirstKeys:
    """The texts of the first two keys, to be shown once."""

    client_id: str
    admin_key: str
    client_key: str


def open_secrets(data_dir: Path, secret_key: tuple[str, ...]) -> tuple[str, ...]:
    """Give the server's secrets, current one first.

    They come from the settings, else from `data_dir`/secret.key (a line each), which is made
    with mode 0600 if it is not there. Raises StartRefused if the file cannot be made or used, or
    is not there although keys are.
    """
    if secret_key:
        return secret_key
    path = data_dir / SECRET_FILE
    try:
        if not path.exists():
            _check_unused(control_file(data_dir), path)
            _make_secret(path)
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise StartRefused(f"{path}: {error}") from error
    found = tuple(line for line in (line.strip() for line in text.splitlines()) if line)
    if not found or any(len(secret) < SECRET_LENGTH_MIN for secret in found):
        # Never replaced: every key ever made depends on it, and a copy may exist elsewhere.
        raise StartRefused(f"{path}: needs a line of at least {SECRET_LENGTH_MIN} characters")
    return found


def check_secrets(engine: Engine, peppers: Peppers) -> None:
    """Raise StartRefused if there are keys and none was made under one of the secrets.

    Under other secrets no key would work, none that is made now would work for whoever has the
    right ones, and what is done would be sealed in a way that nobody can check.
    """
    a_key = select(ApiKey.id).where(col(ApiKey.verifier).is_not(None)).limit(1)
    of_ours = [
        begun
        for verifier, tag in peppers.marks
        for begun in (
            col(ApiKey.verifier).startswith(verifier),
            col(ApiKey.lookup_tag).startswith(tag),
        )
    ]
    with reading(engine) as session:
        is_other = session.exec(a_key.where(or_(*of_ours))).first() is None
        if is_other and session.exec(a_key).first() is not None:
            raise StartRefused(
                "no stored key was made under this SECRET_KEY, or secret.key where that is unset:"
                " the server's own is needed"
            )


def check_initial_admin(engine: Engine, peppers: Peppers, initial_admin_key: str) -> None:
    """Raise StartRefused for an INITIAL_ADMIN_KEY that `first_start` would not store."""
    with reading(engine) as session:
        if initial_admin_key and not any_key(session, role=ADMIN):
            _check_not_stored(session, peppers, initial_admin_key)


def first_start(  # noqa: PLR0913 (each is one setting)
    engine: Engine,
    peppers: Peppers,
    configured: ConfiguredKeys,
    *,
    seals: ChainKeys,
    embedded: bool,
    initial_admin_key: str = "",
    require_api_key: bool = True,
    key_hasher: str = "auto",
    show: Callable[[FirstKeys], object] | None = None,
) -> FirstKeys | None:
    """See that a fresh installation can be used; does nothing on a used one.

    - The clients of configured keys exist (and `default`, if no key is required).
    - INITIAL_ADMIN_KEY is stored if there was never an admin key. Never again after that, or a
      restart would bring back a revoked one.
    - On embedded storage without any key, configured ones counted, client `demo` gets one and so
      does the administrator; both are shown and returned, and exist nowhere else. If `show` fails
      they are not stored: the next start has others to show.

    Safe when several processes start together: one of them does it, and gets the keys to show.
    Raises StartRefused for an INITIAL_ADMIN_KEY that could never be accepted, or is a client's: it
    would open every client's logs, now or once the client's key has ended.
    """
    client_ids = configured.client_ids | (set() if require_api_key else {DEFAULT_CLIENT_ID})
    # Looked at before anything is locked or written: most starts have nothing to do.
    with reading(engine) as session:
        missing = _missing(session, client_ids)
        wants_admin = bool(initial_admin_key) and not any_key(session, role=ADMIN)
        wants_demo = embedded and not configured and not initial_admin_key and not any_key(session)
    if not (missing or wants_admin or wants_demo):
        return None
    admin: ApiKey | None = None
    if wants_admin:
        # Outside the transaction, because argon2 takes its time.
        admin = _initial_admin(peppers, initial_admin_key, key_hasher)
    settings = by_settings(seals)
    with writing(engine) as session:
        for client_id in missing:
            add_client(session, client_id, by=settings)
        if admin is not None and not any_key(session, role=ADMIN):
            _check_not_stored(session, peppers, initial_admin_key)
            add_key(session, admin, by=settings, create_client=False, action=KEY_IMPORTED)
        if wants_demo and not any_key(session):
            by = Author(seals, FIRST_START)
            first = _add_first_keys(session, peppers, key_hasher, by)
            # Before they are committed: keys that nobody saw would be in force for ever.
            if show is not None:
                show(first)
            return first
    return None


def by_settings(seals: ChainKeys) -> Author:
    """Give the author of what the settings ask for."""
    return Author(seals, "settings")


def see_clients(engine: Engine, client_ids: Collection[str], *, by: Author) -> None:
    """See that these clients exist; writes nothing if they do."""
    with reading(engine) as session:
        missing = _missing(session, client_ids)
    if missing:
        with writing(engine) as session:
            for client_id in missing:
                add_client(session, client_id, by=by)


def _missing(session: Session, client_ids: Collection[str]) -> list[str]:
    return [c for c in sorted(client_ids) if session.get(Client, c) is None]


def _initial_admin(peppers: Peppers, token: str, key_hasher: str) -> ApiKey:
    name = INITIAL_ADMIN_KEY
    try:
        return prepare_import(peppers, token, client_id=None, name=name, key_hasher=key_hasher)
    except Invalid as error:
        raise StartRefused(f"{name}: {error.members['errors'][0]['detail']}") from error


def _check_not_stored(session: Session, peppers: Peppers, token: str) -> None:
    key = find_stored(session, peppers, token)
    if key is not None:
        owner = f"a key of client {key.client_id}" if key.client_id else "a key of the platform"
        raise StartRefused(f"{INITIAL_ADMIN_KEY}: is stored already, as {owner} ({key.key_id})")


def _add_first_keys(session: Session, peppers: Peppers, key_hasher: str, by: Author) -> FirstKeys:
    texts = []
    for client_id in (None, DEMO_CLIENT_ID):
        key, text = new_key(
            peppers,
            key_hasher,
            client_id=client_id,
            name="first admin key" if client_id is None else "demo key",
            created_by=FIRST_START,
        )
        add_key(session, key, by=by, create_client=True)
        texts.append(text)
    return FirstKeys(DEMO_CLIENT_ID, *texts)


def _check_unused(database: Path, secret: Path) -> None:
    """Raise StartRefused if a database holds keys, which must have been made under a secret."""
    if not database.exists():
        return
    engine = sqlite_engine(database)
    try:
        with reading(engine) as session:
            tables = inspect(session.connection()).get_table_names()
            is_used = "api_keys" in tables and any_key(session)
            # Keys of the settings have no rows; what they did is sealed under the secret as well.
            if "audit_heads" in tables:
                is_used |= session.scalars(select(AuditHead.chain).limit(1)).first() is not None
    except StorageUnavailable as error:
        raise StartRefused(f"{database}: {error.reason}") from error
    finally:
        engine.dispose()
    # Who starts together with another finds its keys only after its secret.
    if is_used and not secret.exists():
        raise StartRefused(
            f"{secret} is not there, and what is in {database} was made under it, or under a"
            " SECRET_KEY: nothing of that works without"
        )


def _make_secret(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Written whole under another name, then linked: who sees the file sees all of it, and of two
    # that start together the second one's link fails, and it reads the first one's.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        _sync_directory(path.parent)
    finally:
        draft.unlink()


def _sync_directory(path: Path) -> None:
    # Keys made in the next moment are worth nothing if the file's name is lost in a power cut.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
