"""Keys that stand in the settings."""

import pytest

from app.keys.configured import ConfiguredKeys
from app.keys.database import StartRefused
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
    with pytest.raises(StartRefused, match=r"^API_KEY_DEFAULT: a key is longer"):
        ConfiguredKeys(peppers, {}, "", "x" * 513)
