"""Keys that were made elsewhere."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlmodel import select

from app.errors import Invalid, NotFound
from app.keys.bootstrap import see_clients
from app.keys.database import reading
from app.keys.imports import (
    FIELDS,
    FORMATS,
    KEY_LIST_BYTES_MAX,
    BadKeyList,
    Entry,
    KeyList,
    StoredAlready,
    import_key,
    is_weak,
    prepare_import,
    read_key_list,
    strength_bits,
)
from app.keys.lifecycle import delete_key
from app.keys.models import Client, utc_now
from app.keys.registry import list_keys
from app.keys.token import base62, mint
from app.keys.verifier import Peppers, is_argon2

# What no text of ours contains.
MARK = "q7#Zk"

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.datetimes(),
    st.sampled_from(["acme", "admin", "read", "100/m", "2027-01-31", "true", f"{MARK}-1", MARK]),
    st.text(max_size=5),
)
_values = st.one_of(_scalars, st.lists(_scalars, max_size=3), st.dictionaries(st.text(), _scalars))
_rows = st.lists(
    st.one_of(
        st.dictionaries(st.one_of(st.sampled_from([*FIELDS, MARK]), _scalars), _values, max_size=9),
        _values,
    ),
    max_size=4,
)


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _yaml(*rows: Any) -> bytes:
    return yaml.safe_dump({"api_keys": list(rows)}).encode()


def _one(**row: Any) -> Entry:
    (entry,), faults = read_key_list(_yaml({"key": "k", "tenant": "acme", **row}), "yaml")
    assert faults == []
    return entry


def _faults(**row: Any) -> list[tuple[str, str]]:
    found = read_key_list(_yaml({"key": "k", "tenant": "acme", **row}), "yaml")
    assert found.entries == []
    return [(fault.field, fault.detail) for fault in found.faults]


def _complaints(raw: bytes, form: str) -> list[str]:
    """Read whatever it is, and give what is said of it."""
    try:
        entries, faults = read_key_list(raw, form)
    except BadKeyList as error:
        return [str(error)]
    return [*map(str, faults), *map(repr, entries)]


def test_a_json_map_is_keys_of_clients() -> None:
    """Each pair of a JSON map is a key with the client's role."""
    entries, faults = read_key_list(b'\xef\xbb\xbf{"k1": "acme", "k2": "demo"}', "json")
    told = [(e.number, e.token, e.client_id, e.role, e.is_active) for e in entries]
    assert told == [(1, "k1", "acme", "client", True), (2, "k2", "demo", "client", True)]
    assert faults == []


def test_yaml_and_csv_say_the_same() -> None:
    """Every field can be given in either form, to the same effect."""
    in_yaml = """
api_keys:
  - key: legacy-1
    role: analyst
    tenant: acme
    description: nightly run
    rate_limit: 100/minute
    expires_at: 2990-01-31T12:00:00+02:00
    enabled: false
    allowed_datasets: [orders, refunds]
    permissions: [read, logs:write]
  - key: boss
    role: admin
    tenant:
"""
    in_csv = """\
Key,role,tenant,description,rate_limit,expires_at,enabled,allowed_datasets,permissions
legacy-1,analyst,acme,nightly run,100,2990-01-31T10:00:00Z,No,orders;refunds,read logs:write

boss, admin,
"""
    wanted = Entry(
        number=1,
        token="legacy-1",
        client_id="acme",
        role="analyst",
        description="nightly run",
        scopes=["logs:read", "logs:write"],
        allowed_datasets=["orders", "refunds"],
        requests_per_minute=100,
        expires_at=datetime(2990, 1, 31, 10, tzinfo=UTC),
        is_active=False,
    )
    boss = Entry(number=2, token="boss", client_id=None, role="admin")
    assert read_key_list(in_yaml.encode(), "yaml") == KeyList([wanted, boss], [])
    assert read_key_list(in_csv.encode(), "csv") == KeyList([wanted, boss], [])


