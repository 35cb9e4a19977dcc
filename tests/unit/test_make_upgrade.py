"""`make upgrade`: what it says and asks, its order, what it refuses, and what it gives back when it can't go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts import (
    backups,
    base_image,
    certificates,
    code_check,
    code_versions,
    compose,
    deploy,
    engine,
    image_packages,
    images,
    lock,
    restore_point,
    schema,
    store_volumes,
    unfinished,
    up,
    upgrade,
)
from scripts.compose import Container
from scripts.console import Failure
from scripts.hosts import services as hosts
from scripts.image_packages import DEBIAN, PYTHON, STATUS

POSTGRES = "dagster-celery-stack/postgres"
DAGSTER = "dagster-celery-stack/dagster"
PINNED = "frame=={} \\\n    --hash=sha256:" + "0" * 64 + "\n"


class Stack:
    """A stack that runs, with a newer Python package and a newer Postgres; what is done to it, in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.newer: dict[str, dict[str, str]] = {POSTGRES: {"postgresql-17": "17.7"}}
        self.locked = "2.0"
        self.outdated = ["postgres"]
        self.unwell: list[str] = []
        self.is_up = False
        self.fails = ""

    def does(self, what: str) -> Any:
        def do(*arguments: Any, **_: Any) -> Any:
            named = [each for each in arguments if isinstance(each, str)]
            self.did.append(" ".join([what, *named]))
            if what == self.fails:
                raise Failure("it went wrong")

        return do


@pytest.fixture
def stack(env: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    env.write_text("BASE_IMAGE=base\nCOMPOSE_PROFILES=postgres\n")
    for name in ("WHAT", "UPGRADE", "DRY_RUN", "FORCE", "DEPLOY", "BACKED_UP", "BACKUP"):
        monkeypatch.delenv(name, raising=False)
    stack = Stack()

    def inspected(_: str, names: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "Image": f"old {image}",
                "Config": {"Image": image, "Labels": {"com.docker.compose.service": name.split("-")[1]}},
            }
            for name in names
            for image in (DAGSTER if "dagit" in name else POSTGRES,)
        ]

    def texts(image: str) -> dict[str, str]:
        status = "Package: postgresql-17\nStatus: install ok installed\nVersion: 17.6\n"
        locks = {"/opt/dagster/requirements/stack.lock": PINNED.format("1.0")} if DAGSTER in image else {}
        return {STATUS: status, **locks}

    @contextmanager
    def queue_stopped() -> Iterator[None]:
        stack.did.append("stop the queue")
        yield

    there = [Container(f"p-{name}-1", name, "running", "healthy", 0) for name in ("postgres", "dagit")]
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(compose, "containers", lambda: there)
    monkeypatch.setattr(code_versions, "inspected", inspected)
    monkeypatch.setattr(code_versions, "keep_running", lambda: None)
    monkeypatch.setattr(code_versions, "rolled_back", lambda: "")
    monkeypatch.setattr(code_versions, "forget_rollback", lambda: None)
    monkeypatch.setattr(code_versions, "keep", stack.does("keep"))
    monkeypatch.setattr(base_image, "image_id", lambda name: f"old {name}")
    monkeypatch.setattr(base_image, "renew", stack.does("renew the base"))
    monkeypatch.setattr(image_packages, "texts", texts)
    monkeypatch.setattr(image_packages, "newer", lambda *_: stack.newer)
    monkeypatch.setattr(lock, "resolve_all", stack.does("resolve"))
    monkeypatch.setattr(lock, "resolved", lambda name: PINNED.format(stack.locked) if name == "stack" else "")
    monkeypatch.setattr(lock, "read", lambda name: PINNED.format("1.0") if name == "stack" else "")
    monkeypatch.setattr(lock, "take", stack.does("take the locks"))
    monkeypatch.setattr(lock, "lock_file", lambda name: env.parent / f"{name}.lock")
    monkeypatch.setattr(images, "ensure", lambda behind: stack.does("build")(*sorted(behind)))
    monkeypatch.setattr(images, "give_back", lambda image, name="": stack.does("give back")(image, name))
    monkeypatch.setattr(certificates, "issue", lambda: None)
    monkeypatch.setattr(code_check, "check", lambda: stack.does("try the code")() or "new")
    monkeypatch.setattr(store_volumes, "require_openable", stack.does("ask the volumes"))
    monkeypatch.setattr(store_volumes, "outdated", lambda: stack.outdated)
    monkeypatch.setattr(store_volumes, "unwell", lambda: stack.unwell)
    monkeypatch.setattr(schema, "required", lambda _: None)
    monkeypatch.setattr(restore_point, "made", lambda: stack.does("back up")() or "make restore TO=…")
    monkeypatch.setattr(backups, "keep", lambda: None)
    monkeypatch.setattr(engine, "ensure", lambda: None)
    monkeypatch.setattr(up, "prepare", stack.does("prepare"))
    monkeypatch.setattr(up, "is_up", lambda: stack.is_up)
    monkeypatch.setattr(up, "remove_abandoned", lambda: None)
    monkeypatch.setattr(up, "close_former_logins", lambda: None)
    monkeypatch.setattr(up, "run", stack.does("run"))
    monkeypatch.setattr(deploy, "queue_stopped", queue_stopped)
    monkeypatch.setattr(deploy, "running_code", lambda: "old")
    monkeypatch.setattr(deploy, "settle_runs", lambda *_: stack.did.append("settle runs"))
    monkeypatch.setattr(deploy, "swap", stack.does("swap Dagster"))
    return stack


