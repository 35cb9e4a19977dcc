"""Versions of the code that are kept: which ones, in which order, and what is never removed. The engine is made up."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scripts import base_image, code_versions, commits, compose, engine, images, rollback
from scripts.compose import Container
from scripts.console import ROOT, Failure

REPOSITORY = "stack/dagster"


class Engine:
    """Images by their tags, and containers with images, as the client tells of them."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        #: Of each container its service and image.
        self.containers: dict[str, tuple[str, str]] = {}
        #: The hash of each image's code.
        self.code: dict[str, str] = {}

    def ask(self, *arguments: str) -> str:
        match arguments:
            case ("image", "ls", *_):
                return "\n".join(f"{tag} {image}" for tag, image in self.tags.items())
            case ("image", "rm", *names):
                for name in names:
                    del self.tags[name.removeprefix(f"{REPOSITORY}:")]
                return ""
            case ("ps", *_):
                return "\n".join(self.containers)
            case ("run", *_, image, code_versions.CODE_FILE):
                return self.code.get(image, "")
        raise AssertionError(arguments)

    def inspected(self, kind: str, names: Any) -> list[dict[str, Any]]:
        if kind == "image":
            return [{"Config": {"Labels": None}} for _ in names]
        return [
            {
                "Image": image,
                "Config": {"Image": REPOSITORY, "Labels": {"com.docker.compose.service": service}},
            }
            for service, image in (self.containers[name] for name in names)
        ]

    def runs(self, **services: str) -> None:
        self.containers = {f"p-{service}-1": (service, image) for service, image in services.items()}


