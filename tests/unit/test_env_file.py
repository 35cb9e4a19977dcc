"""`.env`: made once, completed later, and never changed where somebody has written something."""

import os
import stat
from pathlib import Path

import pytest

from scripts import env_file
from scripts.console import Failure
from tests.unit.machines import is_root


@pytest.fixture
def example(tmp_path: Path) -> Path:
    file = tmp_path / "example"
    file.write_text(
        "# A comment.\nDAGIT_PORT=3000\nWORKERS=2\n#POSTGRES_HOST=db\nPOSTGRES_PASSWORD=\nS3_SECRET_KEY=\n"
    )
    return file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_first_env_is_the_example_with_secrets_of_its_own(env: Path, example: Path) -> None:
    # When it is made
    env_file.complete(example=example)

    # Then values and comments are the example's, and each secret is random, hexadecimal and long
    values = env_file.read(env)
    assert values["DAGIT_PORT"] == "3000"
    assert "#POSTGRES_HOST=db\n" in env.read_text()
    secrets = [values["POSTGRES_PASSWORD"], values["S3_SECRET_KEY"]]
    assert len(set(secrets)) == 2
    assert all(len(secret) == 48 and set(secret) <= set("0123456789abcdef") for secret in secrets)
    assert mode(env) == 0o600


def test_two_copies_of_the_stack_have_different_secrets(tmp_path: Path, example: Path) -> None:
    for name in ("one", "two"):
        env_file.complete(tmp_path / name / ".env", example)

    first, second = (env_file.read(tmp_path / name / ".env") for name in ("one", "two"))
    assert first["POSTGRES_PASSWORD"] != second["POSTGRES_PASSWORD"]


def test_every_secret_of_the_real_example_is_generated_and_nothing_else_is(env: Path) -> None:
    env_file.complete()

    before, after = env_file.read(env_file.EXAMPLE), env_file.read(env)
    assert {name for name in before if before[name] != after[name]} == set(env_file.SECRETS)


def test_an_older_env_gets_what_it_lacks_and_keeps_every_byte_that_it_has(
    env: Path, example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given an .env of an older version, with a user's own value and comment
    old = "# mine\nDAGIT_PORT=3100\nPOSTGRES_PASSWORD=from-the-user\nOWN_VARIABLE=1\n"
    env.write_text(old)

    # When it is completed
    env_file.complete(example=example)

    # Then what was there is there, first; what was missing is added and named
    text = env.read_text()
    assert text.startswith(old)
    assert env_file.read(env).keys() == {
        "DAGIT_PORT",
        "POSTGRES_PASSWORD",
        "OWN_VARIABLE",
        "WORKERS",
        "S3_SECRET_KEY",
    }
    assert env_file.read(env)["S3_SECRET_KEY"]
    assert "lacked WORKERS, S3_SECRET_KEY: added" in capsys.readouterr().out


def test_a_complete_env_is_not_written_again(env: Path, example: Path) -> None:
    env_file.complete(example=example)
    before = env.read_bytes()

    env_file.complete(example=example)

    assert env.read_bytes() == before


def test_an_empty_secret_is_filled_where_it_stands(env: Path, example: Path) -> None:
    env.write_text("DAGIT_PORT=3000\nPOSTGRES_PASSWORD=\nWORKERS=2\nS3_SECRET_KEY=abc\n")

    env_file.complete(example=example)

    lines = env.read_text().splitlines()
    assert lines[1].startswith("POSTGRES_PASSWORD=")
    assert len(lines[1]) == len("POSTGRES_PASSWORD=") + 48
    assert lines[3] == "S3_SECRET_KEY=abc"


def test_permissions_that_were_opened_are_closed_again(env: Path, example: Path) -> None:
    env_file.complete(example=example)
    env.chmod(0o644)

    env_file.complete(example=example)

    assert mode(env) == 0o600


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("export DAGIT_PORT=3100", "3100"),
        ('DAGIT_PORT="3100"', "3100"),
        ("DAGIT_PORT='3100'", "3100"),
        ("DAGIT_PORT = 3100", "3100"),
        ("  DAGIT_PORT=3100  ", "3100"),
        ("DAGIT_PORT=3100 # moved", "3100"),
        ("DAGIT_PORT=3000\nDAGIT_PORT=3100", "3100"),
        ("DAGIT_PORT=", ""),
        ("DAGIT_PORT= # none", "# none"),
        ("DAGIT_PORT=a#b", "a#b"),
        ("DAGIT_PORT='a # b' # c", "a # b"),
    ],
)
def test_a_variable_is_understood_as_compose_does_and_not_added_again(
    env: Path, example: Path, line: str, value: str
) -> None:
    # Given a line in a form that Compose accepts
    env.write_text(f"{line}\n")

    # When the file is completed
    env_file.complete(example=example)

    # Then the script sees what Compose sees, and the line stands as it was, the last of its name
    assert env_file.read(env)["DAGIT_PORT"] == value
    assert env.read_text().startswith(f"{line}\n")
    assert env.read_text().count("DAGIT_PORT") == line.count("DAGIT_PORT")