def test_further_hosts_get_the_new_image_while_all_goes_on(
    stack: Stack, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "bring", stack.does("bring it to the hosts"))

    upgrade.upgrade()

    assert stack.did.index("bring it to the hosts") < stack.did.index("stop the queue")


def test_stores_come_after_a_backup_and_before_dagster(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    upgrade.upgrade()

    assert stack.did == [
        "prepare",
        "resolve all",
        "take the locks",
        f"build {POSTGRES}",
        "try the code",
        "ask the volumes",
        "back up",
        "stop the queue",
        "run Swapping postgres",
        "settle runs",
        f"keep old {DAGSTER} new",
        "swap Dagster",
    ]
    said = capsys.readouterr().out
    assert "Postgres       17.6 → 17.7" in said
    assert "Python: frame  1.0 → 2.0" in said
    assert (
        said.index("1.0 → 2.0") < said.index("Upgrading") < said.index("code new in place of old: upgraded")
    )
    assert "`make rollback` goes back to the code" in said


def test_further_hosts_have_the_image_before_the_swap(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a daemon there would lead with the code of before, and workers refuse all."""
    monkeypatch.setattr(hosts, "bring", stack.does("bring"))

    upgrade.upgrade()

    assert stack.did.index(f"build {POSTGRES}") < stack.did.index("bring") < stack.did.index("stop the queue")


def test_a_dry_run_shows_the_table_and_changes_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRY_RUN", "1")

    upgrade.upgrade()

    assert stack.did == ["resolve all"]
    assert "17.6 → 17.7" in (said := capsys.readouterr().out)
    assert "nothing was changed" in said


def test_where_the_base_is_behind_it_is_renewed_first(stack: Stack) -> None:
    stack.newer["base"] = {"libc6": "2"}

    upgrade.upgrade()

    assert stack.did.index("renew the base") < stack.did.index(f"build base {POSTGRES}")


def test_without_a_store_that_changes_no_backup_is_made(stack: Stack) -> None:
    stack.newer, stack.outdated = {}, []

    upgrade.upgrade()

    assert not {"back up", "run Swapping postgres"} & set(stack.did)
    assert "swap Dagster" in stack.did


def test_where_nothing_is_newer_nothing_is_asked_or_swapped(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upgrade, "attended", lambda: True)
    monkeypatch.setattr(upgrade, "confirm", lambda _: pytest.fail("asked"))
    stack.newer, stack.locked, stack.outdated, stack.is_up = {}, "1.0", [], True

    upgrade.upgrade()

    assert stack.did[-1].startswith("build")
    said = capsys.readouterr().out
    assert "No package is newer" in said
    assert "nothing to upgrade" in said


@pytest.mark.parametrize(
    ("what", "moved", "asked"),
    [
        ("python", {PYTHON}, {"resolve all"}),
        ("debian", {DEBIAN}, set()),
        ("all", {DEBIAN, PYTHON}, {"resolve all"}),
    ],
)
def test_packages_of_one_kind_can_be_chosen(
    stack: Stack, what: str, moved: set[str], asked: set[str]
) -> None:
    before, after, _ = upgrade.look(what)

    assert {each.kind for each in image_packages.changes(before, after)} == moved
    assert set(stack.did) == asked


def test_single_python_packages_can_be_chosen(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPGRADE", "frame")
    upgrade.look("python")
    assert stack.did == ["resolve frame"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WHAT": "ruby"}, "WHAT=ruby: there are all, python, debian"),
        ({"WHAT": "debian", "UPGRADE": "x"}, "take one"),
    ],
)
def test_a_choice_that_is_none_is_refused_first(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Failure, match=said):
        upgrade.upgrade()
    assert stack.did == []


@pytest.mark.parametrize("answer", [True, False])
def test_a_terminal_is_asked(stack: Stack, monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr(upgrade, "attended", lambda: True)
    monkeypatch.setattr(upgrade, "confirm", lambda _: answer)

    if answer:
        upgrade.upgrade()
    else:
        with pytest.raises(Failure, match=r"Not wanted. Nothing was upgraded"):
            upgrade.upgrade()

    assert ("swap Dagster" in stack.did) == ("take the locks" in stack.did) == answer


def test_force_asks_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE", "1")
    monkeypatch.setattr(upgrade, "attended", lambda: True)
    monkeypatch.setattr(upgrade, "confirm", lambda _: pytest.fail("asked"))
    upgrade.upgrade()


@pytest.mark.parametrize("fails", ["build", "try the code", "ask the volumes", "back up"])
def test_what_fails_before_the_first_store_gives_names_and_locks_back(
    stack: Stack, env: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    stack.fails = fails
    monkeypatch.setattr(lock, "take", lambda: (env.parent / "stack.lock").write_text("new"))

    with pytest.raises(Failure, match=r"it went wrong\n\n  Nothing was upgraded"):
        upgrade.upgrade()

    for name in ("base", POSTGRES, DAGSTER):
        assert f"give back old {name} {name}" in stack.did
    assert (env.parent / "stack.lock").read_text() == PINNED.format("1.0")
    assert "stop the queue" not in stack.did


def test_what_fails_from_then_on_says_that_it_can_be_completed(stack: Stack) -> None:
    stack.fails = "run"

    with pytest.raises(Failure, match=r"(?s)it went wrong.*`make upgrade` completes it"):
        upgrade.upgrade()

    # Images of stores that are new keep their names: an older one may not open the volume any more
    assert [each for each in stack.did if each.startswith("give back")] == [
        f"give back old {DAGSTER} {DAGSTER}"
    ]


def test_a_store_whose_swap_was_killed_is_started_before_a_backup_needs_it(stack: Stack) -> None:
    stack.unwell = ["rabbitmq"]

    upgrade.upgrade()

    assert stack.did.index("run Starting rabbitmq") < stack.did.index("back up")


def test_a_stack_that_is_down_is_started_first(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "containers", list)
    with pytest.raises(Failure, match="`make up` starts it as it is"):
        upgrade.upgrade()


def test_without_a_base_image_there_is_nothing_to_compare_with(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRY_RUN", "1")
    monkeypatch.setattr(base_image, "image_id", lambda _: "")
    with pytest.raises(Failure, match="base image base is no longer here: `make up`"):
        upgrade.upgrade()


def test_a_restore_that_is_unfinished_goes_first(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "state", lambda: unfinished.RESTORING)
    with pytest.raises(Failure, match="make restore"):
        upgrade.upgrade()
    assert stack.did == []
