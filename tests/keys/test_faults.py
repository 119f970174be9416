"""What is wrong with keys and clients."""

import pytest

from app.errors import Invalid
from app.keys.faults import check_client, is_mail_address
from app.keys.models import Client


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
