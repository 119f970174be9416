"""Keys that stand in the settings."""

import pytest

from app.keys.configured import ConfiguredKeys, check_file
from app.keys.database import StartRefused
from app.keys.entry import Entry
from app.keys.token import mint
from app.keys.verifier import Peppers, is_argon2


def test_ids_come_from_the_place_not_from_the_key(peppers: Peppers) -> None:
    """A configured key's ids are the same with another text, and on every node."""
    ids = [
        [(key.key_id, key.id) for key in ConfiguredKeys(peppers, keys, "boss", "dev").keys]
        for keys in (
            {"a": "acme", "b": "acme", "c": "demo"},
            {"x": "acme", "y": "acme", "z": "demo"},
        )
    ]
    assert ids[0] == ids[1]
    assert [key_id for key_id, _ in ids[0]] == [
        "static_admin",
        "static_default",
        "static_acme_1",
        "static_acme_2",
        "static_demo_1",
    ]


def test_the_verifier_follows_the_strength(peppers: Peppers) -> None:
    """A key of our own making gets the keyed hash, any other argon2id, all if so configured."""
    keys = {mint("cl_live", "acme").text: "acme", "weak": "acme"}
    auto = [is_argon2(key.verifier or "") for key in ConfiguredKeys(peppers, keys).keys]
    forced = ConfiguredKeys(peppers, keys, key_hasher="argon2id").keys
    assert auto == [False, True]
    assert [is_argon2(key.verifier or "") for key in forced] == [True, True]


def test_no_text_of_a_key_is_kept(peppers: Peppers) -> None:
    """What is held of a configured key does not contain it."""
    configured = ConfiguredKeys(peppers, {"weak-but-secret": "acme"})
    assert "weak-but-secret" not in repr(vars(configured))


def test_clients_are_named_for_the_first_start(peppers: Peppers) -> None:
    """The clients that must exist are those of the keys, platform keys having none."""
    assert ConfiguredKeys(peppers, {"a": "acme"}, "b", "c").client_ids == {"acme", "default"}
    assert not ConfiguredKeys(peppers, {})


def test_a_key_that_could_never_work_is_refused(peppers: Peppers) -> None:
    """A mistyped, doubled or endless key stops the start, named by its setting and not shown."""
    mistyped = mint("cl_live", "acme").text[:-6] + "zzzzzz"
    with pytest.raises(StartRefused, match=r"^API_KEYS: a key is mistyped") as raised:
        ConfiguredKeys(peppers, {mistyped: "acme"})
    assert mistyped not in str(raised.value)
    with pytest.raises(StartRefused, match=r"^API_KEYS: the same key as in API_KEY_ADMIN"):
        ConfiguredKeys(peppers, {"same": "acme"}, "same")
    with pytest.raises(StartRefused, match=r"^API_KEY_DEFAULT: a key must have 1 to 512"):
        ConfiguredKeys(peppers, {}, "", "x" * 513)


class CountingPeppers(Peppers):
    """Peppers that count the verifiers they make."""

    made = 0

    def make_argon2id(self, token: str) -> str:
        """Count."""
        self.made += 1
        return super().make_argon2id(token)


def _entry(token: str, **properties: object) -> Entry:
    wanted = {"number": 1, "client_id": "acme", "role": "client", **properties}
    return Entry(token=token, **wanted)  # type: ignore[arg-type]


def test_ids_of_the_file_do_not_follow_its_order(peppers: Peppers) -> None:
    """A key of the file keeps its ids in another order and with another text."""
    one, two = _entry("a", description="one"), _entry("b", description="two")
    other = _entry("c", client_id="demo", description="one")
    admin = _entry("d", client_id=None, role="admin", description="one")
    ids = [
        {key.name: key.key_id for key in ConfiguredKeys(peppers, {}, file=entries).keys}
        for entries in (
            [one, two],
            [two, one],
            [_entry("x", description="one"), _entry("y", description="two")],
        )
    ]
    assert ids[0] == ids[1] == ids[2]
    assert ids[0]["one"].startswith("static_file_acme_")
    found = ConfiguredKeys(peppers, {}, file=[one, two, other, admin, _entry("e"), _entry("f")])
    assert len({key.id for key in found.keys}) == 6
    long = ConfiguredKeys(peppers, {}, file=[_entry("a", client_id="x" * 63)])
    assert len(long.keys[0].key_id) <= 64


def test_an_edit_costs_argon2_for_the_new_keys_only() -> None:
    """Entries that were there keep their verifiers, whatever else of them has changed."""
    peppers = CountingPeppers(["the first secret of this test suite"])
    first = ConfiguredKeys(peppers, {"s": "acme"}, file=[_entry("a"), _entry("b")])
    assert peppers.made == 3
    second = first.with_file(
        [_entry("c"), _entry("b", is_active=False), _entry("a", role="viewer")]
    )
    assert peppers.made == 3
    by_verifier = {key.verifier: key for key in second.keys}
    assert [by_verifier[key.verifier].role for key in first.keys] == ["client", "viewer", "client"]
    assert not by_verifier[first.keys[2].verifier].is_active
    third = second.with_waiting(0)
    assert (len(second), len(third), peppers.made) == (3, 4, 4)
    # What was given out does not change.
    assert [key.is_active for key in first.keys] == [True, True, True]
    assert len(first.with_file([])) == 1


def test_a_new_key_that_cannot_be_guessed_waits_for_nobody(peppers: Peppers) -> None:
    """A key of our making is in force at once, the clients of all are known, and no text stays."""
    entries = [_entry("hunter2", client_id="demo"), _entry(mint("cl_live", "acme").text)]
    edited = ConfiguredKeys(peppers, {}, file=[]).with_file(entries)
    assert [key.client_id for key in edited.keys] == ["acme"]
    assert edited.client_ids == {"acme", "demo"}
    assert "hunter2" not in repr(vars(edited))
    assert edited.with_waiting(0).waiting == []


def test_a_key_of_the_file_stands_nowhere_else(peppers: Peppers) -> None:
    """A key that is in the settings already is refused by its entry, and not shown."""
    configured = ConfiguredKeys(peppers, {"secret-1": "acme"})
    with pytest.raises(StartRefused, match=r"^API_KEYS_FILE: entry 7: the same") as raised:
        configured.with_file([_entry("secret-1", number=7)])
    assert "secret-1" not in str(raised.value)


def test_a_key_of_the_file_is_not_the_initial_admin_key(peppers: Peppers) -> None:
    """INITIAL_ADMIN_KEY is stored and no key of these, but its text is no client's either."""
    twice = [_entry("secret-1", number=7)]
    configured = ConfiguredKeys(peppers, {}, initial_admin_key="secret-1", file=[])
    assert "secret-1" not in repr(vars(configured))
    for refused in (
        lambda: ConfiguredKeys(peppers, {}, initial_admin_key="secret-1", file=twice),
        lambda: configured.with_file(twice),
        lambda: configured.with_file([]).with_file(twice),
        lambda: check_file({}, "", "", "secret-1", twice),
    ):
        with pytest.raises(StartRefused, match=r"entry 7: .*INITIAL_ADMIN_KEY$") as raised:
            refused()
        assert "secret-1" not in str(raised.value)


def test_a_file_without_keys_is_configured_all_the_same(peppers: Peppers) -> None:
    """Where keys may come any time no demo keys are wanted."""
    assert ConfiguredKeys(peppers, {}, file=[])
    assert not ConfiguredKeys(peppers, {})
