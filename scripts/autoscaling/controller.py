"""One look after the other at work and workers, and what follows from each.

All that it knows it asks again each second, and what it tells a worker lapses by itself: killed at any moment it leaves a stack
that works on with the workers that it has.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from scripts import connections, env_file, turns, unfinished
from scripts.autoscaling import containers, services
from scripts.autoscaling.decisions import Course, Decision, Wish, wish
from scripts.autoscaling.feed import Feed
from scripts.autoscaling.hosts import Hosts
from scripts.autoscaling.placement import Capacity, Room, begin_at_once, placed
from scripts.autoscaling.services import Service
from scripts.autoscaling.sight import Sight, processes_here, seen_of
from scripts.console import Failure, say, warn

NAME = "make autoscale"
COOLDOWN, COOLDOWN_SECS = "AUTOSCALE_COOLDOWN", 300
#: Seconds between two looks, and after one that failed.
LOOK_SECS, PAUSE_SECS = 1, 10
#: Seconds after which the figures are noted again, though nothing changed: older than a minute they count as nobody's.
NOTE_SECS = 20
#: Seconds after which the memory that a new worker takes is no longer among what is free.
FRESH_SECS = 60
#: Seconds after which nobody is stopped any more for what it said: its rest may end soon (LEFT_SECS of decisions.py).
LATE_SECS = 5


class Controller:
    """One look after the other. What it keeps between them it could do without."""

    def __init__(self, feed: Feed, hosts: Hosts, clock: Callable[[], float] = time.monotonic) -> None:
        self.feed = feed
        self.hosts = hosts
        self._clock = clock
        self._courses: dict[str, Course] = {}
        self._noted: tuple[float, dict[str, Any]] = (0.0, {})
        #: New workers: since when, on which host, with how many bytes.
        self._fresh: list[tuple[float, str, int]] = []
        self._said: dict[str, str] = {}

    def look(self) -> float:
        """Do what is to be done now; gives the seconds until the next look."""
        try:
            with turns.turn_if_free(f"one look of {NAME}") as other:
                if other:
                    # Its container would be in the way: of a network, or with a former login.
                    self._wait(f"waits until `{other}` ends")
                else:
                    unfinished.require_none()
                    self._act(self._clock())
        except Failure as failure:
            self._wait(str(failure))
            return PAUSE_SECS
        return LOOK_SECS

    def _act(self, now: float) -> None:
        here = containers.members()
        if not containers.is_up(here):
            self._wait("waits until the stack is up")
            return
        scaled = services.scaled()
        cooldown = env_file.number(COOLDOWN, COOLDOWN_SECS)
        courses = {each.name: self._courses.get(each.name) or Course(cooldown) for each in scaled}
        for course in courses.values():
            course.cooldown = cooldown
        self._courses = courses
        self.hosts.look(now)
        is_asked = self.hosts.are_some_left_out or any(each.needs_answers(now) for each in courses.values())
        # Hosts may have taken their time.
        now = self._clock()
        answer = self.feed.ask({"workers": is_asked})
        self._say("")
        self.hosts.hear(now, answer.get("workers", ()), scaled)
        seen = Sight(now, scaled, [*here, *self.hosts.members(now)], answer)
        note: dict[str, Any] = {}
        rest: dict[str, float] = {}
        for service in scaled:
            decision = self._decide(seen, service)
            rest |= decision.rest
            note[service.name] = self._note(seen, service, decision.wish)
        if note != self._noted[1] or now - self._noted[0] > NOTE_SECS:
            self._noted = (now, note)
            self.feed.ask({"rest": rest, "note": note})
        elif rest:
            self.feed.ask({"rest": rest})

    def _decide(self, seen: Sight, service: Service) -> Decision:
        """The decision on a service, carried out but for who is to rest."""
        crew = seen.crew(service)
        rooms = self._rooms(seen, service)
        wanted = self._wish(seen, service, rooms)
        answers = seen.answer.get("workers")
        able = (
            None if answers is None else seen_of([each for each in crew if self.hosts.can_end(each)], answers)
        )
        begin = sum(max(room.begin, 0) for room in rooms.values())
        decision = self._courses[service.name].decide(seen.now, wanted, len(crew), begin, able)
        new = placed((decision.up_to or 0) - len(crew), rooms, service.limits.least - len(crew))
        # Compose counts those that have ended: for one too many it would take one that works.
        containers.remove_ended(service.limits, [each for each in seen.found if not each.host])
        self.hosts.remove_ended(seen.now, service.limits)
        if new:
            self._add(seen, service, new, rooms, wanted)
        else:
            self._take_away(seen, service, decision)
        return decision

    def _note(self, seen: Sight, service: Service, wanted: Wish) -> dict[str, Any]:
        """For the figures; of further hosts only where some answer."""
        crew, limits = seen.crew(service), service.limits
        able = Counter(each.host for each in crew if not each.is_beginning)
        hosts = {host: able[host] for host in self.hosts.present}
        note = {"wish": wanted.number, "running": len(crew), "reason": wanted.reason, "least": limits.least,
                "most": limits.most}  # fmt: skip
        return {**note, "hosts": hosts} if hosts else note

    def _rooms(self, seen: Sight, service: Service) -> dict[str, Room]:
        """The room for new workers by host; that of further hosts only where one is needed."""
        self._fresh = [each for each in self._fresh if seen.now - each[0] < FRESH_SECS]
        here = Capacity(seen.answer["memory"], seen.answer["processors"])
        places = {"": (service, here)}
        limits = service.limits
        if min(max(seen.needed(service), limits.least), limits.most) > len(seen.crew(service)):
            places |= self.hosts.capacities(seen.now, limits)
        rooms = {}
        for host, (there, capacity) in places.items():
            free = capacity.memory - sum(size for _, name, size in self._fresh if name == host)
            begin = begin_at_once(capacity.processors) - seen.beginning[host]
            rooms[host] = Room(free, there.memory, begin, there.concurrency)
        return rooms

    def _wish(self, seen: Sight, service: Service, rooms: Mapping[str, Room]) -> Wish:
        here, each = processes_here(seen), max(room.processes for room in rooms.values())
        running, limits = len(seen.crew(service)), service.limits
        memory = sum(room.number for room in rooms.values())
        found = wish(limits, seen.needed(service), running, connections.room(here) // each, memory)
        missing = ""
        if found.number < limits.least:
            most = connections.needed(here + (limits.least - running) * each)
            missing = (
                f"{service.name}: {found.number} of the {limits.least} that there must be at least. Set"
                f" {connections.LIMIT_VARIABLE}={most} or more in {env_file.env_path().name} and run `make up`."
            )
        self._say(missing, service.name)
        return found

    def _add(
        self, seen: Sight, service: Service, new: Counter[str], rooms: Mapping[str, Room], wanted: Wish
    ) -> None:
        seen.beginning += new
        others = {host: number for host, number in new.items() if host}
        with self.hosts.adding(seen.now, service.limits, others) as begun:
            if new[""]:
                containers.raise_to(service.limits, seen.number_here(service) + new[""])
                begun[""] = new[""]
        seen.added += begun.get("", 0) * service.concurrency
        self._fresh += [(seen.now, host, rooms[host].size * number) for host, number in begun.items()]
        if begun:
            tell(seen, service, wanted, begun)

    def _take_away(self, seen: Sight, service: Service, decision: Decision) -> None:
        going = [each for each in seen.crew(service) if each.id == decision.remove]
        if not going or self._clock() - seen.now > LATE_SECS:
            return
        # Once more: to stop it may take a while.
        self.feed.ask({"rest": decision.rest})
        (member,) = going
        if not member.host:
            containers.remove(service.limits, member.name, seen.number_here(service) - 1)
        elif not self.hosts.remove(seen.now, service.limits, member):
            return
        tell(seen, service, decision.wish, {member.host: -1})

    def _wait(self, why: str) -> None:
        """Nothing is done meanwhile, and quiet times begin anew."""
        self._courses = {}
        self.feed.close()
        self.hosts.forget()
        self._say(why)

    def _say(self, why: str, about: str = "") -> None:
        """Once, until something else is to be said of it."""
        if why != self._said.get(about) and why:
            warn(why)
        self._said[about] = why


def tell(seen: Sight, service: Service, wanted: Wish, change: Mapping[str, int]) -> None:
    """How many there are now; further hosts are named."""
    before = len(seen.crew(service))
    where = "".join(f", {number:+} on {host}" for host, number in change.items() if host)
    say(
        f"  {time.strftime('%H:%M:%S')}  {service.name} {before} → {before + sum(change.values())}"
        f" (wish {wanted.number}: {wanted.reason}){where}"
    )
