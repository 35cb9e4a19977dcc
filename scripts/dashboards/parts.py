"""What the dashboards are made of: each panel is a title, what it shows, a unit, and queries by the names of lines."""

from collections.abc import Iterable, Mapping

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

#: As docker/grafana/provisioning/datasources names it.
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
#: What all of them carry, and find each other by.
TAG = "dagster-celery-stack"
#: Of the 24 columns of a dashboard, and its rows.
CHART_WIDTH, CHART_HEIGHT = 8, 8
STAT_WIDTH, STAT_HEIGHT = 4, 4
#: Grafana's number for a variable of this kind, in its Prometheus source.
LABEL_VALUES = 1

Panel = timeseries.Panel | stat.Panel


def board(
    uid: str,
    title: str,
    description: str,
    parts: Iterable[dashboard.Row | Panel],
    choices: Iterable[dashboard.QueryVariable] = (),
) -> dashboard.Dashboard:
    """A dashboard of the last hour, with links to the others; its panels lie in the order given."""
    others = dashboard.DashboardLink("Dagster Celery stack").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .link(others.as_dropdown(False).keep_time(True).include_vars(True))
        .refresh("15s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
    )
    for variable in choices:
        made = made.with_variable(variable)
    for number, part in enumerate(parts, start=1):
        if isinstance(part, dashboard.Row):
            made = made.with_row(part.id(number))
        else:
            made = made.with_panel(part.id(number))
    return made


def choice(label: str, metric: str) -> dashboard.QueryVariable:
    """A variable with the values that a metric's label has: all of them at first."""
    query = f"label_values({metric}, {label})"
    return (
        dashboard.QueryVariable(label)
        .label(label)
        .datasource(SOURCE)
        .definition(query)
        .query({"qryType": LABEL_VALUES, "query": query, "refId": label})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def row(title: str) -> dashboard.Row:
    return dashboard.Row(title)


def chart(
    title: str,
    description: str,
    unit: str,
    queries: Mapping[str, str],
    *,
    width: int = CHART_WIDTH,
    high: float | None = None,
) -> timeseries.Panel:
    """Lines over time; a query's name may hold labels as Grafana writes them (`{{queue}}`)."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(width)
        .height(CHART_HEIGHT)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .fill_opacity(10)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if high is not None:
        panel = panel.max(high)
    for number, (name, expression) in enumerate(queries.items()):
        panel = panel.with_target(ask(expression).legend_format(name).range().ref_id(chr(ord("A") + number)))
    return panel


def figure(
    title: str, description: str, unit: str, expression: str, *, warning: float, critical: float
) -> stat.Panel:
    """One figure of now with a colour: yellow from `warning`, red from `critical`."""
    steps = [Threshold(None, "green"), Threshold(warning, "yellow"), Threshold(critical, "red")]
    if warning == critical:
        del steps[1]
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(STAT_WIDTH)
        .height(STAT_HEIGHT)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(ask(expression).instant().ref_id("A"))
    )


def ask(expression: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().datasource(SOURCE).expr(expression)


# --- PromQL that returns more than once ------------------------------------------------------------------


#: Runs by status; a status without a run has no series of its own in `dagster_runs`.
RUNS = "sum by (status) (dagster_runs) or 0 * sum by (status) (dagster_run_state_oldest_seconds)"


def or_0(expression: str) -> str:
    """A 0 where a healthy or idle stack has no series at all; `on()` keeps it away where there is one."""
    return f"{expression} or on() vector(0)"


def quantile(part: float, histogram: str, *labels: str, where: str = "") -> str:
    """A quantile of what was observed in a while; nothing (NaN) while nothing is."""
    by = ", ".join(("le", *labels))
    return f"histogram_quantile({part}, sum by ({by}) (rate({histogram}_bucket{where}[$__rate_interval])))"


def rate(counter: str, *labels: str, where: str = "") -> str:
    """How often in a second, by labels; 0 before it happened for the first time."""
    return or_0(f"sum by ({', '.join(labels)}) (rate({counter}{where}[$__rate_interval]))")
