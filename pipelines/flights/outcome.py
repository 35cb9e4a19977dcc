"""Where the rows of a table went, and the proof that none is missing."""

from collections import Counter
from dataclasses import dataclass, field

from dagster import Failure


@dataclass(frozen=True)
class Outcome:
    """Each row is in one of these: used, cancelled (the flight was), or rejected for a reason."""

    used: int = 0
    cancelled: int = 0
    #: Rejected rows by column and reason, such as `month: not between 1 and 12`.
    reasons: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.used + other.used, self.cancelled + other.cancelled, self.reasons + other.reasons)

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    @property
    def rows(self) -> int:
        return self.used + self.cancelled + self.rejected

    def counts(self) -> dict[str, int]:
        """The numbers as metadata."""
        return {
            "rows": self.rows,
            "used": self.used,
            "cancelled": self.cancelled,
            "rejected": self.rejected,
        }

    def account_for(self, rows: int) -> None:
        """Raise a Failure unless these are all the rows: none lost, none counted twice."""
        if self.rows != rows:
            raise Failure(
                f"{rows:,} rows came in, and {self.rows:,} are accounted for: {self.used:,} used,"
                f" {self.cancelled:,} cancelled, {self.rejected:,} rejected.",
                metadata={"expected": rows, **self.counts()},
                allow_retries=False,
            )

    def reasons_table(self) -> str:
        """A Markdown table of the reasons, the most frequent first."""
        lines = [f"| {reason} | {count:,} |" for reason, count in self.reasons.most_common()]
        return "\n".join(["| reason | rows |", "|---|--:|", *lines])
