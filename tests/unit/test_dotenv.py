"""`.env` means the same to the scripts and to Compose, which is asked where its client is there; or it is refused."""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import dotenv, env_file
from scripts.console import Failure

#: What a shell has, to scripts and Compose alike.
SHELL = {"PATH": os.environ["PATH"], "HOME": "/home/me", "NOTHING": ""}
CLEAR = {
    # Characters of passwords, without quotes, in single and in double ones
    r"V=a#b": "a#b",
    r"V=#a": "#a",
    r"V=a%b@c:d/e?f&g=h": "a%b@c:d/e?f&g=h",
    r"V=a'b": "a'b",
    r"V=a" + '"b': 'a"b',
    r"V=a\b": r"a\b",
    "V=a\\": "a\\",
    r"V=a b": "a b",
    r"V=a$$b": "a$b",
    r"V=a;b&c|d<e>f(g)h*i?j[k]l~m!n^o,p`q{r}": "a;b&c|d<e>f(g)h*i?j[k]l~m!n^o,p`q{r}",
    r"V='a$b'": "a$b",
    r"V='${HOME}'": "${HOME}",
    r"V='$$'": "$$",
    r"V='a # b'": "a # b",
    r"V='a\'b'": "a'b",
    r"V='a\b'": r"a\b",
    r"V='a\\'": r"a\\",
    r"V='a\nb'": r"a\nb",
    "V='\"'": '"',
    "V=' a '": " a ",
    "V='é'": "é",
    r'V="a\$b"': "a$b",
    r'V="a$$b"': "a$b",
    r'V="a\\$$b"': r"a\$b",
    r'V="a\\"': "a\\",
    r'V="a\"b"': 'a"b',
    r'V="a\\\"b"': r"a\"b",
    r'V="a\\nb"': r"a\nb",
    r'V="a\nb\tc"': "a\nb\tc",
    r'V="\x41\u0041\0101\c"': r"\x41\u0041A\c",
    'V="a\'b"': "a'b",
    'V="a # b"': "a # b",
    # What else may stand in a line
    "V=a #b": "a",
    "V=a\t#b": "a\t#b",
    "V='a' # b": "a",
    'V="a"# b': "a",
    "V=": "",
    "V=''": "",
    "V = a = b ": "a = b",
    "export V='a'": "a",
    "V: a": "a",
    "  V=a": "a",
    "V=a\r\nW=1\r": "a",
    "V='a\nb'\nW=1": "a\nb",
    "V=1\nV=2": "2",
    "#V=1\nV=2": "2",
    "#W='\nV=1": "1",
    "W=a'b\nV=c'd": "c'd",
    "V.x=1\nV=2": "2",
    "V": None,
    "9V=1": None,
    "\ufeffV=1": "1",
    # Values of other variables: the shell's, then those above
    "V=$HOME/x": "/home/me/x",
    'V="${HOME}x"': "/home/mex",
    "HOME=q\nV=$HOME": "/home/me",
    "W=1\nV=${W}": "1",
    "V=${NOPE:-d}": "d",
    "V=${NOPE-d}${NOTHING-d}": "d",
    "V=${HOME:+x}${NOPE:+y}": "x",
    "V=$NOTHING": "",
}
REFUSED = {
    "V=a$b": "Single quotes let",
    'V="a$b"': "Single quotes let",
    r"V=a\$b": "Single quotes let",
    "V=${": "Single quotes let",
    "V=${NOPE:?bad}": "Single quotes let",
    "V=$(x)": "Single quotes let",
    "V=a$": "Single quotes let",
    "V='a''b'": "text after the quote",
    "V='a'b": "text after the quote",
    'V="a" b': "text after the quote",
    "V='a": "has no end",
    'V="a': "has no end",
    'V="a\\"': "has no end",
    "V= # none": "no comment",
    "NO VARIABLE=1": "sets no variable",
    "=1": "sets no variable",
}


def compose_reads(folder: Path, text: str) -> str | None:
    """What Compose gives a container for V; raises CalledProcessError where it can't read the file."""
    client = next(
        (each for each in ("/usr/bin/docker", shutil.which("docker")) if each and works(each)), None
    )
    if not client:
        pytest.skip("there is no Docker Compose here")
    (folder / "compose.yaml").write_text('services: {s: {image: i, environment: {V: "${V-(unset)}"}}}')
    (folder / ".env").write_text(f"{text}\n", encoding="utf-8", newline="")
    answer = subprocess.run(
        [client, "compose", "config", "--format", "json"],
        cwd=folder, env=SHELL, capture_output=True, check=True, encoding="utf-8",
    )  # fmt: skip
    value = json.loads(answer.stdout)["services"]["s"]["environment"]["V"]
    # As it would stand in a compose.yaml.
    return None if value == "(unset)" else value.replace("$$", "$")


def works(client: str) -> bool:
    try:
        return not subprocess.run([client, "compose", "version"], capture_output=True, check=False).returncode
    except OSError:
        return False


def scripts_read(text: str) -> tuple[str | None, str]:
    """The value of V, and what is objected to in the file."""
    found = list(dotenv.statements(f"{text}\n", SHELL))
    values = [each.value for each in found if each.name == "V"]
    return (values[-1] if values else None), "; ".join(each.objection for each in found if each.objection)


@pytest.mark.parametrize("text", CLEAR)
def test_a_clear_value_is_the_same_to_scripts_and_compose(text: str, tmp_path: Path) -> None:
    assert scripts_read(text) == (CLEAR[text], "")
    assert compose_reads(tmp_path, text) == CLEAR[text]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_clear_is_refused_with_the_cure(
    text: str, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("b", raising=False)
    env.write_text(f"A=1\n{text}\n")

    with pytest.raises(Failure, match=rf"(?s)line 2.*{REFUSED[text]}"):
        env_file.require_clear()


def test_no_mixture_of_signs_means_two_things(tmp_path: Path) -> None:
    # Given values of signs that mean something to a parser
    signs = random.Random(7)
    texts = ["V=" + "".join(signs.choices("a \\'\"$#{}n0=%@\t-:", k=signs.randint(1, 9))) for _ in range(40)]
    clear = [text for text in texts if not scripts_read(text)[1]]
    assert len(clear) > 10

    # Then Compose reads those that are not refused as the scripts do
    for text in clear:
        assert compose_reads(tmp_path, text) == scripts_read(text)[0], text


@pytest.mark.parametrize("value", ["x$HOME", '"x${HOME}"', "$HOME$HOME"])
def test_a_password_that_happens_to_name_a_variable_is_refused(
    env: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    env.write_text(f"POSTGRES_PASSWORD={value}\n")

    with pytest.raises(Failure, match=r"line 1, POSTGRES_PASSWORD: .*Single quotes"):
        env_file.require_clear()


@pytest.mark.parametrize(
    "line", ["POSTGRES_PASSWORD=${HOME}", "DATA_DIR=$HOME/data", "S3_SECRET_KEY='x$HOME'"]
)
def test_one_that_is_the_value_of_a_variable_is_not(env: Path, line: str) -> None:
    env.write_text(f"{line}\n")

    env_file.require_clear()


def test_the_example_and_a_fresh_file_are_clear(env: Path) -> None:
    env_file.complete()

    env_file.require_clear()


def test_a_value_of_several_lines_is_replaced_as_a_whole(env: Path) -> None:
    env.write_text("A='1\n2'\nB=3\n")

    env_file.set_values({"A": "4", "C": "5"})

    assert env.read_text() == "A=4\nB=3\nC=5\n"
