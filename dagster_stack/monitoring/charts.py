"""Lines over time as SVG, drawn here: no script, nothing to load, and colours that a style sheet gives."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

#: Units of the drawing: about the pixels of a phone's width, so that its text is readable there.
WIDTH, HEIGHT = 360, 160
#: On the left there is room for `1 min 20 s`.
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 10, 22
#: Lines of one chart; the style sheet has a colour and a dash for each.
LINES = 8
#: Steps without a value after which a line is broken.
GAP_STEPS = 1.5
#: What a scale may end at, times a power of ten: halves of these are round too.
ROUND = (1, 2, 4, 6, 8, 10)
#: How many parts the time axis has, by its hours.
PARTS = {1: 4, 6: 3, 24: 4}

Words = Callable[[float], str]


@dataclass(frozen=True)
class Window:
    """The time that a chart shows, in seconds since 1970, and the seconds between two points."""

    start: float
    end: float
    step: float

    @property
    def hours(self) -> float:
        return (self.end - self.start) / 3600


@dataclass(frozen=True)
class Line:
    """One line: its name, and values by time, NaN where there is none."""

    name: str
    points: Sequence[tuple[float, float]]

    @property
    def values(self) -> list[float]:
        return [value for _, value in self.points if math.isfinite(value)]


@dataclass(frozen=True)
class Chart:
    """A chart's texts, how its figures read, and its lines: what chart.html draws. `key` is unique on the page."""

    key: str
    title: str
    description: str
    words: Words
    lines: Sequence[Line]
    window: Window

    width, height, left, right = WIDTH, HEIGHT, LEFT, WIDTH - RIGHT

    @cached_property
    def shown(self) -> list[Line]:
        """Those that have values, and of too many the ones that reach highest; in the order given."""
        filled = [line for line in self.lines if line.values]
        highest = sorted(filled, key=lambda line: -max(line.values))[:LINES]
        return [line for line in filled if line in highest]

    @cached_property
    def top(self) -> float:
        return ceiling(max(value for line in self.shown for value in line.values))

    @property
    def summary(self) -> str:
        return "; ".join(
            f"{line.name}: {self.words(line.values[-1])} at the end, at most {self.words(max(line.values))}"
            for line in self.shown
        )

    @property
    def scale(self) -> Iterator[tuple[str, str]]:
        """Its grid, from below: heights and words."""
        for value in (0.0, self.top / 2, self.top):
            yield f"{across(value, 0, self.top, HEIGHT - BOTTOM, TOP):.1f}", self.words(value)

    @property
    def times(self) -> Iterator[tuple[str, str]]:
        """Its time axis: places and words."""
        parts = PARTS.get(round(self.window.hours), 4)
        for part in range(parts + 1):
            x = LEFT + (WIDTH - LEFT - RIGHT) * part / parts
            yield f"{x:.1f}", ago(self.window.hours * (1 - part / parts))

    def outline(self, line: Line) -> str:
        """The path of a line: a stroke for each stretch without a gap, a dot where one is a single point."""
        parts: list[str] = []
        last: float | None = None
        for at, value in line.points:
            if not math.isfinite(value):
                continue
            x = across(at, self.window.start, self.window.end, LEFT, WIDTH - RIGHT)
            y = across(value, 0, self.top, HEIGHT - BOTTOM, TOP)
            joined = last is not None and at - last <= GAP_STEPS * self.window.step
            # A stroke of no length with round ends is a dot.
            parts.append(f"L{x:.1f} {y:.1f}" if joined else f"M{x:.1f} {y:.1f}h0")
            last = at
        return "".join(parts)


def across(value: float, low: float, high: float, begin: float, end: float) -> float:
    """Where a value between two others lies between two places; never outside of them."""
    part = min(max((value - low) / (high - low), 0.0), 1.0)
    return begin + (end - begin) * part


def ceiling(value: float) -> float:
    """A round number that is at least the value, and above 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in ROUND if factor * power >= value * (1 - 1e-9))


def ago(hours: float) -> str:
    """`now`, `−15 min`, `−6 h`."""
    if not round(hours * 60):
        return "now"
    return f"−{hours * 60:.0f} min" if hours <= 1 else f"−{hours:g} h"
