"""Why a request was refused, by what is known of the key: one reason, explained to people."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.activity import reasons
from app.activity.reasons import EXPLANATIONS, Diagnosis, Suspect
from app.keys import shape
from app.keys.models import ApiKey
from app.keys.shape import Presented, shape_of
from app.keys.token import mint
from app.keys.verifier import Peppers

GUIDE = (Path(__file__).resolve().parents[2] / "docs/provider.md").read_text()
NOW = datetime(2031, 1, 2, 12, tzinfo=UTC)
PEPPERS = Peppers(["a secret of the server"])
TOKEN = mint("cl_live", "acme")
PRESENTED = shape_of(TOKEN.text)._replace(proofs=PEPPERS.proofs(TOKEN.text))
PAST, FUTURE = NOW - timedelta(hours=1), NOW + timedelta(hours=1)


def suspect(*, client_is_active: bool = True, **fields: object) -> Suspect:
    """Give the key that was sent, with other columns."""
    key = ApiKey(
        key_id=TOKEN.key_id,
        key_prefix="",
        client_id="acme",
        name="",
        role="client",
        verifier=PEPPERS.make_keyed(TOKEN.text),
    )
    for name, value in fields.items():
        setattr(key, name, value)
    return Suspect(key, client_is_active)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (suspect(), "valid_by_now"),
        (suspect(expires_at=FUTURE, grace_until=PAST), "grace_over"),
        (suspect(expires_at=PAST, grace_until=PAST), "expired"),
        (suspect(expires_at=FUTURE, grace_until=FUTURE), "valid_by_now"),
        (suspect(is_active=False, expires_at=PAST), "deactivated"),
        (suspect(is_active=False, quarantined_at=PAST), "quarantined"),
        (suspect(verifier=None, is_active=False), "deleted"),
        (suspect(role="admin"), "unusable"),
        (suspect(client_is_active=False), "client_deactivated"),
        (suspect(is_active=False, verifier=PEPPERS.make_keyed("other")), "wrong_secret"),
        (suspect(verifier=Peppers(["x" * 16]).make_keyed(TOKEN.text)), "secret_key_changed"),
    ],
)
def test_the_row_tells(found: Suspect, expected: str) -> None:
    """A key that was sent whole is told by its row; with another secret it says that first."""
    diagnosis = reasons.of_key(PRESENTED, [found], NOW)
    assert diagnosis == Diagnosis(expected, TOKEN.key_id, "acme")
    assert diagnosis.reason in EXPLANATIONS


def test_a_short_tag_proves_nothing() -> None:
    """A foreign text that has the tag of a key that works is not said to be that key."""
    presented = Presented(shape.FOREIGN, proofs=PRESENTED.proofs)
    assert reasons.of_key(presented, [suspect()], NOW) == Diagnosis(shape.FOREIGN)
    assert reasons.of_key(presented, [suspect(), suspect(is_active=False)], NOW) == Diagnosis(
        "deactivated", TOKEN.key_id, "acme"
    )


def test_a_caller_who_lost_its_key() -> None:
    """Who was authenticated, and no more when the body had come, is told by the row too."""
    assert reasons.of_caller(suspect(is_active=False), NOW) == "deactivated"
    assert reasons.of_caller(None, NOW) == "deleted"


@given(st.text())
def test_every_403_has_a_reason(detail: str) -> None:
    """Whatever a caller was told, there is a reason for it and a line that explains it."""
    reason = reasons.of_forbidden(detail)
    assert reasons.explanation(reason, detail).startswith(EXPLANATIONS[reason])


@pytest.mark.parametrize("violated", [["requests"], ["logs", "bytes"], ["exports"]])
def test_every_429_has_a_reason(violated: list[str]) -> None:
    """A limit is named by its policies, and fits its column."""
    reason = reasons.of_limits(violated)
    assert reason == "rate_limit_" + "_and_".join(violated)
    assert " and ".join(violated) in reasons.explanation(reason)
    assert reasons.of_limits(["auth_failures"]) in EXPLANATIONS


def test_every_reason_is_in_the_guide() -> None:
    """The provider's guide names each reason that can be told."""
    missing = {one for one in EXPLANATIONS if f"`{one}`" not in GUIDE}
    assert not missing
