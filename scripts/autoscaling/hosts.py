"""Further hosts, as `make autoscale` sees them: which workers each one has, and its room for more.

They are asked side by side, and one that does not answer is left out: nothing begins or ends there. Of its workers those
count that answer the roll call, since they reach the broker. Its crew as it was known last would count for ever where the power
has gone, and nobody would do its work.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from scripts import base_image
from scripts.autoscaling import containers, services
from scripts.autoscaling.background import aside
from scripts.autoscaling.containers import Member
from scripts.autoscaling.limits import Limits
from scripts.autoscaling.placement import Capacity
from scripts.autoscaling.services import Service
from scripts.console import Failure, say, warn
from scripts.hosts.host import Host, by_engine
from scripts.hosts.services import image

#: Seconds for an answer, and for one that takes a container; and until a host that gave none is asked again.
ANSWER_SECS, CONTAINER_SECS, PAUSE_SECS = 10, 20, 30
#: Seconds for which an answer holds while nothing begins there: each one is a login by ssh.
CREW_SECS, ROOM_SECS = 5, 20
#: Seconds of silence after which a worker of a host that is left out counts no more. RabbitMQ gives it up after 20 to 30.
LOST_SECS = 20
#: A host's processors, and its memory.
READ = "nproc; cat /proc/meminfo"


@dataclass
class Known:
    """What is known of one host."""

    host: Host
    #: Its containers by their ids, each with when it was there last.
    crew: dict[str, tuple[Member, float]] = field(default_factory=dict)
    asking: Future[list[Member]] | None = None
    #: When it is asked for its containers again, and for its room.
    crew_due: float = 0
    room_due: float = 0
    measuring: Future[Capacity] | None = None
    #: None where nothing can begin now.
    capacity: Capacity | None = None
    is_left_out: bool = False
    #: Whether nothing could begin there when it was tried last. What room it has is not waited for then.
    is_closed: bool = False
    #: What was said of it last.
    said: str = ""


class Hosts:
    """All that have joined and whose engines can be asked from here. Where there is none it costs nothing."""

    def __init__(self, skipped: Collection[str] = ()) -> None:
        self._skipped = skipped
        self._known: dict[str, Known] = {}

    def look(self, now: float) -> None:
        """Ask those that are due. One that gave no answer is not waited for."""
        self._known = {host.name: self._known.get(host.name) or Known(host) for host in by_engine()}
        for known in self._known.values():
            if known.host.name in self._skipped:
                known.is_left_out = True
            elif not known.asking and now >= known.crew_due:
                known.asking = aside(containers.members, known.host, ANSWER_SECS)
        wait([each.asking for each in self._known.values() if each.asking and not each.is_left_out])
        for known in self._known.values():
            if known.asking and known.asking.done():
                take_crew(known, known.asking, now)
            take_room(known, now)

    @property
    def are_some_left_out(self) -> bool:
        """Whether the roll call says which workers there are."""
        return any(known.is_left_out for known in self._known.values())

    def hear(self, now: float, answers: Sequence[Mapping[str, Any]], scaled: Sequence[Service]) -> None:
        """Workers of hosts that are left out have answered the roll call."""
        by_queues = {frozenset(each.queues): each.name for each in scaled}
        for each in answers:
            known = self._known.get(each.get("host", ""))
            service = by_queues.get(frozenset(each.get("queues", ())))
            if known and known.is_left_out and service:
                identity = each["name"].rpartition("@")[2]
                member = Member(each["name"], service, "running", "", 0, identity, known.host.name)
                known.crew[identity] = member, now

    def members(self, now: float) -> list[Member]:
        return [
            member
            for known in self._known.values()
            for member, at in known.crew.values()
            if not known.is_left_out or now - at < LOST_SECS
        ]

    @property
    def present(self) -> list[str]:
        """Those that answer."""
        return [name for name, known in self._known.items() if not known.is_left_out]

    def can_end(self, member: Member) -> bool:
        """Whether its container could be stopped now."""
        return not member.host or not self._known[member.host].is_left_out

    def capacities(self, now: float, limits: Limits) -> dict[str, tuple[Service, Capacity]]:
        """Those where a worker of a service can begin now: the service as it is there, and what the host has."""
        present = [each for each in self._known.values() if not each.is_left_out]
        for known in present:
            if not known.measuring and now >= known.room_due:
                known.measuring = aside(capacity, known.host)
        wait([each.measuring for each in present if each.measuring and not each.is_closed])
        found = {}
        for known in present:
            take_room(known, now)
            with closed_on_failure(known, now):
                if known.capacity and (service := services.there(limits, known.host)):
                    found[known.host.name] = service, known.capacity
        return found

    @contextmanager
    def adding(self, now: float, limits: Limits, numbers: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """Begin so many more on each of these, while the body does it on this host; gives those that have begun, afterwards."""
        begun: dict[str, int] = {}
        started = {
            name: aside(add, self._known[name].host, limits, number) for name, number in numbers.items()
        }
        try:
            yield begun
        finally:
            for name, future in started.items():
                known = self._known[name]
                known.crew_due = now
                with closed_on_failure(known, now):
                    future.result()
                    begun[name] = numbers[name]
                    known.said = ""

    def remove(self, now: float, limits: Limits, member: Member) -> bool:
        """End one that rests; whether that worked."""
        known = self._known[member.host]
        known.crew_due = now
        crew = [each for each, _ in known.crew.values()]
        try:
            containers.remove(limits, member.id, containers.running(limits, crew) - 1, known.host)
        except Failure as failure:
            complain(known, str(failure))
            return False
        known.crew.pop(member.id, None)
        return True

    def remove_ended(self, now: float, limits: Limits) -> None:
        """Containers that were stopped and not removed."""
        for known in self._known.values():
            crew = [each for each, _ in known.crew.values()]
            if known.is_left_out:
                continue
            try:
                if containers.remove_ended(limits, crew, known.host):
                    known.crew_due = now
            except Failure as failure:
                known.crew_due = now
                complain(known, str(failure))

    def forget(self) -> None:
        """Others have changed containers: what was read of those that answer holds no more."""
        for known in self._known.values():
            if not known.is_left_out:
                known.crew_due = known.room_due = 0


def take_crew(known: Known, asked: Future[list[Member]], now: float) -> None:
    """What a host has answered, or that it has not."""
    known.asking = None
    try:
        found = asked.result()
    except Failure as failure:
        known.crew_due = now + PAUSE_SECS
        if not known.is_left_out:
            known.is_left_out = True
            complain(known, f"it is left out until it answers: {failure}")
        return
    if known.is_left_out:
        known.is_left_out, known.room_due, known.said = False, 0, ""
        say(f"  {known.host.name} answers again")
    known.crew = {each.id: (each, now) for each in found}
    known.crew_due = now if any(each.is_beginning for each in found) else now + CREW_SECS


def take_room(known: Known, now: float) -> None:
    """What room a host has, once it has said so."""
    if known.measuring and known.measuring.done():
        measured, known.measuring = known.measuring, None
        known.room_due = now + ROOM_SECS
        with closed_on_failure(known, now):
            known.capacity = measured.result()
            known.is_closed = False


@contextmanager
def closed_on_failure(known: Known, now: float) -> Iterator[None]:
    """Where the body fails, no worker begins on that host for a while."""
    try:
        yield
    except Failure as failure:
        known.room_due, known.capacity, known.is_closed = now + ROOM_SECS, None, True
        complain(known, f"no worker begins there: {failure}")


def complain(known: Known, why: str) -> None:
    if why != known.said:
        warn(f"{known.host.name}: {why}")
    known.said = why


# --- on a host -----------------------------------------------------------------------------------------


def add(host: Host, limits: Limits, number: int) -> None:
    """So many more. Who is there is asked anew: Compose would take away those that were not counted."""
    found = containers.members(host, ANSWER_SECS)
    containers.remove_ended(limits, found, host)
    containers.raise_to(limits, containers.running(limits, found) + number, host)


def capacity(host: Host) -> Capacity:
    """Read in a container of this host's image. Raises Failure, also where there is none: workers of another would refuse all steps."""
    image_id = base_image.image_id(image())
    line = ["run", "--rm", "--pull", "never", "--network", "none", "--entrypoint", "sh", image_id, "-c", READ]
    try:
        processors, text = containers.command(line, CONTAINER_SECS, host=host).split("\n", 1)
    except Failure as failure:
        if "No such image" in str(failure):
            raise Failure("it has another image than this host: `make up` brings this one") from None
        raise
    free = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return Capacity(int(free[1]) * 1024 if free else 0, int(processors))
