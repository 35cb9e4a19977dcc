"""What a project gets that names nothing. These tests are also the contract with Dagster: it has no setting for an
executor, so they fail when it asks for its default elsewhere."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME

from dagster_stack import celery_executor
from dagster_stack.errors import SettingsError
from dagster_stack.objects import default_io_manager
from dagster_stack.objects.io_manager import S3IOManager
from dagster_stack.objects.pickles import LocalPickles
from dagster_stack.project import defaults
from dagster_stack.project.defaults import StackInstance
from dagster_stack.settings import Settings
from scripts import dev
from scripts.console import ROOT
from tests.unit import default_jobs
from tests.unit.driven_runs import Result, Workers, executed


@pytest.fixture
def _in_use() -> None:
    defaults.use()


in_use = pytest.mark.usefixtures("_in_use")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded mode's instance, as `make dev` writes it."""
    (tmp_path / "dagster.yaml").write_text(dev.INSTANCE)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


@dg.asset
def first() -> int:
    return 1


@dg.asset_check(asset=first)
def is_one(first: int) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=first == 1)


@dg.asset
def second(first: int) -> int:
    return first + 1


# --- who gets the stack's executor --------------------------------------------------------------------------------


@dg.repository
def a_repository() -> list[Any]:
    return [default_jobs.chained, first]


JOBS: dict[str, Callable[[], dg.JobDefinition]] = {
    "job": lambda: default_jobs.chained,
    "job of definitions": lambda: dg.Definitions(jobs=[default_jobs.chained]).resolve_job_def("chained"),
    "dynamic job": lambda: default_jobs.dynamic,
    "graph": lambda: default_jobs.chained.graph.to_job(name="of_a_graph"),
    "implicit asset job": lambda: dg.Definitions(assets=[first]).resolve_job_def(IMPLICIT_ASSET_JOB_NAME),
    "asset job": lambda: dg.Definitions(
        assets=[first], jobs=[dg.define_asset_job("some", selection="*")]
    ).resolve_job_def("some"),
    "merged": lambda: dg.Definitions.merge(
        dg.Definitions(assets=[first]), dg.Definitions(assets=[second])
    ).resolve_job_def(IMPLICIT_ASSET_JOB_NAME),
    "repository": lambda: a_repository.get_job("chained"),
    "assets of a repository": lambda: a_repository.get_job(IMPLICIT_ASSET_JOB_NAME),
    "schedule": lambda: dg.Definitions(
        schedules=[dg.ScheduleDefinition(job=default_jobs.chained, cron_schedule="@daily")]
    ).resolve_job_def("chained"),
}


@in_use
@pytest.mark.parametrize("kind", JOBS)
def test_a_job_that_names_no_executor_has_the_stacks(kind: str) -> None:
    assert JOBS[kind]().executor_def is celery_executor


@in_use
@pytest.mark.parametrize("executor", [dg.in_process_executor, dg.multiprocess_executor, celery_executor])
def test_an_executor_that_is_named_stays(executor: dg.ExecutorDefinition) -> None:
    defs = dg.Definitions(assets=[first], jobs=[default_jobs.in_process], executor=executor)

    assert defs.resolve_job_def(IMPLICIT_ASSET_JOB_NAME).executor_def is executor
    assert defs.resolve_job_def("in_process").executor_def is dg.in_process_executor


def test_jobs_that_were_made_before_have_it_too() -> None:
    """Whatever is imported first."""
    job = dg.Definitions(jobs=[default_jobs.chained]).resolve_job_def("chained")
    assert job.executor_def is dg.multi_or_in_process_executor

    defaults.use()

    assert job.executor_def is celery_executor


@pytest.mark.parametrize(
    "file", [yaml.safe_load((ROOT / "dagster.yaml").read_text()), yaml.safe_load(dev.INSTANCE)]
)
def test_the_stack_and_the_embedded_mode_open_an_instance_that_brings_the_defaults(
    file: dict[str, Any],
) -> None:
    assert file["instance_class"] == {"module": StackInstance.__module__, "class": StackInstance.__name__}


