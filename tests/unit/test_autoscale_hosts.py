"""`make autoscale` over several hosts: where workers begin, which one goes, and a host that does not answer.
What comes of it on real engines: tests/hosts/test_autoscale.py."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from scripts import base_image, compose, connections, engine, env_file, turns, unfinished
from scripts.autoscaling import containers, controller, hosts, services
from scripts.autoscaling.containers import Member
from scripts.autoscaling.hosts import CREW_SECS, LOST_SECS, PAUSE_SECS, ROOM_SECS
from scripts.autoscaling.services import MOST, Limits, Service
from scripts.autoscaling.wish import Room, placed
from scripts.console import Failure
from scripts.hosts.host import Host

GB = 1024**3
COOLDOWN = 60
SERVICES = (
    Service(Limits("worker", 1, 8), ("dagster",), 1, 2 * GB),
    Service(Limits("worker-own", 0, 2), ("own",), 1, 2 * GB),
)


@dataclass
class Machine:
    """A host's engine: its containers, and what it says of itself."""

    name: str
    memory: int = 64 * GB
    processors: int = 32
    image: str = "sha256:1"
    containers: list[Member] = field(default_factory=list)
    #: Why it does not answer.
    problem: str = ""
    #: Commands that it refuses.
    refuses: str = ""
    #: It says nothing before this is set.
    silent: threading.Event | None = None
    asked: list[str] = field(default_factory=list)
    made: int = 0

    def has(self, number: int, service: str = "worker") -> None:
        for _ in range(number):
            self.made += 1
            identity = f"{self.name or 'first':x<8}{self.made:04}"
            name = f"stack-{service}-{self.made}"
            self.containers.append(Member(identity, name, service, "running", "Up", self.name))

    def running(self, service: str = "worker") -> list[Member]:
        return [each for each in self.containers if each.service == service and each.is_running]

    def command(self, arguments: list[str], environment: dict[str, str]) -> str:
        self.asked.append(" ".join(arguments))
        if self.silent:
            self.silent.wait(10)
        if self.problem or (self.refuses and self.refuses in arguments):
            raise Failure(self.problem or f"can't {self.refuses}")
        match arguments:
            case ["ps", *_]:
                rows = [(m.id, m.name, m.state, m.status, m.service, "False") for m in self.containers]
                return "".join("\t".join(row) + "\n" for row in rows)
            case [*_, "create", "--no-recreate", service]:
                before = len(self.containers)
                number = sum(each.service == service for each in self.containers)
                self.has(int(environment[Limits(service, 0, 1).variable]) - number, service)
                self.containers[before:] = [replace(m, state="created") for m in self.containers[before:]]
            case ["start", name]:
                self.change(name, state="running")
            case ["stop", name]:
                self.change(name, state="exited")
            case ["rm", *names]:
                self.containers = [m for m in self.containers if not {m.id, m.name} & {*names}]
            case ["run", *_] if self.image not in arguments:
                raise Failure("`docker run …`: No such image: sha256:1")
            case ["run", *_]:
                return f"{self.processors}\nMemTotal: 99 kB\nMemAvailable:   {self.memory // 1024} kB\n"
        return ""

    def change(self, name: str, **values: str) -> None:
        self.containers = [replace(m, **values) if name in (m.id, m.name) else m for m in self.containers]