@pytest.mark.parametrize("line", ["#DAGIT_PORT=1", "# DAGIT_PORT=1", "NO VARIABLE=1", "9A=1", ""])
def test_a_line_that_sets_nothing_is_no_variable(env: Path, line: str) -> None:
    env.write_text(f"{line}\n")

    assert env_file.read(env) == {}


def test_a_last_line_without_its_end_is_not_glued_to_what_is_added(env: Path, example: Path) -> None:
    env.write_text("DAGIT_PORT=3100")

    env_file.complete(example=example)

    assert env_file.read(env)["DAGIT_PORT"] == "3100"
    assert env_file.read(env)["WORKERS"] == "2"


def test_lines_that_end_as_on_windows_stay_so(env: Path, example: Path) -> None:
    env.write_bytes(b"# caf\xe9\r\nDAGIT_PORT=3100\r\nPOSTGRES_PASSWORD=\r\n")

    env_file.complete(example=example)
    env_file.set_value("WORKERS", "8")

    content = env.read_bytes()
    assert content.startswith(b"# caf\xe9\r\nDAGIT_PORT=3100\r\nPOSTGRES_PASSWORD=")
    assert content.count(b"\n") == content.count(b"\r\n")
    assert env_file.read(env)["WORKERS"] == "8"
    assert len(env_file.read(env)["POSTGRES_PASSWORD"]) == 48


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("A=1\nWORKERS=2\nB=3\n", "A=1\nWORKERS=8\nB=3\n"),
        ("export WORKERS=2\n", "export WORKERS=8\n"),
        ("WORKERS=2 # few\n", "WORKERS=8 # few\n"),
        ('WORKERS="2"\n', "WORKERS=8\n"),
        ("WORKERS=2\nWORKERS=3\n", "WORKERS=2\nWORKERS=8\n"),
        ("#WORKERS=2\n", "#WORKERS=2\nWORKERS=8\n"),
        ("MY_WORKERS=1", "MY_WORKERS=1\nWORKERS=8\n"),
        ("", "WORKERS=8\n"),
    ],
)
def test_setting_one_variable_leaves_all_else_alone(env: Path, before: str, after: str) -> None:
    env.write_text(before)

    env_file.set_value("WORKERS", "8")

    assert env.read_text() == after


def test_the_environment_wins_over_the_file_as_in_compose(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a variable in both, and one in the environment alone
    env.write_text("DAGIT_PORT=3000\n")
    monkeypatch.setenv("DAGIT_PORT", "3100")
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://elsewhere")

    assert env_file.settings()["DAGIT_PORT"] == "3100"
    assert env_file.settings()["S3_ENDPOINT_URL"] == "http://elsewhere"


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "2000000", "²"])
def test_a_number_that_is_none_is_named_with_its_place(env: Path, text: str) -> None:
    env.write_text(f"WORKERS={text}\n")

    with pytest.raises(Failure, match=rf"WORKERS={text} in \.env is not a whole number from 0 to"):
        env_file.number("WORKERS", 2)


def test_a_number_that_is_not_set_is_the_default(env: Path) -> None:
    env.write_text("WORKERS=\n")

    assert env_file.number("WORKERS", 2) == 2
    assert env_file.number("HEAVY_WORKERS", 1) == 1


@pytest.mark.skipif(not is_root(), reason="only root can write for another user")
def test_sudo_does_not_take_the_file_from_its_owner(env: Path, example: Path) -> None:
    # Given a project folder of another user, in which root makes and then changes the file
    os.chown(env.parent, 12345, 12345)
    env_file.complete(example=example)
    env_file.set_value("WORKERS", "8")

    assert (env.stat().st_uid, env.stat().st_gid) == (12345, 12345)
    assert mode(env) == 0o600


def test_the_file_is_replaced_whole_or_not_at_all(
    env: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine that dies before the new file is in place
    env_file.complete(example=example)
    before = env.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no power")))

    with pytest.raises(OSError, match="no power"):
        env_file.set_value("WORKERS", "8")

    assert env.read_bytes() == before


def test_a_link_to_the_file_stays_a_link(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    env.write_text("WORKERS=2\n")
    link.symlink_to(env)
    monkeypatch.setenv("STACK_ENV_FILE", str(link))

    env_file.set_value("WORKERS", "8")

    assert link.is_symlink()
    assert env.read_text() == "WORKERS=8\n"


def test_a_file_is_on_the_disk_before_it_replaces_the_one_with_the_passwords(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("A=1\n")
    synced: list[str] = []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda number: synced.append(env.read_text() + Path(f"/proc/self/fd/{number}").read_text()),
    )

    env_file.set_value("A", "2")

    assert synced == ["A=1\nA=2\n"]
    assert env.read_text() == "A=2\n"
