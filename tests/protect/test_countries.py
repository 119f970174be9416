"""Countries of addresses, by a file that may be replaced at any time."""

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.keys.database import StartRefused
from app.protect.countries import Countries
from tests.protect.mmdb import AMERICAN, FRENCH, GERMAN, REGISTERED, make_mmdb
from tests.support import DEADLINE_S


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a database of a few countries."""
    return make_mmdb(tmp_path_factory.mktemp("mmdb") / "countries.mmdb")


@pytest.mark.parametrize(
    ("address", "country"),
    [
        (GERMAN, "DE"),
        (FRENCH, "FR"),
        (AMERICAN, "US"),
        (f"::ffff:{GERMAN}", "DE"),
        (f"::{GERMAN}", None),  # no v4 address, though the file keeps those there
        (REGISTERED, None),
        ("10.0.0.1", None),
        ("fe80::1%eth0", None),
        ("::1", None),
        ("", None),
        ("testclient", None),
    ],
)
def test_the_country_of_an_address(database: Path, address: str, country: str | None) -> None:
    """The country is that of use, and none where there is none to tell."""
    assert Countries(database).country(address) == country


def test_v4_alone(tmp_path: Path) -> None:
    """Of a database of v4 alone nothing is known of v6."""
    records = {"198.51.100.0/24": {"country": {"iso_code": "DE"}}}
    countries = Countries(make_mmdb(tmp_path / "v4.mmdb", records, ip_version=4))
    assert countries.country(GERMAN) == "DE"
    assert countries.country(AMERICAN) is None


def _files(directory: Path) -> Iterator[tuple[Path, str]]:
    """Make what is no database of countries, with what is said of each."""
    yield directory / "absent.mmdb", "No such file"
    yield directory, "not a file"
    empty = directory / "empty.mmdb"
    empty.touch()
    yield empty, "not a MaxMind database"
    whole = make_mmdb(directory / "whole.mmdb").read_bytes()
    for name, content in (("text", b"DE\n" * 100), ("cut", whole[:-200]), ("tail", whole[-300:])):
        path = directory / f"{name}.mmdb"
        path.write_bytes(content)
        yield path, "not a MaxMind database"
    asn: dict[str, Any] = {"198.51.100.0/24": {"autonomous_system_number": 64496}}
    yield make_mmdb(directory / "asn.mmdb", asn), "names no countries"


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """A file that tells no countries stops the start with one line that names the setting."""
    for path, told in _files(tmp_path):
        with pytest.raises(StartRefused, match=told) as refused:
            Countries(path)
        line = str(refused.value)
        assert line.startswith("GEOIP_DATABASE: ")
        assert str(path) not in line
        assert "\n" not in line


@asynccontextmanager
async def _followed(path: Path) -> Any:
    countries = Countries(path, poll_s=0.01)
    countries.start()
    yield countries
    await countries.aclose()


async def _until_generation(countries: Countries, generation: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while countries.generation < generation:  # noqa: ASYNC110  # nothing tells when it is read
            await asyncio.sleep(0.01)


def _replace_in_place(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def _replace_by_rename(path: Path, other: Path) -> None:
    other.replace(path)


@pytest.mark.parametrize("replace", [_replace_in_place, _replace_by_rename])
def test_a_replaced_file_is_read(tmp_path: Path, replace: Any) -> None:
    """A file that is overwritten or put in place of another is used without a restart."""
    path = make_mmdb(tmp_path / "countries.mmdb")
    other = make_mmdb(tmp_path / "other.mmdb", {"198.51.100.0/24": {"country": {"iso_code": "AT"}}})

    async def main() -> None:
        async with _followed(path) as countries:
            assert countries.country(GERMAN) == "DE"
            replace(path, other)
            await _until_generation(countries, 1)
            assert countries.country(GERMAN) == "AT"
            assert countries.country(FRENCH) is None

    asyncio.run(main())


def test_a_bad_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the file is broken or gone the last good one serves on; that is told once."""
    path = make_mmdb(tmp_path / "countries.mmdb")

    async def told(what: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while what not in caplog.text:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)

    async def main() -> None:
        async with _followed(path) as countries:
            path.write_bytes(b"half of a")
            await told("not a MaxMind database")
            path.unlink()
            await told("No such file")
            await asyncio.sleep(0.05)
            assert (countries.country(GERMAN), countries.generation) == ("DE", 0)
            make_mmdb(path)
            await _until_generation(countries, 1)
            assert countries.country(GERMAN) == "DE"

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    levels = [one.levelname for one in caplog.records if one.name == "app.protect.countries"]
    assert levels == ["ERROR", "ERROR", "INFO"]
