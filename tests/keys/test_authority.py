"""A key can never give what it does not have."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Forbidden, NotFound
from app.keys.authority import (
    check_change,
    check_reach,
    check_within,
    must_sign,
    narrow,
    shorten,
)
from app.keys.models import LIMIT_NAMES, ApiKey
from app.keys.principal import UNLIMITED, Limits, Principal
from app.keys.records import Candidate, ClientRecord, KeyRecord
from app.keys.restrictions import compiled, parse_hours
from app.keys.roles import ADMIN, MANAGEMENT, ROLES, SCOPES, effective_scopes
from app.keys.signing import HMAC_SHA256, Signing

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DATASETS = st.none() | st.sets(st.sampled_from("abc"), min_size=1)
ENDS = st.none() | st.integers(1, 5).map(lambda days: NOW + timedelta(days=days))
LIMIT = st.integers(0, 3)
# Addresses that tell these networks apart, and countries that tell one allowed from none.
NETWORKS = ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24")
ADDRESSES = ("10.0.0.1", "10.1.0.1", "192.0.2.1", "8.8.8.8")
HOURS = (parse_hours("mon 09:00-17:00"), parse_hours("mon-fri 09:00-17:00"))
RESTRICTED = {
    "allowed_cidrs": st.none() | st.lists(st.sampled_from(NETWORKS), min_size=1, unique=True),
    "allowed_countries": st.none()
    | st.lists(st.sampled_from(["DE", "FR"]), min_size=1, unique=True),
    "allowed_hours": st.none() | st.sampled_from(HOURS),
    "restrictions_mode": st.sampled_from(["enforce", "report"]),
}

askers = st.builds(
    Principal,
    id=st.just(""),
    key_id=st.just("asker"),
    client_id=st.just("acme"),
    role=st.sampled_from([role for role in ROLES if role != ADMIN]),
    scopes=st.frozensets(st.sampled_from(sorted(SCOPES))),
    allowed_datasets=DATASETS.map(lambda names: None if names is None else frozenset(names)),
    is_admin=st.just(False),
    key_limits=st.builds(Limits, LIMIT, LIMIT, LIMIT),
    client_limits=st.builds(Limits, st.just(3), st.just(0), st.just(2)),
    expires_at_s=ENDS.map(lambda end: None if end is None else end.timestamp()),
    name=st.just(""),
    own_limits=st.tuples(*[st.none() | LIMIT] * 3),
    restrictions=st.builds(compiled, *RESTRICTED.values()),
)
keys = st.builds(
    ApiKey,
    key_id=st.just(""),
    key_prefix=st.just(""),
    client_id=st.just("acme"),
    name=st.just(""),
    role=st.sampled_from([role for role in ROLES if role != ADMIN]),
    scopes=st.none() | st.lists(st.sampled_from(sorted(SCOPES)), unique=True),
    allowed_datasets=DATASETS.map(lambda names: None if names is None else sorted(names)),
    expires_at=ENDS,
    **RESTRICTED,
    **{name: st.none() | LIMIT for name in LIMIT_NAMES},
)


def less_restricted(key: ApiKey, asker: Principal) -> bool:
    """Say whether there is a place, a time or a mode that is the key's and not the asker's."""
    own = asker.restrictions
    if own is None:
        return False
    networks = [ip_network(one) for one in key.allowed_cidrs or ["0.0.0.0/0"]]
    for address in ADDRESSES if own.addresses else ():
        within = any(ip_address(address) in network for network in networks)
        if own.addresses and within and not own.addresses.include(address):
            return True
    if own.countries and set(key.allowed_countries or ["DE", "FR", "US"]) - own.countries:
        return True
    if own.hours and key.allowed_hours != own.hours.column():
        return True
    return key.restrictions_mode == "report" and not own.is_report and is_restricted(key)


def is_restricted(key: ApiKey) -> bool:
    """Say whether there is anything that a mode is of."""
    return any((key.allowed_cidrs, key.allowed_countries, key.allowed_hours))


def exceeds(key: ApiKey, asker: Principal) -> bool:
    """Say by brute force whether there is something that the key may do and the asker may not."""
    if effective_scopes(key.role, key.scopes) - asker.scopes or less_restricted(key, asker):
        return True
    if ROLES[key.role] - ROLES[asker.role] - asker.scopes:
        return True
    if asker.allowed_datasets is not None:
        reached = set("abcd") if key.allowed_datasets is None else set(key.allowed_datasets)
        if reached - asker.allowed_datasets:
            return True
    if asker.expires_at_s is not None:
        end = float("inf") if key.expires_at is None else key.expires_at.timestamp()
        if end > asker.expires_at_s:
            return True
    for name, own in zip(LIMIT_NAMES, asker.own_limits, strict=True):
        limit = getattr(key, name)
        if own is None and limit is None:
            continue
        most = getattr(asker.key_limits, name) if own is None else own
        if (limit or float("inf")) > (most or float("inf")):
            return True
    return False


@given(askers, keys)
def test_no_key_beyond_its_maker(asker: Principal, key: ApiKey) -> None:
    """A key passes exactly if it may do nothing that its maker may not."""
    allowed = True
    try:
        check_within(asker, key)
    except Forbidden:
        allowed = False
    assert allowed is not exceeds(key, asker)


@given(askers, keys)
def test_what_is_left_open_is_narrowed(asker: Principal, key: ApiKey) -> None:
    """Narrowing fills in what was left open and changes nothing that was asked for."""
    asked = key.model_dump()
    narrow(asker, key)
    for name, value in asked.items():
        if value is not None:
            assert getattr(key, name) == value
    key.scopes, key.role = [], asker.role
    restricted = ("allowed_cidrs", "allowed_countries", "allowed_hours")
    for name in ("allowed_datasets", "expires_at", *restricted, *LIMIT_NAMES):
        if asked[name] is not None:
            setattr(key, name, None)
    key.restrictions_mode = "enforce"
    narrow(asker, key)
    check_within(asker, key)


@given(askers, keys)
def test_shortened_ends_no_later(asker: Principal, key: ApiKey) -> None:
    """A shortened key ends with its maker at the latest, and no later than it did before."""
    before = key.expires_at
    shorten(asker, key)
    ends = [end for end in (before, key.expires_at) if end is not None]
    if asker.expires_at_s is not None:
        assert key.expires_at is not None
        assert key.expires_at.timestamp() <= asker.expires_at_s
    assert key.expires_at == (min(ends) if ends else None)


@given(askers)
def test_reach(asker: Principal) -> None:
    """A client's key reaches its own client; another's and the platform's keys are not there."""
    check_reach(asker, "acme")
    for client_id in ("other", None):
        with pytest.raises(NotFound):
            check_reach(asker, client_id)
        check_reach(None, client_id)


