"""Where new workers begin: which hosts have room, and how many may begin at once."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from scripts.autoscaling.limits import MOST


@dataclass(frozen=True)
class Capacity:
    """Free bytes of a host, and its processors."""

    memory: int
    processors: int


@dataclass(frozen=True)
class Room:
    """What a host has for new workers of a service: free bytes, those that one takes (0: no limit), how many may begin now;
    and the processes of one."""

    memory: int
    size: int
    begin: int
    processes: int = 1

    @property
    def number(self) -> int:
        return max(self.memory // self.size, 0) if self.size else MOST


def begin_at_once(processors: int) -> int:
    """How many workers may begin at the same time. A Python that begins takes a processor for seconds: where too many do,
    all are late, the first one too."""
    return max(1, processors // 2)


def placed(number: int, rooms: Mapping[str, Room], missing: int = 0) -> Counter[str]:
    """How many of these new workers begin on which host: each where most memory is free, of the hosts with a processor for its
    beginning. Where none has room nothing begins, but what is `missing` of the fewest that there must be."""
    found: Counter[str] = Counter()
    for _ in range(number):
        free = {host: room.memory - room.size * found[host] for host, room in rooms.items()}
        able = [host for host, room in rooms.items() if found[host] < room.begin]
        fit = [host for host in able if found[host] < rooms[host].number]
        candidates = fit or (able if found.total() < missing else [])
        if not candidates:
            break
        found[max(candidates, key=lambda host: free[host])] += 1
    return found
