"""`make autoscale`: what it reads of `.env` and Compose, its turns with other commands, and what reaches engine and workers."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import compose, connections, console, engine, env_file, turns, unfinished
from scripts.autoscaling import containers, controller, services, systemd_unit
from scripts.autoscaling.containers import Member
from scripts.autoscaling.services import Limits, Service
from scripts.autoscaling.wish import Seen
from scripts.console import ROOT, Failure

# --- AUTOSCALE -------------------------------------------------------------------------------------------


def test_each_service_has_its_limits() -> None:
    assert services.parsed("worker:1..8, worker-heavy:0..2") == [
        Limits("worker", 1, 8),
        Limits("worker-heavy", 0, 2),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "worker",
        "worker:8",
        "worker:8..1",
        "worker:0..0",
        "worker:1..8,worker:1..2",
        "runner:1..4",
        "worker:1..99999",
    ],
)
def test_what_is_no_limit_is_refused_by_name(text: str) -> None:
    with pytest.raises(Failure, match="AUTOSCALE"):
        services.parsed(text)


@pytest.mark.parametrize(
    ("service", "variable"),
    [("worker", "WORKERS"), ("worker-heavy", "HEAVY_WORKERS"), ("worker-big-gpu", "BIG_GPU_WORKERS")],
)
def test_a_services_number_stands_in_env(service: str, variable: str) -> None:
    assert Limits(service, 0, 1).variable == variable


CONFIG = {
    "worker": {
        "command": ["celery", "-A", "a", "worker", "-Q", "dagster", "--concurrency", "4"],
        "mem_limit": "2147483648",
    },
    "worker-own": {"command": ["celery", "worker", "--queues=a,b", "-c", "2"]},
    "worker-odd": {"command": ["sleep", "9"]},
}


def test_a_service_is_what_compose_has_of_it(env: Path) -> None:
    env.write_text("WORKERS=2\nOWN_WORKERS=1\n")

    assert services.described(Limits("worker", 1, 8), CONFIG) == Service(
        Limits("worker", 1, 8), ("dagster",), 4, 2 * 1024**3
    )
    assert services.described(Limits("worker-own", 0, 1), CONFIG) == Service(
        Limits("worker-own", 0, 1), ("a", "b"), 2, 0
    )


@pytest.mark.parametrize(
    ("service", "cure"),
    [
        ("worker-none", "no service of compose.yaml"),
        ("worker-odd", "no -Q"),
        ("worker-own", r"scale: \$\{OWN_WORKERS:-1\}"),
    ],
)
def test_a_service_that_can_not_be_scaled_is_refused_with_the_cure(
    env: Path, service: str, cure: str
) -> None:
    env.write_text("WORKERS=2\n")

    with pytest.raises(Failure, match=cure):
        services.described(Limits(service, 0, 1), CONFIG)


def test_what_is_free_of_connections_is_what_make_scale_counts_with(env: Path) -> None:
    env.write_text("POSTGRES_MAX_CONNECTIONS=200\nHEAVY_WORKERS=1\n")

    assert connections.room(1) == 61
    connections.require_connections(61)
    with pytest.raises(Failure):
        connections.require_connections(62)


# --- turns -----------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from scripts import turns
with turns.turn("make deploy"):
    print("has it", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Another process that has the turn; closing its standard input ends it."""
    monkeypatch.setattr(turns, "BUILD_FOLDER", tmp_path)
    code = f"from scripts import turns\nfrom pathlib import Path\nturns.BUILD_FOLDER = Path({str(tmp_path)!r})\n{HOLD}"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "STACK_ENV_FILE": str(env)},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def test_while_another_command_changes_containers_nothing_is_done(other: subprocess.Popen[str]) -> None:
    with turns.turn_if_free("make autoscale") as holder:
        assert holder == "make deploy"

    # Killed, it has let go
    other.kill()
    other.wait()
    with turns.turn_if_free("make autoscale") as holder:
        assert holder == ""


def test_a_command_waits_for_its_turn_and_says_for_whom(
    other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "TELL_SECS", 0)
    said = console.say

    def end_other(text: str) -> None:
        said(text)
        assert other.stdin
        other.stdin.close()

    monkeypatch.setattr(turns, "say", end_other)

    with turns.turn("make up"):
        assert "Waiting until `make deploy` ends" in capsys.readouterr().out