@pytest.mark.parametrize(
    ("value", "limit"),
    [(0, 0), (60, 60), (6e1, 60), ("60", 60), ("100/minute", 100), ("100 / m", 100)],
)
def test_a_rate_is_requests_a_minute(value: object, limit: int) -> None:
    """A number, or text that names the minute, is the limit of requests."""
    assert _one(rate_limit=value).requests_per_minute == limit


@pytest.mark.parametrize("value", ["2990-01-31", "2990-01-31T00:00:00Z", "2990-01-31 00:00"])
def test_a_time_without_a_zone_is_utc(value: str) -> None:
    """A date is its beginning, and what has no zone is UTC."""
    assert _one(expires_at=value).expires_at == datetime(2990, 1, 31, tzinfo=UTC)
    row = f"api_keys: [{{key: k, tenant: acme, expires_at: {value}}}]"
    assert (
        read_key_list(row.encode(), "yaml").entries[0].expires_at
        == _one(expires_at=value).expires_at
    )


def test_the_short_words_are_scopes() -> None:
    """The words of common key files stand for our scopes, one each."""
    words = ["read", "write", "query", "usage", "manage", "audit"]
    scopes = [_one(permissions=[word]).scopes for word in words]
    assert scopes == [
        ["logs:read"],
        ["logs:write"],
        ["logs:query"],
        ["usage:read"],
        ["keys:manage"],
        ["audit:read"],
    ]


@pytest.mark.parametrize(
    ("row", "field", "detail"),
    [
        ({"key": None}, "key", "is required"),
        ({"key": 12345}, "key", "must be text"),
        ({"key": "x" * 513}, "key", "must have 1 to 512"),
        ({"key": "clé"}, "key", "printable ASCII"),
        ({"key": f"cl_live_{'a' * 61}"}, "key", "is mistyped"),
        ({"tenant": "Acme Corp"}, "tenant", "must match"),
        ({"tenant": None}, "tenant", "is required"),
        ({"role": "admin"}, "tenant", "must be absent"),
        ({"role": "emperor"}, "role", "must be one of client"),
        ({"role": ["client"]}, "role", "must be text"),
        ({"description": "\0"}, "description", "printable"),
        ({"description": "x" * 4097}, "description", "4096"),
        ({"rate_limit": -1}, "rate_limit", "requests per minute"),
        ({"rate_limit": True}, "rate_limit", "requests per minute"),
        ({"rate_limit": "100/hour"}, "rate_limit", "requests per minute"),
        ({"rate_limit": 1 << 63}, "rate_limit", "requests per minute"),
        ({"expires_at": "soon"}, "expires_at", "must be a time"),
        ({"expires_at": "0001-01-01T00:00:00+05:00"}, "expires_at", "must be a time"),
        ({"enabled": "perhaps"}, "enabled", "true or false"),
        ({"enabled": 0}, "enabled", "true or false"),
        ({"allowed_datasets": []}, "allowed_datasets", "1 to 1000"),
        ({"allowed_datasets": ["A B"]}, "allowed_datasets", "must match"),
        ({"permissions": "read;fly"}, "permissions", "must be of audit"),
        ({"permissions": [1]}, "permissions", "list of words"),
        ({"tenent": "acme"}, "field 3", "did you mean tenant?"),
        ({"xyz": 1}, "field 3", "is none of key"),
    ],
)
def test_a_bad_field_is_named(row: dict[str, Any], field: str, detail: str) -> None:
    """An entry with a fault is left out, and the fault names the field and what it should be."""
    ((found, told),) = _faults(**dict(sorted(row.items())))
    assert (found, detail in told) == (field, True), told