@pytest.fixture
def there(env: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    env.write_text("COMPOSE_PROJECT_NAME=stack\n")
    there = Engine()
    now = [datetime(2026, 11, 30, tzinfo=UTC)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            now[0] += timedelta(seconds=1)
            return now[0]

    monkeypatch.setattr(code_versions, "datetime", Clock)
    monkeypatch.setattr(engine, "ask", there.ask)
    monkeypatch.setattr(code_versions, "inspected", there.inspected)
    monkeypatch.setattr(code_versions, "give_tag", lambda image, tag: there.tags.update({tag: image}))
    monkeypatch.setattr(base_image, "image_id", lambda name: there.tags.get("latest", ""))
    monkeypatch.setattr(
        compose,
        "containers",
        lambda: [
            Container(name, service, "running", "", 0) for name, (service, _) in there.containers.items()
        ],
    )
    return there


def deployed(there: Engine, *codes: str) -> None:
    for code in codes:
        there.tags["latest"] = there_image(code)
        code_versions.keep(there_image(code), code)


def there_image(code: str) -> str:
    return f"sha256:{code}"


def codes() -> list[str]:
    return [each.code for each in code_versions.kept()]


def test_the_last_five_are_kept_the_one_deployed_last_first(there: Engine) -> None:
    deployed(there, *"abcdef")

    assert codes() == list("fedcb")
    assert set(there.tags.values()) == {there_image(code) for code in "bcdef"}


def test_one_that_a_container_has_is_never_removed(there: Engine) -> None:
    # Given a stack that was not swapped since the first version
    deployed(there, "a")
    there.runs(worker=there_image("a"))

    deployed(there, *"bcdef")

    assert codes() == list("fedcba")
    # And it goes when nothing has it any more
    there.runs(worker=there_image("f"))
    deployed(there, "f")
    assert codes() == list("fedcb")


def test_a_version_that_is_deployed_again_is_the_last_one_and_stands_once(there: Engine) -> None:
    deployed(there, *"aba")

    assert codes() == ["a", "b"]
    assert len(there.tags) == 3


def test_what_a_killed_command_left_counts_once(there: Engine) -> None:
    deployed(there, "b", "a")
    there.tags["20261129T000000-a"] = there_image("former")

    assert [(each.code, each.image_id) for each in code_versions.kept()] == [
        ("a", there_image("a")),
        ("b", there_image("b")),
    ]


def test_what_runs_since_before_versions_were_kept_is_kept_too(there: Engine) -> None:
    there.code = {there_image("a"): "a"}
    there.runs(dagit=there_image("a"), worker=there_image("a"))

    code_versions.keep_running()
    code_versions.keep_running()

    assert codes() == ["a"]


def test_the_list_names_dates_and_what_runs(there: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    deployed(there, "aaa", "bbb")
    there.runs(dagit=there_image("bbb"), worker=there_image("aaa"))

    code_versions.versions()

    said = capsys.readouterr().out.splitlines()
    assert said[1].split() == ["bbb", "2026-11-30", "00:00", "dagit"]
    assert said[2].split() == ["aaa", "2026-11-30", "00:00", "worker"]

    there.runs(dagit=there_image("aaa"), worker=there_image("aaa"))
    code_versions.give_tag(there_image("aaa"), code_versions.ROLLED_BACK)
    code_versions.versions()

    assert capsys.readouterr().out.splitlines()[2].endswith("all services, rolled back to")


# --- where `make rollback` goes -------------------------------------------------------------------------


def test_it_goes_to_the_version_before_the_one_that_runs(there: Engine) -> None:
    deployed(there, *"abc")
    there.runs(dagit=there_image("c"))

    assert rollback.wanted("").code == "b"


def test_after_a_deployment_that_was_killed_in_the_middle_it_goes_to_what_ran_before(there: Engine) -> None:
    deployed(there, *"abc")
    there.runs(dagit=there_image("c"), worker=there_image("b"))

    assert rollback.wanted("").code == "b"


@pytest.mark.parametrize("running", ["c", "b"])
def test_the_same_command_again_ends_where_the_first_one_would_have(there: Engine, running: str) -> None:
    # Given a rollback from c to b that was killed before, in or after the swap
    deployed(there, *"abc")
    code_versions.give_tag(there_image("b"), code_versions.ROLLED_BACK)
    deployed(there, "b")
    there.runs(dagit=there_image("b"), worker=there_image(running))

    assert rollback.wanted("").code == "b"


def test_after_a_rollback_and_a_deployment_it_goes_to_what_ran_in_between(there: Engine) -> None:
    # Given c, rolled back to b, and d in its place
    deployed(there, *"abcb")
    code_versions.give_tag(there_image("b"), code_versions.ROLLED_BACK)
    code_versions.forget_rollback()
    deployed(there, "d")
    there.runs(dagit=there_image("d"))

    assert rollback.wanted("").code == "b"


def test_a_version_is_named_by_its_beginning(there: Engine) -> None:
    deployed(there, "abc1", "abd2", "c")

    assert rollback.wanted("abc").code == "abc1"
    with pytest.raises(
        Failure, match=r"(?s)TO=ab: more than one version begins so. Kept are:\n  code c.*check it out"
    ):
        rollback.wanted("ab")
    with pytest.raises(Failure, match=r"TO=e: no version that is kept begins so"):
        rollback.wanted("e")


def test_there_may_be_none_to_go_to(there: Engine) -> None:
    deployed(there, "a")
    there.runs(dagit=there_image("a"))

    with pytest.raises(Failure, match=r"(?s)No version before the one that runs is kept.*check it out"):
        rollback.wanted("")


# --- commits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "project", "said"),
    [
        ("abc", "abc", "abc"),
        ("abc", "def-dirty", "project def-dirty, stack abc"),
        ("", "def", "def"),
        ("", "", ""),
    ],
)
def test_project_and_stack_may_be_in_two_repositories(
    env: Path, monkeypatch: pytest.MonkeyPatch, stack: str, project: str, said: str
) -> None:
    found = iter((stack, project))
    monkeypatch.setattr(commits, "described", lambda _: next(found))

    assert commits.commit() == said


def test_a_folder_without_git_has_no_commit(tmp_path: Path) -> None:
    assert commits.described(tmp_path) == ""


def test_the_label_that_is_read_is_the_one_that_is_built() -> None:
    assert f'{images.COMMIT_LABEL}: "${{INIT_COMMIT:-}}"' in (ROOT / "compose.yaml").read_text()
