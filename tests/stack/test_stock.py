"""dagster-celery as it comes: its command line and its executor work with this stack."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc
from tests.stack.stack import Stack
from tests.waiting import wait_until

ONE_OFF = "stock-heavy"
#: In a worker, which works in the project.
CONFIG = "/opt/dagster/celery.yaml"


def worker_names(stack: Stack, service: str, prefix: str) -> set[str]:
    return {
        f"{prefix}@{stack.inspect(entry.name)['Config']['Hostname']}" for entry in stack.containers(service)
    }


def started(stack: Stack, *services: str) -> dict[str, str]:
    """When each container of these services started."""
    return {
        entry.name: stack.inspect(entry.name)["State"]["StartedAt"]
        for service in services
        for entry in stack.containers(service)
    }


def wait_for_restart(stack: Stack, before: dict[str, str]) -> None:
    """Until every one of these containers has started anew and is healthy."""
    wait_until(
        lambda: started(stack, "worker", "worker-heavy"),
        120, f"a restart of {', '.join(before)}",
        until=lambda now: all(now[name] != started_at for name, started_at in before.items()),
    )  # fmt: skip
    stack.wait_until_healthy("worker")
    stack.wait_until_healthy("worker-heavy")


@contextmanager
def stock_worker(stack: Stack) -> Iterator[str]:
    """A worker for `heavy`, started by the stock command line in a container of its own."""
    name = f"{stack.project}-{ONE_OFF}"
    command = [
        "dagster-celery",
        "worker",
        "start",
        "-A",
        "dagster_stack.app",
        "-y",
        "celery.yaml",
        "-q",
        "heavy",
    ]
    stack.compose("run", "--rm", "-d", "--no-deps", "--name", name, "cli", *command)
    try:
        wait_until(lambda: stack.docker("logs", name).stderr + stack.docker("logs", name).stdout, 90,
                   "the stock worker is ready", until=lambda log: " ready." in log)  # fmt: skip
        yield name
    finally:
        stack.docker("rm", "-f", name, check=False)


def test_worker_list_shows_the_workers(stack: Stack) -> None:
    # Given the stack's workers
    names = worker_names(stack, "worker", "dagster") | worker_names(stack, "worker-heavy", "heavy")

    # When the stock command line lists them, with celery.yaml and without
    for options in (["-y", CONFIG], []):
        listed = stack.exec("worker", "dagster-celery", "worker", "list", *options).stdout

        # Then all are there
        assert all(name in listed for name in names), listed


def test_worker_start_takes_steps_of_its_queue(stack: Stack) -> None:
    # Given a worker on `heavy` by the stock command line, and no other
    stack.compose("stop", "worker-heavy")
    try:
        with stock_worker(stack) as name:
            host = stack.inspect(name)["Config"]["Hostname"]

            # When a job with heavy steps runs
            run_id = stack.succeed(
                "queues", {"ops": {f"heavy_{n}": {"config": {"seconds": 0}} for n in range(1, 5)}}
            )

            # Then this worker executed them, and none of the others
            executed = runs.workers(stack, run_id)
            heavy = set().union(*(executed[f"heavy_{number}"] for number in range(1, 5)))
            assert {worker.partition("@")[2] for worker in heavy} == {host}
            light = set().union(*(names for step, names in executed.items() if not step.startswith("heavy_")))
            assert not light & heavy

            # And `terminate --all` ends it like all the others, which their restart policy brings back
            before = started(stack, "worker")
            stack.exec("worker", "dagster-celery", "worker", "terminate", "--all", "-y", CONFIG, check=False)
            wait_until(lambda: stack.docker("ps", "-q", "--filter", f"name={name}").stdout, 60,
                       "the stock worker is gone", until=lambda found: not found)  # fmt: skip
    finally:
        stack.start("worker-heavy")
    wait_for_restart(stack, before)


def test_worker_terminate_ends_the_worker_beside_it(stack: Stack) -> None:
    # Given the stack's workers
    target = stack.container("worker")
    before = started(stack, "worker", "worker-heavy")

    # When the stock command line, inside a worker's container, terminates the worker named `dagster` on this host
    stack.exec("worker", "dagster-celery", "worker", "terminate", "-y", CONFIG, check=False)

    # Then this one ends and comes back, and the others go on
    wait_for_restart(stack, {target: before[target]})
    after = started(stack, "worker", "worker-heavy")
    assert {name for name in before if before[name] != after[name]} == {target}


def test_the_stock_executor_works_on_the_same_workers(stack: Stack, ad_hoc: AdHoc) -> None:
    # Given a job with dagster_celery's own executor, which reads nothing of celery.yaml
    # When it runs
    run_id = ad_hoc.run("stock")

    # Then its steps went to the stack's workers by their queues
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    executed = runs.workers(stack, run_id)
    assert executed["one"] <= worker_names(stack, "worker", "dagster")
    assert executed["add_one"] <= worker_names(stack, "worker-heavy", "heavy")
