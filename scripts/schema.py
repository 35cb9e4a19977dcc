"""The database's schema and the one that an image wants: ahead of it is refused, behind is migrated with a way back."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts import code_versions, compose, engine, env_file, images, restore_point
from scripts.console import ROOT, Failure, Progress, run_logged, say
from scripts.hosts.services import SCALES
from scripts.standstill import standing_still

#: Read on standard input, so that older images answer too.
ASK = ROOT / "dagster_stack" / "store" / "schema.py"
RUN, ASKED = ("--progress", "quiet", "run", "--rm", "--no-deps", "--no-TTY"), ("cli", "python", "-P", "-")
#: For the stack's own Postgres, which runs as before INTERNAL_TLS was switched.
EITHER = ("--env", "PGSSLMODE=prefer")
#: Only this one migrates: `init` of a start refuses. Stores that are down are started for it.
MIGRATE = ("--progress", "quiet", "run", "--rm", "--no-TTY", "init",
           "python", "-m", "dagster_stack", "init", "--migrate")  # fmt: skip
AHEAD = """\
The database's schema ({found}) is newer than this code knows ({wanted}): newer code has migrated it. There are two ways out:

  - the newer code: `make versions` lists what is kept, `make rollback TO=…` goes to it; or check out its release, then
    `make deploy`
  - a backup from before it was migrated: it loses what has happened since (docs/operations.md, “Back up”)"""


@dataclass(frozen=True)
class Migration:
    """One that the image's code needs, and what there is to go back to."""

    found: str
    wanted: str
    way_back: str

    def run(self, code: str) -> None:
        """Migrate while nothing of the old code runs; after a failure that goes on as before."""
        say(
            f"Migrating the database's schema from {self.found} to {self.wanted}. The way back: {self.way_back}"
        )
        old = {service for services in code_versions.running().values() for service in services}
        with standing_still(lambda service: service in old or service in SCALES):
            run_logged(f"Migrating for code {code}", [*compose.compose(), *MIGRATE])


def required(start_postgres: Callable[[], None]) -> Migration | None:
    """The migration that the image with Dagster's name needs; raises Failure where that is refused.

    Asks nothing where this very image was deployed last, or there is no database yet.
    """
    last = code_versions.kept()[:1]
    if last and last[0].image_id == images.dagster_id():
        return None
    if not env_file.settings().get("POSTGRES_HOST"):
        if not engine.ask("volume", "ls", "--quiet", "--filter", f"name=^{compose.project()}_postgres$"):
            return None
        if not any(each.service == "postgres" and each.is_well for each in compose.containers()):
            start_postgres()
    found = ask()
    if found["found"] and not found["is_known"]:
        raise Failure(AHEAD.format(**found))
    if not found["found"] or found["found"] == found["wanted"]:
        return None
    return Migration(found["found"], found["wanted"], restore_point.require())


def ask() -> dict[str, Any]:
    """What the image says of the database."""
    either = () if env_file.settings().get("POSTGRES_HOST") else EITHER
    with Progress("Comparing the database's schema with the code's"):
        said = compose.output(*RUN, *either, *ASKED, given=ASK.read_text(encoding="utf-8"))
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError:
        raise Failure(f"The image does not say which schema it finds, but:\n\n{said}") from None
    return answer