def test_a_bad_entry_leaves_the_others() -> None:
    """What is wrong is told by number, and the good entries are given all the same."""
    good = {"key": "a", "tenant": "acme"}
    rows = [good, "nonsense", {"key": "b"}, good, {"key": "c", "tenant": "demo"}]
    found = read_key_list(_yaml(*json.loads(json.dumps(rows))), "yaml")
    assert [entry.number for entry in found.entries] == [1, 5]
    assert [(fault.number, fault.field) for fault in found.faults] == [
        (2, "entry"),
        (3, "tenant"),
        (4, "key"),
    ]
    assert "entry 1" in found.faults[2].detail


def test_a_pair_that_is_there_twice_is_told() -> None:
    """The same key for two clients is a fault, also where JSON itself would take the last."""
    found = read_key_list(b'{"k": "acme", "k": "evil"}', "json")
    assert [entry.client_id for entry in found.entries] == ["acme"]
    assert [str(fault) for fault in found.faults] == ["entry 2: key is the same as that of entry 1"]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("json", "[]"),
        ("json", '{"k": "acme"'),
        ("json", "[" * 100_000),
        ("yaml", ""),
        ("yaml", "api_keys: [}"),
        ("yaml", "api_keys: {}"),
        ("yaml", "api_keys: []\nother: 1"),
        ("yaml", "api_keys: [{key: k, tenant: acme, enabled: false, enabled: true}]"),
        ("yaml", "api_keys: [&a {key: k, tenant: acme}, *a]"),
        ("yaml", "api_keys: [!!python/object:os.system {}]"),
        ("yaml", "api_keys: [!!int x]"),
        ("yaml", "api_keys: [{expires_at: 2027-13-45}]"),
        ("yaml", "[" * 10_000),
        ("csv", ""),
        ("csv", "hunter2,acme"),
        ("csv", "key,tenant,key\nk,acme,l"),
        ("csv", "key,tenant,secret\nk,acme,l"),
        ("csv", 'key,tenant\n"k,acme'),
        ("yaml", "#" * KEY_LIST_BYTES_MAX + "##"),
    ],
)
def test_what_is_no_list_of_keys_is_refused(form: str, text: str) -> None:
    """A file of another kind, or that could mean two things, is refused whole in one line."""
    with pytest.raises(BadKeyList) as raised:
        read_key_list(text.encode(), form)
    assert "\n" not in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_list_may_be_empty() -> None:
    """No keys at all can be said, as after the last was taken out."""
    for form, text in [("json", "{}"), ("yaml", "api_keys:"), ("csv", "key,tenant\n")]:
        assert read_key_list(text.encode(), form) == KeyList([], [])


@given(st.binary(max_size=60), st.sampled_from(sorted(FORMATS)))
def test_any_bytes_are_read_or_refused(raw: bytes, form: str) -> None:
    """Whatever the file holds, reading it gives keys, faults or BadKeyList."""
    _complaints(raw, form)


@given(
    st.text(alphabet="key:,-[]{}&*!|>'\"?#%@ \n\tq7Zk0<", max_size=60), st.sampled_from(["a", ""])
)
def test_any_yaml_is_read_or_refused(text: str, prefix: str) -> None:
    """Whatever the YAML says, nothing else is raised, in the list or in place of it."""
    for raw in (text, f"api_keys:\n- key: {text}", f"{prefix}: {MARK}{text}"):
        assert not [one for one in _complaints(raw.encode(), "yaml") if MARK in one]


@given(_rows)
def test_no_complaint_repeats_what_it_complains_of(rows: list[Any]) -> None:
    """Wherever a key stands in a file, no fault and no form of an entry contains it."""
    raw = yaml.safe_dump({"api_keys": rows}).encode()
    told = [one for one in _complaints(raw, "yaml") if MARK in one]
    # A good entry shows its description, and nothing else may hold any text.
    assert [one for one in told if f"description='{MARK}" not in one] == []


@given(st.dictionaries(st.text(max_size=5) | st.just(MARK), _scalars.filter(_is_json), max_size=4))
def test_no_json_makes_a_complaint_with_a_key(pairs: dict[str, Any]) -> None:
    """Any JSON map is read, or told of without a word of it."""
    assert not [one for one in _complaints(json.dumps(pairs).encode(), "json") if MARK in one]