class Cluster:
    """Three machines, the feed of the first one, and a controller that looks at them."""

    def __init__(self, env: Path) -> None:
        self.env = env
        self.machines = {name: Machine(name) for name in ("", "box2", "box3")}
        self.first, self.box2, self.box3 = self.machines.values()
        self.first.has(1, "daemon")
        self.messages = {"dagster": 0, "own": 0}
        #: By worker: what it holds, and how long it rests.
        self.held: dict[str, int] = {}
        self.rests: dict[str, float] = {}
        #: Hosts whose workers don't answer.
        self.powerless: set[str] = set()
        self.notes: list[dict[str, Any]] = []
        self.controller = controller.Controller(self)  # type: ignore[arg-type]
        self.now = 1000.0

    def command(
        self, arguments: list[str], seconds: float, environment: Any = None, host: Host | None = None
    ) -> str:
        machine = self.machines[host.name if host else ""]
        number = {**(host.settings if host else {}), **(environment or {})}
        return machine.command(arguments, number)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """In place of the feed."""
        self.rests |= {name.rpartition("@")[2]: seconds for name, seconds in question.get("rest", {}).items()}
        if "note" in question:
            self.notes.append(question["note"])
        queues = {queue: {"ready": number, "in_work": 0} for queue, number in self.messages.items()}
        answer: dict[str, Any] = {
            "queues": queues,
            "memory": self.first.memory,
            "processors": self.first.processors,
        }
        if question.get("workers"):
            answer["workers"] = [
                {"name": f"dagster@{each.id}", "host": machine.name, "queues": ["dagster"],
                 "held": self.held.get(each.id, 0), "rests": self.rests.get(each.id, 0)}
                for machine in self.machines.values() if machine.name not in self.powerless for each in machine.running()
            ]  # fmt: skip
        return answer

    def close(self) -> None:
        """Of the feed."""

    def look(self, seconds: float = 1, times: int = 1) -> list[int]:
        """Some looks; how many workers each host has then."""
        for _ in range(times):
            self.now += seconds
            self.controller.look(self.now)
        return self.numbers()

    def numbers(self, service: str = "worker") -> list[int]:
        return [len(machine.running(service)) for machine in self.machines.values()]

    def files(self, name: str = "WORKERS") -> list[int]:
        paths = [self.env, *(self.env.with_name(f".env.{host}") for host in ("box2", "box3"))]
        return [int(env_file.read(path)[name]) for path in paths]


