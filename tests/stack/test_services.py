"""Every long-running service stops cleanly, comes back after a crash, and says so when it hangs."""

import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from dagster_stack.timing import DRAIN_SECS, EXIT_AFTER_SECS, LOOP_SILENCE_SECS
from tests.stack import faults, work
from tests.stack.stack import Stack
from tests.waiting import wait_until

STORES = ("postgres", "rabbitmq", "minio")
DAGSTER = ("dagit", "daemon", "runner", "worker", "worker-heavy")
SERVICES = STORES + DAGSTER

#: Seconds within which a service that hangs is unhealthy: 30 s of silence, three checks that each wait 5 s
#: and come 10 s apart, and a busy machine.
UNHEALTHY_SECS = 90
#: Seconds within which a worker without broker or pool has ended itself: what it takes to notice (two of
#: AMQP's heartbeats of 10 s), its patience, and a busy machine.
GIVE_UP_SECS = LOOP_SILENCE_SECS + 20 + EXIT_AFTER_SECS + 30


# --- stop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [*SERVICES, "init"])
def test_a_service_logs_to_standard_output(stack: Stack, service: str) -> None:
    # When the engine is asked for the log, which holds what the container wrote to its output
    log = stack.compose("logs", "--no-color", "--no-log-prefix", service).stdout
    # Then there is something
    assert len(log.splitlines()) >= 3
    # And nothing goes to a file instead
    written = stack.exec(
        service, "sh", "-c", "cat /var/log/rabbitmq/* /tmp/*.log 2>/dev/null | wc -c; true", check=False
    )
    assert written.stdout.strip() in ("0", "")


def test_a_step_that_outlasts_the_stop_of_its_worker_is_executed_again(stack: Stack) -> None:
    # Given a step that needs longer than a worker waits on stop, and that has started
    ops = work.NO_NAPS["ops"] | {"heavy_1": {"config": {"seconds": DRAIN_SECS + 6}}}
    run_id = stack.launch(work.JOB, {"ops": ops})
    wait_until(
        lambda: [event["stepKey"] for event in stack.events(run_id) if event.get("eventType") == "STEP_START"],
        60, "heavy_1 started", until=lambda started: "heavy_1" in started,
    )  # fmt: skip
    container = stack.container("worker-heavy")
    # When its worker is stopped, and started again later
    stack.compose("stop", "worker-heavy")
    assert stack.inspect(container)["State"]["ExitCode"] in (0, 143)
    # Then the step is back in its queue
    vhost = stack.settings["RABBITMQ_VHOST"]
    wait_until(
        lambda: stack.broker(f"queues/{vhost}/heavy").get("messages_ready"), 20, "the step is in its queue",
        until=lambda ready: ready and ready >= 1,
    )  # fmt: skip
    stack.compose("start", "worker-heavy")
    # And the run succeeds, with the step started at least twice and one success of it
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    kinds = [event.get("eventType") for event in stack.events(run_id) if event.get("stepKey") == "heavy_1"]
    assert kinds.count("STEP_START") >= 2
    assert kinds.count("STEP_SUCCESS") == 1


# --- crash ---------------------------------------------------------------------------------------------


def test_services_come_back_by_themselves_after_a_crash(stack: Stack) -> None:
    # Given the main process of each service
    stack.wait_until_healthy()
    containers = {service: stack.container(service) for service in SERVICES}
    processes = [faults.main_process(stack, container) for container in containers.values()]
    before = {service: lives(stack, container) for service, container in containers.items()}

    def unchanged() -> list[str]:
        return [
            service for service, life in before.items()
            if any(now == then for now, then in zip(lives(stack, containers[service]), life, strict=True))
        ]  # fmt: skip

    # When all of them crash at once, so that nobody finds the others where they were
    for process in processes:
        faults.crash(process)
    # Then the engine starts each again, nobody else does anything, and all is healthy
    wait_until(unchanged, 60, "crashed and not started again", until=lambda services: not services)
    stack.wait_until_healthy()
    # And work is done as before
    work.succeed(stack)


def test_a_run_is_launched_and_driven_though_the_processes_with_the_code_died(stack: Stack) -> None:
    # Given that Dagit and the daemon each load the user's code in a process beside their main one
    stack.wait_until_healthy()
    dagit, daemon = stack.container("dagit"), stack.container("daemon")
    before = lives(stack, dagit)
    # When the daemon's dies, for example for lack of memory, and a run is launched
    crash_code_server(stack, daemon)
    run_id = work.launch(stack)
    # And then Dagit's, which Dagit by itself never starts again
    crash_code_server(stack, dagit)
    # Then Dagit gives itself up, comes back, and launches again
    wait_until(lambda: lives(stack, dagit), 60, "Dagit restarted", until=lambda now: now[0] > before[0])
    wait_until(lambda: lives(stack, dagit), 60, "Dagit started", until=lambda now: now[1] != before[1])
    stack.wait_until_healthy("dagit")
    work.launch(stack)
    # And the run, which the daemon could not start, was not lost
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)


def crash_code_server(stack: Stack, container: str) -> None:
    for process in faults.code_servers(stack, container):
        faults.crash(process)


