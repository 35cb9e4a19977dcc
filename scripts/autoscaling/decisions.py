"""How many workers there should be, and which one goes: decisions alone, without an engine or a clock of their own.

Up at once. Down after a quiet time, one at a time, and never one that works: who is to go rests first (`rest` of
dagster_stack/worker/respite.py), and goes when it says that it holds nothing and gets nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scripts.autoscaling.limits import Limits

#: Seconds for which a worker is told to rest. It is told again and again; when nobody does it takes work again.
REST_SECS = 30
#: Seconds of rest that must be left when its container is stopped.
LEFT_SECS = 15


@dataclass(frozen=True)
class Wish:
    """A number of workers, and what it comes from: a word of a few, since it is a label of a metric."""

    number: int
    reason: str


@dataclass(frozen=True)
class Seen:
    """A worker that answered: its container's id, the messages that it holds, the seconds for which it gets no other."""

    container: str
    name: str
    held: int | None
    rests: float


@dataclass(frozen=True)
class Decision:
    """What to do now: workers up to a number, rest for some by name (0: no more), or a container that goes, by its id."""

    wish: Wish
    up_to: int | None = None
    rest: Mapping[str, float] = field(default_factory=dict)
    remove: str | None = None


def needed(messages: int, concurrency: int) -> int:
    """Workers that have all these messages, waiting or in work, at once."""
    return math.ceil(messages / concurrency)


def wish(limits: Limits, number: int, running: int, connections: int, memory: int) -> Wish:
    """As many workers as are needed, within the limits, and those for which connections and memory are left beyond those that run.
    The fewest need no free memory."""
    found = Wish(number, "work")
    if number > limits.most:
        found = Wish(limits.most, "maximum")
    elif number < limits.least:
        found = Wish(limits.least, "minimum")
    allowed = {
        "connections": running + max(connections, 0),
        "memory": max(running + max(memory, 0), limits.least),
    }
    for reason, most in allowed.items():
        if found.number > most:
            found = Wish(most, reason)
    return found


class Course:
    """The decisions on one service, from one look to the next."""

    def __init__(self, cooldown: float) -> None:
        self.cooldown = cooldown
        self._lower_since: float | None = None
        #: Who is to go.
        self._chosen: str | None = None

    def needs_answers(self, now: float) -> bool:
        """Whether the next decision takes what the workers themselves say."""
        return self._lower_since is not None and now - self._lower_since >= self.cooldown

    def decide(
        self, now: float, wanted: Wish, running: int, begin: int = 1, crew: Sequence[Seen] | None = None
    ) -> Decision:
        """`begin`: how many may begin now. `crew`: the workers that answered, where they were asked; one that did not can't be
        chosen."""
        if wanted.number >= running:
            back = {self._chosen: 0.0} if self._chosen else {}
            self._lower_since = self._chosen = None
            number = min(wanted.number, running + max(begin, 0))
            return Decision(wanted, number if number > running else None, back)
        if self._lower_since is None:
            self._lower_since = now
        if crew is None or not self.needs_answers(now):
            return Decision(Wish(wanted.number, "quiet time"))
        candidates = [each for each in crew if each.held is not None]
        if not candidates:
            return Decision(Wish(wanted.number, "no answer"))
        # Who has the least to do, then who rests already.
        going = min(
            candidates, key=lambda each: (each.held, each.name != self._chosen, not each.rests, each.name)
        )
        rest: dict[str, float] = {going.name: REST_SECS}
        if self._chosen not in (None, going.name):
            rest[str(self._chosen)] = 0
        self._chosen = going.name
        if going.held == 0 and going.rests >= LEFT_SECS:
            self._chosen = None
            return Decision(Wish(wanted.number, "going down"), rest=rest, remove=going.container)
        return Decision(Wish(wanted.number, "ends its work" if going.held else "going down"), rest=rest)