@pytest.fixture
def cluster(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    env.write_text(
        f"AUTOSCALE=worker:1..8,worker-own:0..2\nWORKERS=1\nOWN_WORKERS=0\nHEAVY_WORKERS=0\nAUTOSCALE_COOLDOWN={COOLDOWN}\n"
        "POSTGRES_MAX_CONNECTIONS=200\nRUNNERS=1\nRUNNER_CONCURRENCY=4\nHOSTS=box2,box3,by-hand\n"
    )
    for name in ("box2", "box3"):
        env.with_name(f".env.{name}").write_text(f"HOST_ENGINE=ssh://me@{name}\nWORKERS=0\nHEAVY_WORKERS=0\n")
    env.with_name(".env.by-hand").write_text("HOST_ENGINE=\nWORKERS=3\nHEAVY_WORKERS=0\n")
    monkeypatch.delenv("SKIP", raising=False)
    found = Cluster(env)
    monkeypatch.setattr(turns, "BUILD_FOLDER", tmp_path)
    monkeypatch.setattr(unfinished, "BUILD_FOLDER", tmp_path)
    monkeypatch.setattr(engine, "docker", lambda: "docker")
    monkeypatch.setattr(compose, "compose", lambda: ["docker", "compose"])
    monkeypatch.setattr(containers, "command", found.command)
    monkeypatch.setattr(services, "scaled", lambda: list(SERVICES))
    monkeypatch.setattr(
        services, "there", lambda limits, _: SERVICES[0] if limits.service == "worker" else None
    )
    monkeypatch.setattr(base_image, "image_id", lambda _: "sha256:1")
    monkeypatch.setattr(hosts, "image", lambda: "stack/dagster:latest")
    found.first.has(1)
    yield found
    found.controller.hosts.close()


def alone(cluster: Cluster) -> None:
    env_file.set_value("HOSTS", "", cluster.env)


# --- up --------------------------------------------------------------------------------------------------


def test_each_new_worker_begins_where_most_memory_is_free(cluster: Cluster) -> None:
    cluster.first.memory, cluster.box2.memory, cluster.box3.memory = 5 * GB, 9 * GB, 4 * GB
    cluster.messages["dagster"] = 6

    assert cluster.look() == [2, 3, 1]
    # And `make up` finds as many in each host's file
    assert cluster.files() == [2, 3, 1]


def test_on_few_processors_one_begins_on_each_host(cluster: Cluster) -> None:
    for machine in cluster.machines.values():
        machine.processors = 2
    cluster.messages["dagster"] = 8

    assert cluster.look() == [2, 1, 1]
    cluster.first.change(cluster.first.running()[-1].id, status="Up (health: starting)")
    cluster.box2.change(cluster.box2.running()[-1].id, status="Up (health: starting)")
    assert cluster.look() == [2, 1, 2]


def test_room_is_that_of_all_hosts_together(cluster: Cluster) -> None:
    cluster.first.memory, cluster.box2.memory, cluster.box3.memory = 3 * GB, 5 * GB, 1 * GB
    cluster.messages["dagster"] = 8

    assert cluster.look() == [2, 2, 0]
    assert cluster.notes[-1]["worker"] == {"wish": 4, "running": 1, "reason": "memory", "least": 1, "most": 8,
                                           "hosts": {"box2": 0, "box3": 0}}  # fmt: skip
    # What has begun counts with all its memory, whatever the host says
    assert cluster.look(ROOM_SECS) == [2, 2, 0]


def test_the_limits_are_those_of_all_hosts(cluster: Cluster) -> None:
    cluster.box2.has(4)
    cluster.box3.has(3)
    cluster.messages["dagster"] = 20

    assert cluster.look(times=3) == [1, 4, 3]
    assert cluster.notes[-1]["worker"] == {"wish": 8, "running": 8, "reason": "maximum", "least": 1, "most": 8,
                                           "hosts": {"box2": 4, "box3": 3}}  # fmt: skip
    # One that begins does not answer yet
    cluster.box2.change(cluster.box2.running()[0].id, status="Up (health: starting)")
    cluster.look(CREW_SECS)
    assert cluster.notes[-1]["worker"]["hosts"] == {"box2": 3, "box3": 3}


def test_room_of_others_is_asked_for_when_a_worker_is_needed_and_kept_for_a_while(cluster: Cluster) -> None:
    cluster.messages["dagster"] = 1
    cluster.look(times=3)
    assert not [line for line in cluster.box2.asked if not line.startswith("ps")]

    cluster.first.memory = cluster.box2.memory = cluster.box3.memory = 0
    cluster.messages["dagster"] = 2
    cluster.look(times=5)
    (line,) = [line for line in cluster.box2.asked if line.startswith("run")]
    assert "--network none" in line
    cluster.look(ROOM_SECS)
    assert len([line for line in cluster.box2.asked if line.startswith("run")]) == 2


def test_others_are_asked_for_their_crews_now_and_then_and_each_time_while_one_begins(
    cluster: Cluster,
) -> None:
    cluster.box2.has(1)
    cluster.look(times=CREW_SECS)
    assert len(cluster.box2.asked) == 1

    cluster.box2.change(cluster.box2.running()[0].id, status="Up (health: starting)")
    cluster.look(times=5)
    assert len(cluster.box2.asked) == 6


def test_one_host_alone_asks_no_other_engine_and_nothing_more_of_its_own(cluster: Cluster) -> None:
    alone(cluster)
    cluster.messages["dagster"] = 3

    assert cluster.look(times=2) == [3, 0, 0]
    assert not cluster.box2.asked
    label = "--filter label=com.docker.compose.project=dagster-celery-stack"
    ps = f"ps --all {label} --format {containers.FORMAT}"
    assert cluster.first.asked[:3] == [ps, "compose --progress quiet create --no-recreate worker", ps]
    assert sorted(cluster.first.asked[3:]) == [ps, "start stack-worker-3", "start stack-worker-4"]


def test_a_service_of_your_own_stays_on_the_first_host(cluster: Cluster) -> None:
    cluster.messages["own"] = 2
    cluster.look()

    assert cluster.numbers("worker-own") == [2, 0, 0]


def test_those_who_stand_on_a_host_unknown_to_the_controller_stay(cluster: Cluster) -> None:
    """Compose would take away what it is told that there are too many of."""
    cluster.look()
    cluster.box2.has(3)
    cluster.first.memory = cluster.box3.memory = 0
    cluster.messages["dagster"] = 2

    assert cluster.look() == [1, 4, 0]


def test_a_host_with_another_image_gets_no_worker_and_is_named_once(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.box2.image = "sha256:0"
    cluster.messages["dagster"] = 3
    cluster.look()
    cluster.messages["dagster"] = 8
    cluster.look(ROOM_SECS)

    assert cluster.box2.running() == []
    assert sum(cluster.numbers()) == 8
    assert capsys.readouterr().out.count("`make up` brings this one") == 1


def test_a_host_that_can_make_none_leaves_the_work_to_others(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.box2.memory, cluster.box2.refuses = 99 * GB, "create"
    cluster.messages["dagster"] = 3

    assert cluster.look() == [1, 0, 0]
    assert sum(cluster.look()) == 3
    assert "box2: no worker begins there: can't create" in capsys.readouterr().out
    cluster.box2.refuses = ""
    cluster.messages["dagster"] = 4
    assert cluster.look(ROOM_SECS)[1] == 1


# --- connections -----------------------------------------------------------------------------------------


def test_workers_of_other_hosts_count_once_for_connections(cluster: Cluster) -> None:
    cluster.box2.has(4)
    env_file.set_value("WORKERS", "4", cluster.env.with_name(".env.box2"))
    found = [*cluster.first.running(), *cluster.box2.running()]
    here = controller.processes_here(controller.Sight(1, SERVICES, found, {}))

    assert here == 1
    # 200 = 60 for the rest + 2 × (4 runs + 1 here + 4 on box2 + 3 by hand + 58)
    assert connections.room(here) == 58


def test_connections_bound_what_begins_anywhere(cluster: Cluster) -> None:
    env_file.set_value("POSTGRES_MAX_CONNECTIONS", str(60 + 2 * (4 + 1 + 3 + 2)), cluster.env)
    cluster.messages["dagster"] = 8

    assert sum(cluster.look(times=3)) == 3
    assert cluster.notes[-1]["worker"]["reason"] == "connections"


# --- down ------------------------------------------------------------------------------------------------


def quiet(cluster: Cluster) -> None:
    cluster.look()
    cluster.look(COOLDOWN)


def test_who_holds_least_goes_wherever_it_is(cluster: Cluster) -> None:
    cluster.box2.has(2)
    env_file.set_value("WORKERS", "2", cluster.env.with_name(".env.box2"))
    idle = cluster.box2.running()[1]
    cluster.held = {each.id: 1 for machine in cluster.machines.values() for each in machine.running()}
    cluster.held[idle.id] = 0
    cluster.messages["dagster"] = 2
    quiet(cluster)

    # It rests first
    assert cluster.numbers() == [1, 2, 0]
    assert set(cluster.rests) == {idle.id}
    assert cluster.look() == [1, 1, 0]
    assert idle not in cluster.box2.containers
    assert cluster.files() == [1, 1, 0]
    # And those that work stay
    assert cluster.look(COOLDOWN, times=3) == [1, 1, 0]


def test_the_fewest_are_those_of_all_hosts(cluster: Cluster) -> None:
    cluster.box2.has(1)
    cluster.box3.has(1)
    cluster.look(times=5)

    assert sum(cluster.look(COOLDOWN, times=9)) == 1


def test_a_container_that_was_stopped_and_not_removed_goes_on_its_host(cluster: Cluster) -> None:
    cluster.box2.has(2)
    cluster.box2.change("stack-worker-1", state="exited")
    cluster.messages["dagster"] = 2
    cluster.look()

    assert [each.name for each in cluster.box2.containers] == ["stack-worker-2"]


# --- a host that does not answer -------------------------------------------------------------------------


@pytest.fixture
def away(cluster: Cluster) -> Cluster:
    """Two workers here, three on box2, whose engine can't be asked any more."""
    cluster.first.has(1)
    cluster.box2.has(3)
    cluster.messages["dagster"] = 5
    cluster.look()
    cluster.box2.problem = "box2: no route"
    cluster.look(CREW_SECS)
    return cluster


def test_it_is_named_once_and_asked_again_after_a_pause(
    capsys: pytest.CaptureFixture[str], away: Cluster
) -> None:
    asked = len(away.box2.asked)
    away.look(times=PAUSE_SECS - 1)
    assert len(away.box2.asked) == asked
    away.look(2)
    settle(lambda: len(away.box2.asked) > asked)
    away.look()
    assert capsys.readouterr().out.count("no route") == 1


def test_what_an_engine_refuses_is_said_in_its_own_words_and_in_one_line(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("WORKERS=2\n")
    monkeypatch.setattr(engine, "docker", lambda: "false")
    with pytest.raises(Failure, match=r"^`docker ps --all --filter …`: $"):
        containers.members()


def settle(happened: Callable[[], bool]) -> None:
    """A host that is left out is asked aside."""
    waited = threading.Event()
    for _ in range(200):
        if happened():
            return
        waited.wait(0.05)
    raise AssertionError("it did not happen")


def test_its_workers_count_as_long_as_they_answer_the_roll_call(away: Cluster) -> None:
    assert away.look(times=2 * LOST_SECS) == [2, 3, 0]
    assert away.notes[-1]["worker"]["running"] == 5
    # Whether it has none is not for the controller to say
    assert away.notes[-1]["worker"]["hosts"] == {"box3": 0}


def test_one_answer_that_is_missed_changes_nothing(away: Cluster) -> None:
    away.look(times=LOST_SECS)
    away.powerless = {"box2"}
    assert away.look(times=LOST_SECS - 2) == [2, 3, 0]
    away.powerless = set()
    assert away.look(times=LOST_SECS) == [2, 3, 0]


def test_when_its_power_has_gone_as_many_begin_elsewhere(away: Cluster) -> None:
    away.powerless = {"box2"}
    away.look(times=LOST_SECS)

    here, there, other = away.look()
    assert (here + other, there) == (5, 3)
    # And no more than that
    assert away.look(times=LOST_SECS) == [here, there, other]


def test_none_of_its_workers_is_chosen_to_go(away: Cluster) -> None:
    away.messages["dagster"] = 1
    quiet(away)
    away.look(times=9)

    assert away.numbers() == [0, 3, 0]
    assert not set(away.rests) & {each.id for each in away.box2.running()}


def test_one_that_was_never_asked_counts_by_the_roll_call_too(cluster: Cluster) -> None:
    cluster.box2.has(3)
    cluster.box2.problem = "no route"
    cluster.messages["dagster"] = 4

    assert cluster.look(times=3) == [1, 3, 0]


def test_one_that_is_skipped_is_not_asked(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIP", "box2")
    cluster.box2.has(3)
    cluster.messages["dagster"] = 6

    here, there, other = cluster.look(times=3)
    assert (here + other, there) == (3, 3)
    assert cluster.box2.asked == []


def test_it_holds_nobody_up_while_it_is_silent(away: Cluster) -> None:
    away.box2.silent = threading.Event()
    away.messages["dagster"] = 6

    # It is being asked meanwhile
    assert sum(away.look(PAUSE_SECS)) == 6
    away.box2.silent.set()


def test_when_it_answers_again_it_belongs_to_them(away: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    away.box2.problem = ""
    away.look(PAUSE_SECS)
    settle(lambda: away.look() is not None and "answers again" in capsys.readouterr().out)

    away.messages["dagster"] = 8
    away.first.memory = away.box3.memory = 0
    assert away.look() == [2, 6, 0]


# --- decisions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "rooms", "missing", "expected"),
    [
        # Where most is free, then where most is left.
        (3, {"": Room(8, 2, 9), "b": Room(5, 2, 9)}, 0, {"": 2, "b": 1}),
        # Of the same much the first.
        (1, {"": Room(8, 2, 9), "b": Room(8, 2, 9)}, 0, {"": 1}),
        # A processor for each.
        (3, {"": Room(8, 2, 1), "b": Room(5, 2, 1)}, 0, {"": 1, "b": 1}),
        (3, {"": Room(8, 2, -1)}, 0, {}),
        # One that has a processor, and no memory, is no place.
        (3, {"": Room(1, 2, 9), "b": Room(5, 2, 1)}, 0, {"b": 1}),
        # But for the fewest.
        (3, {"": Room(1, 2, 9), "b": Room(-5, 2, 9)}, 2, {"": 2}),
        # Without a limit for one.
        (3, {"": Room(-1, 0, 9)}, 0, {"": 3}),
        # A large one where it fits.
        (1, {"": Room(5, 8, 9), "b": Room(4, 2, 9)}, 0, {"b": 1}),
    ],
)
def test_where_new_workers_begin(
    number: int, rooms: dict[str, Room], missing: int, expected: dict[str, int]
) -> None:
    assert +placed(number, rooms, missing) == {host: n for host, n in expected.items() if n}


def test_room_is_in_workers() -> None:
    assert [Room(memory, 2, 1).number for memory in (5, 1, -3)] == [2, 0, 0]
    assert Room(1, 0, 1).number == MOST


# --- what Compose has of it there ------------------------------------------------------------------------

CONFIG = """{"services": {"worker": {"command": ["celery", "worker", "-Q", "dagster", "--concurrency", "4"],
                                     "mem_limit": "1024"}}}"""


def test_a_service_there_is_read_again_when_something_but_a_number_changes(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("WORKERS=2\n")
    path = env.with_name(".env.box9")
    path.write_text("HOST_ENGINE=box9\nWORKERS=2\nWORKER_MEMORY=1g\n")
    asked: list[tuple[str, ...]] = []

    def output(_: Host, *command: str) -> str:
        asked.append(command)
        return CONFIG

    monkeypatch.setattr(engine, "docker", lambda: "docker")
    monkeypatch.setattr(Host, "output", output)
    host, limits = Host("box9"), Limits("worker", 1, 8)

    assert services.there(limits, host) == Service(limits, ("dagster",), 4, 1024)
    env_file.set_value("WORKERS", "5", path)
    assert services.there(Limits("worker-own", 0, 1), host) is None
    assert len(asked) == 1
    env_file.set_value("WORKER_MEMORY", "2g", path)
    services.there(limits, host)
    assert len(asked) == 2


def test_an_engine_is_asked_by_its_address_and_with_its_own_file(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("WORKERS=2\n")
    path = env.with_name(".env.box9")
    path.write_text("HOST_ENGINE=ssh://me@box9\nWORKERS=1\n")
    lines: list[list[str]] = []

    def command(arguments: list[str], *_: Any, host: Host) -> str:
        lines.append([*host.docker(), *arguments])
        return ""

    monkeypatch.setattr(engine, "docker", lambda: "docker")
    monkeypatch.setattr(containers, "command", command)

    containers.raise_to(Limits("worker", 1, 8), 4, Host("box9"))

    assert env_file.read(path)["WORKERS"] == "4"
    assert env_file.read(env)["WORKERS"] == "2"
    create = " ".join(lines[0])
    assert re.fullmatch(
        r"docker --host ssh://me@box9 compose --project-directory \S+ --env-file \S+/\.env\.box9"
        r" --file \S+/compose\.worker\.yaml --progress quiet create --no-recreate worker",
        create,
    )
