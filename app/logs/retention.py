"""How long logs are kept: days by client and dataset. Pure.

Age counts in UTC days from the day of arrival, never from executed_at, which clients set as they
like. What is kept for N days goes when the Nth day after that of its arrival is over: it is there
for N times 24 hours at least, and a day longer at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Retention:
    """Days that a client's logs are kept, those of some datasets apart; None is for ever."""

    days: int | None = None
    dataset_days: Mapping[str, int] = field(default_factory=dict)

    def is_over(self, dataset: str | None, age_days: int) -> bool:
        """Say whether logs of a dataset that arrived so many days ago are to go."""
        days = self.dataset_days.get(dataset or "", self.days)
        return days is not None and age_days > days

    def may_be_over(self, age_days: int) -> bool:
        """Say whether logs of any dataset that arrived so many days ago are to go."""
        return any(
            days is not None and age_days > days
            for days in (self.days, *self.dataset_days.values())
        )


# By client; who is not in it keeps all.
Policies = Mapping[str, Retention]
FOR_EVER = Retention()


@dataclass(frozen=True, slots=True)
class Expired:
    """What has gone: `logs` one by one, and `days` with all that had arrived on them."""

    logs: int = 0
    days: int = 0

    def __add__(self, other: "Expired") -> "Expired":
        return Expired(self.logs + other.logs, self.days + other.days)