def test_whoever_opens_the_instance_has_the_defaults(home: Path) -> None:
    assert default_jobs.chained.executor_def is not celery_executor

    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance, StackInstance)
        assert instance.run_storage
        assert default_jobs.chained.executor_def is celery_executor
        # Also in a process that gets the instance's address
        with dg.DagsterInstance.from_ref(instance.get_ref()) as other:
            assert isinstance(other, StackInstance)


def opened_in_another_process(ref: Any, told: Any) -> None:
    with dg.DagsterInstance.from_ref(ref):
        told.put(default_jobs.chained.executor_def.name)


def test_a_process_that_is_started_for_a_run_has_them(home: Path) -> None:
    """As `dagster dev` starts one."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()

    with dg.DagsterInstance.get() as instance:
        process = context.Process(target=opened_in_another_process, args=(instance.get_ref(), told))
        process.start()
        assert told.get(timeout=60) == "celery"
        process.join()


# --- what a run may say to it -------------------------------------------------------------------------------------

CONFIGS: list[dict[str, Any]] = [
    {},
    {"multiprocess": {}},
    {"multiprocess": None},
    {"multiprocess": {"max_concurrent": 4, "retries": {"disabled": {}}, "start_method": {"spawn": {}}}},
    {"multiprocess": {"tag_concurrency_limits": [{"key": "a", "limit": 1}]}},
    {"in_process": {}},
    {"in_process": None},
    {"in_process": {"retries": {"enabled": {}}}},
]


@in_use
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_what_a_run_says_to_dagsters_default_executor_is_valid(config: dict[str, Any]) -> None:
    run_config = {"execution": {"config": config}}
    by_either: Any = default_jobs.by_either

    if config:
        assert dg.validate_run_config(by_either, run_config)
    assert dg.validate_run_config(default_jobs.chained, run_config)


@in_use
@pytest.mark.parametrize(
    "config",
    [{"max_concurrent": 4}, {"config_source": {"task_always_eager": True}}, {"retries": {"disabled": {}}}],
)
def test_what_a_run_says_to_the_stacks_executor_is_valid_for_a_job_that_names_none(
    config: dict[str, Any],
) -> None:
    assert dg.validate_run_config(default_jobs.chained, {"execution": {"config": config}})


@in_use
def test_steps_of_a_job_that_names_none_are_executed_by_workers(
    instance: dg.DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, default_jobs.dynamic)

    assert result.succeeded
    assert workers.keys == ["fan", "add_one[a]", "add_one[b]", "total"]


@in_use
@pytest.mark.parametrize(("limit", "at_once"), [(1, 1), (2, 2), (0, 3), (None, 3)])
def test_the_limit_of_the_multiprocess_executor_holds_on_the_workers(
    instance: dg.DagsterInstance, workers: Workers, limit: int | None, at_once: int
) -> None:
    result = executed(instance, default_jobs.wide, {"multiprocess": {"max_concurrent": limit}})

    assert result.succeeded
    assert workers.most_at_once == at_once


@in_use
def test_a_run_may_be_executed_in_its_own_process_by_its_config(
    instance: dg.DagsterInstance, workers: Workers
) -> None:
    for job, config in (
        (default_jobs.wide, {"in_process": {}}),
        (default_jobs.in_process_by_its_config, None),
    ):
        assert executed(instance, job, config).succeeded

    assert workers.sent == []


@in_use
@pytest.mark.parametrize(
    ("job", "mapped"), [(default_jobs.nesting, ""), (default_jobs.nesting_processes, "celery")]
)
def test_a_run_that_a_step_executes_waits_for_no_worker(
    instance: dg.DagsterInstance,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    job: dg.JobDefinition,
    mapped: str,
) -> None:
    """With as many such steps as workers, all of them would wait for each other."""
    monkeypatch.setenv("DAGSTER_STACK_EXECUTOR", mapped)

    # When a step executes a run of another job, to use what that makes
    result = executed(instance, job)

    # Then the worker has had that step alone, and the log of the other run says where its steps were
    assert result.succeeded
    assert workers.keys == list(result.ends())
    (inner,) = instance.get_runs(dg.RunsFilter(tags={"of": result.run_id}))
    assert Result(instance, inner.run_id, []).said("executed in that step's process")


@in_use
@pytest.mark.usefixtures("home")
def test_a_run_that_a_step_executes_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was left as started for ever: monitoring resumes what was launched alone."""
    monkeypatch.setenv("DAGSTER_STACK_WITHIN_STEP", "1")

    with dg.DagsterInstance.get() as instance:
        monkeypatch.setattr(StackInstance, "run_monitoring_enabled", True)
        monkeypatch.setattr(StackInstance, "run_monitoring_max_resume_run_attempts", 100)
        # When the step is interrupted while that run is under way
        result = dg.execute_job(dg.reconstructable(default_jobs.interrupted), instance)

        run = instance.get_run_by_id(result.run_id)
        assert run
        assert run.status == dg.DagsterRunStatus.FAILURE


