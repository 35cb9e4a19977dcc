"""The pictures of the pages: how long each work takes with each executor, and the way of one step."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from bench.figures import Figure, Results
from bench.formatting import milliseconds, seconds
from bench.walk import MILESTONES, PARTS
from bench.works import VARIANT_TITLES, WORKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

#: Their files.
EXECUTORS, STEP = "bench-executors.png", "bench-step.png"
INK, PALE, GRID = "#22303c", "#6b7a87", "#e3e8ec"
COLORS = {
    "stack": "#d9822b",
    "stock": "#3a7ca5",
    "multiprocess": "#7d9aaf",
    "in_process": "#9fb4c3",
    "in_process_here": "#c5d2db",
}
#: One a part of the way, in its order; the run's and the message's parts are the darkest.
PART_COLORS = ("#22303c", "#3a7ca5", "#7fb2cf", "#d9822b", "#efc08a", "#a8562a", "#b9c4cc")
DOTS_PER_INCH = 120


def draw(results: Results) -> dict[str, bytes]:
    """PNGs by their file names."""
    from matplotlib import rc_context

    style: Any = {
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": PALE,
        "xtick.color": PALE,
        "ytick.color": INK,
    }
    with rc_context(style):
        return {
            EXECUTORS: png(draw_executors(results)),
            STEP: png(draw_way(results)),
        }


def draw_executors(results: Results) -> "Drawing":
    """One panel a work, each with its own scale."""
    shown = [work for work in WORKS if results.seconds(work, "stack")]
    drawing = new_drawing(11, 2.1 * ((len(shown) + 1) // 2))
    panels = drawing.subplots((len(shown) + 1) // 2, 2, squeeze=False).flatten()
    for axes, work in zip(panels, shown, strict=False):
        draw_work(axes, work, results)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return drawing


def draw_work(axes: "Axes", work: str, results: Results) -> None:
    found: list[tuple[str, Figure]] = [
        (variant, figure)
        for variant in reversed(VARIANT_TITLES)
        if (figure := results.seconds(work, variant))
    ]
    medians = [figure.median for _, figure in found]
    reach = [
        [figure.median - figure.low for _, figure in found],
        [figure.high - figure.median for _, figure in found],
    ]
    axes.barh(
        range(len(found)), medians, xerr=reach, height=0.7,
        color=[COLORS[variant] for variant, _ in found], error_kw={"ecolor": INK, "elinewidth": 0.9},
    )  # fmt: skip
    for place, (_, figure) in enumerate(found):
        axes.annotate(
            seconds(figure.median), (figure.high, place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(found)), [label(variant) for variant, _ in found])
    # Bars are as thick in every panel.
    axes.set_ylim(len(found) - len(VARIANT_TITLES) - 0.5, len(found) - 0.5)
    axes.set_xlim(0, 1.2 * max(figure.high for _, figure in found))
    finish(axes, WORKS[work].title.replace("`", ""), "seconds")


def draw_way(results: Results) -> "Drawing":
    """Dagster's own way and this stack's, each with its own scale: one is not seen on the other's."""
    drawing = new_drawing(11, 4.4)
    above, below = drawing.subplots(2, 1)
    draw_walks(above, "Before: Dagster's own storages", results, ("stock", "in_process"))
    draw_walks(below, "After: this stack's storages", results, ("stack", "in_process_here"))
    drawing.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return drawing


def draw_walks(axes: "Axes", title: str, results: Results, variants: tuple[str, ...]) -> None:
    """A bar an executor, its parts in the order in which they come."""
    walks = {variant: walk for variant in reversed(variants) if (walk := results.walk(variant))}
    ends = dict.fromkeys(walks, 0.0)
    for name, color in zip(MILESTONES, PART_COLORS, strict=True):
        widths = [1000 * walk.get(name, 0.0) for walk in walks.values()]
        axes.barh(
            range(len(walks)), widths, left=list(ends.values()), height=0.6, color=color, label=PARTS[name]
        )
        ends = {variant: end + width for (variant, end), width in zip(ends.items(), widths, strict=True)}
    for place, end in enumerate(ends.values()):
        axes.annotate(milliseconds(end / 1000), (end, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(walks)), [label(variant) for variant in walks])
    axes.set_xlim(0, 1.1 * max(ends.values(), default=1.0))
    finish(axes, title, "milliseconds")


def label(variant: str) -> str:
    return VARIANT_TITLES[variant].replace(" on this", "\non this")


def new_drawing(width: float, height: float) -> "Drawing":
    # Without pyplot, which keeps global state and looks for a screen.
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=(width, height), layout="constrained", facecolor="white")


def finish(axes: "Axes", title: str, unit: str) -> None:
    """The look that all panels share."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.set_xlabel(unit, loc="right", fontsize=8)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def png(drawing: "Drawing") -> bytes:
    picture = BytesIO()
    drawing.savefig(picture, format="png", dpi=DOTS_PER_INCH)
    return picture.getvalue()