def test_where_no_lock_can_be_made_the_command_itself_says_what_is_wrong(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(turns, "BUILD_FOLDER", tmp_path / "file")
    done: list[str] = []

    turns.alone(lambda: done.append("up"))()

    assert done == ["up"]


def test_a_second_controller_is_refused(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "BUILD_FOLDER", tmp_path)
    turns.hold("autoscale", "process 1", "runs already ({holder})")

    with pytest.raises(Failure, match=r"runs already \(process 1\)"):
        turns.hold("autoscale", "process 2", "runs already ({holder})")


# --- the controller --------------------------------------------------------------------------------------


class FakeFeed:
    """The stack's answers: messages in queues, and what workers say."""

    def __init__(self) -> None:
        self.queues: dict[str, dict[str, int]] = {}
        self.workers: list[dict[str, Any]] = []
        self.memory = 64 * 1024**3
        self.processors = 32
        self.asked: list[dict[str, Any]] = []
        self.closed = 0

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(question)
        answer: dict[str, Any] = {"queues": self.queues, "memory": self.memory, "processors": self.processors}
        return {**answer, "workers": self.workers} if question.get("workers") else answer

    def close(self) -> None:
        self.closed += 1


class Stack:
    """Its containers, and a controller that looks at them."""

    def __init__(self) -> None:
        self.members = [Member("d" * 12, "stack-daemon-1", "daemon", "running")]
        self.feed = FakeFeed()
        self.controller = controller.Controller(self.feed)  # type: ignore[arg-type]
        self.did: list[str] = []
        self.now = 1000.0

    def has(self, service: str, number: int) -> None:
        self.members = [each for each in self.members if each.service != service]
        self.members += [
            Member(f"{n:012x}", f"stack-{service}-{n}", service, "running") for n in range(1, number + 1)
        ]

    def raise_to(self, limits: Limits, number: int) -> None:
        self.did.append(f"{limits.service} to {number}")
        self.has(limits.service, number)

    def remove(self, limits: Limits, container: str, left: int) -> None:
        self.did.append(f"without {container}, {left} left")
        self.members = [each for each in self.members if each.name != container]

    def look(self, seconds: float = 2) -> list[str]:
        """One look, and what was done."""
        self.now += seconds
        self.did = []
        self.controller.look(self.now)
        return self.did


@pytest.fixture
def stack(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    env.write_text("AUTOSCALE=worker:1..8\nWORKERS=1\nAUTOSCALE_COOLDOWN=60\nPOSTGRES_MAX_CONNECTIONS=200\n")
    monkeypatch.setattr(turns, "BUILD_FOLDER", tmp_path)
    monkeypatch.setattr(unfinished, "BUILD_FOLDER", tmp_path)
    found = Stack()
    service = Service(Limits("worker", 1, 8), ("dagster",), 1, 2 * 1024**3)
    monkeypatch.setattr(services, "scaled", lambda: [service])
    monkeypatch.setattr(containers, "members", lambda: found.members)
    monkeypatch.setattr(containers, "raise_to", found.raise_to)
    monkeypatch.setattr(containers, "remove", found.remove)
    return found


def test_there_are_as_many_workers_as_messages(stack: Stack) -> None:
    stack.has("worker", 1)
    stack.feed.queues = {"dagster": {"ready": 4, "in_work": 1}, "heavy": {"ready": 7, "in_work": 0}}

    assert stack.look() == ["worker to 5"]
    assert stack.look() == []


def test_on_few_processors_one_begins_after_the_other(stack: Stack) -> None:
    stack.has("worker", 1)
    stack.feed.queues = {"dagster": {"ready": 4, "in_work": 1}}
    stack.feed.processors = 2

    assert stack.look() == ["worker to 2"]
    stack.members[-1] = replace(stack.members[-1], status="Up 2 seconds (health: starting)")
    assert stack.look() == []
    stack.members[-1] = replace(stack.members[-1], status="Up 4 seconds (healthy)")
    assert stack.look() == ["worker to 3"]


def test_wish_workers_and_reason_are_noted(stack: Stack) -> None:
    stack.has("worker", 1)
    stack.feed.queues = {"dagster": {"ready": 20, "in_work": 1}}
    stack.look()
    stack.look()

    notes = [each["note"] for each in stack.feed.asked if "note" in each]
    assert notes == [
        {"worker": {"wish": 8, "running": 1, "reason": "maximum", "least": 1, "most": 8}},
        {"worker": {"wish": 8, "running": 8, "reason": "maximum", "least": 1, "most": 8}},
    ]
    # And again before they count as nobody's
    stack.look(controller.NOTE_SECS + 1)
    assert "note" in stack.feed.asked[-1]


def test_new_workers_count_with_all_their_memory_before_they_have_taken_it(stack: Stack) -> None:
    stack.has("worker", 1)
    stack.feed.queues = {"dagster": {"ready": 20, "in_work": 1}}
    stack.feed.memory = 5 * 1024**3

    assert stack.look() == ["worker to 3"]
    assert stack.look() == []
    assert stack.look(controller.FRESH_SECS) == ["worker to 5"]


def test_after_a_quiet_time_the_one_that_rests_goes(stack: Stack) -> None:
    stack.has("worker", 2)
    stack.look()
    assert stack.look(60) == []
    stack.feed.workers = [
        {"name": "dagster@000000000001", "held": 1, "rests": 0},
        {"name": "dagster@000000000002", "held": 0, "rests": 0},
        {"name": "heavy@00000000000f", "held": 0, "rests": 0},
    ]

    assert stack.look() == []
    assert stack.feed.asked[-1]["rest"] == {"dagster@000000000002": 30}
    stack.feed.workers[1]["rests"] = 29
    assert stack.look() == ["without stack-worker-2, 1 left"]


@pytest.mark.parametrize("state", ["exited", "created"])
def test_nothing_is_started_for_a_stack_that_is_down(stack: Stack, state: str) -> None:
    stack.members = [Member("d", "stack-daemon-1", "daemon", state)]
    stack.feed.queues = {"dagster": {"ready": 4, "in_work": 0}}

    assert stack.look() == []
    assert (stack.feed.asked, stack.feed.closed) == ([], 1)


def test_nothing_is_done_while_a_restore_waits(stack: Stack, env: Path) -> None:
    stack.has("worker", 1)
    stack.feed.queues = {"dagster": {"ready": 4, "in_work": 0}}
    unfinished.file().parent.mkdir(parents=True, exist_ok=True)
    unfinished.file().write_text("restoring")

    assert stack.look() == []


@pytest.mark.usefixtures("other")
def test_another_command_has_the_stack_for_itself(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make deploy` must not find a worker of the former code that was made meanwhile."""
    stack.has("worker", 1)
    stack.feed.queues = {"dagster": {"ready": 4, "in_work": 0}}

    assert stack.look() == []
    # And no container with a former login either
    assert stack.feed.closed == 1


def test_a_failure_is_said_once_and_tried_again(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    stack.has("worker", 1)

    def fail(question: dict[str, Any]) -> dict[str, Any]:
        raise Failure("the stack does not answer")

    ask, stack.feed.ask = stack.feed.ask, fail  # type: ignore[method-assign]
    stack.look()
    stack.look()
    assert capsys.readouterr().out.count("does not answer") == 1

    stack.feed.ask = ask  # type: ignore[method-assign]
    stack.feed.queues = {"dagster": {"ready": 4, "in_work": 0}}
    assert stack.look() == ["worker to 4"]


def test_workers_are_known_by_their_containers() -> None:
    crew = [Member("0123456789ab", "stack-worker-7", "worker", "running")]
    answers = [
        {"name": "dagster@0123456789ab", "held": 0, "rests": 3},
        {"name": "dagster@ffff", "held": 0, "rests": 0},
    ]

    assert controller.seen_of(crew, answers) == [Seen("0123456789ab", "dagster@0123456789ab", 0, 3)]


# --- engine ----------------------------------------------------------------------------------------------


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that reached the engine, which has two workers and makes as many as it is told."""
    found: list[str] = []
    states = ["running", "running"]

    def command(arguments: list[str], seconds: float, environment: Any = None, host: Any = None) -> str:
        if arguments[0] == "ps":
            return "".join(
                f"{n:012}\tw-{n}\t{state}\tUp 2 seconds\tworker\tFalse\n"
                for n, state in enumerate(states, start=1)
            )
        found.append(" ".join(arguments))
        if "create" in arguments:
            assert environment
            states.extend(["created"] * (int(environment["WORKERS"]) - len(states)))
        if arguments[0] == "start":
            states[int(arguments[1].removeprefix("w-")) - 1] = "running"
        return ""

    monkeypatch.setattr(containers, "command", command)
    return found


def test_env_has_the_higher_number_before_and_the_lower_one_after(
    env: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, the next `make up` makes one more; it never takes one away, which might work."""
    env.write_text("WORKERS=2\n")
    seen: list[str] = []
    command = containers.command

    def look_and_do(*words: Any, **others: Any) -> str:
        seen.append(env_file.read(env)["WORKERS"])
        return command(*words, **others)

    monkeypatch.setattr(containers, "command", look_and_do)
    monkeypatch.setattr(compose, "compose", lambda: ["docker", "compose"])

    containers.raise_to(Limits("worker", 1, 8), 4)
    containers.remove(Limits("worker", 1, 8), "stack-worker-2", 3)

    assert set(seen) == {"4"}
    assert env_file.read(env)["WORKERS"] == "3"
    assert sorted(commands[1:3]) == ["start w-3", "start w-4"]
    assert [commands[0], *commands[3:]] == [
        "compose --progress quiet create --no-recreate worker",
        "stop stack-worker-2",
        "rm stack-worker-2",
    ]


def test_a_container_that_was_stopped_and_not_removed_goes(commands: list[str]) -> None:
    found = [Member("1", "w-1", "worker", "running"), Member("2", "w-2", "worker", "exited"),
             Member("3", "h-1", "worker-heavy", "exited"), Member("4", "w-3", "worker", "created")]  # fmt: skip

    containers.remove_ended(Limits("worker", 1, 8), found)

    assert commands == ["rm w-2"]


# --- systemd ---------------------------------------------------------------------------------------------


def test_the_unit_starts_this_checkouts_controller(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env.write_text("COMPOSE_PROJECT_NAME=second\n")
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))

    systemd_unit.write()

    unit = (tmp_path / ".config/systemd/user/second-autoscale.service").read_text()
    assert f"WorkingDirectory={ROOT}\n" in unit
    assert f"ExecStart={sys.executable} -m scripts.autoscaling.controller\n" in unit
    assert f'"STACK_ENV_FILE={env}"' in unit
    assert (
        "systemctl --user daemon-reload && systemctl --user enable --now second-autoscale"
        in capsys.readouterr().out
    )


def test_without_systemd_no_unit_is_written(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path / "none")

    with pytest.raises(Failure, match="systemd"):
        systemd_unit.write()


# --- inside the stack ------------------------------------------------------------------------------------


def test_what_is_free_is_read_of_the_kernel(tmp_path: Path) -> None:
    from dagster_stack.client.worker_feed import available

    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16 kB\nMemFree:         2 kB\nMemAvailable:    8 kB\n")

    assert available(file) == 8192


def test_a_question_is_answered_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    from contextlib import contextmanager

    from dagster_stack.client import worker_feed
    from dagster_stack.messaging.management import BrokerApi, QueueDepth
    from dagster_stack.messaging.workers import Worker

    told: list[Any] = []
    noted: list[Any] = []

    @contextmanager
    def given(value: Any) -> Any:
        yield value

    broker = type("Broker", (), {"read_all": lambda _: (QueueDepth("dagster", 3, 1, 1),)})()
    worker = Worker("dagster@1", ("dagster",), 1, 5, (), 0, held=1, rests=12.5, host="box2")
    monkeypatch.setattr(BrokerApi, "from_environment", lambda _: broker)
    monkeypatch.setattr(worker_feed, "connected", lambda _: given(("app", "connection")))
    monkeypatch.setattr(worker_feed, "notes", lambda _: given(noted.append))
    monkeypatch.setattr(worker_feed, "tell_to_rest", lambda *words: told.append(words[2]))
    monkeypatch.setattr(worker_feed, "ask", lambda *_, **__: [worker])
    questions = io.StringIO('{"rest": {"dagster@1": 30}, "workers": true}\n{"note": {"a": 1}}\n')
    answers = io.StringIO()

    assert worker_feed.serve(questions, answers, {}) == 0

    first, second = map(json.loads, answers.getvalue().splitlines())
    assert first["queues"] == {"dagster": {"ready": 3, "in_work": 1}}
    assert first["workers"] == [
        {"name": "dagster@1", "host": "box2", "queues": ["dagster"], "held": 1, "rests": 12.5}
    ]
    assert second.keys() == {"queues", "memory", "processors"}
    assert (told, noted) == ([{"dagster@1": 30}, {}], [{"a": 1}])
