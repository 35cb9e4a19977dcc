"""What a job may do, on `celery_executor`: the same as on Dagster's own executors."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec
from tests.stack.stack import Stack


def three(**risky: Any) -> dict[str, Any]:
    """Config for a dynamic output of three."""
    return {"ops": {"numbers": {"config": {"count": 3}}, **risky}}


BROKEN = three(risky={"config": {"count": 3, "fails_first": 2}})
NO_RETRIES: dict[str, Any] = {"execution": {"config": {"retries": {"disabled": {}}}}}
EAGER: dict[str, Any] = {"execution": {"config": {"config_source": {"task_always_eager": True}}}}
REPEATABLE = Spec("repeatable", BROKEN)
IN_PROCESS_REPEATABLE = Spec("repeatable", BROKEN, in_process=True)
EAGER_REPEATABLE = Spec("repeatable", {**BROKEN, **EAGER})

#: Its resource fails: a process of one's own, as in the in-process executor, fails with it as a whole.
WITHOUT_RESOURCE = Spec("without_resource")
#: What is executed here, and as Dagster's in-process executor does it, by a name for it.
SPECS = {
    "fan_in": Spec("fan_in"),
    "branching": Spec("branching"),
    "dynamic": Spec("dynamic", three()),
    "dynamic_empty": Spec("dynamic", {"ops": {"numbers": {"config": {"count": 0}}}}),
    "nested": Spec("nested"),
    "failing": Spec("failing"),
    "retrying": Spec("retrying"),
    "retries_disabled": Spec("retrying", NO_RETRIES),
    "hooked": Spec("hooked"),
    "with_resources": Spec("with_resources", {"resources": {"greeting": {"config": {"word": "welcome"}}}}),
    "until_third": Spec("chain", ops=["*third"]),
    "from_third": Spec("chain", {"ops": {"third": {"inputs": {"number": 40}}}}, ops=["third*"]),
    "repeatable": REPEATABLE,
    "repeated": Spec("repeatable", BROKEN, again=REPEATABLE),
}
#: These say how a run went; all others how it was executed.
TELLING = {
    "STEP_START", "STEP_SUCCESS", "STEP_FAILURE", "STEP_SKIPPED", "STEP_UP_FOR_RETRY", "STEP_RESTARTED",
    "STEP_INPUT", "STEP_OUTPUT", "LOADED_INPUT", "HANDLED_OUTPUT", "HOOK_COMPLETED", "HOOK_ERRORED",
    "PIPELINE_SUCCESS", "PIPELINE_FAILURE", "RUN_SUCCESS", "RUN_FAILURE",
}  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """The ids of the runs by name: on the workers, in one process, and by ours without workers."""

    ours: dict[str, str]
    in_process: dict[str, str]
    eager: dict[str, str]


@pytest.fixture(scope="module")
def made(jobs: AdHoc) -> Runs:
    in_process = {
        name: IN_PROCESS_REPEATABLE if spec is REPEATABLE
        else Spec(spec.job, spec.config, spec.tags, spec.ops, again=spec.again and IN_PROCESS_REPEATABLE, in_process=True)
        for name, spec in SPECS.items()
    }  # fmt: skip
    eager = {
        name: EAGER_REPEATABLE if spec is REPEATABLE
        else Spec(spec.job, eagerly(spec.config), spec.tags, spec.ops, again=spec.again and EAGER_REPEATABLE)
        for name, spec in SPECS.items()
    }  # fmt: skip
    every = [{**SPECS, "without_resource": WITHOUT_RESOURCE}, in_process, eager]
    # Each kind's runs one after the other, the kinds beside each other.
    with ThreadPoolExecutor() as beside:
        ids = beside.map(lambda specs: jobs.execute(*specs.values()), every)
        return Runs(*(dict(zip(specs, found, strict=True)) for specs, found in zip(every, ids, strict=True)))


def eagerly(config: dict[str, Any]) -> dict[str, Any]:
    execution = config.get("execution", {"config": {}})["config"]
    return {**config, "execution": {"config": {**execution, **EAGER["execution"]["config"]}}}


@pytest.mark.parametrize("name", SPECS)
def test_a_job_goes_as_on_dagsters_own_executor(stack: Stack, made: Runs, name: str) -> None:
    # Given the same job, once on the workers, once in one process, and once with task_always_eager
    # When what happened to each step is counted
    ours, in_process, eager = (
        Counter(
            (event.get("stepKey"), event["eventType"])
            for event in stack.events(run_id)
            if event.get("eventType") in TELLING
        )
        for run_id in (made.ours[name], made.in_process[name], made.eager[name])
    )

    # Then it is the same
    assert ours == in_process == eager
    # And it was something
    assert ours.total() > 2, ours


def test_an_eager_run_executes_its_steps_in_its_own_process(stack: Stack, made: Runs) -> None:
    # Given a run with task_always_eager
    # When it has ended
    events = stack.events(made.eager["fan_in"])
    # Then its steps were executed in the container that drove it, with their events in the usual order
    begun = [event["message"] for event in events if event.get("eventType") == "STEP_WORKER_STARTED"]
    assert begun
    assert not any("worker@" in text or "heavy@" in text for text in begun), begun
    assert stack.run(made.eager["fan_in"])["status"] == "SUCCESS"


def values(stack: Stack, run_id: str, *steps: str) -> list[str]:
    return [stack.metadata(run_id, step)["value"] for step in steps]


def test_data_goes_from_step_to_step(stack: Stack, made: Runs) -> None:
    # Given jobs with a list of inputs, with a skipped input in it, with dynamic outputs, with nested graphs
    # When the last steps' values are read
    # Then each is what the steps before it made
    assert values(stack, made.ours["fan_in"], "total") == [str(101 + 200 + 1000)]
    assert values(stack, made.ours["branching"], "total") == ["8"]
    assert values(stack, made.ours["dynamic"], "total", "double") == ["17", "34"]
    assert values(stack, made.ours["dynamic_empty"], "total", "double") == ["0", "0"]
    assert values(stack, made.ours["nested"], "double") == ["10"]


def test_a_branch_not_taken_is_skipped_to_its_end(stack: Stack, made: Runs) -> None:
    # Given a job with an optional output that does not come
    # When it has ended
    # Then the steps behind it are skipped, and the run is a success
    assert stack.run(made.ours["branching"])["status"] == "SUCCESS"
    assert runs.count_events(stack, made.ours["branching"], "STEP_SKIPPED") == {
        "skipped": 1,
        "skipped_too": 1,
    }


def test_a_dynamic_output_becomes_a_step_a_value(stack: Stack, made: Runs) -> None:
    # Given a dynamic output of three, through two steps each, collected
    # When the steps that succeeded are listed
    done = runs.count_events(stack, made.ours["dynamic"], "STEP_SUCCESS")

    # Then there are two a value, and the others once
    mapped = {f"{step}[n{number}]": 1 for step in ("square", "follow") for number in (1, 2, 3)}
    assert done == mapped | {"numbers": 1, "total": 1, "double": 1}


def test_a_failing_step_fails_its_dependents_and_nothing_else(stack: Stack, made: Runs) -> None:
    # Given a job with a step that fails
    run_id = made.ours["failing"]

    # When it has ended
    # Then what does not depend on it was executed, and what does was not
    assert stack.run(run_id)["status"] == "FAILURE"
    assert runs.count_events(stack, run_id, "STEP_SUCCESS") == {"source": 1, "after_source": 1}
    assert runs.count_events(stack, run_id, "STEP_START") == {"bad": 1, "source": 1, "after_source": 1}
    # And the log names the cause, and each step that was left out
    assert any("bad fails on purpose" in text for text in stack.failure_texts(run_id))
    messages = [event.get("message") or "" for event in stack.events(run_id)]
    for step in ("after_bad", "after_after_bad", "joined"):
        assert any(f"Dependencies for step {step} " in message for message in messages), step


def test_retries_end_with_success_or_when_they_are_used_up(stack: Stack, made: Runs) -> None:
    # Given steps that ask for retries, by policy and by themselves
    run_id = made.ours["retrying"]

    # When the run has ended
    # Then each was tried as often as it may be
    assert runs.count_events(stack, run_id, "STEP_UP_FOR_RETRY") == {
        "third_time_lucky": 2, "asks_once": 1, "asks_too_often": 1, "never_lucky": 1,
    }  # fmt: skip
    assert set(runs.count_events(stack, run_id, "STEP_FAILURE")) == {"asks_too_often", "never_lucky"}
    done = runs.count_events(stack, run_id, "STEP_SUCCESS")
    assert done == dict.fromkeys(
        ["third_time_lucky", "after_third_time_lucky", "asks_once", "after_asks_once"], 1
    )
    # And every attempt was sent once
    attempts = [
        (entry.step, entry.attempt) for entry in runs.sent(stack, run_id) if entry.step == "third_time_lucky"
    ]
    assert attempts == [("third_time_lucky", attempt) for attempt in (1, 2, 3)]


def test_disabled_retries_are_not_made(stack: Stack, made: Runs) -> None:
    # Given the same job with `retries: disabled` for its executor
    # When it has ended
    # Then no step was tried a second time
    assert not runs.count_events(stack, made.ours["retries_disabled"], "STEP_UP_FOR_RETRY")
    assert set(runs.count_events(stack, made.ours["retries_disabled"], "STEP_START").values()) == {1}


def worker_hosts(stack: Stack) -> set[str]:
    return {
        stack.inspect(entry.name)["Config"]["Hostname"]
        for service in ("worker", "worker-heavy")
        for entry in stack.containers(service)
    }


def log_lines(stack: Stack, run_id: str, *words: str) -> list[str]:
    """What a run's code logged, of it what holds all these words."""
    messages = [event.get("message") or "" for event in stack.events(run_id)]
    return [message for message in messages if all(word in message for word in words)]