def lives(stack: Stack, container: str) -> tuple[int, str]:
    """How often the engine restarted a container, and since when it runs."""
    state = stack.inspect(container)
    return state["RestartCount"], state["State"]["StartedAt"]


def restart_count(stack: Stack, container: str) -> int:
    count: int = stack.inspect(container)["RestartCount"]
    return count


# --- hang ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hung(stack: Stack) -> dict[str, float]:
    """Seconds until each fault below was noticed; the waits overlap. The stack is well again afterwards.

    First the Dagster services hang, one worker loses its pool process and one the broker. These two are
    left alone until they end themselves; meanwhile the others go on, and the stores hang.
    """
    stack.wait_until_healthy()
    noticed: dict[str, float] = {}
    first, second = sorted(entry.name for entry in stack.containers("worker"))[:2]
    heavy = stack.container("worker-heavy")
    restarts = {container: restart_count(stack, container) for container in (second, heavy)}
    began = time.monotonic()

    def note(fault: str, sign: Callable[[], bool], since: float, timeout: float) -> None:
        left = timeout - (time.monotonic() - since)
        wait_until(sign, max(left, 1), fault)
        noticed[fault] = time.monotonic() - since

    def unhealthy(container: str) -> Callable[[], bool]:
        return lambda: stack.health(container) == "unhealthy"

    def restarted(container: str) -> Callable[[], bool]:
        return lambda: restart_count(stack, container) > restarts[container]

    with ExitStack() as lasting:
        lasting.enter_context(faults.frozen(faults.pool_process(stack, second)))
        lasting.enter_context(faults.cut_off(stack, heavy, "broker"))
        hanging = {"dagit": stack.container("dagit"), "daemon": stack.container("daemon"), "worker": first}
        with faults.frozen(*(faults.main_process(stack, container) for container in hanging.values())):
            for service, container in hanging.items():
                note(service, unhealthy(container), began, UNHEALTHY_SECS)
            note("a worker without its pool process", unhealthy(second), began, UNHEALTHY_SECS)
            note("a worker without the broker", unhealthy(heavy), began, UNHEALTHY_SECS + 35)
        hanging = {service: stack.container(service) for service in STORES}
        processes = [
            faults.main_process(stack, hanging["postgres"]),
            faults.broker_process(stack, hanging["rabbitmq"]),
            faults.main_process(stack, hanging["minio"]),
        ]
        since = time.monotonic()
        with faults.frozen(*processes):
            for service, container in hanging.items():
                note(service, unhealthy(container), since, UNHEALTHY_SECS)
        note("the end of a worker without its pool process", restarted(second), began, GIVE_UP_SECS)
        note("the end of a worker without the broker", restarted(heavy), began, GIVE_UP_SECS)
    stack.wait_until_healthy()
    return noticed


@pytest.mark.parametrize("service", [*STORES, "dagit", "daemon", "worker"])
def test_a_service_that_hangs_is_unhealthy(hung: dict[str, float], service: str) -> None:
    # Given main processes that are there and do nothing: noticed, and not only because they were starting
    assert 10 < hung[service] < UNHEALTHY_SECS + 15


@pytest.mark.parametrize("fault", ["a worker without its pool process", "a worker without the broker"])
def test_a_worker_that_can_not_work_is_unhealthy_and_then_ends_itself(
    hung: dict[str, float], fault: str
) -> None:
    # Given that Compose restarts nothing for being unhealthy: it ended, and its restart policy brought it back
    assert hung[fault] < hung[f"the end of {fault}"] < GIVE_UP_SECS + 15


def test_all_is_well_after_the_hang(stack: Stack, hung: dict[str, float]) -> None:
    stack.wait_until_healthy()
    work.succeed(stack)


# --- scale ---------------------------------------------------------------------------------------------


def test_scaling_gives_as_many_healthy_workers_as_are_asked_for(stack: Stack) -> None:
    try:
        # When a user scales by Compose's own command
        stack.compose("scale", "worker=3")
        # Then so many are healthy
        stack.wait_until_healthy("worker")
        assert len(stack.containers("worker")) == 3
        # And `make workers` names each of them, with its queue
        listed = stack.make("workers").stdout
        assert listed.count("dagster@") == 3
        assert listed.count("heavy@") == 1
    finally:
        # When a user scales by make
        output = stack.make("scale", "N=2").stdout
    # Then it ends when so many are healthy, and the next `up` keeps them
    assert "2 workers are healthy" in output
    assert [entry.health for entry in stack.containers("worker")] == ["healthy"] * 2
    assert "\nWORKERS=2\n" in stack.env.read_text()


def test_ps_lists_every_container_and_logs_follows_them(stack: Stack) -> None:
    # When a user looks
    listed = stack.make("ps").stdout
    # Then every long-running service is there
    assert [service for service in SERVICES if f"{stack.project}-{service}-1" not in listed] == []
    # And the logs come as they are written, from all of them, until the user has enough
    seen = stack._run(["timeout", "5", "make", "logs"], check=False, timeout=30)
    assert [service for service in SERVICES if f"{service}-1 " not in seen.stdout] == []
