"""URLs of Redis: what is wrong with one, told before anything connects. Pure, but for its files.

The client takes any option and hands it on by its name, deep into itself: one that it does not know
or can't read is a traceback, and others would undo what `redis_windows` asks for.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

PORT_MAX = 65_535
# Signs that would end user and password for whoever reads the URL, or an `@` behind the host, where
# none but a password's would be: no part of a password is to be taken for the name of an option.
_URL = re.compile(
    r"(?P<scheme>rediss?)://([^/?#\[\]\s]*@)?([^/?#\s@:\[\]]+|\[[\da-fA-F:.]+\])(:\d{1,5})?"
    r"(/\d{0,9})?(\?(?P<options>[^#\s@]*))?"
)
_YES_OR_NO = frozenset(("true", "yes", "1", "false", "no", "0"))


def _is_number(value: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", value) is not None


def _is_name(value: str) -> bool:
    return re.fullmatch(r"[\x21-\x7e]+", value) is not None  # as CLIENT SETNAME takes it


# Of any Redis, and of one behind TLS: what a value has to be, and how to see whether it is.
_OPTIONS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "db": ("a whole number", _is_number),
    "username": ("a text", bool),
    "password": ("a text", bool),
    "client_name": ("ASCII without spaces", _is_name),
}
_TLS_OPTIONS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    # Files are tried as a whole, see _check_files.
    "ssl_ca_certs": ("a file", bool),
    "ssl_ca_path": ("a directory", bool),
    "ssl_certfile": ("a file", bool),
    "ssl_keyfile": ("a file", bool),
    "ssl_password": ("a text", bool),
    "ssl_cert_reqs": ("none, optional or required", {"none", "optional", "required"}.__contains__),
    "ssl_check_hostname": ("true or false", lambda value: value.lower() in _YES_OR_NO),
}


def check_redis_url(url: str) -> None:
    """Raise ValueError for what can't be connected with; its text holds no part of the URL.

    An option is named only if it is one of those that there are.
    """
    form = _URL.fullmatch(url)
    if form is None:
        raise ValueError(
            "is not a redis:// or rediss:// URL of host, port and number "
            "(in a password, / ? # @ [ ] are written %XX)"
        )
    _check_host(url)
    allowed = {**_OPTIONS, **(_TLS_OPTIONS if form["scheme"] == "rediss" else {})}
    options: dict[str, str] = {}
    for name, value in parse_qsl(form["options"] or "", keep_blank_values=True):
        if name not in allowed:
            beside = " (those of TLS go with rediss://)" if name in _TLS_OPTIONS else ""
            raise ValueError(f"has an option that is none of {', '.join(allowed)}{beside}")
        wanted, is_good = allowed[name]
        if name in options or not is_good(value):
            raise ValueError(f"option {name} is not {wanted}, once")
        options[name] = value
    if form["scheme"] == "rediss":
        _check_files(options)


def _check_host(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            IPv6Address(host)
        unquote(host).encode("idna")
    except ValueError:  # whose text repeats what it can't read
        raise ValueError("has a host or a port that there can't be") from None
    if port is not None and not 0 < port <= PORT_MAX:
        raise ValueError(f"has a port that is not 1 to {PORT_MAX}")


def _check_files(options: Mapping[str, str]) -> None:
    """Raise ValueError for certificates that can't be read as such."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    names = ("ssl_ca_certs", "ssl_ca_path")
    file, directory = (options.get(name) for name in names)
    if directory and not Path(directory).is_dir():
        raise ValueError("option ssl_ca_path is not a directory")  # it would be as an empty one
    try:
        if file or directory:
            context.load_verify_locations(file, directory)
        names = ("ssl_certfile", "ssl_keyfile")
        certificate, key = (options.get(name) for name in names)
        if key and not certificate:
            raise ValueError("option ssl_keyfile goes with ssl_certfile")
        if certificate:
            # A function, even for none: else OpenSSL would ask at the terminal.
            context.load_cert_chain(certificate, key, lambda: options.get("ssl_password", ""))
    except (OSError, ssl.SSLError) as error:
        given = " and ".join(name for name in names if name in options)
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise ValueError(f"option {given} can't be used ({reason or 'no certificate'})") from None