def test_hooks_run_on_the_worker_of_their_step(stack: Stack, made: Runs) -> None:
    # Given a job with a hook for success and one for failure
    run_id = made.ours["hooked"]

    # When it has ended
    (glad,) = log_lines(stack, run_id, "glad about source on ")
    (sad,) = log_lines(stack, run_id, "sad about bad on ")

    # Then each ran once, on a worker, and knew why
    hosts = worker_hosts(stack)
    assert any(host in glad for host in hosts)
    assert any(host in sad for host in hosts)
    assert "bad fails on purpose" in sad
    # And a hook that fails does not change how its step ended
    assert runs.count_events(stack, run_id, "HOOK_ERRORED") == {"source": 1}
    assert runs.count_events(stack, run_id, "STEP_SUCCESS") == {"source": 1}


def test_resources_are_configured_by_the_run_and_given_back_on_the_worker(stack: Stack, made: Runs) -> None:
    # Given two steps with a resource that is to be given back, of which one fails
    run_id = made.ours["with_resources"]

    # When the run has ended
    # Then the run's config reached the worker
    assert values(stack, run_id, "greet") == ["welcome lease"]
    # And what was taken was given back, by the same process, each time
    taken = Counter(line.partition(" taken ")[2] for line in log_lines(stack, run_id, "lease taken"))
    back = Counter(line.partition(" given back ")[2] for line in log_lines(stack, run_id, "lease given back"))
    assert taken.total() == 2
    assert back == taken
    assert all(any(host in line for host in worker_hosts(stack)) for line in taken)


