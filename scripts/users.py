"""`make user` and `make users`: who may log in, and as what. They are on the door's volume."""

import os
import re
import secrets
import sys

from scripts import backups, compose, env_file, login
from scripts.console import Failure, done, main, say

NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
#: Who the make commands are to Dagit.
MAKE = "make"
#: What PASSWORD says for another one.
NEW = "new"
#: Bytes of randomness in a password.
PASSWORD_BYTES = 20


def user() -> None:
    """Add a user, give one another role or password, or remove one; raises Failure that names the cure."""
    require_door()
    name = wanted_name(os.environ.get("NAME", ""))
    if os.environ.get("REMOVE", "0") not in ("", "0", "no"):
        change("remove", name)
        backups.keep_users()
        done(f"{name} is removed: sessions end within seconds")
        return
    wanted_password = os.environ.get("PASSWORD", "")
    if wanted_password not in ("", NEW):
        raise Failure(f"Passwords are made here and printed once: PASSWORD={NEW} makes another one.")
    role = os.environ.get("ROLE") or users().get(name, "")
    if role not in login.ROLES:
        raise Failure(
            f"Which role? make user NAME={name} ROLE=viewer (looks), operator (runs jobs) or admin (all)."
        )
    is_new = name not in users()
    password = secrets.token_urlsafe(PASSWORD_BYTES) if is_new or wanted_password == NEW else ""
    change("set", name, role, given=password)
    backups.keep_users()
    done(f"{name} is {role}" + ("" if is_new else ": open pages must load again within seconds"))
    if password:
        say(f"\n  The password of {name}, which is kept nowhere: {password}")


def wanted_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise Failure(
            f"NAME={name} is no name of a user: small letters, digits and . _ @ -, as in make user NAME=ana ROLE=operator"
        )
    if name == MAKE:
        raise Failure(f"{MAKE} is the name of the make commands themselves: choose another one.")
    if name == login.ADMIN:
        file = env_file.env_path().name
        raise Failure(
            f"{name} is always there: its password is DOOR_ADMIN_PASSWORD in {file}. Change it there, then `make up`."
        )
    return name


def list_users() -> None:
    require_door()
    for name, role in users().items():
        say(f"  {name:<24} {role}")


def users() -> dict[str, str]:
    """Each local user's role."""
    return dict(line.split() for line in login.in_door("user", "list").splitlines())


def change(*command: str, given: str = "") -> None:
    login.in_door("user", *command, given=given)


def require_door() -> None:
    """Raises Failure where there are no users, or nobody to ask for them."""
    compose.require_env_file()
    if not env_file.has_login():
        raise Failure(
            f"There are no users without a login: set LOGIN=on in {env_file.env_path().name}, then `make up`."
        )
    if not any(each.service == "door" and each.state == "running" for each in compose.containers()):
        raise Failure("The door does not run: `make up` starts it.")


if __name__ == "__main__":
    main(list_users if sys.argv[1:] == ["list"] else user)
