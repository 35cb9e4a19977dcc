"""The services while `make bench` measures: how Compose is asked for them, with the code that measures and without."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from scripts import bench_services, compose
from scripts.bench_services import MOUNT, Services
from scripts.compose import Container
from scripts.console import ROOT
from tests import compose_files
from tests.unit.machines import FakeDocker, calls

BEFORE = Counter({"dagit": 1, "daemon": 1, "runner": 2, "worker": 2, "worker-heavy": 1})


@pytest.fixture(autouse=True)
def _running(programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack with two workers, whose .env says three."""
    FakeDocker().install(programs)
    env.write_text("WORKERS=3\n")
    found = [Container(f"worker-{number}", "worker", "running", "healthy", 0) for number in (1, 2)]
    monkeypatch.setattr(compose, "containers", lambda: found)


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(bench_services, "ROOT", tmp_path)
    return tmp_path


def test_workers_are_scaled_for_now_and_not_for_the_next_up(programs: Path, env: Path) -> None:
    # When a work wants eight
    Services(BEFORE).scale(8)

    # Then Compose is asked for them and makes no others anew; .env keeps its number
    assert [call for call in calls(programs) if call.endswith("create --no-recreate worker")]
    assert env.read_text() == "WORKERS=3\n"


def test_as_many_workers_as_there_are_already_need_nothing(programs: Path) -> None:
    Services(BEFORE).scale(2)

    assert calls(programs) == []


def test_workers_that_need_the_code_are_made_anew_with_it_and_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def run_logged(_: str, command: list[str], environment: dict[str, str]) -> None:
        asked.append((" ".join(command[command.index("plain") + 1 :]), environment))

    monkeypatch.setattr(bench_services, "run_logged", run_logged)
    monkeypatch.setattr(bench_services, "start_made", lambda: asked.append(("start", {})))
    services = Services(BEFORE, needs_code=True)

    services.scale(8)
    services.restore()

    # Then there are as many as were there before, whatever .env says; and `make up` finds nothing to do
    as_before = {"WORKERS": "2", "HEAVY_WORKERS": "1"}
    assert asked == [
        ("up --detach --no-deps worker worker-heavy", as_before | {"WORKERS": "8"} | bench_services.code()),
        ("create worker worker-heavy", as_before),
        ("start", {}),
    ]
    assert services.with_code == set()


@pytest.mark.parametrize(
    ("named", "there", "read"),
    [
        ("", "", "compose.yaml"),
        ("", "compose.override.yaml", "compose.yaml:compose.override.yaml"),
        ("", "docker-compose.override.yml compose.override.yml", "compose.yaml:compose.override.yml"),
        ("compose.yaml:mine.yaml", "compose.override.yml", "compose.yaml:mine.yaml"),
    ],
)
def test_the_code_comes_on_top_of_all_files_that_compose_reads(
    checkout: Path, env: Path, named: str, there: str, read: str
) -> None:
    for name in there.split():
        (checkout / name).touch()
    env.write_text(f"COMPOSE_FILE={named}\n")

    assert bench_services.code() == {"COMPOSE_FILE": f"{read}:{MOUNT}"}


def test_dagit_and_daemon_load_the_benchmarks_jobs_beside_the_users() -> None:
    mounted, services = yaml.safe_load(MOUNT.read_text())["services"], compose_files.services()
    for service in ("dagit", "daemon"):
        more = ["--workspace", "/opt/dagster/bench/workspace.yaml"]
        assert mounted[service]["command"] == [*services[service]["command"], *more]


def test_the_code_that_measures_is_in_no_image() -> None:
    reaches_the_engine = (ROOT / ".dockerignore").read_text().splitlines()

    assert "*" in reaches_the_engine
    assert not [line for line in reaches_the_engine if line.startswith("!") and "bench" in line]
