"""`make autoscale`: as many workers as there is work, between the numbers of AUTOSCALE in `.env`, until Ctrl-C.

It runs on the host, which alone may start containers. All that it knows it asks again each second, and what it tells a worker
lapses by itself: killed at any moment it leaves a stack that works on with the workers that it has.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from scripts import (
    compose,
    connections,
    env_file,
    systemd_unit,
    turns,
    unfinished,
    worker_crew,
    worker_limits,
)
from scripts.console import Failure, main, say, warn
from scripts.worker_crew import Member
from scripts.worker_feed import Feed
from scripts.worker_limits import Service
from scripts.worker_wish import Course, Decision, Seen, Wish, begin_at_once, needed, wish

NAME = "make autoscale"
COOLDOWN, COOLDOWN_SECS = "AUTOSCALE_COOLDOWN", 300
#: Seconds between two looks, and after one that failed.
LOOK_SECS, PAUSE_SECS = 1, 10
#: Seconds after which the figures are noted again, though nothing changed: older than a minute they count as nobody's.
NOTE_SECS = 20
#: Seconds after which the memory that a new worker takes is no longer among what is free.
FRESH_SECS = 60


def autoscale() -> None:
    compose.require_env_file()
    services = worker_limits.services()
    if os.environ.get("UNIT"):
        systemd_unit.write()
        return
    turns.hold("autoscale", f"process {os.getpid()}", f"`{NAME}` runs already ({{holder}}).")
    # `kill` ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for service in services:
        limits = service.limits
        say(f"  {service.name}: {limits.least} to {limits.most}, for the work in {', '.join(service.queues)}")
    controller = Controller(Feed())
    try:
        while True:
            time.sleep(controller.look(time.monotonic()))
    except KeyboardInterrupt:
        say("\n  ended: the workers stay as they are")
    finally:
        controller.feed.close()


class Controller:
    """One look after the other. What it keeps between them it could do without."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self._courses: dict[str, Course] = {}
        self._noted: tuple[float, dict[str, Any]] = (0.0, {})
        self._fresh: list[tuple[float, int]] = []
        self._said = ""

    def look(self, now: float) -> float:
        """Do what is to be done now; gives the seconds until the next look."""
        try:
            with turns.turn_if_free(NAME) as other:
                if other:
                    # Its container would be in the way: of a network, or with a former login.
                    self._wait(f"waits until `{other}` ends")
                else:
                    unfinished.require_none()
                    self._act(now)
        except Failure as failure:
            self._wait(str(failure))
            return PAUSE_SECS
        return LOOK_SECS

    def _act(self, now: float) -> None:
        found = worker_crew.members()
        if not worker_crew.is_up(found):
            self._wait("waits until the stack is up")
            return
        services = worker_limits.services()
        cooldown = env_file.number(COOLDOWN, COOLDOWN_SECS)
        courses = {each.name: self._courses.get(each.name) or Course(cooldown) for each in services}
        for course in courses.values():
            course.cooldown = cooldown
        self._courses = courses
        running = {
            each.name: [m for m in found if m.service == each.name and m.is_running] for each in services
        }
        answer = self.feed.ask({"workers": any(course.needs_answers(now) for course in courses.values())})
        self._say("")
        begin = begin_at_once(answer["processors"]) - sum(each.is_beginning for each in found)
        note: dict[str, Any] = {}
        rest: dict[str, float] = {}
        for service in services:
            crew = running[service.name]
            wanted = self._wish(
                now, service, answer, services, {name: len(each) for name, each in running.items()}
            )
            seen = seen_of(crew, answer["workers"]) if "workers" in answer else None
            decision = courses[service.name].decide(now, wanted, len(crew), begin, seen)
            begin -= max(0, (decision.up_to or 0) - len(crew))
            rest |= decision.rest
            note[service.name] = {"wish": decision.wish.number, "running": len(crew), "reason": decision.wish.reason,
                                  "least": service.limits.least, "most": service.limits.most}  # fmt: skip
            self._carry_out(now, service, decision, crew, found)
        if note != self._noted[1] or now - self._noted[0] > NOTE_SECS:
            self._noted = (now, note)
            self.feed.ask({"rest": rest, "note": note})
        elif rest:
            self.feed.ask({"rest": rest})

    def _wish(
        self,
        now: float,
        service: Service,
        answer: Mapping[str, Any],
        services: Sequence[Service],
        running: Mapping[str, int],
    ) -> Wish:
        depths = [answer["queues"].get(queue, {}) for queue in service.queues]
        messages = sum(depth.get("ready", 0) + depth.get("in_work", 0) for depth in depths)
        rooms = {"connections": connections.room(processes(services, running)) // service.concurrency}
        if service.memory:
            self._fresh = [(at, size) for at, size in self._fresh if now - at < FRESH_SECS]
            rooms["memory"] = (answer["memory"] - sum(size for _, size in self._fresh)) // service.memory
        return wish(service.limits, needed(messages, service.concurrency), running[service.name], rooms)

    def _carry_out(
        self, now: float, service: Service, decision: Decision, crew: Sequence[Member], found: list[Member]
    ) -> None:
        if decision.up_to:
            worker_crew.raise_to(service.limits, decision.up_to)
            self._fresh.append((now, service.memory * (decision.up_to - len(crew))))
            tell(service, len(crew), decision.up_to, decision.wish)
            return
        worker_crew.remove_ended(service.limits, found)
        if decision.remove:
            worker_crew.remove(service.limits, decision.remove, len(crew) - 1)
            tell(service, len(crew), len(crew) - 1, decision.wish)

    def _wait(self, why: str) -> None:
        """Nothing is done meanwhile, and quiet times begin anew."""
        self._courses = {}
        self.feed.close()
        self._say(why)

    def _say(self, why: str) -> None:
        if why != self._said and why:
            warn(why)
        self._said = why


def seen_of(crew: Sequence[Member], answers: Sequence[Mapping[str, Any]]) -> list[Seen]:
    """The workers of a service that answered, with their containers."""
    return [
        Seen(member.name, each["name"], each["held"], each["rests"])
        for member in crew
        for each in answers
        if member.is_of(each["name"])
    ]


def processes(services: Sequence[Service], running: Mapping[str, int]) -> int:
    """Worker processes that there are, and those of services that are not scaled."""
    found = sum(running[each.name] * each.concurrency for each in services)
    if "worker" not in running:
        found += env_file.number("WORKERS", 2) * env_file.number("WORKER_CONCURRENCY", 1)
    if "worker-heavy" not in running:
        found += env_file.number("HEAVY_WORKERS", 1)
    return found


def tell(service: Service, before: int, after: int, wanted: Wish) -> None:
    say(
        f"  {time.strftime('%H:%M:%S')}  {service.name} {before} → {after} (wish {wanted.number}: {wanted.reason})"
    )


if __name__ == "__main__":
    main(autoscale)
