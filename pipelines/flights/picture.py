"""The report's picture: small multiples of one measure, so that all of them compare."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from pipelines.flights.delays import UNKNOWN, WEATHER, Summary, Totals
from pipelines.flights.source import airline_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, PALE, GRID = "#22303c", "#6b7a87", "#e3e8ec"
BLUE, ORANGE = "#3a7ca5", "#d9822b"

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def draw(summary: Summary, dots_per_inch: int = 130) -> bytes:
    """A PNG of mean departure delays by airline, month, hour and weather."""
    # Without pyplot, which keeps global state and looks for a screen.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": PALE,
        "xtick.color": PALE,
        "ytick.color": PALE,
    }
    with rc_context(style):
        figure = Figure(figsize=(12, 10.5), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, hspace=0.04, wspace=0.03)  # type: ignore[union-attr, call-arg]
        figure.suptitle(
            f"Mean departure delay in minutes · {summary.outcome.used:,} flights",
            x=0.012, ha="left", fontsize=15, fontweight="bold",
        )  # fmt: skip
        panels = figure.subplot_mosaic(
            [["airline", "airline", "airline", "month", "month", "month"],
             ["airline", "airline", "airline", "hour", "hour", "hour"],
             ["day"] * 6,
             ["wind", "wind", "visibility", "visibility", "rain", "rain"]],
            height_ratios=[1, 1, 0.8, 1],
        )  # fmt: skip
        draw_airlines(panels["airline"], flown(summary, "airline"))
        months = flown(summary, "month")
        draw_bars(panels["month"], "By month", [MONTHS[int(month[-2:]) - 1] for month in months], months)
        hours = flown(summary, "hour")
        draw_bars(panels["hour"], "By scheduled hour of departure", [str(int(hour)) for hour in hours], hours)
        draw_days(panels["day"], flown(summary, "day"))
        for name, scale in WEATHER.items():
            classes = flown(summary, name)
            draw_bars(panels[name], scale.title, [scale.label(key) for key in classes], classes, ORANGE)
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=dots_per_inch)
    return picture.getvalue()


def flown(summary: Summary, dimension: str) -> dict[str, Totals]:
    """A dimension's totals where there is a delay to draw, and a place to draw it."""
    return {key: totals for key, totals in summary.by(dimension).items() if totals.used and key != UNKNOWN}


def draw_airlines(axes: "Axes", airlines: dict[str, Totals]) -> None:
    """Horizontal bars, the longest delay on top, since names are long."""
    ranked = sorted(((totals.mean_departure_delay, code) for code, totals in airlines.items()))
    names = [airline_names().get(code, code) for _, code in ranked]
    delays = [delay for delay, _ in ranked]
    bars = axes.barh(range(len(ranked)), delays, color=BLUE, height=0.72)
    axes.bar_label(bars, fmt="%.1f", padding=3, color=INK, fontsize=8.5)
    axes.set_yticks(range(len(ranked)), names)
    axes.margins(x=0.12, y=0.02)
    finish(axes, "By airline", "x")


def draw_bars(
    axes: "Axes", title: str, labels: list[str], totals: dict[str, Totals], color: str = BLUE
) -> None:
    """Upright bars, one for each of the totals."""
    places = range(len(labels))
    bars = axes.bar(
        places, [total.mean_departure_delay for total in totals.values()], color=color, width=0.72
    )
    axes.bar_label(bars, fmt="%.0f", padding=2, color=INK, fontsize=8)
    axes.set_xticks(places, labels)
    axes.margins(x=0.02, y=0.12)
    finish(axes, title, "y")


def draw_days(axes: "Axes", days: dict[str, Totals]) -> None:
    """A line over the days: storms and holidays."""
    from datetime import date

    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

    places = [float(date2num(date.fromisoformat(day))) for day in days]  # type: ignore[no-untyped-call]
    delays = [totals.mean_departure_delay for totals in days.values()]
    axes.fill_between(places, delays, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(places, delays, color=BLUE, linewidth=1.2)
    locator = AutoDateLocator(minticks=3, maxticks=14)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.margins(x=0.005)
    finish(axes, "By day", "y")


def finish(axes: "Axes", title: str, grid: str) -> None:
    """The look that all panels share."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.grid(axis="x" if grid == "x" else "y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    if not axes.has_data() or not (axes.patches or axes.lines):
        axes.text(0.5, 0.5, "no flights", transform=axes.transAxes, ha="center", color=PALE)
