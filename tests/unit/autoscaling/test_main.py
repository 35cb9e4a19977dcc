"""The command itself: how it begins, beside another one, and how it ends."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.unit.machines import HIDE_REAL_ENGINE, FakeDocker, Machine

CONFIG = {"services": {"worker": {"command": ["celery", "worker", "-Q", "dagster", "--concurrency", "1"]}}}
MODULE = "autoscaling.__main__"


@pytest.fixture
def down(machine: Machine) -> Machine:
    """A machine on which the stack is down."""
    machine.env.write_text("AUTOSCALE=worker:1..8\nWORKERS=1\n")
    client = FakeDocker().install(machine.programs)
    script = client.read_text().replace('"compose "*) exit 0', f"\"compose \"*) echo '{json.dumps(CONFIG)}'")
    # No container, and not a line either
    client.write_text(script.replace("\"ps \"*) echo ''", '"ps "*) :'))
    return machine


@contextmanager
def begun(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    """One that has said that it waits for the stack."""
    code = f"{HIDE_REAL_ENGINE}\nimport runpy\nrunpy.run_module('scripts.{MODULE}', run_name='__main__')"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=machine.root, stdout=subprocess.PIPE, text=True,
        env={"PATH": str(machine.programs), "PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:  # fmt: skip
        try:
            assert process.stdout
            assert process.stdout.readline() == "  worker: 1 to 8, for the work in dagster\n"
            assert process.stdout.readline() == "  ! waits until the stack is up\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_kill_and_ctrl_c_end_it_well(down: Machine, ending: int) -> None:
    with begun(down) as process:
        process.send_signal(ending)

        said, _ = process.communicate(timeout=20)
        assert said == "\n  ended: the workers stay as they are\n"
        assert process.returncode == 0


def test_beside_another_one_it_does_not_begin(down: Machine) -> None:
    with begun(down) as process:
        second = down.script(MODULE)

        assert second.returncode == 1
        assert f"`make autoscale` runs already (process {process.pid})." in second.stderr
    # One that was killed is in nobody's way
    with begun(down):
        pass


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ("WORKERS=1\n", "Set AUTOSCALE=worker:1..8,worker-heavy:0..2 in .env, then `make autoscale`"),
        ("AUTOSCALE=worker:1-8\nWORKERS=1\n", "is not of the form worker:1..8"),
        ("AUTOSCALE=worker-mine:1..8\n", "no service of compose.yaml or compose.override.yaml: there are worker."),
        ("", "`make up` writes it"),
    ],
)  # fmt: skip
def test_it_does_not_begin_before_it_knows_what_to_do(down: Machine, settings: str, cure: str) -> None:
    down.env.unlink()
    if settings:
        down.env.write_text(settings)

    result = down.script(MODULE)

    assert result.returncode == 1
    assert cure in result.stderr
