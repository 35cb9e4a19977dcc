"""Three machines in place of engines, and a controller that looks at them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts import env_file
from scripts.autoscaling.containers import Member
from scripts.autoscaling.controller import Controller
from scripts.autoscaling.hosts import Hosts
from scripts.autoscaling.limits import Limits
from scripts.autoscaling.services import Service
from scripts.console import Failure
from scripts.hosts.host import Host

GB = 1024**3
COOLDOWN = 60
SERVICES = (
    Service(Limits("worker", 1, 8), ("dagster",), 1, 2 * GB),
    Service(Limits("worker-own", 0, 2), ("own",), 1, 2 * GB),
)


def member(
    identity: str, name: str, service: str = "worker", state: str = "running", host: str = ""
) -> Member:
    return Member(name, service, state, "", 0, identity, host)


class Killed(BaseException):
    """Raised in place of SIGKILL."""


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
    #: It says nothing before this is set, or nothing to this command alone.
    silent: threading.Event | None = None
    silent_at: str = ""
    #: Called when it makes containers, which may take a while.
    makes: Callable[[], None] = lambda: None
    #: The command at which the controller is killed.
    kills_at: str = ""
    asked: list[str] = field(default_factory=list)
    made: int = 0

    def has(self, number: int, service: str = "worker") -> None:
        for _ in range(number):
            self.made += 1
            identity = f"{self.name or 'first':x<8}{self.made:04}"
            name = f"stack-{service}-{self.made}"
            self.containers.append(member(identity, name, service, host=self.name))

    def running(self, service: str = "worker") -> list[Member]:
        return [each for each in self.containers if each.service == service and each.is_running]

    def command(self, arguments: list[str], environment: dict[str, str]) -> str:
        self.asked.append(" ".join(arguments))
        if self.silent and self.silent_at in ("", arguments[0]):
            assert self.silent.wait(10), f"the controller waits for {self.name}"
        if self.problem or (self.refuses and self.refuses in arguments):
            raise Failure(self.problem or f"can't {self.refuses}")
        if self.kills_at and self.kills_at in arguments:
            raise Killed
        match arguments:
            case ["ps", *_]:
                rows = [
                    (
                        m.name,
                        m.service,
                        m.state,
                        f"Up 9 seconds (health: {m.health})" if m.health else "Up 9 seconds",
                        m.id,
                    )
                    for m in self.containers
                ]
                return "".join("\t".join(row) + "\n" for row in rows)
            case [*_, "create", "--no-recreate", service]:
                before = len(self.containers)
                self.makes()
                there = [each for each in self.containers if each.service == service]
                wanted = int(environment[Limits(service, 0, 1).variable])
                self.has(wanted - len(there), service)
                # As Compose does: those with the highest numbers go, whatever they do
                self.containers = [each for each in self.containers if each not in there[wanted:]]
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

    def change(self, name: str, **values: Any) -> None:
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
        #: What the feed was asked, how often it was closed, and why it does not answer.
        self.questions: list[dict[str, Any]] = []
        self.closed = 0
        self.silent_for: Failure | None = None
        self.now = 1000.0
        self.begin()

    def begin(self) -> None:
        """A controller that knows nothing yet."""
        self.controller = Controller(self, Hosts(), lambda: self.now)  # type: ignore[arg-type]

    def command(
        self, arguments: list[str], seconds: float, environment: Any = None, host: Host | None = None
    ) -> str:
        machine = self.machines[host.name if host else ""]
        number = {**(host.settings if host else {}), **(environment or {})}
        return machine.command(arguments, number)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """In place of the feed."""
        self.questions.append(question)
        if self.silent_for:
            raise self.silent_for
        self.rests |= {name.rpartition("@")[2]: seconds for name, seconds in question.get("rest", {}).items()}
        if "note" in question:
            self.notes.append(question["note"])
        queues = {
            queue: {"ready": number // 2, "in_work": number - number // 2}
            for queue, number in self.messages.items()
        }
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
        self.closed += 1

    def look(self, seconds: float = 1, times: int = 1) -> list[int]:
        """Some looks; how many workers each host has then."""
        for _ in range(times):
            self.now += seconds
            self.controller.look()
        return self.numbers()

    def numbers(self, service: str = "worker") -> list[int]:
        return [len(machine.running(service)) for machine in self.machines.values()]

    def files(self, name: str = "WORKERS") -> list[int]:
        paths = [self.env, *(self.env.with_name(f".env.{host}") for host in ("box2", "box3"))]
        return [int(env_file.read(path)[name]) for path in paths]
