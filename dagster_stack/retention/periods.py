"""How long what is kept: `KEEP_DETAILS_DAYS`, `KEEP_RUNS_DAYS`, `AUDIT_DAYS`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dagster_stack.errors import SettingsError

DETAILS_VARIABLE, RUNS_VARIABLE, AUDIT_VARIABLE = "KEEP_DETAILS_DAYS", "KEEP_RUNS_DAYS", "AUDIT_DAYS"
#: Days. A hundred years are as good as for ever.
DETAILS_DAYS, RUNS_DAYS, AUDIT_DAYS, MOST_DAYS = 30, 365, 365, 36_500


@dataclass(frozen=True)
class Periods:
    """Days after the end of a run, or of all of its group; for the audit, after what somebody did. 0: for ever."""

    details: int = DETAILS_DAYS
    runs: int = RUNS_DAYS
    audit: int = AUDIT_DAYS

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Periods":
        """Raises SettingsError for what is no number of days."""
        return Periods(
            days(environment, DETAILS_VARIABLE, DETAILS_DAYS),
            days(environment, RUNS_VARIABLE, RUNS_DAYS),
            days(environment, AUDIT_VARIABLE, AUDIT_DAYS),
        )

    def __str__(self) -> str:
        if not (self.details or self.runs):
            return "Old runs are kept for ever"
        details, runs = (f"{days} days" if days else "for ever" for days in (self.details, self.runs))
        return f"Old runs are kept {runs}, how their steps were executed {details}"


def days(environment: Mapping[str, str], name: str, default: int) -> int:
    """A setting's number of days. Raises SettingsError."""
    text = environment.get(name, "").strip() or str(default)
    if not (
        text.isascii() and text.isdecimal() and len(text) <= len(str(MOST_DAYS)) and int(text) <= MOST_DAYS
    ):
        raise SettingsError(
            f"{name} is {text!r}: it must be a whole number of days from 1 to {MOST_DAYS}, or 0 to keep all. Change it in"
            " .env."
        )
    return int(text)
