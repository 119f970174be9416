"""The least that a key needs, learned from what it did. Pure.

What a key did in the time that accesses are kept is no promise of what it will do: whoever applies
a suggestion looks from how many requests and days it was learned.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, collapse_addresses, ip_address, ip_network
from typing import Any, NamedTuple

from app.activity.access import ALL_DATASETS, Used
from app.keys.models import ApiKey
from app.keys.restrictions import DAYS
from app.keys.roles import ADMIN, MANAGEMENT, ROLES, effective_scopes

# Of more addresses than this their networks are named: a workflow that moves within a few racks.
ADDRESSES_MAX = 8
# A key that comes from more networks than this comes from anywhere.
NETWORKS_MAX = 64
HOURS_PER_DAY = 24
# The scopes of the routes that are about datasets.
_OF_DATASETS = {"logs:write", "logs:read", "logs:query"}
# And that of the one that names none: it always tells of all that its key may see.
_OF_USAGE = "usage:read"
# What was refused for want of a right or a place in the limits says nothing of what is needed.
_REFUSED = {"401", "403", "429", "500", "503"}


class Suggestion(NamedTuple):
    """What to take from a key, as the body of a PATCH; `notes` say what could not be learned.

    `days` are those in UTC on which it was used, from the first hour to the last. `scopes` and the
    rest are what it needs, whether that is less than it has or not.
    """

    requests: int
    days: int
    first_at: datetime
    last_at: datetime
    scopes: list[str]
    restrictions: dict[str, Any]
    patch: dict[str, Any]
    notes: list[str]


def suggest(
    key: ApiKey, rows: Iterable[Used], scopes: Mapping[str, str | None]
) -> Suggestion | None:
    """Suggest the least privilege of a key; None if it was not used.

    `scopes` is what each endpoint asks for.
    """
    used = [row for row in rows if row.outcome not in _REFUSED]
    if not used:
        return None
    notes: list[str] = []
    needed = sorted({scope for row in used if (scope := scopes.get(row.endpoint))})
    restrictions: dict[str, Any] = {}
    patch: dict[str, Any] = {}
    if MANAGEMENT in needed:
        # What it gave and changed is not noted, and it can do neither with more than it has.
        notes.append("it managed keys, for which it needs what those have: nothing is taken away")
    else:
        restrictions = _restrictions(key, used, scopes, notes)
        patch = {name: value for name, value in restrictions.items() if getattr(key, name) != value}
        if not needed:
            notes.append("no request needed a scope")
        elif effective_scopes(key.role, key.scopes) - set(needed):
            patch = {"scopes": needed, **patch}
    return Suggestion(
        requests=sum(row.requests for row in used),
        days=len({row.hour // HOURS_PER_DAY for row in used}),
        first_at=_moment(min(row.hour for row in used)),
        last_at=_moment(max(row.hour for row in used) + 1),
        scopes=needed,
        restrictions=restrictions,
        patch=patch,
        notes=notes,
    )


def _restrictions(
    key: ApiKey, used: list[Used], scopes: Mapping[str, str | None], notes: list[str]
) -> dict[str, Any]:
    learned = {
        "allowed_datasets": _datasets(used, scopes, notes),
        "allowed_cidrs": _cidrs(key, {row.source_ip for row in used}, notes),
        "allowed_hours": _hours(key, {row.hour for row in used}, notes),
    }
    return {name: value for name, value in learned.items() if value is not None}


def generate_options(key: ApiKey, suggestion: Suggestion) -> list[str]:
    """Give the options of generate_api_key.py for a new key in its place."""
    options = ["--client", key.client_id or ""]
    enough = (role for role in ROLES if role != ADMIN and ROLES[role] >= set(suggestion.scopes))
    options += ["--role", min(enough, key=lambda role: len(ROLES[role]))]
    for dataset in suggestion.restrictions.get("allowed_datasets", ()):
        options += ["--dataset", dataset]
    for cidr in suggestion.restrictions.get("allowed_cidrs", ()):
        options += ["--cidr", cidr]
    if hours := suggestion.restrictions.get("allowed_hours"):
        options += ["--hours", "{start}-{end} {timezone}".format(**hours)]
    return options


def _datasets(
    used: list[Used], scopes: Mapping[str, str | None], notes: list[str]
) -> list[str] | None:
    rows = [row for row in used if scopes.get(row.endpoint) in _OF_DATASETS]
    names = {row.dataset for row in rows}
    if any(scopes.get(row.endpoint) == _OF_USAGE for row in used):
        notes.append("it read the usage of all datasets: allowed_datasets would change the answers")
        return None
    if ALL_DATASETS in names:
        notes.append("it read without naming a dataset: allowed_datasets would change the answers")
        return None
    if any(not (row.dataset or row.source_ip) for row in rows):
        notes.append("too many datasets or addresses in a minute to note them all")
        return None
    return sorted(names - {""}) or None


def _cidrs(key: ApiKey, addresses: set[str], notes: list[str]) -> list[str] | None:
    try:
        found = sorted({_unmapped(one) for one in addresses}, key=lambda one: (one.version, one))
    except ValueError:
        notes.append("some requests came from no address that was noted")
        return None
    if len(found) <= ADDRESSES_MAX:
        return [str(ip_network(one)) for one in found]
    if key.allowed_cidrs is not None:
        notes.append(f"it came from {len(found)} addresses; its allowed_cidrs stay as they are")
        return None
    cidrs = []
    for version, length in ((4, 24), (6, 64)):
        networks = {
            ip_network(f"{one}/{length}", strict=False) for one in found if one.version == version
        }
        cidrs += [str(one) for one in collapse_addresses(sorted(networks))]  # type: ignore[type-var]
    if len(cidrs) > NETWORKS_MAX:
        notes.append(f"it came from {len(cidrs)} networks")
        return None
    return cidrs


def _unmapped(text: str) -> Any:
    address = ip_address(text)
    return address if isinstance(address, IPv4Address) else address.ipv4_mapped or address


def _hours(key: ApiKey, hours: set[int], notes: list[str]) -> dict[str, Any] | None:
    """Give the shortest span of whole hours, across midnight if need be, that holds all."""
    if key.allowed_hours is not None:
        notes.append("its allowed_hours stay as they are")
        return None
    used = sorted({hour % HOURS_PER_DAY for hour in hours})
    # The longest gap between two of them, round the clock, is what is left out.
    following = [*used[1:], used[0] + HOURS_PER_DAY]
    gap, start = max((after - one, after) for one, after in zip(used, following, strict=True))
    first, span = start % HOURS_PER_DAY, HOURS_PER_DAY - gap + 1
    if span >= HOURS_PER_DAY:
        notes.append("it was used around the clock")
        return None
    end = (first + span) % HOURS_PER_DAY or HOURS_PER_DAY
    return {
        "start": f"{first:02}:00",
        "end": f"{end:02}:00",
        "timezone": "UTC",
        "days": list(DAYS),
    }


def _moment(hour: int) -> datetime:
    return datetime.fromtimestamp(hour * 3600, UTC)
