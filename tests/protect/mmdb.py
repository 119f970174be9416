"""Small databases in MaxMind's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet

GERMAN, FRENCH, AMERICAN = "198.51.100.7", "203.0.113.7", "2001:db8::7"
REGISTERED = "192.0.2.7"  # in a country that is not the one where it is used
COUNTRIES: dict[str, Any] = {
    "198.51.100.0/24": {"country": {"iso_code": "DE"}, "registered_country": {"iso_code": "US"}},
    "203.0.113.0/24": {"country": {"iso_code": "FR"}},
    "2001:db8::/32": {"country": {"iso_code": "US"}},
    "192.0.2.0/24": {"registered_country": {"iso_code": "DE"}},
}


def make_mmdb(path: Path, records: Mapping[str, Any] | None = None, ip_version: int = 6) -> Path:
    """Write a database of networks and their records; those of COUNTRIES if none are given."""
    writer = MMDBWriter(
        ip_version=ip_version, ipv4_compatible=ip_version == 6, database_type="Test"
    )
    for network, record in (COUNTRIES if records is None else records).items():
        writer.insert_network(IPSet([network]), record)
    part = path.with_suffix(".part")
    writer.to_db_file(str(part))
    return part.replace(path)
