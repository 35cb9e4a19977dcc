"""`make deploy` from an edited copy of this checkout, while runs are under way; and workers with other code."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from dagster_stack import tags
from dagster_stack.failure_reasons import Reason
from dagster_stack.packages import locks
from pipelines.queues import HEAVY, LIGHT
from scripts import env_file
from scripts.console import ROOT
from tests.stack import faults, runs
from tests.stack.stack import Stack, docker
from tests.waiting import wait_until

STEPS = [op.name for op in LIGHT + HEAVY]
#: More than runners drive at once, so that some wait in the queue.
RUNS = 13
#: A step longer than what a worker that stops lets it have, and than the build before.
LONG_SECS = 45
#: Stores of the stack's own; and a Python package of the platform's locks that has other versions.
STORES = ("postgres", "rabbitmq", "minio")
PACKAGE = "packaging"
#: The example's sensor looks so often, in seconds.
TICK_SECS = 10
#: Run in an image: the database gets the revision before its head.
DOWN = """
import os
from sqlalchemy import text
from dagster import DagsterInstance
from dagster_stack.store import schema
known = schema.revisions()
before = known.get_revision(known.get_current_head()).down_revision
with DagsterInstance.get() as instance, instance.event_log_storage.engine.begin() as connection:
    connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": before})
"""
#: What belongs to this host alone.
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".build", ".dagster", ".*_cache", "__pycache__", "tests", "docs"
)


@pytest.fixture
def edited(
    stack: Stack, tmp_path: Path, request: pytest.FixtureRequest, own_code_afterwards: None
) -> Iterator[Stack]:
    """The same stack, seen from a checkout whose `pipelines` were edited, otherwise in each test."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=NOT_COPIED)
    edit(checkout, f"\n# Edited for {request.node.name}.\n")
    yield replace(stack, checkout=checkout)
    stack.wait_until_healthy()


def edit(checkout: Path, text: str) -> None:
    with (checkout / "pipelines" / "queues.py").open("a") as file:
        file.write(text)


def naps(longest: float = 0.5) -> dict[str, object]:
    """Short ones, but for one on each queue."""
    seconds = dict.fromkeys(STEPS, 0.2) | {STEPS[0]: longest, HEAVY[0].name: longest}
    return {"ops": {name: {"config": {"seconds": secs}} for name, secs in seconds.items()}}


def code_on(stack: Stack, service: str) -> str:
    return stack.exec(service, "cat", "/opt/dagster/code-version").stdout.strip()


def code_of(stack: Stack, run_id: str) -> str:
    """The code that a run has, as Dagit shows it."""
    found: dict[str, str] = {tag["key"]: tag["value"] for tag in stack.run(run_id)["tags"]}
    return found.get(tags.CODE, "")


def executed_with(stack: Stack, run_id: str) -> set[str]:
    """The codes of the workers that executed a run's steps."""
    return {
        entry["text"]
        for event in stack.events(run_id)
        if event.get("eventType") == "STEP_WORKER_STARTED"
        for entry in event["metadataEntries"]
        if entry["label"] == "code"
    }


def states(stack: Stack, run_ids: list[str]) -> Counter[str]:
    return Counter(stack.run(run_id)["status"] for run_id in run_ids)


def wait_until_under_way(stack: Stack, run_ids: list[str]) -> None:
    """Until as many runs as can be are driven, and the rest waits."""
    wait_until(
        lambda: states(stack, run_ids), 120, "eight runs under way", until=lambda seen: seen["STARTED"] >= 8
    )
    assert states(stack, run_ids)["QUEUED"] > 0


def assert_all_well(stack: Stack, run_ids: list[str]) -> None:
    """Every run ended with success, and every step of it recorded success exactly once."""
    for run_id in run_ids:
        assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
        assert runs.count_events(stack, run_id, "STEP_SUCCESS") == Counter(
            dict.fromkeys([*STEPS, "start_order"], 1)
        )


@contextmanager
def deploying(
    stack: Stack, log: Path, target: str = "deploy", **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`make deploy`, or another target that swaps, in the background."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", target], cwd=stack.checkout, env=stack.environment | variables, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_it_says(log: Path, text: str, timeout: float = 300) -> None:
    wait_until(log.read_text, timeout, f"“{text}” by make deploy", until=lambda said: text in said)


@contextmanager
def counted(stack: Stack) -> Iterator[Counter[str]]:
    """How many containers of each service are made in here, those of `docker compose run` aside: known afterwards."""
    labels = (f"project={stack.project}", "oneoff=False")
    filters = [part for label in labels for part in ("--filter", f"label=com.docker.compose.{label}")]
    service = '{{index .Actor.Attributes "com.docker.compose.service"}}'
    # While it happens: the engine remembers no more than 256 events, and health checks are most of them.
    command = [docker(), "events", "--filter", "event=create", *filters, "--format", service]
    found: Counter[str] = Counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield found
        finally:
            process.terminate()
        found.update(process.stdout.read().split())


