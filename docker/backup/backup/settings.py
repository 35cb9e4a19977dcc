"""What this container was told, and what the programs that it calls are told of that."""

import base64
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from backup.errors import Failure

#: Where the repository is in this container, and where a copy of one is mounted that is a folder of the host.
REPOSITORY = Path("/backups")
COPY = "/copy"
#: Where Postgres keeps its data, and the name of the restored one in pgBackRest.
CLUSTER = Path("/data/17")
#: Seconds of silence after which a store or a target does not answer.
SILENCE_SECS = 60
#: Whom rclone believes to be the SFTP server.
KNOWN_HOSTS = Path("/tmp/known_hosts")
#: The parts of the repository: pgBackRest's own, and what rclone keeps encrypted.
JOURNAL, KEPT = REPOSITORY / "postgres", REPOSITORY / "kept"


@dataclass(frozen=True)
class Settings:
    """The variables of compose/backup.yaml."""

    key: str
    keep_days: int
    #: The bucket, with the prefix of the stack's keys, as rclone names it.
    bucket: str
    target: str
    #: The folder of the host that is the repository; empty: a volume is.
    folder: str
    is_outside_postgres: bool
    database: str
    broker: str

    @staticmethod
    def read(environment: Mapping[str, str] = os.environ) -> "Settings":
        key = environment.get("BACKUP_KEY", "")
        if not key:
            raise Failure(
                "BACKUP_KEY is empty: `make up` generates one, for a restore it is on the recovery sheet."
            )
        prefix = environment.get("S3_PREFIX", "").strip("/")
        keep = environment.get("BACKUP_KEEP_DAYS") or "28"
        if not keep.isdecimal() or int(keep) < 1:
            raise Failure(f"BACKUP_KEEP_DAYS={keep} in .env is no number of days from 1 on.")
        return Settings(
            key=key,
            keep_days=int(keep),
            bucket="/".join(filter(None, ["store:" + environment["S3_BUCKET"], prefix])),
            target=environment.get("BACKUP_TARGET", ""),
            folder=environment.get("BACKUP_DIR", ""),
            is_outside_postgres=bool(environment.get("POSTGRES_HOST")),
            database=environment.get("POSTGRES_DB") or "dagster",
            broker=environment.get("RABBITMQ_API_URL", ""),
        )


def rclone_environment(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """rclone's remotes: `store` is the bucket's server, `kept` the encrypted part of the repository, `target` the copy off
    this host, `far` that one's encrypted part."""
    target, kind = remote_of(settings.target, environment) if settings.target else ("", {})
    remotes = {
        "store": {
            "type": "s3",
            "provider": "Other",
            "env_auth": "false" if environment.get("S3_ACCESS_KEY") else "true",
            "endpoint": environment.get("S3_ENDPOINT", ""),
            "access_key_id": environment.get("S3_ACCESS_KEY", ""),
            "secret_access_key": environment.get("S3_SECRET_KEY", ""),
            "session_token": environment.get("S3_SESSION_TOKEN", ""),
            "region": environment.get("S3_REGION", ""),
            "force_path_style": "true",
            "no_check_bucket": "true",
        },
        "kept": encrypted(str(KEPT), settings.key),
        **({"target": kind, "far": encrypted(f"{target}/kept", settings.key)} if target else {}),
    }
    return {
        f"RCLONE_CONFIG_{remote.upper()}_{option.upper()}": value
        for remote, options in remotes.items()
        for option, value in options.items()
    }


def encrypted(path: str, key: str) -> dict[str, str]:
    """Contents are encrypted; names are not, since an encrypted one may be too long for a file system."""
    return {
        "type": "crypt",
        "remote": path,
        "password": obscured(key),
        "filename_encryption": "off",
        "directory_name_encryption": "false",
    }


def remote_of(target: str, environment: Mapping[str, str] = os.environ) -> tuple[str, dict[str, str]]:
    """A target's path as rclone names it, and the options of its remote; raises Failure that says how one is written."""
    if target.startswith("/"):
        return f"target:{COPY}", {"type": "local"}
    if target.startswith("s3:") and (path := target.removeprefix("s3:").strip("/")):
        return f"target:{path}", {
            "type": "s3",
            "provider": "Other" if environment.get("BACKUP_S3_ENDPOINT_URL") else "AWS",
            "endpoint": environment.get("BACKUP_S3_ENDPOINT_URL", ""),
            "access_key_id": environment.get("BACKUP_S3_ACCESS_KEY", ""),
            "secret_access_key": environment.get("BACKUP_S3_SECRET_KEY", ""),
            "region": environment.get("BACKUP_S3_REGION") or "us-east-1",
            "force_path_style": "true" if environment.get("BACKUP_S3_ENDPOINT_URL") else "false",
            "no_check_bucket": "true",
        }
    if found := re.fullmatch(r"sftp:(?://)?([^@/]+@[^/]+?):?(/.*)", target):
        address = urlsplit(f"sftp://{found[1]}")
        return f"target:{found[2].rstrip('/')}", {
            "type": "sftp",
            "host": address.hostname or "",
            "user": address.username or "",
            "port": str(address.port or 22),
            "shell_type": "none",
            "known_hosts_file": known_hosts(address.hostname or "", address.port or 22, environment),
            **login(environment),
        }
    raise Failure(
        f"{target} is no place for backups: write s3:bucket/folder or sftp:user@host:22/folder"
        " (for a restore also a folder of this host, /mnt/copy)."
    )


def login(environment: Mapping[str, str]) -> dict[str, str]:
    if key := environment.get("BACKUP_SFTP_KEY"):
        try:
            text = base64.b64decode(key, validate=True).decode()
        except ValueError:
            raise Failure("BACKUP_SFTP_KEY is not what `base64 -w0 < the private key` prints.") from None
        return {"key_pem": text.strip().replace("\n", "\\n")}
    if password := environment.get("BACKUP_SFTP_PASSWORD"):
        return {"pass": obscured(password)}
    raise Failure("BACKUP_SFTP_KEY and BACKUP_SFTP_PASSWORD are empty: one of them must log in there.")


def known_hosts(host: str, port: int, environment: Mapping[str, str]) -> str:
    """The file that has the server's keys: whoever answers with another one gets neither login nor data."""
    words = environment.get("BACKUP_SFTP_HOST_KEY", "").split()
    if not words or len(words) % 2:
        wrong = "has no keys of a server" if words else "is empty"
        raise Failure(
            f"BACKUP_SFTP_HOST_KEY {wrong}, so the server can't be told from another one that answers in its place: it is what"
            f" `ssh-keyscan -p {port} {host} | cut -d' ' -f2,3 | tr '\\n' ' '` prints, seen from a safe place."
        )
    name = host if port == 22 else f"[{host}]:{port}"
    # rclone asks for the kind of key that it likes best, so each kind must be there that the server has.
    lines = [f"{name} {kind} {key}\n" for kind, key in zip(words[::2], words[1::2], strict=True)]
    KNOWN_HOSTS.write_text("".join(lines), encoding="utf-8")
    return str(KNOWN_HOSTS)


def obscured(text: str) -> str:
    """A password as rclone wants it in a configuration."""
    if not text:
        return ""
    return subprocess.run(
        ["rclone", "obscure", "-"], input=text, capture_output=True, text=True, check=True
    ).stdout.strip()