@given(askers)
def test_what_is_given_without_a_role_is_within(asker: Principal) -> None:
    """Without a role or anything else asked for, a key is within its maker, or has no scope."""
    key = ApiKey(key_id="", key_prefix="", client_id="acme", name="", role="client")
    narrow(asker, key, is_role_asked=False)
    assert key.scopes is None or not exceeds(key, asker)


def as_asker(key: ApiKey) -> Principal:
    """Say who a key is, in a service whose defaults are the limits 2, 0 and 1."""
    return Candidate(KeyRecord.of(key), None).principal(Limits(2, 0, 1))


@given(askers, keys, keys, st.booleans())
def test_what_is_more_than_before_is_within(
    asker: Principal, key: ApiKey, changed: ApiKey, revived: bool
) -> None:
    """A change passes that takes away only, or if all of the changed key is the asker's to give."""
    before = as_asker(key)
    allowed = True
    try:
        check_change(asker, before, changed, revived=revived)
    except Forbidden:
        allowed = False
    gives = revived or exceeds(changed, before)
    assert allowed is not (gives and exceeds(changed, asker))


@given(keys)
def test_no_change_gives_nothing(key: ApiKey) -> None:
    """A key as it was has no more than it had, and may be left so by anybody who reaches it."""
    nobody = as_asker(ApiKey(key_id="", key_prefix="", name="", role="viewer", scopes=[]))
    check_change(nobody, as_asker(key), key, revived=False)


def test_a_limit_that_the_client_undercuts_stays_a_limit() -> None:
    """What a key was limited to binds what it gives also while its client's limit is lower."""
    key = ApiKey(key_id="", key_prefix="", client_id="acme", name="", role="viewer")
    key.requests_per_minute = 100
    record = KeyRecord.of(key)
    client = ClientRecord(True, 50, None, None)
    holder = Candidate(record, client).principal(UNLIMITED)
    assert holder.key_limits.requests_per_minute == 50
    for limit in (None, 0, 101):
        key.requests_per_minute = limit
        with pytest.raises(Forbidden, match="requests_per_minute than 100"):
            check_within(holder, key)
    key.requests_per_minute = 100
    check_within(holder, key)


@given(askers)
def test_a_dry_run_makes_dry_runs(asker: Principal) -> None:
    """What is left open has the asker's restrictions, and its mode unless one is asked for."""
    own = asker.restrictions
    for is_mode_asked in (True, False):
        key = ApiKey(key_id="", key_prefix="", client_id="acme", name="", role="client")
        narrow(asker, key, is_mode_asked=is_mode_asked)
        narrowed = as_asker(key).restrictions
        if own is None or narrowed is None:
            assert own is narrowed is None
        else:
            assert own.wider(narrowed) is None
            assert narrowed.is_report is (own.is_report and not is_mode_asked)


def test_the_operator_may_all() -> None:
    """Without an asker nothing is refused and nothing narrowed."""
    key = ApiKey(key_id="", key_prefix="", client_id=None, name="", role=ADMIN)
    check_within(None, key)
    narrow(None, key)
    shorten(None, key)
    assert (key.allowed_datasets, key.expires_at) == (None, None)


SECRET = "what stands for a signing key"


@given(
    asker=askers.flatmap(
        lambda asker: st.sampled_from(
            [
                replace(asker, signing=signing)
                for signing in (
                    None,
                    Signing(HMAC_SHA256, SECRET, is_required=False),
                    Signing(HMAC_SHA256, SECRET, is_required=True),
                )
            ]
        )
    ),
    key=keys,
    stored=st.sampled_from([None, SECRET]),
    signs=st.booleans(),
)
def test_no_key_is_let_off_signing(
    asker: Principal, key: ApiKey, stored: str | None, signs: bool
) -> None:
    """Of what a signed asker may give, nothing is done unsigned that it would have to sign."""
    plain = replace(asker, signing=None)
    key.signing_key, key.require_signature = stored, signs
    try:
        check_within(plain, key)
    except Forbidden:
        with pytest.raises(Forbidden):
            check_within(asker, key)
        return
    manages = MANAGEMENT in effective_scopes(key.role, key.scopes)
    beyond = asker.signing is not None and (
        (asker.signing.is_required and not signs) or (manages and stored is None)
    )
    if beyond:
        with pytest.raises(Forbidden, match="sign"):
            check_within(asker, key)
    else:
        check_within(asker, key)
    assert must_sign(asker) is (asker.signing is not None and asker.signing.is_required)