def ids(stack: Stack) -> set[str]:
    return {entry.id for entry in stack.containers()}


def test_deploy_waits_for_runs_under_way_and_queued_ones_get_the_new_code(
    stack: Stack, edited: Stack, tmp_path: Path
) -> None:
    # Given more runs than can be driven at once
    old = code_on(stack, "worker")
    before = [stack.launch("queues", naps(3)) for _ in range(RUNS)]
    wait_until_under_way(stack, before)

    # When edited code is deployed, and a run is launched meanwhile
    log = tmp_path / "deploy.log"
    services = Counter(entry.service for entry in stack.containers())
    with counted(stack) as made, deploying(edited, log, DEPLOY="wait") as process:
        wait_until_it_says(log, "Waiting for runs under way")
        queued = [run_id for run_id in before if stack.run(run_id)["status"] == "QUEUED"]
        during = stack.launch("queues", naps())
        assert process.wait(timeout=600) == 0, log.read_text()
    new = code_on(stack, "worker")

    # Then those that were under way ended with the old code, no step twice; the others had the new one
    assert new != old
    assert f"code {new} in place of {old}: deployed" in log.read_text()
    assert queued
    assert_all_well(stack, [*before, during])
    for run_id in [*before, during]:
        expected = new if run_id in (*queued, during) else old
        assert (code_of(stack, run_id), executed_with(stack, run_id)) == (expected, {expected})
        assert set(runs.count_events(stack, run_id, "STEP_START").values()) == {1}

    # And each service with this code was made anew exactly once, the stores not at all
    stores = ("postgres", "rabbitmq", "minio", "prometheus", "postgres-exporter")
    assert made == Counter({name: n for name, n in services.items() if name not in stores})

    # And a second deployment finds nothing to do
    here = ids(stack)
    assert "nothing to deploy" in edited.make("deploy").stdout
    assert ids(stack) == here


def test_deploy_can_hand_runs_over_to_the_new_code(stack: Stack, edited: Stack, tmp_path: Path) -> None:
    # Given a run with steps longer than a worker that stops lets them have, and one that waits behind its heavy one
    before = [stack.launch("queues", naps(LONG_SECS))]
    runs.wait_for_event(stack, before[0], "STEP_START", HEAVY[0].name)
    before.append(stack.launch("queues", naps()))

    # When edited code is deployed without waiting for them
    edited.make("deploy", "DEPLOY=hand-over")
    new = code_on(stack, "worker")

    # Then they went on with the new code and ended well, though a step was interrupted
    assert_all_well(stack, before)
    for run_id in before:
        assert code_of(stack, run_id) == new
        assert new in executed_with(stack, run_id)
    assert any("Goes on with code" in text for _, text in runs.told_by_executor(stack, before[0]))


def sensor_ticks(stack: Stack, since: float) -> list[float]:
    """When the example's sensor, which looks every 10 s, ticked."""
    rows = stack.sql(
        "SELECT extract(epoch FROM timestamp) FROM job_ticks"
        f" WHERE type = 'SENSOR' AND extract(epoch FROM timestamp) > {since} ORDER BY 1"
    )
    return [float(at) for (at,) in rows]


@contextmanager
def two_daemons(stack: Stack) -> Iterator[None]:
    """A stack with DAEMONS=2; afterwards with one."""
    env_file.set_value("DAEMONS", "2", stack.env)
    try:
        stack.make("up")
        # The first leader waits until the daemon before it has certainly ended.
        wait_until(
            lambda: stack.sql("SELECT 1 FROM dagster_stack_claims WHERE run_id = 'daemons'"), 90, "one leads"
        )
        yield
    finally:
        env_file.set_value("DAEMONS", "1", stack.env)
        stack.make("up")


@pytest.mark.long
def test_with_two_daemons_schedules_and_sensors_go_on_and_the_new_code_leads(
    stack: Stack, edited: Stack, tmp_path: Path
) -> None:
    with two_daemons(edited):
        # Given a sensor that ticks, and more runs than can be driven at once
        edit(edited.checkout, "\n# And once more.\n")
        before = [stack.launch("queues", naps(3)) for _ in range(RUNS)]
        wait_until_under_way(stack, before)
        began = time.time()
        wait_until(lambda: sensor_ticks(stack, began), 60, "a tick")

        # When the edit is deployed
        log = tmp_path / "deploy.log"
        with deploying(edited, log, DEPLOY="wait") as process:
            wait_until_it_says(log, "Waiting for runs under way")
            queued = [run_id for run_id in before if stack.run(run_id)["status"] == "QUEUED"]
            assert process.wait(timeout=900) == 0, log.read_text()

        # Then no run was lost, and those that waited were started with the new code
        new = code_on(stack, "worker")
        assert_all_well(stack, before)
        assert queued
        assert {code_of(stack, run_id) for run_id in queued} == {new}
        # And the sensor missed no tick
        ended = time.time()
        wait_until(lambda: sensor_ticks(stack, ended), 60, "a tick with the new code")
        ticks = sensor_ticks(stack, began)
        assert max(later - earlier for earlier, later in pairwise(ticks)) < 2 * TICK_SECS, ticks
        # And both daemons have the new code
        assert len(stack.containers("daemon")) == 2
        assert {code_on_container(stack, each.name) for each in stack.containers("daemon")} == {new}


