"""What is wrong with keys and clients."""

import pytest

from app.errors import Invalid
from app.keys.faults import check_client, is_mail_address
from app.keys.models import Client
from app.keys.token import mint


@pytest.mark.parametrize("address", ["ops@example.com", "a.b+c@localhost", "o'x@xn--bcher-kva.ch"])
def test_a_mail_address_is_one(address: str) -> None:
    """What people have for an address is taken for one."""
    assert is_mail_address(address)
    check_client(Client(client_id="acme", name="Acme", contact_email=address))


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ops",
        "ops@",
        "a@b@c",
        "a..b@c",
        "ops@bücher.ch",
        "a@b\nBcc: x@y.z",
        "a@b, x@y.z",
        "Ops <a@b>",
        "a@-b",
        "=?utf-8?q?a?=@b.com",
        f"{'a' * 250}@b.ch",
    ],
)
def test_what_no_mail_could_carry_is_no_contact(address: str) -> None:
    """A client's contact is refused wherever the mail to it would be."""
    assert not is_mail_address(address)
    with pytest.raises(Invalid) as raised:
        check_client(Client(client_id="acme", name="Acme", contact_email=address))
    assert [fault["field"] for fault in raised.value.members["errors"]] == ["contact_email"]


def test_a_key_in_the_wrong_field_is_not_kept() -> None:
    """What is stored and shown as it is takes no key, wherever in it one stands."""
    token = mint("cl_live", "acme").text
    clients = (
        (Client(client_id="acme", name=token), "name"),
        (Client(client_id="acme", name="Acme", extra={"notes": [f"old: {token}"]}), "metadata"),
        (Client(client_id="acme", name="Acme", extra={token: 1}), "metadata"),
    )
    for client, field in clients:
        with pytest.raises(Invalid) as raised:
            check_client(client)
        assert [fault["field"] for fault in raised.value.members["errors"]] == [field]
