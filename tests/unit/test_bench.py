"""`make bench` on the host: what it measures, with how many workers, and what it does with the answers."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.tables import TABLES
from bench.works import PARTS, WORKS
from scripts import bench, bench_services, compose, engine
from scripts.bench_services import Services
from scripts.compose import Container
from scripts.console import Failure
from tests.unit.machines import FakeDocker

#: What a benchmark that executed steps ends with.
AS_BEFORE = "worker worker-heavy (2)"
MOUNTED = " with code"
ROLLUP = """\
55d0-7ffc ---p 00000000 00:00 0    [rollup]
Rss:               30000 kB
Pss:               20000 kB
Pss_Dirty:         15000 kB
Pss_Anon:          14000 kB
"""


def container(service: str, health: str = "healthy", number: int = 1) -> Container:
    return Container(f"{service}-{number}", service, "running", health, 0)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[Container]:
    """A stack that is up, with two workers and two runners."""
    services = ["postgres", "dagit", "daemon", "runner", "runner", "worker", "worker", "worker-heavy"]
    found = [container(service, number=number) for number, service in enumerate(services)]
    monkeypatch.setattr(compose, "containers", lambda: found)
    monkeypatch.setattr(engine, "is_elsewhere", lambda: False)
    return found


def test_without_a_wish_everything_is_measured() -> None:
    assert bench.wanted("") == [*WORKS, *PARTS]


def test_a_wish_is_measured_in_the_order_of_the_pages() -> None:
    assert bench.wanted("steps, parallel_50,chain_21") == ["chain_21", "parallel_50", "steps"]


def test_an_unknown_work_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(Failure, match=r"there is no chain_22\. There are chain_21, parallel_50"):
        bench.wanted("chain_21,chain_22")


@pytest.mark.parametrize("text", ["0", "-1", "many", "101", "²"])
def test_rounds_are_a_number_that_somebody_can_wait_for(text: str) -> None:
    with pytest.raises(Failure, match="make bench ROUNDS=5"):
        bench.count(text)


def test_a_stack_that_is_down_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "containers", list)

    with pytest.raises(Failure, match=r"^The stack is not up\. `make up` first\.$"):
        bench.require_up()


def test_a_stack_that_is_not_well_is_not_measured(running: list[Container]) -> None:
    running.append(container("minio", "unhealthy"))

    with pytest.raises(Failure, match=r"The stack is not up: minio \(unhealthy\)\. `make up` first\."):
        bench.require_up()


def test_a_stack_on_another_machine_is_not_measured_from_here(
    running: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "is_elsewhere", lambda: True)

    with pytest.raises(Failure, match="does not see bench/"):
        bench.require_up()


def docker_that(programs: Path, script: str) -> None:
    """A docker that does this in containers, and everything else as it does it anywhere."""
    docker = FakeDocker().install(programs)
    shebang, rest = docker.read_text().split("\n", 1)
    inside = f'if [[ "$*" == *bench* || "$1" == exec ]]; then\n{script}\nexit\nfi'
    docker.write_text(f"{shebang}\n{inside}\n{rest}")


def test_the_answer_of_the_half_beside_the_stack_is_its_standard_output(programs: Path, env: Path) -> None:
    docker_that(programs, """echo progress >&2; read given; echo "{\\"given\\": $given}" """)

    assert bench.ask("pages", given="[1, 2]\n") == {"given": [1, 2]}


def test_a_half_that_fails_is_a_failure_that_names_what_was_measured(programs: Path, env: Path) -> None:
    docker_that(programs, "exit 1")

    with pytest.raises(Failure, match="`transfer --rounds 5` ended with 1"):
        bench.ask("transfer", "--rounds", "5")


def test_memory_is_the_sum_of_all_processes_and_nothing_is_counted_twice(programs: Path) -> None:
    docker_that(programs, f"echo '{ROLLUP}{ROLLUP}'")

    assert bench.memory("worker-1") == 2 * 20_000 * 1024


def test_memory_that_cant_be_read_is_a_failure_and_not_nothing(programs: Path) -> None:
    docker_that(programs, "echo 'No such container: worker-1' >&2; exit 1")

    with pytest.raises(Failure, match="The memory of worker-1 can't be read: No such container"):
        bench.memory("worker-1")


def test_what_a_further_worker_takes_is_what_the_whole_grows_by(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a stack whose shared pages get cheaper for each, the more workers there are
    sizes = {2: {"postgres": 100, "worker": 300}, 8: {"postgres": 100, "worker": 900}}
    scaled: list[int] = []
    monkeypatch.setattr(Services, "scale", lambda _, workers: scaled.append(workers))
    monkeypatch.setattr(bench, "settled_memory", lambda: sizes[scaled[-1]])

    results: dict[str, Any] = {}
    bench.measure_memory(results, Services(Counter()))

    assert results["memory"] == {"services": sizes[2], "idle_stack": 400, "further_worker": 100}


def test_answers_of_several_parts_become_one() -> None:
    results: dict[str, Any] = {"samples": [1], "notes": [], "date": "today"}

    bench.merge(results, {"samples": [2], "notes": ["late"], "patience": 45})

    assert results == {"samples": [1, 2], "notes": ["late"], "date": "today", "patience": 45}


def place(name: str) -> str:
    return f"Before {name}.\n<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->\n"


@pytest.fixture
def measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, env: Path, running: list[Container]
) -> Iterator[list[str]]:
    """What was asked of the half beside the stack and of Compose; every answer is empty."""
    env.touch()
    asked: list[str] = []

    def ask(*arguments: str, **_: Any) -> dict[str, Any]:
        asked.append(" ".join(arguments))
        answers: dict[str, dict[str, Any]] = {
            "machine": {"machine": {}},
            "clean": {"removed": 0},
            "runs": {"samples": [], "notes": []},
            "pictures": {"bar.png": "UE5H"},
        }
        return answers.get(arguments[0], {})

    def run_compose(_: str, command: list[str], environment: dict[str, str]) -> None:
        services = [word for word in command[1:] if not word.startswith("--")]
        workers = [f"({environment['WORKERS']})"] if "worker" in services else []
        asked.append(" ".join([*services, *workers]) + MOUNTED * ("COMPOSE_FILE" in environment))

    monkeypatch.setattr(bench, "ask", ask)
    monkeypatch.setattr(bench_services, "run_compose", run_compose)
    monkeypatch.setattr(bench_services, "start_made", lambda: None)
    monkeypatch.setattr(bench, "measure_memory", lambda *_: asked.append("memory"))
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(bench, "RAW", tmp_path / ".build" / "bench.json")
    (tmp_path / "docs").mkdir()
    for name, places in zip(bench.PAGES, (list(TABLES)[:6], list(TABLES)[6:]), strict=True):
        (tmp_path / "docs" / name).write_text("".join(map(place, places)))
    before = signal.getsignal(signal.SIGTERM)
    yield asked
    signal.signal(signal.SIGTERM, before)


def test_all_of_it_ends_in_pages_and_pictures(measured: list[str], tmp_path: Path) -> None:
    assert bench.bench() == 0

    # What wants eight workers goes first, and at the end there are as many as before
    assert measured == [
        "machine",
        "memory",
        "worker worker-heavy (8) with code",
        "warm-up",
        "runs sleep_64 --rounds 5",
        "worker worker-heavy (2) with code",
        "warm-up",
        "runs chain_21 --rounds 5",
        "runs parallel_50 --rounds 5",
        "runs chain_40_10ms --rounds 5",
        "runs flights --rounds 5",
        "runs parallel_1000 --rounds 5",
        "worker worker-heavy (2) with code",
        "transfer --rounds 5",
        "steps",
        "dagit daemon runner with code",
        "launches stack launch backfill",
        "dagit daemon runner",
        "launches stock launch backfill --at-once 8",
        "launches stock_5 launch --at-once 8",
        "scrape",
        "clean",
        AS_BEFORE,
        "pictures",
    ]
    page = (tmp_path / "docs" / "performance.md").read_text()
    assert page.startswith(
        "Before goals.\n<!-- bench:goals -->\n\nNot measured.\n\n<!-- /bench:goals -->\nBefore figures."
    )
    assert "old" not in page
    assert (tmp_path / "docs" / "pictures" / "bar.png").read_bytes() == b"PNG"
    assert json.loads((tmp_path / ".build" / "bench.json").read_text())["measured"] == [*WORKS, *PARTS]


def test_a_part_of_it_leaves_the_pages_alone(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORK", "chain_21")
    monkeypatch.setenv("ROUNDS", "2")

    assert bench.bench() == 0

    assert "runs chain_21 --rounds 2" in measured
    assert "pictures" not in measured
    assert [(tmp_path / "docs" / name).read_text().count("old") for name in bench.PAGES] == [6, 6]
    assert not (tmp_path / "docs" / "pictures").exists()


def test_a_page_without_a_tables_place_is_found_out_before_anything_is_measured(
    measured: list[str], tmp_path: Path
) -> None:
    (tmp_path / "docs" / "performance.md").write_text(place("goals"))

    with pytest.raises(Failure, match=r"No place for the table `figures`: .* performance\.md"):
        bench.bench()

    assert measured == []


def fail_in(monkeypatch: pytest.MonkeyPatch, part: str, fail: Callable[[], object] | None = None) -> None:
    """A part that can't be measured."""
    ask = bench.ask

    def refuse() -> None:
        raise Failure("no")

    def failing(*arguments: str, **options: Any) -> dict[str, Any]:
        if arguments[0] == part:
            (fail or refuse)()
        return ask(*arguments, **options)

    monkeypatch.setattr(bench, "ask", failing)