def code_on_container(stack: Stack, container: str) -> str:
    return stack.docker("exec", container, "cat", "/opt/dagster/code-version").stdout.strip()


def swapping(stack: Stack) -> None:
    """Returns in the middle of a swap, when the first replacements are made."""
    wait_until(
        lambda: [each.name for each in stack.containers()], 300, "the first containers of the swap",
        until=lambda names: any(re.match("[0-9a-f]{12}_", name) for name in names),
    )  # fmt: skip


def test_an_upgrade_is_rolled_back_under_load_and_nothing_fails_or_is_lost(
    stack: Stack, edited: Stack, tmp_path: Path
) -> None:
    # Given edited code, two stores whose images change, and another version of a Python package
    old = code_on(stack, "worker")
    for store, configuration in (("postgres", "postgresql.conf"), ("rabbitmq", "rabbitmq.conf")):
        with (edited.checkout / "docker" / store / configuration).open("a") as file:
            file.write("# Edited.\n")
    locked = locks.versions((ROOT / "requirements" / "stack.lock").read_text())[PACKAGE]
    stores = {entry.service: entry.id for entry in stack.containers() if entry.service in STORES}

    # When the stack is upgraded, with 20 runs of 17 steps, as many under way as can be
    log = tmp_path / "upgrade.log"
    variables = {"WHAT": "python", "UPGRADE": f"{PACKAGE}!={locked}", "DEPLOY": "hand-over"}
    with deploying(edited, log, "upgrade", **variables) as process:
        wait_until_it_says(log, "Loading the code")
        before = [stack.launch("queues", naps(0.2)) for _ in range(20)]
        assert process.wait(timeout=600) == 0, log.read_text()
    said = log.read_text()
    new = code_on(stack, "worker")

    # Then what changes was said first, and each store that changes was swapped before Dagster
    moved = re.search(rf"Python: {PACKAGE} +{re.escape(locked)} → (\S+)", said)
    assert moved
    assert (
        0
        < moved.end()
        < said.index("Swapping postgres")
        < said.index("Swapping rabbitmq")
        < said.index("Swapping the")
    )
    assert (
        stack.exec("worker", "python", "-c", f"import {PACKAGE}; print({PACKAGE}.__version__)").stdout.strip()
        == moved[1]
    )
    now = {entry.service: entry.id for entry in stack.containers() if entry.service in STORES}
    assert {name for name in STORES if now[name] != stores[name]} == {"postgres", "rabbitmq"}

    listed = edited.make("versions").stdout
    assert re.search(rf"{new} .* all services\n{old} ", listed), listed
    assert any(stack.run(run_id)["status"] != "SUCCESS" for run_id in before)

    # And rolled back, which is killed in the middle of the swap, and repeated
    log = tmp_path / "rollback.log"
    with deploying(edited, log, "rollback", DEPLOY="hand-over") as process:
        swapping(stack)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    said = edited.make("rollback", "DEPLOY=hand-over").stdout
    assert f"Rolling back to code {old}" in said

    # Then all has the old code, no run failed, and no step is missing or recorded twice
    assert {
        code_on(stack, service) for service in ("dagit", "daemon", "runner", "worker", "worker-heavy")
    } == {old}
    assert_all_well(stack, [*before, stack.launch("queues", naps(0))])
    assert {old, new} <= {code for run_id in before for code in executed_with(stack, run_id)}
    assert re.search(rf"{old} .* all services, rolled back to\n", edited.make("versions").stdout)

    # And the same command once more changes nothing
    here = ids(stack)
    assert "nothing to roll back" in edited.make("rollback").stdout
    assert ids(stack) == here


def revision(stack: Stack, to: str = "") -> str:
    """The revision of the database's schema; changed where another is named."""
    statement = f"UPDATE alembic_version SET version_num = '{to}';" if to else ""
    command = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "dagster", "-qAt", "-c")
    return stack.exec(
        "postgres", *command, f"{statement}SELECT version_num FROM alembic_version"
    ).stdout.strip()


