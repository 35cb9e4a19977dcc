"""`make user` and `make users`: what is asked of the door, and what is refused before."""

from pathlib import Path

import pytest

from scripts import backups, compose, login, users
from scripts.compose import Container
from scripts.console import Failure

EXPORTED = "ana viewer $2y$05$hash\n"


class DoorStub:
    """The door's container, as `docker compose exec` reaches it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.roles = {"admin": "admin", "ana": "viewer"}
        self.changes: list[tuple[str, ...]] = []
        self.running = True
        monkeypatch.setattr(login, "in_door", self.asked)
        monkeypatch.setattr(compose, "containers", self.containers)
        for name in ("NAME", "ROLE", "REMOVE", "PASSWORD"):
            monkeypatch.delenv(name, raising=False)

    def asked(self, *command: str, given: str | None = None) -> str:
        if command == ("user", "list"):
            return "".join(f"{name} {role}\n" for name, role in self.roles.items())
        if command == ("user", "export"):
            return EXPORTED
        self.changes.append((*command[1:], given or ""))
        return ""

    def containers(self) -> list[Container]:
        return [Container("p-door-1", "door", "running" if self.running else "exited", "healthy", 0)]


@pytest.fixture
def door(env: Path, monkeypatch: pytest.MonkeyPatch) -> DoorStub:
    env.write_text("LOGIN=on\n")
    return DoorStub(monkeypatch)


def make(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    users.user()


def test_a_new_user_has_a_password_that_is_printed_once(
    door: DoorStub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(monkeypatch, NAME="bob", ROLE="operator")

    ((command, name, role, password),) = door.changes
    assert (command, name, role) == ("set", "bob", "operator")
    assert len(password) >= 26
    assert capsys.readouterr().out.count(password) == 1


def test_a_change_is_kept_with_the_backups(
    door: DoorStub, env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env.write_text("LOGIN=on\nBACKUP=daily\n")
    kept: list[tuple[str, ...]] = []
    monkeypatch.setattr(backups, "ask", lambda *words, given: kept.append((*words, given)))

    make(monkeypatch, NAME="bob", ROLE="operator")
    make(monkeypatch, NAME="bob", REMOVE="1")

    assert kept == [("keep", "settings/users", EXPORTED)] * 2


def test_another_role_keeps_the_password_and_another_password_the_role(
    door: DoorStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(monkeypatch, NAME="ana", ROLE="operator")
    assert door.changes.pop() == ("set", "ana", "operator", "")

    monkeypatch.delenv("ROLE")
    make(monkeypatch, NAME="ana", PASSWORD="new")
    assert door.changes[0][:3] == ("set", "ana", "viewer")
    assert door.changes[0][3]


def test_a_user_is_removed(door: DoorStub, monkeypatch: pytest.MonkeyPatch) -> None:
    make(monkeypatch, NAME="ana", REMOVE="1")

    assert door.changes == [("remove", "ana", "")]


@pytest.mark.parametrize(
    ("variables", "cure"),
    [
        ({"NAME": ""}, "NAME= is no name"),
        ({"NAME": "Ana B"}, "small letters"),
        ({"NAME": "oidc:ana"}, "small letters"),
        ({"NAME": "make", "ROLE": "admin"}, "choose another"),
        ({"NAME": "admin", "REMOVE": "1"}, "DOOR_ADMIN_PASSWORD"),
        ({"NAME": "bob"}, "Which role"),
        ({"NAME": "bob", "ROLE": "boss"}, "Which role"),
        ({"NAME": "ana", "PASSWORD": "mine"}, "PASSWORD=new"),
    ],
)
def test_what_can_not_be_is_refused_with_the_cure(
    door: DoorStub, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], cure: str
) -> None:
    with pytest.raises(Failure, match=cure):
        make(monkeypatch, **variables)
    assert door.changes == []


def test_without_a_door_it_is_said_how_to_have_one(door: DoorStub, env: Path) -> None:
    door.running = False
    with pytest.raises(Failure, match="`make up` starts it"):
        users.list_users()

    env.write_text("LOGIN=off\n")
    with pytest.raises(Failure, match="set LOGIN=on"):
        users.list_users()


def test_users_are_listed(door: DoorStub, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.running
    users.list_users()

    assert capsys.readouterr().out.split() == ["admin", "admin", "ana", "viewer"]
