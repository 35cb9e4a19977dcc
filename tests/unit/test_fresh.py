"""What a step gets of what its process keeps warm, whatever steps before it did to that."""

import json
from copy import deepcopy
from typing import Any

from dagster import DagsterInstance, DagsterRun
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.system_config.objects import OpConfig, OutputsConfig, ResolvedRunConfig

from dagster_stack.patches.dagster import SERIALIZE_RUN
from dagster_stack.step.fresh import fresh_config
from dagster_stack.step.plan_cache import planned_job
from dagster_stack.store import instance_storage
from tests.unit import changing_jobs
from tests.unit.changing_jobs import results
from tests.unit.runs_by_hand import execute, kinds, message, started_run

CONFIG: dict[str, Any] = {
    "ops": {
        name: {"config": {"mode": "full", "columns": ["a"], "more": {"deep": {"x": [1]}}}} for name in ("change", "again")
    },
    "resources": {"options": {"config": {"options": {"depth": 1}}}},
}  # fmt: skip


def executed(
    instance: DagsterInstance, job: Any, key: str, config: dict[str, Any] | None = None
) -> DagsterRun:
    run = started_run(instance, job, config)
    execute(message(instance, run, key))
    assert kinds(instance, run.run_id, key)[-1] == "STEP_SUCCESS"
    return run


def test_what_a_step_changes_of_its_config_its_run_and_its_definitions_reaches_no_other_run(
    instance: DagsterInstance,
) -> None:
    # Given a step that changes all that Dagster hands out to it
    executed(instance, changing_jobs.changing, "change", deepcopy(CONFIG))
    (first,) = results()

    # When the same job runs with the same config in the same process
    executed(instance, changing_jobs.changing, "change", deepcopy(CONFIG))

    # Then it is given the same
    (second,) = results()
    assert second == first
    assert str(CONFIG["ops"]["change"]["config"]) in first
    assert "left" not in first


def test_what_a_step_changes_reaches_no_other_step_of_its_run(instance: DagsterInstance) -> None:
    run = started_run(instance, changing_jobs.changing, deepcopy(CONFIG))

    for key in ("change", "again"):
        execute(message(instance, run, key))
        assert kinds(instance, run.run_id, key)[-1] == "STEP_SUCCESS"

    one, other = results()
    assert one == other


def test_what_a_step_changes_of_its_asset_reaches_no_other_run(instance: DagsterInstance) -> None:
    for _ in range(2):
        executed(instance, changing_jobs.changing_asset, "changed")

    one, other = results()
    assert one == other == json.dumps([{"plain": {"a": 1}}, {"kind": "asset"}, {"rows": [1]}])


def test_each_run_has_its_config_in_the_order_of_its_launch(instance: DagsterInstance) -> None:
    # Given the stack's storage, whose runs keep it; Dagster's sorts
    assert SERIALIZE_RUN.found() is instance_storage.in_order

    def config(*names: str) -> dict[str, Any]:
        return {"ops": {"tell_order": {"config": {name: {"b": 1, "a": 2} for name in names}}}}

    for names in (("z", "a"), ("a", "z"), ("z", "a")):
        executed(instance, changing_jobs.ordered, "tell_order", config(*names))

    orders = [
        [list(json.loads(each)[0]), list(json.loads(each)[1]["ops"]["tell_order"]["config"])]
        for each in results()
    ]
    assert orders == [[["z", "a"]] * 2, [["a", "z"]] * 2, [["z", "a"]] * 2]


def test_a_step_sees_the_tags_that_an_earlier_one_gave_its_run(instance: DagsterInstance) -> None:
    run = started_run(instance, changing_jobs.tagging)
    ready = KnownExecutionState(ready_outputs={StepOutputHandle("add_tag", "result")})

    for key in ("add_tag", "read_tag"):
        execute(message(instance, run, key, ready))

    assert list(results()) == ["5"]


def test_a_step_of_a_job_of_1000_ops_copies_the_config_of_its_op_alone(instance: DagsterInstance) -> None:
    copied: list[str] = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __deepcopy__(self, _: Any) -> "Counted":
            copied.append(self.name)
            return self

    ops = {f"op_{n}": OpConfig(Counted(f"op_{n}"), {}, OutputsConfig(None)) for n in range(1000)}
    config = fresh_config(ResolvedRunConfig(ops=ops), {})

    for _ in range(2):
        assert isinstance(config.ops["op_7"].config, Counted)

    assert copied == ["op_7"]


def test_the_plan_is_still_shared(instance: DagsterInstance) -> None:
    run = executed(instance, changing_jobs.changing, "change", deepcopy(CONFIG))
    again = executed(instance, changing_jobs.changing, "change", deepcopy(CONFIG))
    list(results())

    assert planned_job(instance, run) is planned_job(instance, again)
