"""`make rotate`: which logins come, what `.env` says meanwhile, and that an interrupted one is completed."""

from pathlib import Path
from typing import Any

import pytest

from scripts import backups, compose, deploy, engine, env_file, login, rotate, store_logins, up
from scripts.console import Failure

TEXT = """\
# mine
POSTGRES_USER=dagster
POSTGRES_PASSWORD=former
RABBITMQ_USER=dagster_b
RABBITMQ_PASSWORD=former
S3_ACCESS_KEY=dagster
S3_SECRET_KEY=former
MINIO_ROOT_PASSWORD=former
ROTATING=
STACK_ID=mine
"""


@pytest.fixture
def said(env: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stack that is up; what is done with it, and what `.env` says of the rotation then."""
    env.write_text(TEXT)
    told: list[str] = []

    def tell(what: str) -> Any:
        return lambda *_, **__: told.append(f"{what} {'new' if store_logins.former() else 'old'}")

    def output(*arguments: str, given: str | None = None) -> str:
        told.append(f"exec {arguments[2]} {arguments[-1] if given is None else ''}".strip())
        return ""

    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(up, "is_up", lambda **_: True)
    monkeypatch.setattr(compose, "containers", lambda: [])
    monkeypatch.setattr(compose, "output", output)
    monkeypatch.setattr(engine, "ask", lambda *_: "")
    monkeypatch.setattr(deploy, "wait_for_runs", tell("wait"))
    monkeypatch.setattr(deploy, "swap", tell("swap"))
    monkeypatch.setattr(store_logins, "run_logged", lambda _, command: told.append(f"run {command[-1]}"))
    return told


def test_runs_end_first_then_env_has_new_logins_and_after_the_swap_former_ones_are_closed(
    env: Path, said: list[str]
) -> None:
    rotate.rotate()

    assert said == ["wait old", "swap new", "exec postgres", "exec rabbitmq dagster_b", "run dagster"]
    values = env_file.read(env)
    assert (values["POSTGRES_USER"], values["RABBITMQ_USER"]) == ("dagster_b", "dagster")
    assert values["S3_ACCESS_KEY"].startswith("dagster-")
    assert "former" not in values.values()
    assert (values["ROTATING"], values["STACK_ID"]) == ("", "mine")
    assert env.read_text().startswith("# mine\n")


def test_with_hand_over_it_does_not_wait(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY", "hand-over")

    rotate.rotate()

    assert said[0] == "swap new"


def test_one_store_alone(env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHAT", "rabbitmq")

    rotate.rotate()

    changed = {name for name, value in env_file.read(env).items() if f"{name}={value}\n" not in TEXT}
    # And what `make up` computes, which this file lacked
    assert changed == {"RABBITMQ_USER", "RABBITMQ_PASSWORD", *login.derived(env_file.read(env))}
    assert said == ["wait old", "swap new", "exec rabbitmq dagster_b"]


@pytest.mark.parametrize("last", ["wait_for_runs", "swap"])
def test_one_that_was_killed_is_completed_with_the_passwords_that_are_in_env(
    env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    # Given one that ends in the wait, or in the swap
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deploy, last, dies)
        with pytest.raises(KeyboardInterrupt):
            rotate.rotate()
    before = env_file.read(env)
    assert (before["POSTGRES_PASSWORD"] == "former") == (last == "wait_for_runs")

    # When it is called again
    said.clear()
    rotate.rotate()

    # Then it is completed; what had not begun begins
    assert said[-3:] == ["exec postgres", "exec rabbitmq dagster_b", "run dagster"]
    after = env_file.read(env)
    if last == "swap":
        assert said[0] == "swap new"
        assert {**before, "ROTATING": ""} == after
    assert after["ROTATING"] == ""


def test_up_completes_it_too(env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    env_file.set_values(store_logins.renewed("postgres"))
    for name in ("prepare", "start", "check_code_location", "addresses"):
        monkeypatch.setattr(up, name, lambda: None)
    monkeypatch.setattr("scripts.images.ensure", lambda: None)

    up.up()

    assert said == ["exec postgres"]
    assert not store_logins.former()


def test_former_logins_stay_open_as_long_as_a_service_may_have_one(
    env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as after a `make deploy` that began before `.env` had new ones."""
    env_file.set_values(store_logins.renewed("postgres"))
    monkeypatch.setattr(up, "is_up", lambda **_: False)

    with pytest.raises(Failure, match=r"the former ones stay open: `make up` completes it"):
        up.close_former_logins()

    assert said == []
    assert store_logins.former()


def test_a_login_that_env_names_again_is_not_closed(env: Path, said: list[str]) -> None:
    """From a backup of `.env`, or by hand."""
    env_file.set_values({"ROTATING": "postgres:dagster,rabbitmq:odd%2Cname"})

    store_logins.close_former()

    assert said == ["exec rabbitmq odd,name"]


def test_nothing_changes_when_the_stack_is_not_up(
    env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "is_up", lambda **_: False)

    with pytest.raises(Failure, match="`make up` first, then rotate"):
        rotate.rotate()

    assert env.read_text() == TEXT


@pytest.mark.parametrize(
    ("setting", "what", "reason"),
    [
        ("", "mysql", "there are postgres, rabbitmq, s3 and all"),
        ("POSTGRES_HOST=db\n", "postgres", r"Postgres is an outside store \(POSTGRES_HOST"),
    ],
)
def test_what_can_not_be_rotated_is_refused(
    env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, *, setting: str, what: str, reason: str
) -> None:
    env.write_text(TEXT + setting)
    monkeypatch.setenv("WHAT", what)

    with pytest.raises(Failure, match=reason):
        rotate.rotate()

    assert said == []


def test_a_password_that_the_environment_has_is_refused(
    env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_SECRET_KEY", "x")

    with pytest.raises(Failure, match="S3_SECRET_KEY in the environment wins"):
        rotate.rotate()

    assert env.read_text() == TEXT


def test_outside_stores_are_left_out_of_all(env: Path, said: list[str]) -> None:
    env.write_text(f"{TEXT}S3_ENDPOINT_URL=https://s3\nRABBITMQ_HOST=mq\n")

    assert store_logins.chosen("all") == ["postgres"]
    assert (
        not {"S3_SECRET_KEY", "MINIO_ROOT_PASSWORD", "RABBITMQ_ADMIN_PASSWORD"}
        & store_logins.renewed("all").keys()
    )


def test_all_renews_every_secret_but_the_stacks_id_and_the_backups_key(env: Path, said: list[str]) -> None:
    assert {name for name in store_logins.renewed("all") if name in env_file.SECRETS} == {
        *env_file.SECRETS
    } - {"STACK_ID", "BACKUP_KEY"}


def test_the_new_env_is_kept_with_the_backups(
    env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    monkeypatch.setattr(backups, "keep", lambda: kept.append(env.read_text()))

    rotate.rotate()

    assert kept == [env.read_text()]
    assert "ROTATING=\n" in kept[0]


def test_keys_of_s3_are_never_the_same_twice() -> None:
    first = store_logins.successor("s3", "team-a")
    second = store_logins.successor("s3", first)

    assert first != second
    assert {first.rpartition("-")[0], second.rpartition("-")[0]} == {"team-a"}
