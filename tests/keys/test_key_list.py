"""Files of keys that were made elsewhere."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.keys import key_list
from app.keys.entry import FIELDS, Entry
from app.keys.key_list import FORMATS, KEY_LIST_BYTES_MAX, BadKeyList, KeyList, read_key_list

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
        ("yaml", "api_keys: !!int x"),
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


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("!!int hunter2", "entry"),
        ("{key: k, tenant: acme, expires_at: 2027-13-45}", "expires_at"),
        (f"{{key: {'9' * 5_000}, tenant: acme}}", "key"),
        (f"{{key: 0x{'f' * 5_000}, tenant: acme}}", "key"),
        (f"{{key: k, tenant: acme, permissions: [{'9' * 5_000}]}}", "permissions"),
        (f"{{key: k, tenant: acme, ? {'9' * 5_000} : 1}}", "field 3"),
        (f"{{key: k, tenant: acme, ? 0x{'f' * 5_000} : 1}}", "field 3"),
    ],
)
def test_a_value_that_is_none_is_a_fault_of_its_entry(row: str, field: str) -> None:
    """What YAML cannot make anything of is told with its entry, and costs no other."""
    text = f"api_keys:\n- {{key: a, tenant: acme}}\n- {row}\n"
    found = read_key_list(text.encode(), "yaml")
    assert [entry.number for entry in found.entries] == [1]
    assert [(fault.number, fault.field) for fault in found.faults] == [(2, field)]


def test_without_libyaml_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyYAML was built without it, files mean the same, and aliases are refused as well."""
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    monkeypatch.setattr(key_list, "_YamlLoader", key_list.quickest_loader())
    assert key_list.quickest_loader() is key_list.PythonLoader
    test_yaml_and_csv_say_the_same()
    for text in ("api_keys: [&a {key: k, tenant: acme}, *a]", "api_keys: [}", "[" * 10_000):
        test_what_is_no_list_of_keys_is_refused("yaml", text)


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
