"""What `celery_executor` asks of its processes: connections, cleanliness, recycling."""

import json
import re
from collections import Counter
from typing import Any

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec
from tests.stack.executor_jobs.queues import OWN
from tests.stack.stack import FINAL, Stack
from tests.waiting import wait_until

CONNECTIONS = (
    "SELECT host(client_addr), count(*) FROM pg_stat_activity WHERE client_addr IS NOT NULL GROUP BY 1"
)
CONNECTIONS_OF_PROCESSES = """
    SELECT host(client_addr), application_name, count(*) FROM pg_stat_activity
    WHERE client_addr IS NOT NULL GROUP BY 1, 2
"""
#: What a process may have open.
BUDGET = 2
#: 32 processes: containers, and processes in each, which share what is loaded.
CONTAINERS, PROCESSES = 4, 8


def many(op: str, count: int, seconds: float) -> dict[str, Any]:
    return {"ops": {op: {"config": {"count": count, "seconds": seconds}}}}


def address(stack: Stack, container: str) -> str:
    """A container's address in the database's network."""
    networks = stack.inspect(container)["NetworkSettings"]["Networks"]
    return str(networks[f"{stack.project}_database"]["IPAddress"])


def test_a_run_and_a_worker_process_keep_two_connections_each_at_most(stack: Stack, jobs: AdHoc) -> None:
    # Given a run of many steps that has its container for itself
    most: Counter[str] = Counter()
    workers = [address(stack, entry.name) for entry in stack.containers("worker")]
    with jobs.in_container(Spec("wide", many("wide_beds", 40, 0.2))) as (run_id, container):
        driver = address(stack, container)

        # When the connections of each address are counted until it ends
        def look() -> str:
            for host, count in stack.sql(CONNECTIONS):
                most[host] = max(most[host], int(count))
            return str(stack.run(run_id)["status"])

        status = wait_until(look, 120, "the run's end", until=lambda seen: seen in FINAL, pause=0.1)

    # Then the run never had more than its two, and no worker, with its one process, either
    assert status == "SUCCESS", stack.failure_texts(run_id)
    for host in (driver, *workers):
        assert 1 <= most[host] <= BUDGET, (host, most)
    # And nothing had to be tried again
    assert runs.count_events(stack, run_id, "STEP_START").total() == 41


def test_a_run_from_dagit_keeps_two_connections_at_most(stack: Stack) -> None:
    # Given a run of 50 steps, which one of the runners' processes drives
    run_id = runs.launch(stack, "parallel_pipeline")
    most: Counter[tuple[str, str]] = Counter()

    # When each process's connections are counted until it ends
    def look() -> str:
        for host, process, count in stack.sql(CONNECTIONS_OF_PROCESSES):
            most[host, process] = max(most[host, process], int(count))
        return str(stack.run(run_id)["status"])

    status = wait_until(look, 120, "the run's end", until=lambda seen: seen in FINAL, pause=0.1)

    # Then neither that process nor any other of the runners ever had more than its two
    assert status == "SUCCESS", stack.failure_texts(run_id)
    runners = {address(stack, entry.name) for entry in stack.containers("runner")}
    driving = {process: count for process, count in most.items() if process[0] in runners}
    assert driving, most
    assert max(driving.values()) <= BUDGET, driving


