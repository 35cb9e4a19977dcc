"""What processes know of the project: what the build found, and where its code is imported from."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagster_stack import project as module
from dagster_stack.project.__main__ import ROOT_LINK, main
from dagster_stack.services import code_server
from scripts.console import ROOT
from tests.unit.test_project_discovery import DG_DEFS, DG_PROJECT, project


@pytest.fixture(autouse=True)
def _not_kept() -> Iterator[None]:
    module.found.cache_clear()
    yield
    module.found.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {"pyproject.toml": DG_PROJECT.format(name="pkg"), "src/pkg/definitions.py": DG_DEFS}
    return project(tmp_path / "my project", files)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A path with the platform on it, as in a service."""
    entries = ["/venv/bin", str(ROOT), "/usr/lib/python3"]
    monkeypatch.setattr(sys, "path", entries)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return entries


def test_the_build_writes_what_all_services_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = project(tmp_path / "platform", {})

    main([str(folder), str(platform)])

    monkeypatch.setattr(module, "BAKED", platform / "project.json")
    assert module.found().root == str(folder)
    assert [each.name for each in module.found().locations] == ["my project"]
    assert (platform / ROOT_LINK).resolve() == folder
    assert "module_name: pkg.definitions" in (platform / "workspace.yaml").read_text()


def test_a_build_without_code_ends_with_the_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="No Dagster code was found in empty"):
        main([str(project(tmp_path / "empty", {})), str(tmp_path)])


def test_outside_the_image_the_folder_itself_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.VARIABLE, str(folder))

    assert module.found().root == str(folder)


def test_a_projects_folders_are_behind_the_platforms_and_reach_the_pythons_that_are_started(
    path: list[str],
) -> None:
    module.use(["/project/src", "/project"])
    module.use(["/project"])

    assert sys.path == ["/venv/bin", str(ROOT), "/project/src", "/project", "/usr/lib/python3"]
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/project/src", "/project"]


def test_a_code_server_imports_what_its_location_may(
    folder: Path, path: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(module.VARIABLE, str(folder))

    code_server.use_location(["api", "grpc", "--location-name", "of another workspace", "--socket", "x"])
    assert str(folder) not in sys.path
    code_server.use_location(["api", "grpc", "--location-name", "my project"])

    assert sys.path[2:4] == [str(folder / "src"), str(folder)]


def test_finding_a_project_needs_no_more_than_the_hosts_python_has(folder: Path) -> None:
    """The host has nothing but Python: no PyYAML, no Dagster."""
    code = (
        "import sys; sys.modules['yaml'] = sys.modules['dagster'] = None\n"
        "from pathlib import Path; from dagster_stack.project.discovery import discover; import json\n"
        f"print(json.dumps(discover(Path({str(folder)!r})).as_dict()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert json.loads(result.stdout)["source"] == "my project/pyproject.toml"
