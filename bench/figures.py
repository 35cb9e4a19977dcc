"""Figures from samples: medians, spreads and ratios, and which goal they meet. Needs nothing but Python."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from bench.walk import mean_walk
from bench.works import CHAIN, WORKS

MB = 1_000_000


@dataclass(frozen=True)
class Figure:
    """What several measurements of the same thing say."""

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Iterable[float]) -> "Figure | None":
        """None without a value."""
        found = sorted(values)
        return Figure(median(found), found[0], found[-1], len(found)) if found else None


@dataclass(frozen=True)
class Results:
    """All that one `make bench` measured, as JSON carries it."""

    content: Mapping[str, Any]

    @cached_property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        return list(self.content.get("samples", ()))

    def samples_of(self, work: str, variant: str) -> list[Mapping[str, Any]]:
        return [each for each in self.samples if (each["work"], each["variant"]) == (work, variant)]

    def seconds(self, work: str, variant: str) -> Figure | None:
        """From a run's start to its success."""
        return Figure.of(each["seconds"] for each in self.samples_of(work, variant))

    def working_seconds(self, work: str, variant: str) -> Figure | None:
        """From the start of a run's first step to its success."""
        return Figure.of(each["seconds"] - each["first_step"] for each in self.samples_of(work, variant))

    def transfer(self, way: str, *parts: str) -> Figure | None:
        """The sum of these parts of a transfer, such as `put` and `get`."""
        return Figure.of(
            sum(each[part] for part in parts)
            for each in self.content.get("transfers", ())
            if each["way"] == way
        )

    def launch(self, variant: str) -> Figure | None:
        """Seconds from the answer to a launch to the start of the first step."""
        return Figure.of(
            each["first_step"] for each in self.content.get("launches", ()) if each["variant"] == variant
        )

    def backfill(self, variant: str) -> Figure | None:
        """Runs a second, from the submission of a backfill to the end of its last run."""
        return Figure.of(
            each["runs"] / each["seconds"]
            for each in self.content.get("backfills", ())
            if each["variant"] == variant
        )

    def ratio(self, work: str, variant: str, to: str) -> float | None:
        """How many times the other one's median a variant's is."""
        mine, other = self.seconds(work, variant), self.seconds(work, to)
        return mine.median / other.median if mine and other else None

    def step(self, work: str, variant: str) -> float | None:
        """A run's seconds divided by its steps."""
        figure = self.seconds(work, variant)
        return figure.median / WORKS[work].steps if figure else None

    def walk(self, variant: str) -> dict[str, float]:
        """The parts of the way from one step's success to the next one's; empty when it was not measured."""
        return mean_walk(each["walk"] for each in self.samples_of(CHAIN, variant))


def possible_speed_up(steps: Mapping[str, float], parallel: str, processes: int) -> float:
    """How many times faster processes can be when only steps with this prefix are parallel (Amdahl's law)."""
    whole = sum(steps.values())
    divided = sum(seconds for step, seconds in steps.items() if step.startswith(parallel))
    return whole / (whole - divided + divided / processes)
