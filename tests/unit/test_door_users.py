"""The door's own program for users (docker/door/user), as far as it needs no Apache: what a backup keeps, and gives back."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts.console import ROOT

ADMIN, ANA, BOB = "admin:$2y$05$of-admin", "ana:$2y$05$of-ana", "bob.b@example.com:$2y$05$of-bob"


class Door:
    """A folder in the place of its volume."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        text = (ROOT / "docker" / "door" / "user").read_text(encoding="utf-8")
        self.program = folder / "user"
        self.program.write_text(
            text.replace("cd /data", f"cd {self.data}").replace("/tmp/user.lock", f"{folder}/lock")
        )
        reload = folder / "reload"
        reload.write_text(f"#!/bin/sh\necho reloaded >> {folder}/reloads\n")
        reload.chmod(0o755)
        self.path = f"{folder}:{os.environ['PATH']}"

    def has(self, roles: dict[str, str], *users: str) -> None:
        (self.data / "users").write_text("".join(f"{user}\n" for user in users))
        (self.data / "roles").write_text("".join(f"{name} {role}\n" for name, role in roles.items()))

    def ask(self, command: str, given: str = "") -> str:
        return subprocess.run(
            ["sh", self.program, command],
            input=given, capture_output=True, text=True, check=True, env={"PATH": self.path},
        ).stdout  # fmt: skip

    def file(self, name: str) -> set[str]:
        return set((self.data / name).read_text().splitlines())


@pytest.fixture
def lost(tmp_path: Path) -> Door:
    door = Door(tmp_path / "lost")
    door.has({"admin": "admin", "ana": "viewer", "bob.b@example.com": "operator"}, ADMIN, ANA, BOB)
    return door


@pytest.fixture
def new(tmp_path: Path) -> Door:
    door = Door(tmp_path / "new")
    door.has({"admin": "admin"}, "admin:$2y$05$another")
    return door


def test_users_of_a_lost_door_log_in_at_a_new_one_with_their_passwords_and_roles(
    lost: Door, new: Door
) -> None:
    new.ask("import", lost.ask("export"))
    assert new.file("users") == {"admin:$2y$05$another", ANA, BOB}
    assert new.file("groups") == {"admin: admin", "viewer: ana", "operator: bob.b@example.com"}
    assert new.ask("list") == lost.ask("list")


def test_the_password_of_admin_is_that_of_env(lost: Door) -> None:
    assert "admin" not in lost.ask("export")


def test_of_a_door_without_users_there_is_nothing_to_keep(new: Door) -> None:
    assert new.ask("export") == ""