@given(st.lists(st.lists(st.sampled_from([MARK, "acme", "", *FIELDS]), max_size=5), max_size=5))
def test_no_csv_makes_a_complaint_with_a_key(rows: list[list[str]]) -> None:
    """Any CSV is read, or told of without a word of it, also without a line of names."""
    raw = "\n".join(",".join(row) for row in rows).encode()
    told = [one for one in _complaints(raw, "csv") if MARK in one]
    assert [one for one in told if f"description='{MARK}" not in one] == []


def _of_our_form(secret: str) -> str:
    text = f"cl_live_acme_{'a' * 12}{secret}"
    return text + base62(crc32(text.encode()), 6)


@pytest.mark.parametrize(
    "secret",
    [
        "0" * 43,
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg",
        "abcabcabcabcabcabcabcabcabcabcabcabcabcabca",
        "Xk29dkPq1ZzXk29dkPq1ZzXk29dkPq1ZzXk29dkPq1Z",
    ],
)
def test_our_form_alone_makes_no_strong_key(peppers: Peppers, secret: str) -> None:
    """A key that was made up to look like ours is weak, and gets argon2id."""
    token = _of_our_form(secret)
    assert is_weak(token)
    key = prepare_import(peppers, token, client_id="acme", name="n")
    assert is_argon2(key.verifier or "")
    assert key.lookup_tag == peppers.lookup_tag(token)


def test_a_key_made_here_is_strong() -> None:
    """No key of ours is taken for a weak one, and every key of another form is."""
    assert not any(is_weak(mint("cl_live", "acme").text) for _ in range(2_000))
    for token in ("hunter2", "x" * 512, mint("cl_live", "acme").text[:-1], ""):
        assert is_weak(token)
    assert strength_bits("") == 0


def test_an_imported_key_is_classed_by_its_form(engine: Engine, peppers: Peppers) -> None:
    """A key of our form keeps its id and gets the keyed hash, any other argon2id and an id."""
    see_clients(engine, ["acme"])
    token = mint("cl_live", "acme")
    ours = import_key(engine, peppers, token=token.text, client_id="acme", name="ours")
    theirs = import_key(engine, peppers, token="hunter2", client_id="acme", name="theirs")
    assert (ours.key_id, ours.key_prefix) == (token.key_id, token.display)
    assert not is_argon2(ours.verifier or "")
    assert is_argon2(theirs.verifier or "")
    assert "hunter2" not in theirs.key_prefix


@pytest.mark.parametrize("token", ["", " a", "a\n", "é", "x" * 513, f"cl_live_{'a' * 61}"])
def test_what_could_never_be_sent_is_not_imported(
    engine: Engine, peppers: Peppers, token: str
) -> None:
    """A key that no request could carry, or that is mistyped, is refused."""
    see_clients(engine, ["acme"])
    with pytest.raises(Invalid) as raised:
        import_key(engine, peppers, token=token, client_id="acme", name="n")
    assert raised.value.members["errors"][0]["field"] == "key"


@pytest.mark.parametrize("token", ["hunter2", mint("cl_live", "acme").text], ids=["weak", "ours"])
def test_a_key_is_imported_once(engine: Engine, peppers: Peppers, token: str) -> None:
    """The same key for a second client would be an accident, and is a conflict."""
    see_clients(engine, ["acme"])
    see_clients(engine, ["evil"])
    import_key(engine, peppers, token=token, client_id="acme", name="n")
    with pytest.raises(StoredAlready):
        import_key(engine, peppers, token=token, client_id="evil", name="n")


