"""packages.txt: what is a name, what is refused, and what must be there before Python packages are compiled."""

from pathlib import Path

import pytest

from dagster_stack.packages import debian
from dagster_stack.packages.errors import Refused


def test_names_are_read_one_a_line_with_comments_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "packages.txt").write_bytes(
        "\ufeff# for lightgbm\r\nlibgomp1\r\n\r\n  ffmpeg   # films\nlibstdc++6:amd64\ngit=1:2.47.3-0+deb13u1\nffmpeg".encode()
    )

    assert debian.names(tmp_path) == ["libgomp1", "ffmpeg", "libstdc++6:amd64", "git=1:2.47.3-0+deb13u1"]


def test_a_project_without_the_file_asks_for_nothing(tmp_path: Path) -> None:
    assert debian.names(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("apt-get install -y ffmpeg", "Write the names alone"),
        ("ffmpeg libgomp1", "one name a line"),
        ("FFmpeg", "small letters: ffmpeg"),
        ("https://example.com/x.deb", "Packages come from the image's own Debian"),
        ("./local.deb", "Packages come from the image's own Debian"),
        ("libgomp1-", "Write a name such as"),  # apt would remove it.
        ("-y", "Write a name such as"),
        ("--allow-unauthenticated", "Write a name such as"),
        ("ffmpeg;reboot", "Write a name such as"),
        ("$(id)", "Write a name such as"),
        ("lib*", "Write a name such as"),
    ],
)
def test_what_is_no_name_is_refused_with_its_line_and_the_cure(tmp_path: Path, line: str, cure: str) -> None:
    (tmp_path / "packages.txt").write_text(f"libgomp1\n{line}\n")

    with pytest.raises(Refused, match=r"packages\.txt, line 2") as refused:
        debian.names(tmp_path)

    assert cure in str(refused.value)


@pytest.mark.parametrize(
    ("packages", "tools"),
    [
        (["ffmpeg", "libgomp1"], []),
        (["ffmpeg", "git"], ["git"]),
        (["libpq-dev", "ffmpeg"], ["libpq-dev", "python3-dev"]),
        (["build-essential"], ["build-essential", "python3-dev"]),
        (["g++=4:14.2.0-1"], ["g++=4:14.2.0-1", "python3-dev"]),
    ],
)
def test_compilers_and_headers_are_there_before_python_packages_are(
    packages: list[str], tools: list[str]
) -> None:
    assert debian.tools(packages) == tools
