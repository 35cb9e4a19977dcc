"""Questions whose answers are waited for, and not by the process's end."""

import subprocess
import sys

import pytest

from scripts.autoscaling.background import aside
from scripts.console import ROOT, Failure


def test_an_answer_or_why_there_is_none() -> None:
    def fail() -> None:
        raise Failure("no route")

    assert aside(max, 1, 2).result() == 2
    with pytest.raises(Failure, match="no route"):
        aside(fail).result()


def test_a_process_ends_though_an_answer_is_missing() -> None:
    code = "import threading; from scripts.autoscaling.background import aside; aside(threading.Event().wait, 60)"

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=20)