def test_what_a_step_does_to_its_process_does_not_reach_the_next(stack: Stack, jobs: AdHoc) -> None:
    # Given three steps on one worker process, of which the second one spoils whatever a process has; one that leaves a
    # thread; and one in a process of its own, which is killed the first time
    (run_id,) = jobs.execute(Spec("leaking"))

    # When they have ended
    # Then all of them succeeded, the first three in the same process
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    pids: dict[str, list[int]] = {}
    for entry in runs.executions(stack, run_id):
        pids.setdefault(entry.step, []).append(entry.pid)
    warm = {pids[step][0] for step in ("before_leak", "leak", "after_leak", "leave_thread")}
    assert len(warm) == 1
    # And the third found folder, environment, time zone, timers, limits and signals as the first did
    before, after = (
        json.loads(stack.metadata(run_id, step)["value"]) for step in ("before_leak", "after_leak")
    )
    assert after == before
    # And its run with the tag that the first gave it, and no temporary file but its own
    told = stack.metadata(run_id, "after_leak")
    assert told["rows"] == "5"
    assert len(told["left"].split()) == 1
    # And what it printed was captured
    output = runs.output(stack, run_id, "after_leak")
    assert output
    assert "stdout is heard again" in output.stdout
    # And a process with a thread that still runs is replaced, and the run's log says whose it was
    assert pids["after_thread"][0] not in warm
    assert "poller" not in stack.metadata(run_id, "after_thread")["value"]
    runs.wait_until_told(stack, run_id, 'Step "leave_thread" left threads that still run ("poller"')
    # And the step in a process of its own was lost with its holder, and executed again in another one
    runs.wait_until_told(stack, run_id, 'while it executed step "killed_once": killed by SIGKILL')
    assert len(set(pids["killed_once"])) == 2
    assert stack.metadata(run_id, "killed_once")["value"] == str(pids["killed_once"][1])
    printed = [output.stdout for output in runs.outputs(stack, run_id, "killed_once")]
    assert "printed apart" in printed[-1], printed


def test_a_step_in_a_process_of_its_own_is_terminated_as_any_other(stack: Stack, jobs: AdHoc) -> None:
    (run_id,) = jobs.begin(Spec("apart"))
    runs.wait_for_event(stack, run_id, "STEP_START")

    runs.terminate(stack, run_id)

    wait_until(lambda: stack.run(run_id)["status"] == "CANCELED", 60, "the end of the run")
    assert runs.count_events(stack, run_id, "STEP_FAILURE").total() == 1
    # And its worker takes the next one
    assert stack.run(jobs.execute(Spec("alone"))[0])["status"] == "SUCCESS"


def test_a_worker_that_renews_its_process_loses_no_step(stack: Stack, jobs: AdHoc) -> None:
    # Given a worker whose process ends after seven steps
    with jobs.queues(OWN), jobs.worker(OWN, options=["--max-tasks-per-child", "7"]):
        # When it executes 21
        (run_id,) = jobs.execute(Spec("wide_own", many("own_beds", 20, 0)))

    # Then each is executed once
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    executed = Counter(entry.pid for entry in runs.executions(stack, run_id))
    assert executed.total() == 21
    assert set(runs.count_events(stack, run_id, "STEP_START").values()) == {1}
    assert runs.count_events(stack, run_id, "STEP_SUCCESS").total() == 21
    # And no process executed more than seven
    assert sorted(executed.values()) == [7, 7, 7]


def test_32_worker_processes_share_the_database_without_an_error(stack: Stack, jobs: AdHoc) -> None:
    # Given 32 processes on a queue, and a run of 1,000 steps
    most: Counter[str] = Counter()
    troubles = re.compile(r"Postgres is away|Retrying failed database|too many clients|QueuePool limit")
    containers, options = (
        [f"many-{number}" for number in range(CONTAINERS)],
        ["--concurrency", str(PROCESSES)],
    )
    with jobs.queues(OWN), jobs.workers(OWN, names=containers, options=options) as names:
        (run_id,) = jobs.begin(Spec("wide_own", many("own_beds", 1000, 0)))

        # When the connections of each container are counted until it ends
        def look() -> str:
            for host, count in stack.sql(CONNECTIONS):
                most[host] = max(most[host], int(count))
            return str(stack.run(run_id)["status"])

        status = wait_until(look, 300, "the run's end", until=lambda seen: seen in FINAL, pause=0.2)
        hosts = [name.partition("@")[2] for name in names]
        logs = [stack.docker("logs", host) for host in hosts]
        addresses = [address(stack, host) for host in hosts]

    # Then all its steps were executed, once each, by many of them
    assert status == "SUCCESS", stack.failure_texts(run_id)
    assert runs.count_events(stack, run_id, "STEP_START").total() == 1001
    assert len({(entry.worker, entry.pid) for entry in runs.executions(stack, run_id)}) > PROCESSES
    # And no container had more connections than two for each process, nor trouble with one
    for host in addresses:
        assert 1 <= most[host] <= BUDGET * PROCESSES, (host, most)
    for log in logs:
        assert not troubles.search(log.stdout + log.stderr)
