"""The repository, and how it is told from an empty folder, such as that of a disk that is not mounted."""

import json
import secrets

from backup.errors import Failure
from backup.settings import REPOSITORY, Settings

#: By which it is known, and its copy as that of this repository. `make up` writes it into a new BACKUP_DIR.
FILE = REPOSITORY / "repository.json"


def require(settings: Settings) -> None:
    """Raises Failure where BACKUP_DIR is no repository. The volume is made one."""
    if settings.folder and not FILE.exists():
        raise Failure(
            f"BACKUP_DIR={settings.folder} has no repository of backups. Is its disk mounted? Mount it, then `docker compose"
            " restart postgres backup`. If that one is lost, name another, empty folder in .env, then `make up`."
        )
    identity()


def identity() -> str:
    """The repository's own, made at the first call."""
    if not FILE.exists():
        FILE.write_text(json.dumps({"id": secrets.token_hex(8)}), encoding="utf-8")
    return str(json.loads(FILE.read_text(encoding="utf-8"))["id"])