@in_use
def test_an_instance_of_the_users_own_tells_nobody_of_its_runs(home: Path) -> None:
    """It would write into DAGSTER_HOME, too, which is read-only on the stack."""
    with dg.DagsterInstance.local_temp() as own:
        assert dg.execute_job(dg.reconstructable(default_jobs.in_process), own).success

    assert not {".telemetry", "logs"} & {path.name for path in home.iterdir()}


@in_use
@pytest.mark.parametrize(
    ("job", "config", "expected"),
    [
        (default_jobs.wide, {}, True),
        (default_jobs.wide, {"multiprocess": {}}, True),
        (default_jobs.wide, {"in_process": {}}, False),
        (default_jobs.wide, {"no such": {}, "in_process": {}}, True),
        (default_jobs.in_process_by_its_config, {}, False),
        (default_jobs.by_processes, {}, False),
        (default_jobs.in_process, {}, False),
    ],
)
def test_where_the_steps_of_a_run_are_executed_is_known_beforehand(
    job: dg.JobDefinition, config: dict[str, Any], expected: bool
) -> None:
    assert defaults.uses_workers(job, {"execution": {"config": config}} if config else {}) is expected


@in_use
def test_a_job_that_keeps_its_outputs_in_memory_is_refused_by_dagster(
    instance: dg.DagsterInstance, workers: Workers
) -> None:
    with pytest.raises(dg.DagsterUnmetExecutorRequirementsError, match="persistent IO manager"):
        executed(instance, default_jobs.in_memory)

    assert executed(instance, default_jobs.in_memory, {"in_process": {}}).succeeded
    assert workers.sent == []


# --- executors of Dagster's ---------------------------------------------------------------------------------------


@in_use
@pytest.mark.parametrize(
    ("job", "cause", "cure"),
    [
        (default_jobs.by_processes, 'by its executor "multiprocess"', "or set EXECUTOR=celery in .env"),
        (default_jobs.by_two_processes, 'by its executor "two_processes"', "or set EXECUTOR=celery in .env"),
        (default_jobs.by_either, "multi_or_in_process_executor", "or set EXECUTOR=celery in .env"),
        (default_jobs.in_process, 'by its executor "in_process"', "Leave the executor out of the job, and"),
        (default_jobs.wide, "by `in_process` in its config", "Leave that out"),
    ],
)
def test_a_run_whose_steps_use_no_workers_is_told_why_and_how_to_change_that(
    job: dg.JobDefinition, cause: str, cure: str
) -> None:
    text = defaults.advice(job)

    assert cause in text
    assert cure in text


def test_other_executors_are_nobodys_business() -> None:
    @dg.executor(name="other")
    def other(context: Any) -> Any: ...

    assert defaults.advice(default_jobs.chained.with_executor_def(other)) == ""


@in_use
@pytest.mark.parametrize(
    ("job", "case"),
    [
        (default_jobs.by_processes, ({}, 3, "as many at once as there are workers.")),
        (default_jobs.by_processes, ({"max_concurrent": 1}, 1, "at most 1 at once (max_concurrent).")),
        (default_jobs.by_processes, ({"start_method": {"spawn": {}}}, 3, "; start_method has no effect.")),
        (default_jobs.by_two_processes, ({}, 2, "at most 2 at once (max_concurrent).")),
        (default_jobs.by_either, ({}, 1, "as many at once as there are workers.")),
    ],
)
def test_a_job_of_dagsters_multiprocess_executor_can_be_mapped_to_the_workers(
    instance: dg.DagsterInstance,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    job: dg.JobDefinition,
    case: tuple[dict[str, Any], int, str],
) -> None:
    config, at_once, said = case
    monkeypatch.setenv("DAGSTER_STACK_EXECUTOR", "celery")

    result = executed(instance, job, config)

    assert result.succeeded
    assert defaults.uses_workers(job, {})
    assert workers.most_at_once == at_once
    (line,) = result.said("By EXECUTOR=celery the steps of this run are executed by workers")
    assert line.endswith(said)