@pytest.mark.parametrize(("failed", "code"), [(True, 1), (False, 0)])
def test_a_run_that_failed_is_an_error_and_a_job_that_is_not_there_is_none(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, failed: bool, code: int
) -> None:
    note = {"work": "flights", "variant": "stack", "note": "why", "failed": failed}
    monkeypatch.setattr(bench, "measure", lambda *given: given[2]["notes"].append(note))

    assert bench.bench() == code


def test_when_it_fails_the_stack_is_as_before(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in(monkeypatch, "transfer")

    with pytest.raises(Failure, match="no"):
        bench.bench()

    assert measured[-2:] == ["clean", AS_BEFORE]


def test_a_work_that_can_not_be_measured_costs_only_itself(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = bench.ask

    def fail_once(*arguments: str, **options: Any) -> dict[str, Any]:
        if "parallel_50" in arguments:
            raise Failure("`runs parallel_50` ended with 137")
        return ask(*arguments, **options)

    monkeypatch.setattr(bench, "ask", fail_once)

    assert bench.bench() == 1

    assert "runs chain_40_10ms --rounds 5" in measured
    raw = json.loads((tmp_path / ".build" / "bench.json").read_text())
    assert [note["work"] for note in raw["notes"]] == ["parallel_50"]


def test_a_kill_is_an_end_like_ctrl_c(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in(monkeypatch, "transfer", lambda: os.kill(os.getpid(), signal.SIGTERM))

    with pytest.raises(KeyboardInterrupt):
        bench.bench()

    assert measured[-2:] == ["clean", AS_BEFORE]


def test_when_launches_fail_dagit_daemon_and_runners_are_as_before(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(monkeypatch, "launches")

    with pytest.raises(Failure, match="no"):
        bench.bench()

    assert measured[-3:] == ["dagit daemon runner", "clean", AS_BEFORE]


def test_who_could_not_be_put_back_is_put_back_at_the_end(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Ctrl-C while Dagit, daemon and runners are put back
    run_compose, once = bench_services.run_compose, ["Taking the jobs out of Dagit"]

    def interrupted(title: str, *arguments: Any, **options: Any) -> None:
        if title in once:
            once.clear()
            raise KeyboardInterrupt
        run_compose(title, *arguments, **options)

    monkeypatch.setattr(bench_services, "run_compose", interrupted)

    with pytest.raises(KeyboardInterrupt):
        bench.bench()

    assert measured[-1] == "daemon dagit runner worker worker-heavy (2)"


@pytest.mark.parametrize(
    ("work", "restarts"), [("memory,transfer_200mb,steps,scrape", []), ("launch", [AS_BEFORE])]
)
def test_who_executes_nothing_of_it_is_not_restarted(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, work: str, restarts: list[str]
) -> None:
    monkeypatch.setenv("WORK", work)

    bench.bench()

    assert [each for each in measured if each.startswith("worker") and MOUNTED not in each] == restarts


def test_when_the_runs_cant_be_removed_the_workers_are_still_as_before(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def clean() -> None:
        raise Failure("no")

    monkeypatch.setattr(bench, "clean", clean)

    with pytest.raises(Failure, match="no"):
        bench.bench()

    assert measured[-1] == AS_BEFORE
