"""What there is to go back to before what can't be undone: the database's schema is migrated, a newer store writes."""

import os
from datetime import datetime

from scripts import backups, compose
from scripts.console import Failure

#: Set by whoever has made a backup by hand.
VARIABLE = "BACKED_UP"
BY_HAND = "the backup that BACKED_UP=1 says was made"


def require() -> str:
    """What it is, made now where backups are on; raises Failure where there is none, with how to have one."""
    if way := made():
        return way
    raise Failure(
        "The database's schema must be migrated for this code, which can't be undone, and backups are off. BACKUP=daily"
        " in .env lets this command make one itself, once `make up` with the former code has switched it on. Or make one"
        " by hand, then repeat this with BACKED_UP=1, for example `make deploy BACKED_UP=1`."
    )


def made() -> str:
    """What it is, made now; empty where backups are off. Raises Failure where they are on, and none can be made."""
    if is_by_hand():
        return BY_HAND
    if not backups.is_on():
        return ""
    if not any(each.service == "backup" and each.state == "running" for each in compose.containers()):
        raise Failure(
            "What comes now can't be undone, and the service `backup` is down, so no backup can be made before it. Start the"
            " stack with the former code and repeat this; or, when `make backups` has shown what you would go back to, repeat"
            " it with BACKED_UP=1."
        )
    backups.backup()
    return f"make restore TO='{datetime.now():%Y-%m-%d %H:%M:%S}'"


def is_by_hand() -> bool:
    return os.environ.get(VARIABLE, "0") not in ("", "0", "no")
