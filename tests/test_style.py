"""The style of the tree, held by a test instead of by memory."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FUNCTION_LINES_MAX = 70
ARCHITECTURE_LINES_MAX = 150

SOURCES = sorted(
    path
    for folder in ("app", "scripts", "migrations", "tests", "loadtests")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_a_screen(path: Path) -> None:
    """No function is longer than a screen."""
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long


def test_every_test_says_what_must_be_true() -> None:
    """Each test has a docstring of one sentence."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in SOURCES
        if path.name.startswith("test_")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent


def test_nothing_is_left_for_later() -> None:
    """No source holds a note to do something later."""
    notes = re.compile(
        r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b"
    )
    found = [str(path.relative_to(ROOT)) for path in SOURCES if notes.search(path.read_text())]
    assert not found


def test_every_module_is_used() -> None:
    """Each module of the service is imported by another or by a script, or is a command."""
    processes = {"app.storage.sqlite.writer", "app.storage.sqlite.sealer"}
    commands = {"app.__main__", "app.cli", "app.storage.memory", *processes}
    users = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in {"app", "scripts"}]
    text = "\n".join(path.read_text() for path in users)
    unused = []
    for path in (ROOT / "app").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        package, _, name = module.rpartition(".")
        if name == "__init__" or module in commands:
            continue
        used = re.search(
            rf"from {re.escape(module)} import|import {re.escape(module)}\b"
            rf"|from {re.escape(package)} import ([^\n(]*|\([^)]*)\b{name}\b",
            text,
        )
        if used is None and f'"{module}:' not in text:
            unused.append(module)
    assert not unused


def test_architecture_stays_short() -> None:
    """The page on architecture can be read in one go."""
    lines = (ROOT / "docs/architecture.md").read_text().splitlines()
    assert len(lines) <= ARCHITECTURE_LINES_MAX


def test_links_of_the_documents_lead_somewhere() -> None:
    """Each relative link in README and docs names a file that is there."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_each_promise_names_tests_that_there_are() -> None:
    """What docs/security.md says to be tested somewhere is a test, or a folder of them."""
    named = re.findall(r"`(?:(tests/[a-z/]+)/)?(test_[a-z_]+\.py)`|`(tests/[a-z/]+)`", _security())
    assert len(named) > 20
    folder = ""
    for of_file, file, alone in named:
        folder = of_file or alone or folder
        assert (ROOT / folder / file).exists(), f"{folder}/{file}"


def _security() -> str:
    return (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_dependencies_are_pinned_without_a_host() -> None:
    """Each dependency has one version in constraints.txt, which names no place to get it from."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==[A-Za-z0-9.+!]+( ; .+)?", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if not pin]
    pinned = {_normal(pin[1]) for pin in pins if pin}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    missing = {_normal(re.split(r"[\[;<>= ]", one)[0]) for one in asked} - pinned
    assert not missing


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_generated_file_is_tracked() -> None:
    """Git tracks no database, secret or cache."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    bad = [
        name
        for name in listed.stdout.splitlines()
        if re.search(r"\.(db|key|pyc|sock)$|^data/|^\.env$|__pycache__", name)
    ]
    assert not bad