def test_an_imported_key_brings_its_properties(engine: Engine, peppers: Peppers) -> None:
    """Role, scopes, datasets, limit, expiry and state are stored, and a new client is made."""
    expires_at = utc_now() + timedelta(days=1)
    entry = Entry(
        number=1,
        token="hunter2",
        client_id="acme",
        role="analyst",
        description="two\nlines",
        scopes=["logs:read"],
        allowed_datasets=["orders"],
        requests_per_minute=7,
        expires_at=expires_at,
        is_active=False,
    )
    key = import_key(
        engine,
        peppers,
        token=entry.token,
        client_id="acme",
        name=entry.name_or("none"),
        create_client=True,
        **entry.properties,
    )
    assert (key.role, key.scopes, key.allowed_datasets) == ("analyst", ["logs:read"], ["orders"])
    assert (key.requests_per_minute, key.expires_at, key.is_active) == (7, expires_at, False)
    assert (key.name, key.description) == ("two lines", "two\nlines")


@pytest.mark.parametrize(
    ("properties", "field"),
    [
        ({"role": "emperor"}, "role"),
        ({"scopes": ["all"]}, "scopes"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at"),
        ({"limits": {"requests_per_minute": -1}}, "limits.requests_per_minute"),
    ],
)
def test_a_bad_property_is_not_imported(
    engine: Engine, peppers: Peppers, properties: dict[str, Any], field: str
) -> None:
    """What a key may not have it may not bring along either, and no client is made for it."""
    with pytest.raises(Invalid) as raised:
        import_key(
            engine,
            peppers,
            token="hunter2",
            client_id="acme",
            name="n",
            create_client=True,
            **properties,
        )
    assert [fault["field"] for fault in raised.value.members["errors"]] == [field]
    with pytest.raises(NotFound):
        import_key(engine, peppers, token="hunter2", client_id="acme", name="n")


def test_a_deleted_key_does_not_come_back(engine: Engine, peppers: Peppers) -> None:
    """A key of our form that was deleted here is met as it is."""
    token = mint("cl_live", "acme").text
    key = import_key(engine, peppers, token=token, client_id="acme", name="n", create_client=True)
    delete_key(engine, key.key_id)
    with pytest.raises(StoredAlready) as raised:
        import_key(engine, peppers, token=token, client_id="acme", name="n")
    assert raised.value.key.deleted_at is not None


@pytest.mark.parametrize("token", ["hunter2", mint("cl_live", "acme").text], ids=["weak", "ours"])
def test_of_many_that_import_a_key_one_does(engine: Engine, token: str) -> None:
    """Imports of one key at the same time store it once, and the others meet it."""
    together = threading.Barrier(4)

    class Together(Peppers):
        def make_argon2id(self, token: str) -> str:
            together.wait(10)
            return super().make_argon2id(token)

        def make_keyed(self, token: str) -> str:
            together.wait(10)
            return super().make_keyed(token)

    def store(number: int) -> bool:
        try:
            import_key(
                engine,
                Together(["the first secret of this test suite"]),
                token=token,
                client_id=f"client{number}",
                name="n",
                create_client=True,
            )
        except StoredAlready:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(store, range(4))) == [False, False, False, True]
    assert len(list_keys(engine)) == 1
    with reading(engine) as session:
        assert len(session.exec(select(Client)).all()) == 1


def test_keys_that_share_a_tag_are_imported_at_once(engine: Engine) -> None:
    """Who meets another's new key of the same tag looks again, and is stored as well."""
    together = threading.Barrier(3)

    class OneTag(Peppers):
        def make_argon2id(self, token: str) -> str:
            together.wait(10)
            return super().make_argon2id(token)

        def lookup_tag(self, token: str) -> str:
            return f"{len(token)}"

        def lookup_tags(self, token: str) -> tuple[str, ...]:
            return (self.lookup_tag(token),)

    def store(token: str) -> None:
        peppers = OneTag(["the first secret of this test suite"])
        import_key(engine, peppers, token=token, client_id="acme", name=token, create_client=True)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(store, ["one", "two", "six"]))
    assert sorted(key.name for key in list_keys(engine)) == ["one", "six", "two"]
