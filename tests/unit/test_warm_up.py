"""What a worker loads before its first step: user code in each process of the pool, and never a failure."""

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import signals
from dagster import DagsterInstance

from dagster_stack.objects import client
from dagster_stack.pool import warm
from dagster_stack.project import found
from dagster_stack.worker import warm_up
from dagster_stack.worker.warm_up import code_modules, entries
from scripts.console import ROOT


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace with one module, which says when it is loaded."""
    file = tmp_path / "workspace.yaml"
    file.write_text("load_from: [{python_module: loaded_by_warm_up}]")
    (tmp_path / "loaded_by_warm_up.py").write_text("IS_LOADED = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = SimpleNamespace(workspace_yaml=file)
    monkeypatch.setattr(warm_up, "Settings", SimpleNamespace(from_environment=lambda: settings))
    monkeypatch.setattr(warm_up, "_worker", warm_up.Worker())
    yield file
    sys.modules.pop("loaded_by_warm_up", None)


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("load_from: [{python_module: pipelines}]", ["pipelines"]),
        ("load_from: [{python_module: {module_name: pipelines, working_directory: /opt}}]", ["pipelines"]),
        (
            "load_from: [{python_module: a}, {python_file: b.py}, {python_module: {module_name: c.d}}]",
            ["a", "c.d"],
        ),
        (
            "load_from: [{autoload_defs_module: {module_name: a.defs}}, {python_package: {package_name: b}}]",
            ["a.defs", "b"],
        ),
        ("load_from: [{grpc_server: {host: localhost, port: 4266}}]", []),
        ("load_from: []", []),
    ],
)
def test_the_modules_of_a_workspace_are_those_that_python_can_import(
    tmp_path: Path, text: str, modules: list[str]
) -> None:
    file = tmp_path / "workspace.yaml"
    file.write_text(text)

    assert code_modules(entries(file)) == modules


def test_without_a_workspace_the_projects_own_are_loaded_in_a_checkout_its_example(tmp_path: Path) -> None:
    assert code_modules(entries(tmp_path / "none.yaml")) == ["pipelines"]
    assert found().root == str(ROOT)


def test_a_process_loads_the_code_and_opens_the_instance(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def get_runs(limit: int) -> None:
        asked.append(limit)

    instance = SimpleNamespace(get_runs=get_runs, event_log_storage=None, inject_env_vars=lambda _: None)
    monkeypatch.setattr(warm, "warm_instance", lambda: instance)

    warm_up.warm_up()

    assert sys.modules["loaded_by_warm_up"].IS_LOADED
    # One query opens the connection that the first step would wait for.
    assert asked == [1]


def test_what_dagsters_secrets_loader_knows_is_there_when_the_code_is_loaded(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a loader as `secrets:` in dagster.yaml names it, and code that needs a secret to be imported
    monkeypatch.setenv("TOKEN_OF_LOADER", "none yet")
    asked: list[str] = []

    def inject(location: str) -> None:
        asked.append(location)
        os.environ["TOKEN_OF_LOADER"] = "sesame"

    instance = SimpleNamespace(get_runs=lambda **_: [], event_log_storage=None, inject_env_vars=inject)
    monkeypatch.setattr(warm, "warm_instance", lambda: instance)
    (workspace.parent / "loaded_by_warm_up.py").write_text(
        "import os\nSEEN = os.environ['TOKEN_OF_LOADER']\n"
    )
    importlib.invalidate_caches()

    warm_up.warm_up()

    assert sys.modules["loaded_by_warm_up"].SEEN == "sesame"
    assert asked == ["loaded_by_warm_up"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "load_from: [{python_module: a}, {python_file: {relative_path: b.py, location_name: b}}]",
            ["a", "b"],
        ),
        (
            "load_from: [{python_module: {module_name: a, location_name: mine}}, {python_file: {relative_path: c.py}}]",
            ["mine"],
        ),
        ("load_from: []", []),
    ],
)
def test_the_loader_is_asked_for_each_location_that_has_a_name(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    file = tmp_path / "workspace.yaml"
    file.write_text(text)

    assert warm_up.location_names(entries(file)) == names


def test_on_a_real_instance_warming_up_says_nothing(
    workspace: Path, instance: DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    warm_up.warm_up()

    assert caplog.records == []
    assert warm.warm_instance() is instance


def test_code_that_does_not_load_is_only_logged(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The worker starts: the first step fails with the reason, where people look."""
    (workspace.parent / "loaded_by_warm_up.py").write_text("import a_module_that_is_not_there\n")
    importlib.invalidate_caches()

    warm_up.warm_up()

    assert "this process starts cold" in caplog.text
    assert "a_module_that_is_not_there" in caplog.text


@pytest.mark.parametrize("text", ["load_from: 3", "no_load_from: []", "- a list", "load_from: [", ""])
def test_a_workspace_that_can_not_be_read_is_only_logged(
    workspace: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    workspace.write_text(text)

    warm_up.warm_up()

    assert "this process starts cold" in caplog.text


def test_a_database_that_is_away_is_only_logged(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> None:
        raise ConnectionRefusedError("no database")

    monkeypatch.setattr(warm, "warm_instance", away)

    warm_up.warm_up()

    assert "no database" in caplog.text


@pytest.mark.parametrize(("concurrency", "shared"), [(1, False), (2, True), (8, True)])
def test_only_a_pool_of_several_processes_shares_what_is_loaded(
    monkeypatch: pytest.MonkeyPatch, concurrency: int, shared: bool
) -> None:
    """A pool of one has nobody to share with: its main process stays small."""
    clients: list[str | None] = []
    monkeypatch.setattr(client, "s3_client", clients.append)
    loaded: list[str] = []
    monkeypatch.setattr(importlib, "import_module", loaded.append)
    monkeypatch.setattr(warm_up, "_worker", warm_up.Worker())
    monkeypatch.setenv("DAGSTER_STACK_S3_BUCKET", "a-bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store:9000")

    warm_up.share("worker@here", SimpleNamespace(concurrency=concurrency))

    # Threads and connections of user code would not survive the fork: only the platform's.
    assert loaded == (list(warm_up.SHARED) if shared else [])
    assert clients == (["http://store:9000"] if shared else [])


def test_without_a_bucket_no_client_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "s3_client", lambda _: pytest.fail("made a client"))
    monkeypatch.setattr(importlib, "import_module", lambda _: None)
    monkeypatch.setattr(warm_up, "_worker", warm_up.Worker())
    monkeypatch.delenv("DAGSTER_STACK_S3_BUCKET", raising=False)

    warm_up.share("worker@here", SimpleNamespace(concurrency=4))


def test_a_worker_warms_up_each_process_of_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: dict[str, object] = {}
    for name in ("celeryd_after_setup", "worker_process_init"):
        signal = getattr(signals, name)
        monkeypatch.setattr(
            signal, "connect", lambda receiver, weak, name=name: connected.update({name: (receiver, weak)})
        )
    monkeypatch.setattr(warm_up, "_worker", warm_up.Worker())

    warm_up.install()

    assert connected == {
        "celeryd_after_setup": (warm_up.share, False),
        "worker_process_init": (warm_up.warm_up, False),
    }
