"""Headers of pages, CORS, what is closed by settings, and what gives nothing away."""

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from app import __version__
from app.edge.address import parse_networks
from app.edge.hardening import Bounds, Connections
from app.edge.prompt import PromptIngest
from app.settings import load_settings
from tests.edge.test_prompt import FakeExchange, seen, take
from tests.support import LOGS, Service, problem, record, running

PAGE = "https://app.example.com"
ELSEWHERE = "https://app.example.com.evil.example"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give one service, as it is by default."""
    with running(tmp_path_factory.mktemp("default")) as service:
        yield service


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give one with other settings."""
    directory = tmp_path_factory.mktemp("opened")
    with running(directory, cors_origins=(PAGE,), docs_enabled=False) as service:
        yield service


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/claim/none"])
def test_pages_are_secured(service: Service, path: str) -> None:
    """Each page may load what it is made of and nothing else, and be framed by nobody."""
    page = service.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["referrer-policy"] == "no-referrer"
    policy = dict(
        one.strip().split(" ", 1) for one in page.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    scripts = policy.get("script-src", "")
    assert "unsafe" not in scripts
    for inline in re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL):
        assert f"'sha256-{b64encode(sha256(inline.encode()).digest()).decode()}'" in scripts
    for tag, kind in (("script", "script-src"), ("link", "style-src")):
        for url in re.findall(rf'<{tag} (?:[^>]*)(?:src|href)="([^"]+)"', page.text):
            origin = "/".join(url.split("/")[:3])
            allowed = policy["img-src" if "favicon" in url else kind]
            assert origin in allowed
    no_store = page.headers.get("cache-control") == "no-store"
    assert no_store is path.startswith("/claim")


@pytest.mark.parametrize("path", ["/health/live", "/openapi.json", "/nope", LOGS, "/metrics"])
def test_no_answer_is_sniffed_nor_names_the_server(service: Service, path: str) -> None:
    """Every answer, good or bad, forbids sniffing, once; none tells what serves it."""
    answers = [service.get(path), service.post(record(), service.key("sniffed"), path=path)]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert "server" not in answer.headers
        assert "x-powered-by" not in answer.headers
        if path != "/openapi.json":
            assert __version__ not in answer.text


def test_metrics_tell_no_version(service: Service) -> None:
    """The metrics name no version of Python, for whom they are open to."""
    text = service.get("/metrics", service.key(None, role="admin")).text
    assert "central_logger_requests_total" in text
    assert "python_info" not in text


def test_docs_can_be_closed(opened: Service) -> None:
    """With DOCS_ENABLED=false the description of the service is not there."""
    for path in ("/docs", "/redoc", "/openapi.json"):
        problem(opened.get(path), 404, "Not found")


def test_no_page_reads_answers_by_default(service: Service) -> None:
    """Without CORS_ORIGINS no answer lets a web page read it, and a preflight is refused."""
    key = service.key("no-cors")
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    answers = [
        service.get(LOGS, key, headers=asked),
        service.post(record(), key, origin=PAGE),
        service.request("OPTIONS", LOGS, headers=asked),
    ]
    assert [one.status_code for one in answers] == [200, 201, 405]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_named_page_may_call_the_api(opened: Service) -> None:
    """A preflight of a named origin is answered without a key, and its answers may be read."""
    key = opened.key("cors")
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key, content-type",
    }
    preflight = opened.request("OPTIONS", LOGS, headers=asked)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert "POST" in preflight.headers["access-control-allow-methods"]
    headers = preflight.headers["access-control-allow-headers"].lower().split(", ")
    assert {"x-api-key", "content-type", "idempotency-key"} <= set(headers)
    assert preflight.headers["access-control-max-age"] == "600"
    answers = [
        preflight,
        opened.get(LOGS, key, headers={"Origin": PAGE}),
        opened.post(record(), key, origin=PAGE),
        opened.post(record(), "wrong", origin=PAGE),
    ]
    assert [one.status_code for one in answers] == [204, 200, 201, 401]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in answer.headers
        assert answer.headers["vary"] == "Origin"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", [ELSEWHERE, PAGE.upper(), f"{PAGE}:444", "null", ""])
def test_no_other_page_may(opened: Service, origin: str) -> None:
    """Any other origin is told nothing but that answers vary, and no claim is for a page."""
    key = opened.key("cors")
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answers = [
        opened.request("OPTIONS", LOGS, headers=asked),
        opened.get(LOGS, key, headers={"Origin": origin}),
        opened.post(record(), key, origin=origin),
    ]
    assert [one.status_code for one in answers] == [405, 200, 201]
    for answer in answers:
        assert answer.headers["vary"] == "Origin"
        assert not [name for name in answer.headers if name.startswith("access-control")]
    claim = opened.get("/claim/none", headers={"Origin": PAGE})
    assert "access-control-allow-origin" not in claim.headers


def test_a_page_is_answered_by_the_slower_way(opened: Service) -> None:
    """The quick way takes no request of a web page, whose answer needs more headers."""
    prompt = opened.app.prompt
    assert isinstance(prompt, PromptIngest)
    key = seen(opened, "page")
    body = b'{"environment":"p","executed_at":1,"status":"S"}'
    assert take(opened, prompt, FakeExchange(key, body)) == [True]
    assert take(opened, prompt, FakeExchange(key, body, (b"origin", PAGE.encode()))) == [False]


def test_connections_are_counted_by_address() -> None:
    """An address gets so many, a v6 network counts as one, a trusted proxy is not counted."""
    trusted = parse_networks(["10.0.0.0/8"])
    doors = Connections(Bounds(per_address=2, trusted=trusted))
    first = doors.enter("192.0.2.1")
    assert first is not None
    assert doors.enter("192.0.2.1") is not None
    assert doors.enter("192.0.2.1") is None
    assert doors.enter("192.0.2.2") is not None
    doors.leave(first)
    assert doors.enter("192.0.2.1") is not None
    v6 = [doors.enter(f"2001:db8::{end}") for end in range(3)]
    assert [one is None for one in v6] == [False, False, True]
    assert all(doors.enter(host) is not None for host in ("10.1.2.3", "") for _ in range(5))
    unbounded = Connections(Bounds())
    assert all(unbounded.enter("192.0.2.1") is not None for _ in range(5))


def test_https_is_told_of(tmp_path: Path) -> None:
    """The address that clients are told is https where a certificate is set."""
    file = tmp_path / "any.pem"
    file.touch()
    settings = load_settings(_env_file=None, tls_certificate=str(file), tls_key=str(file))
    assert settings.reachable_url == "https://127.0.0.1:8000"