def test_a_resource_that_cannot_be_made_fails_its_step_with_the_reason(stack: Stack, made: Runs) -> None:
    # Given a job of which two steps need a resource that fails
    run_id = made.ours["without_resource"]

    # When it has ended
    # Then these steps failed, each once and with the reason, and the step after one was not executed
    assert stack.run(run_id)["status"] == "FAILURE"
    failures = [event for event in stack.events(run_id) if event.get("eventType") == "STEP_FAILURE"]
    assert {event["stepKey"] for event in failures} == {"needs_unavailable", "insists_on_unavailable"}
    assert all("the license server says no" in str(event["error"]) for event in failures)
    assert len(failures) == 2, failures
    assert not runs.count_events(stack, run_id, "STEP_START")["follow"]
    # And the others went on
    assert runs.count_events(stack, run_id, "STEP_SUCCESS") == {"source": 1}


def test_a_resource_that_cannot_be_made_is_tried_again_by_the_ops_policy(stack: Stack, made: Runs) -> None:
    # Given a step with a policy of one retry, that needs a resource that fails
    run_id = made.ours["without_resource"]

    # When the run has ended
    # Then the step was tried twice
    assert runs.count_events(stack, run_id, "STEP_UP_FOR_RETRY") == {"insists_on_unavailable": 1}
    assert runs.count_events(stack, run_id, "RESOURCE_INIT_FAILURE")["insists_on_unavailable"] == 2


def test_selected_ops_alone_are_executed(stack: Stack, made: Runs) -> None:
    # Given runs of parts of a chain: up to the third op, and from it with an input from the config
    # When they have ended
    # Then each executed its part
    assert set(runs.count_events(stack, made.ours["until_third"], "STEP_SUCCESS")) == {
        "first", "second", "third",
    }  # fmt: skip
    assert set(runs.count_events(stack, made.ours["from_third"], "STEP_SUCCESS")) == {"third", "fourth"}


def test_a_repetition_from_the_failure_executes_what_failed_and_what_follows(
    stack: Stack, made: Runs
) -> None:
    # Given a run in which one of three dynamic steps failed, and with it what collects them
    first = runs.statuses(stack, made.ours["repeatable"])
    assert {step for step, status in first.items() if status == "FAILURE"} == {"risky[n2]"}

    # When it was repeated from the failure
    again = made.ours["repeated"]

    # Then only these two steps were executed, with the data of the first run
    assert stack.run(again)["status"] == "SUCCESS", stack.failure_texts(again)
    assert runs.count_events(stack, again, "STEP_START") == {"risky[n2]": 1, "total": 1}
    assert values(stack, again, "total") == ["6"]