def test_a_database_of_another_schema_is_refused_or_migrated_with_a_way_back(
    stack: Stack, edited: Stack
) -> None:
    head, here, old = revision(stack), ids(stack), code_on(stack, "worker")
    try:
        # Given a database that newer code has migrated, it is refused with the ways out
        revision(stack, to="fedcba987654")
        result = edited.make("deploy", check=False)
        assert "fedcba987654) is newer than this code knows" in result.stderr
        assert "make rollback TO=" in result.stderr
        assert ids(stack) == here

        # Given one of the revision before, it is not migrated without a backup
        stack.exec("dagit", "python", "-c", DOWN)
        result = edited.make("deploy", check=False)
        assert "BACKED_UP=1" in result.stderr
        assert ids(stack) == here
        assert revision(stack) != head

        # And with one it is, and all goes on with the new code
        run_id = stack.launch("queues", naps(0.2))
        said = edited.make("deploy", "BACKED_UP=1").stdout
        assert f"to {head}. The way back: the backup" in said
        assert revision(stack) == head
    finally:
        revision(stack, to=head)
    assert code_on(stack, "worker") != old
    assert_all_well(stack, [run_id, stack.launch("queues", naps(0))])


@pytest.mark.parametrize("broken", ["\ndef broken(:\n", "\nraise RuntimeError('the new code is wrong')\n"])
def test_code_that_does_not_load_is_not_deployed(stack: Stack, edited: Stack, broken: str) -> None:
    # Given an edit that can't be loaded
    edit(edited.checkout, broken)
    here = ids(stack)

    # When it is to be deployed
    result = edited.make("deploy", check=False)

    # Then the error is shown, and all goes on as it was, the daemon included
    assert result.returncode != 0
    assert "the new code is wrong" in result.stderr or "SyntaxError" in result.stderr, result.stderr
    assert "Nothing was deployed" in result.stderr
    assert ids(stack) == here
    stack.compose("up", "--detach")
    assert ids(stack) == here
    stack.succeed("queues", naps(0))


def test_an_interrupted_deploy_leaves_a_stack_that_works(stack: Stack, edited: Stack, tmp_path: Path) -> None:
    # Given a deployment that waits for a run
    old = code_on(stack, "worker")
    run_id = stack.launch("queues", naps(LONG_SECS))
    runs.wait_for_event(stack, run_id, "STEP_START", HEAVY[0].name)
    log = tmp_path / "deploy.log"
    with deploying(edited, log, DEPLOY="wait") as process:
        wait_until_it_says(log, "Waiting for runs under way")

        # When it is interrupted as by Ctrl-C
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)

    # Then the old code goes on, and starts runs again
    assert "Nothing was deployed" in log.read_text()
    assert code_on(stack, "worker") == old
    assert_all_well(stack, [stack.launch("queues", naps()), run_id])

    # And when it is interrupted in the middle of the swap, `make up` from there completes it
    with deploying(edited, log, DEPLOY="wait") as process:
        swapping(stack)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
    edited.make("up")
    assert {code_on(stack, service) for service in ("dagit", "daemon", "runner", "worker")} != {old}
    stack.wait_until_healthy()
    assert_all_well(stack, [stack.launch("queues", naps())])


@pytest.fixture(scope="module")
def other_worker(stack: Stack) -> Iterator[str]:
    """The only worker on `heavy` has other code than the stack, until a test starts one more; gives its hash."""
    stack.compose("stop", "worker-heavy")
    try:
        with faults.worker_with_other_code(stack, "heavy") as code:
            yield code
    finally:
        stack.start("worker-heavy")
        stack.wait_until_healthy("worker-heavy")


def test_a_step_without_a_worker_of_its_code_fails_with_both_hashes_and_the_cure(
    stack: Stack, other_worker: str
) -> None:
    # Given a run whose heavy steps only a worker with other code could take
    run_id = stack.launch("queues", naps(0), tags={"dagster/max_retries": "0"})
    # When no other joins within a minute
    run = stack.wait_for_run(run_id)
    # Then the run fails, with both hashes and what to do
    texts = "\n".join(stack.failure_texts(run_id))
    assert run["status"] == "FAILURE"
    assert other_worker in texts
    assert code_of(stack, run_id) in texts
    assert "make deploy" in texts
    # And figures and alerts count it by its reason
    assert runs.failure_reasons(stack, run_id) == {Reason.FOREIGN_CODE}


def test_a_worker_with_other_code_hands_a_step_back_to_one_that_has_it(
    stack: Stack, other_worker: str
) -> None:
    # Given a run whose heavy steps only a worker with other code could take
    run_id = stack.launch("queues", naps(0))
    runs.wait_for_event(stack, run_id, "STEP_SUCCESS", LIGHT[0].name)
    # When a worker with the run's code joins
    stack.start("worker-heavy")
    # Then that one executed them
    assert_all_well(stack, [run_id])
    assert executed_with(stack, run_id) == {code_of(stack, run_id)}
