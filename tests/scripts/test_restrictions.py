"""Keys that may be used only from somewhere, or at some time, made and listed by commands."""

from pathlib import Path

import pytest

from tests.protect.mmdb import make_mmdb
from tests.scripts.runner import Runner, error_line


def test_a_restricted_key(run: Runner, tmp_path: Path) -> None:
    """The options set what they name, and the list tells by what keys are restricted."""
    database = str(make_mmdb(tmp_path / "countries.mmdb"))
    options = (
        *("--client", "acme", "--cidr", "10.0.0.0/8", "--cidr", "2001:db8::1"),
        *("--country", "DE", "--country", "FR", "--hours", "mon-fri 09:00-17:00 Europe/Berlin"),
    )
    done = run("generate_api_key", *options, "--report-only", "--json", GEOIP_DATABASE=database)
    assert done.returncode == 0, done.stderr
    free = run.json("generate_api_key", "--client", "acme")
    made, listed_free = run.json("list_api_keys", "--client", "acme")["api_keys"]
    assert listed_free["key_id"] == free["key_id"]
    assert made["allowed_cidrs"] == ["10.0.0.0/8", "2001:db8::1"]
    assert made["allowed_countries"] == ["DE", "FR"]
    assert made["allowed_hours"] == {
        "start": "09:00",
        "end": "17:00",
        "timezone": "Europe/Berlin",
        "days": ["mon", "tue", "wed", "thu", "fri"],
    }
    assert made["restrictions_mode"] == "report"
    assert free["restrictions_mode"] == "enforce"
    lines = run("list_api_keys").stdout.splitlines()
    assert "addresses,countries,hours (report)" in next(x for x in lines if made["key_id"] in x)
    assert "addresses" not in next(x for x in lines if free["key_id"] in x)


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (("--cidr", "10.0.0.1/8"), 1, "allowed_cidrs"),
        (("--country", "DE"), 1, "GEOIP_DATABASE"),
        (("--hours", "always"), 2, "mon-fri 09:00-17:00"),
        (("--hours", "09:00-09:00"), 2, "differ"),
        (("--hours", "09:00-17:00 Mars/Base"), 2, "timezone"),
    ],
)
def test_what_cannot_be(run: Runner, options: tuple[str, str], status: int, told: str) -> None:
    """A restriction that would not be kept to is refused, and nothing is made."""
    run.prepare()
    done = run("generate_api_key", "--client", "acme", *options)
    assert done.returncode == status
    assert told in (error_line(done.stderr) if status == 1 else done.stderr)
    assert run.json("list_api_keys")["api_keys"] == []
