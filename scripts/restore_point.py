"""What there is to go back to before the database's schema is migrated, which can't be undone."""

import os

from scripts.console import Failure

#: Set by whoever has made a backup by hand.
VARIABLE = "BACKED_UP"
BY_HAND = "the backup that BACKED_UP=1 says was made"


def require() -> str:
    """What it is; raises Failure where there is none, with how to have one. Nothing was changed yet."""
    if os.environ.get(VARIABLE, "0") not in ("", "0", "no"):
        return BY_HAND
    raise Failure(
        "The database's schema must be migrated for this code, which can't be undone, and backups are off. Make one now"
        " (docs/operations.md, “Back up”: Postgres, while all runs on), then repeat this with BACKED_UP=1, for example"
        " `make deploy BACKED_UP=1`."
    )
