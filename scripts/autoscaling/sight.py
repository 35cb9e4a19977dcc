"""What one look has found: containers of all hosts, and what the stack answered."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts import env_file
from scripts.autoscaling.containers import Member
from scripts.autoscaling.decisions import Seen, needed
from scripts.autoscaling.services import Service


@dataclass
class Sight:
    """What one look has found: containers of all hosts, and what the stack answered."""

    now: float
    services: Sequence[Service]
    found: Sequence[Member]
    answer: Mapping[str, Any]
    #: By host.
    beginning: Counter[str] = field(init=False)
    #: Processes that were added on this host since.
    added: int = 0

    def __post_init__(self) -> None:
        self.beginning = Counter(each.host for each in self.found if each.is_beginning)

    def crew(self, service: Service) -> list[Member]:
        """Its workers that run."""
        return [each for each in self.found if each.service == service.name and each.is_running]

    def number_here(self, service: Service) -> int:
        return sum(not each.host for each in self.crew(service))

    def needed(self, service: Service) -> int:
        depths = [self.answer["queues"].get(queue, {}) for queue in service.queues]
        messages = sum(depth.get("ready", 0) + depth.get("in_work", 0) for depth in depths)
        return needed(messages, service.concurrency)


def seen_of(crew: Sequence[Member], answers: Sequence[Mapping[str, Any]]) -> list[Seen]:
    """The workers of a service that answered, with their containers."""
    return [
        Seen(member.id, each["name"], each["held"], each["rests"])
        for member in crew
        for each in answers
        if member.is_of(each["name"])
    ]


def processes_here(seen: Sight) -> int:
    """Worker processes of this host, and those of services that are not scaled. Further hosts count by their files."""
    scaled = {each.name for each in seen.services}
    found = seen.added + sum(seen.number_here(each) * each.concurrency for each in seen.services)
    if "worker" not in scaled:
        found += env_file.number("WORKERS", 2) * env_file.number("WORKER_CONCURRENCY", 1)
    if "worker-heavy" not in scaled:
        found += env_file.number("HEAVY_WORKERS", 1)
    return found
