"""A dagster.yaml of an earlier release names modules that have moved: it goes on working until 0.2, and says so."""

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

FORMER = {
    "dagster_stack.storage.postgres": ("PooledPostgresStorage", "dagster_stack.store.instance_storage"),
    "dagster_stack.storage.compute_logs": ("S3ComputeLogs", "dagster_stack.objects.compute_logs"),
    "dagster_stack.runner.queue": ("RunQueue", "dagster_stack.launch.run_queue"),
    "dagster_stack.runner.launcher": ("CeleryRunLauncher", "dagster_stack.launch.launcher"),
}


@pytest.mark.parametrize("former", FORMER)
def test_a_former_place_has_the_same_class(former: str) -> None:
    name, new = FORMER[former]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = getattr(import_module(former), name)

    assert found is getattr(import_module(new), name)


def test_whoever_reads_the_log_learns_what_to_write() -> None:
    # As a service shows it: whatever it imports, this one is no library's matter
    shown = subprocess.run(
        [sys.executable, "-c", "import dagster_stack.runner.queue"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert (
        "FutureWarning: dagster.yaml names dagster_stack.runner.queue, which is dagster_stack.launch.run_queue now:"
        " correct it before 0.2" in shown.stderr
    )
