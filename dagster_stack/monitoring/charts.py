"""Lines over time as SVG, drawn here: no script, nothing to load, and colours that a style sheet gives."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from dagster_stack.monitoring.html import element

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


def chart(
    key: str, title: str, description: str, lines: Sequence[Line], *, window: Window, words: Words
) -> Element:
    """A figure with its drawing and its legend. `key` is unique on the page."""
    shown = busiest(lines)
    figure = element("figure", element("figcaption", element("h3", title), element("p", description)))
    if not shown:
        figure.append(element("p", "No figures in this time.", class_="empty"))
        return figure
    figure.append(drawing(key, title, shown, window, words))
    legend = element("ul", class_="legend")
    for index, line in enumerate(shown):
        sample = element(
            "svg", element("line", x1=0, y1=5, x2=24, y2=5, class_=f"line s{index}"),
            viewBox="0 0 24 10", width=24, height=10, aria_hidden="true",
        )  # fmt: skip
        legend.append(element("li", sample, f" {line.name}: ", element("b", words(line.values[-1]))))
    if len(lines) > len(shown):
        legend.append(element("li", f"and {len(lines) - len(shown)} more"))
    figure.append(legend)
    return figure


def busiest(lines: Sequence[Line]) -> list[Line]:
    """Those that have values, and of too many the ones that reach highest; in the order given."""
    filled = [line for line in lines if line.values]
    highest = sorted(filled, key=lambda line: -max(line.values))[:LINES]
    return [line for line in filled if line in highest]


def drawing(key: str, title: str, lines: Sequence[Line], window: Window, words: Words) -> Element:
    top = ceiling(max(value for line in lines for value in line.values))
    summary = "; ".join(
        f"{line.name}: {words(line.values[-1])} at the end, at most {words(max(line.values))}"
        for line in lines
    )
    svg = element(
        "svg", element("title", title, id=f"{key}-title"), element("desc", summary, id=f"{key}-desc"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_labelledby=f"{key}-title {key}-desc",
    )  # fmt: skip
    for value in (0.0, top / 2, top):
        y = f"{across(value, 0, top, HEIGHT - BOTTOM, TOP):.1f}"
        svg.append(element("line", x1=LEFT, y1=y, x2=WIDTH - RIGHT, y2=y, class_="grid"))
        svg.append(element("text", words(value), x=LEFT - 6, y=y, dy="0.32em", text_anchor="end"))
    parts = PARTS.get(round(window.hours), 4)
    for part in range(parts + 1):
        x = LEFT + (WIDTH - LEFT - RIGHT) * part / parts
        text = ago(window.hours * (1 - part / parts))
        svg.append(element("text", text, x=f"{x:.1f}", y=HEIGHT - 6, text_anchor="middle"))
    for index, line in enumerate(lines):
        path = element(
            "path", element("title", line.name), d=outline(line, window, top), class_=f"line s{index}"
        )
        svg.append(path)
    return svg


def outline(line: Line, window: Window, top: float) -> str:
    """The path of a line: a stroke for each stretch without a gap, a dot where one is a single point."""
    parts: list[str] = []
    last: float | None = None
    for at, value in line.points:
        if not math.isfinite(value):
            continue
        x = across(at, window.start, window.end, LEFT, WIDTH - RIGHT)
        y = across(value, 0, top, HEIGHT - BOTTOM, TOP)
        joined = last is not None and at - last <= GAP_STEPS * window.step
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
