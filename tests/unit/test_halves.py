"""The unit tests in two processes: none is left out, and of neither half is forgotten how it ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import halves
from scripts.console import ROOT
from tests.waiting import wait_until

#: Stands for Python with pytest: notes its files, says which half it is, and ends when both have begun.
PYTHON = """#!/bin/sh
shift 2
half=first; case "$*" in *test_a.py*) half=second ;; esac
echo "$*" > {folder}/$half
while [ ! -e {folder}/first ] || [ ! -e {folder}/second ]; do sleep 0.02; done
echo "the $half half says so"
echo "and its error" >&2
{end}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With five files of unit tests, one of them in a folder."""
    for name in ("test_a", "test_b", "test_c", "test_d", "helper", "folder/test_e"):
        file = tmp_path / f"tests/unit/{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


def install_python(folder: Path, end: str = "exit 0") -> Path:
    program = folder / "python"
    program.write_text(PYTHON.format(folder=folder, end=end))
    program.chmod(0o755)
    return program


def test_each_file_is_in_one_of_two_halves_that_run_at_once(
    checkout: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    # Given halves of which neither ends before the other has begun
    assert halves.unit_tests(install_python(checkout), checkout) == 0

    parts = [(checkout / name).read_text().split() for name in ("first", "second")]
    assert sorted(parts[0] + parts[1]) == sorted(
        f"tests/unit/{name}.py" for name in ("folder/test_e", "test_a", "test_b", "test_c", "test_d")
    )
    assert {len(part) for part in parts} == {2, 3}
    # And all that either printed is there, the second's in one piece at the end
    printed, errors = capfdbinary.readouterr()
    assert b"the first half says so" in printed
    assert printed.endswith(b"the second half says so\nand its error\n")
    assert errors == b"and its error\n"


@pytest.mark.parametrize("half", ["first", "second"])
@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$"])
def test_one_half_that_fails_or_is_killed_fails_both(checkout: Path, half: str, end: str) -> None:
    assert halves.unit_tests(install_python(checkout, f"[ $half = {half} ] && {end}\nexit 0"), checkout) > 0


def test_ctrl_c_ends_both_and_what_the_second_said_is_seen(checkout: Path) -> None:
    # Given halves that go on
    python = install_python(checkout, f"echo $$ > {checkout}/$half.pid\nexec sleep 60")
    call = f"halves.unit_tests({str(python)!r}, Path({str(checkout)!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path\nfrom scripts import halves\n{call}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    pids = [checkout / f"{half}.pid" for half in ("first", "second")]
    wait_until(lambda: all(each.exists() and each.read_text() for each in pids), 20, "both go on", pause=0.05)

    # When the terminal sends Ctrl-C to the foreground
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=20)

    assert process.returncode
    assert "KeyboardInterrupt" in errors
    assert "the second half says so" in printed
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


def test_no_file_of_this_folder_is_named_in_a_way_that_pytest_alone_finds() -> None:
    found = {each.name for each in (ROOT / halves.FOLDER).rglob("*_test.py")}

    assert [name for name in found if not name.startswith("test_")] == []
