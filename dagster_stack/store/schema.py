"""The revision of Dagster's tables in the database, beside the one that the installed Dagster wants.

`make rollback` runs this file in older images too, on standard input: it imports nothing of the stack.
"""

import json
import os
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, create_engine

#: Where Dagster keeps the revisions, in its package.
REVISIONS = "_core/storage/alembic"


@dataclass(frozen=True)
class Schema:
    """`found` is empty in a database without Dagster's tables; `is_known` where the installed Dagster has heard of it."""

    found: str
    wanted: str
    is_known: bool

    @property
    def is_ahead(self) -> bool:
        return bool(self.found) and not self.is_known

    @property
    def is_behind(self) -> bool:
        return self.is_known and self.found != self.wanted


def of_database(connection: Connection) -> Schema:
    """Raises SQLAlchemyError where the database can't be asked."""
    found = MigrationContext.configure(connection).get_current_revision() or ""
    known = revisions()
    try:
        is_known = bool(found) and known.get_revision(found) is not None
    except CommandError:
        is_known = False
    return Schema(found, known.get_current_head() or "", is_known)


def revisions() -> ScriptDirectory:
    """Those that the installed Dagster knows."""
    spec = find_spec("dagster")
    assert spec
    assert spec.origin
    return ScriptDirectory(str(Path(spec.origin).parent / REVISIONS))


def main() -> None:
    """Print what is so with the database that the environment names."""
    user, password, host, port, database = (
        os.environ[f"DAGSTER_POSTGRES_{name}"] for name in ("USER", "PASSWORD", "HOST", "PORT", "DB")
    )
    url = URL.create("postgresql", user, password, host, int(port), database)
    engine = create_engine(url)
    with engine.connect() as connection:
        print(json.dumps(asdict(of_database(connection))))


if __name__ == "__main__":
    main()