@in_use
@pytest.mark.parametrize(
    ("job", "config"), [(default_jobs.in_process, {}), (default_jobs.by_either, {"in_process": {}})]
)
def test_steps_that_are_to_share_a_process_do_so_whatever_is_mapped(
    instance: dg.DagsterInstance,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    job: dg.JobDefinition,
    config: dict[str, Any],
) -> None:
    """They may share memory."""
    monkeypatch.setenv("DAGSTER_STACK_EXECUTOR", "celery")

    assert executed(instance, job, config).succeeded
    assert not defaults.uses_workers(job, {"execution": {"config": config}} if config else {})
    assert workers.sent == []


def test_another_value_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(
        SettingsError, match=r"EXECUTOR must be one of job, celery, it is 'dask'\. Change it in \.env"
    ):
        Settings.from_environment({"DAGSTER_STACK_EXECUTOR": "dask"})


def test_the_embedded_mode_maps_what_env_says(
    env: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dev, "HOME", tmp_path / ".dagster")
    assert dev.environment()["DAGSTER_STACK_EXECUTOR"] == ""
    env.write_text("EXECUTOR=celery\n")
    assert dev.environment()["DAGSTER_STACK_EXECUTOR"] == "celery"
    monkeypatch.setenv("EXECUTOR", "job")
    assert dev.environment()["DAGSTER_STACK_EXECUTOR"] == "job"


# --- the IO manager -----------------------------------------------------------------------------------------------


class Shouting(dg.InputManager):
    def load_input(self, context: dg.InputContext) -> str:
        return "from an input manager"


@dg.input_manager
def shouting() -> Shouting:
    return Shouting()


def all_kinds() -> list[Any]:
    """Assets of each kind that an IO manager meets."""
    days = dg.StaticPartitionsDefinition(["a", "b"])

    @dg.asset(partitions_def=days)
    def by_day(context: dg.AssetExecutionContext) -> str:
        return str(context.partition_key)

    @dg.asset(ins={"by_day": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())})
    def of_all_days(by_day: dict[str, str]) -> list[str]:
        return sorted(by_day)

    @dg.multi_asset(outs={"left": dg.AssetOut(), "right": dg.AssetOut(is_required=False)})
    def pair() -> Any:
        yield dg.Output({"a": 1}, "left")

    @dg.asset
    def returns_none() -> None: ...

    @dg.asset
    def untyped():  # type: ignore[no-untyped-def]
        return None

    @dg.asset(deps=[returns_none])
    def generic(left: dict[str, int], untyped: Any) -> list[tuple[str, int]]:
        assert untyped is None
        return list(left.items())

    @dg.asset
    def by_result() -> dg.MaterializeResult[list[int]]:
        return dg.MaterializeResult(value=[1, 2])

    @dg.asset(ins={"generic": dg.AssetIn(input_manager_key="shouting")})
    def loaded_otherwise(generic: str, by_result: list[int]) -> None:
        assert generic == "from an input manager"
        assert by_result == [1, 2]

    return [by_day, of_all_days, pair, returns_none, untyped, generic, by_result, loaded_otherwise]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    default_io_manager._io_manager.cache_clear()
    yield
    default_io_manager._io_manager.cache_clear()


def materialize_all(instance: dg.DagsterInstance) -> None:
    assets = all_kinds()
    for partition in ("a", "b"):
        selection = dg.AssetSelection.assets("by_day")
        assert dg.materialize(assets, selection=selection, partition_key=partition, instance=instance, resources={"shouting": shouting}).success  # fmt: skip
    result = dg.materialize(
        assets,
        selection=dg.AssetSelection.all() - dg.AssetSelection.assets("by_day"),
        instance=instance,
        resources={"shouting": shouting},
    )
    assert result.output_for_node("of_all_days") == ["a", "b"]
    assert result.output_for_node("generic") == [("a", 1)]


