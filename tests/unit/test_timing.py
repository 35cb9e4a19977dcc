"""What must hold between the times that processes wait for each other, here and in the stack's files."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from dagster_stack import timing as t
from scripts.console import ROOT
from tests import compose_files

SERVICES = compose_files.services()
DAGSTER = yaml.safe_load(Path(ROOT, "dagster.yaml").read_text())
CELERY = yaml.safe_load(Path(ROOT, "celery.yaml").read_text())["execution"]["config"]["config_source"]
MONITORING = DAGSTER["run_monitoring"]
#: Seconds after which compose.yaml's health check takes a heartbeat for old.
OLD_HEARTBEAT_SECS = 30

HOLDS = {
    "several signs of life fit into the silence that means death": (
        3 * max(t.STEP_RENEWAL_SECS, t.RUN_RENEWAL_SECS) < t.STALE_SECS
    ),
    "a run is idle only once its holder counts as dead": t.IDLE_SECS > t.STALE_SECS,
    "a delayed message is back before its run counts as idle": t.IDLE_SECS > t.DELAY_SECS,
    "a lost run is looked for at least as often as it may be idle": (
        MONITORING["poll_interval_seconds"] < t.IDLE_SECS
    ),
    "a run's termination is noticed before an interrupted step is killed": t.RUN_RENEWAL_SECS < t.GRACE_SECS,
    "Dagster does not end a termination by itself before it can be over": (
        MONITORING["cancel_timeout_seconds"] > t.IDLE_SECS + t.GRACE_SECS
    ),
    "a message that waits for foreign code is not taken for lost": (
        t.WAITING_LOOKS * t.MISSING_LOOK_SECS > t.FOREIGN_CODE_SECS
    ),
    "a step is not taken for lost while its holder may be alive": (
        t.MISSING_LOOKS * t.MISSING_LOOK_SECS > t.STALE_SECS
    ),
    "a message that waits for foreign code is looked at often": 10 * t.DELAY_SECS < t.FOREIGN_CODE_SECS,
    "a question to a frozen broker does not look like a loop that hangs": (
        t.BROKER_ANSWER_SECS < t.LOOP_SILENCE_SECS
    ),
    "a worker outlives a broker that restarts, and a cut connection": (
        max(t.LOOP_SILENCE_SECS, 2 * CELERY["broker_heartbeat"], 2 * t.HEARTBEAT_SECS) < t.EXIT_AFTER_SECS / 3
    ),
    "a look or two may be late before a heartbeat is old": 3 * t.PROBE_INTERVAL_SECS <= OLD_HEARTBEAT_SECS,
    "the health check takes a heartbeat for old when this test does": (
        f"-newermt '{OLD_HEARTBEAT_SECS} seconds ago'" in Path(ROOT, "compose.yaml").read_text()
    ),
    "an interrupted step is killed before its worker's time is over": t.GRACE_SECS < t.DRAIN_SECS,
    "whoever launches waits longer than the launch does": t.WRITE_PATIENCE_SECS < t.PATIENCE_SECS,
    "both sides of a cut connection to Postgres end it at the same time": (
        f"tcp_user_timeout = {t.UNACKNOWLEDGED_SECS}s\n"
        in Path(ROOT, "docker/postgres/postgresql.conf").read_text()
    ),
    "what a lost host has locked is free when its steps are sent elsewhere": (
        2 * CELERY["broker_heartbeat"] >= t.UNACKNOWLEDGED_SECS
    ),
    "what a process died of is told though Postgres was away": t.TELL_SECS > t.PATIENCE_SECS,
}


@pytest.mark.parametrize("what", HOLDS)
def test_it_holds_that(what: str) -> None:
    assert HOLDS[what]


@pytest.mark.parametrize("service", ["worker", "worker-heavy", "runner"])
def test_the_container_outlives_the_drain(service: str) -> None:
    grace = re.fullmatch(r"(\d+)s", SERVICES[service]["stop_grace_period"])

    assert grace
    assert int(grace[1]) > t.DRAIN_SECS + t.GRACE_SECS


def rows() -> list[tuple[str, str, str]]:
    """By name: the files that have a setting of the page's table, and the value that the page says."""
    page = Path(ROOT, "docs/reliability.md").read_text()
    table = page.partition("## Settings that govern the times")[2].partition("\n## ")[0]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0].startswith("`"):
            names, values = re.findall(r"`([^`]+)`", cells[0]), re.findall(r"\d+", cells[2])
            found += [(name, cells[1], value) for name, value in zip(names, values, strict=False)]
    return found


@pytest.mark.parametrize(("name", "files", "said"), rows())
def test_the_page_says_what_is_so(name: str, files: str, said: str) -> None:
    for file in re.findall(r"`([^`]+)`", files):
        if file.endswith(".py"):
            module = import_module(f"dagster_stack.{file.removesuffix('.py').replace('/', '.')}")
            values = [f"{getattr(module, name):g}"] if hasattr(module, name) else []
        else:
            key = name.rpartition(".")[2]
            path = Path(ROOT, ".env.example" if file == ".env" else file)
            values = re.findall(rf"^\s*#? ?{key}(?:: |=)(\d+)", path.read_text(), re.M)
        if said in values:
            return
    pytest.fail(f"{name} is not {said} in {files}")
