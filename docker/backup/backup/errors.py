"""What goes wrong, with its cure."""


class Failure(Exception):
    """Raised when a backup or a restore can't go on: the message says what is wrong and how to cure it.

    `said` is all that a program said, where one failed.
    """

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


#: What programs say, and what that means. The first that is found counts.
CURES = (
    (
        ("No space left on device", "no space left on device", "Disk quota exceeded",
         "too big for remaining disk space"),
        "The repository is full. Give BACKUP_DIR more room, or lower BACKUP_KEEP_DAYS in .env, then `make up`; work goes on"
        " meanwhile.",
    ),
    (
        ("backup and archive info files exist but do not match the database", "ArchiveMismatchError", "system-id",
         "do not match the database"),
        "This repository has the backups of another database. `make restore` brings that one back; to keep the database that"
        " runs now, name another, empty folder as BACKUP_DIR in .env, then `make up`.",
    ),
    (
        ("unable to find a valid repository", "FileMissingError", "unable to open missing file"),
        "A file of the repository is missing. If there is a copy off this host: make restore FROM=…",
    ),
    (
        ("Permission denied", "permission denied", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "unable to authenticate"),
        "The login or the permissions of that place are wrong: see the BACKUP_ settings in .env. A folder of this host must"
        " belong to user 10002.",
    ),
    (
        ("knownhosts: key mismatch",),
        "The server shows a key that is not in BACKUP_SFTP_HOST_KEY. If that one lacks some, name all of its keys, as docs/backup.md"
        " shows; else it is another server.",
    ),
    (
        ("dial tcp", "no such host", "i/o timeout", "connection refused", "network is unreachable", "NoSuchBucket", "context deadline"),
        "That place does not answer, or is not there: check its address in .env and the network. Nothing is lost; it is tried"
        " again.",
    ),
    (
        ("CryptoError", "failed to authenticate", "bad password", "not an encrypted file", "unexpected EOF"),
        "BACKUP_KEY is not the key of this repository, or a file of it is cut off. The key is on the recovery sheet, and in the .env"
        " of the stack that made the backups.",
    ),
    (
        ("lock timeout",),
        "Retention is at work and makes no way for a backup: `make logs SERVICE=daemon` says what it does; docker compose restart"
        " daemon ends it. It is tried again.",
    ),
    (
        ("archive_mode must be enabled",),
        "Postgres runs since before BACKUP=daily, and hands no journal over: `make up` restarts it.",
    ),
    (
        ("was not archived before",),
        "Postgres could not hand its journal to the repository: its log says why (make logs SERVICE=postgres). Work goes on meanwhile.",
    ),
    (("unable to acquire lock",), "Another backup is under way: it is tried again."),
    (
        ("could not connect to server", "connection to server on socket", "connection to server was lost",
         "server closed the connection", "terminating connection", "timeout expired", "unable to find primary cluster"),
        "Postgres does not answer: `make status`.",
    ),
)  # fmt: skip


def cure(said: str) -> str:
    """What to do about what a program has said; empty where nobody knows."""
    return next((text for signs, text in CURES if any(sign in said for sign in signs)), "")