def test_a_job_that_names_no_io_manager_has_the_stacks_whatever_its_outputs(home: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        materialize_all(instance)

    assert (home / "store" / "storage" / "@assets").is_dir()
    assert not [*home.glob("storage/generic"), *home.glob("storage/**/by_day")]


def made(instance: dg.DagsterInstance | None) -> Any:
    """What a job gets that names none."""
    resources = {"io_manager": default_jobs.chained.resource_defs["io_manager"]}
    with dg.build_resources(resources, instance=instance) as found:
        return found.io_manager


def test_in_the_stack_it_is_the_bucket(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.DagsterInstance.get() as instance:
        assert isinstance(made(instance), LocalPickles)
        default_io_manager._io_manager.cache_clear()
        monkeypatch.setenv("DAGSTER_STACK_S3_BUCKET", "a-bucket")
        monkeypatch.setenv("DAGSTER_STACK_S3_PREFIX", "team")

        found = made(instance)

    assert isinstance(found, S3IOManager)
    assert (found.bucket, found.prefix) == ("a-bucket", "team/storage")


@in_use
def test_a_step_gets_it_without_dagsters_search_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes 3 ms; another default is left to Dagster."""
    resources = {**default_jobs.chained.resource_defs, "other": dg.mem_io_manager}

    assert default_io_manager.quick(resources) == {
        "io_manager": default_io_manager.default_io_manager,
        "other": dg.mem_io_manager,
    }
    monkeypatch.setenv("DAGSTER_DEFAULT_IO_MANAGER_MODULE", "mine")
    assert default_io_manager.quick(resources) is resources


@in_use
def test_steps_on_workers_hand_their_outputs_on_by_it(
    instance: dg.DagsterInstance, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_STACK_STORE", str(tmp_path / "store"))

    result = executed(instance, default_jobs.chained)

    assert result.succeeded
    assert (
        LocalPickles(str(tmp_path / "store" / "storage")).load(f"storage/{result.run_id}/add_one/result") == 2
    )


@in_use
def test_a_test_of_the_users_writes_nothing_into_the_stack(home: Path) -> None:
    """In `make shell`, or within a step."""
    assert dg.materialize([first, second, is_one]).success
    result = default_jobs.chained.execute_in_process()

    assert result.output_for_node("add_one") == 2
    assert [each.name for each in home.iterdir()] == ["dagster.yaml"]


@in_use
def test_a_user_who_names_another_default_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_DEFAULT_IO_MANAGER_MODULE", "mine")

    defaults.use()

    assert os.environ["DAGSTER_DEFAULT_IO_MANAGER_MODULE"] == "mine"


def test_the_state_of_components_is_where_all_who_load_the_code_see_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_STACK_DATA", str(tmp_path / "data"))
    (tmp_path / "state").write_text("fetched")

    with dg.DagsterInstance.get() as instance:
        assert instance.defs_state_storage
        instance.defs_state_storage.upload_state_from_path("a[b]", "1", tmp_path / "state")

    assert [each.read_text() for each in (tmp_path / "data").rglob("1")] == ["fetched"]


@pytest.mark.filterwarnings("ignore:Function `fs_io_manager` is superseded")
def test_files_of_dagsters_io_manager_are_where_all_workers_see_them(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.get() as instance:
        assert Path(instance.storage_directory()) == home / "storage"

    monkeypatch.setenv("DAGSTER_STACK_DATA", str(tmp_path / "data"))
    with dg.DagsterInstance.get() as instance:
        dg.materialize([first], instance=instance, resources={"io_manager": dg.FilesystemIOManager()})
        dg.materialize([second, first], selection=[second], instance=instance, resources={"io_manager": dg.fs_io_manager})  # fmt: skip

    assert sorted(each.name for each in (tmp_path / "data" / "dagster" / "storage").iterdir()) == [
        "first",
        "second",
    ]
