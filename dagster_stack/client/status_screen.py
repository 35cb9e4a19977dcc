"""How a snapshot looks on a terminal: what matters most comes first, as what does not fit is cut at the end."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dagster_stack.client.display import one_line, printable
from dagster_stack.monitoring.formatting import counted, number, percent, seconds, size
from dagster_stack.monitoring.snapshot import DAEMON_SILENCE_SECS, Alerting, Queue, Snapshot, Verdict
from dagster_stack.timing import STALE_SECS

STYLES = {Verdict.WELL: "bold green", Verdict.UNWELL: "bold red", Verdict.UNKNOWN: "bold yellow"}
#: Problems and alerts that are shown in full; the rest is counted.
SHOWN_ALARMS = 6
#: Characters of a code's hash: enough to tell two apart.
SHORT_CODE = 8
#: Cells of the bar of connections.
BAR_WIDTH = 20


@dataclass(frozen=True)
class Screen:
    """A snapshot to print; `fitted` cuts it to the height of the terminal, with a line that says so."""

    snapshot: Snapshot
    fitted: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Group(*self._parts()), options.update(height=None), pad=False)
        height = options.height or options.max_height
        if self.fitted and len(lines) > height:
            hidden = len(lines) - height + 1
            lines = lines[: height - 1]
            note = one_line(f"… {hidden} more lines: a higher window shows them", "dim")
            lines += console.render_lines(note, options.update(height=None), pad=False)
        for index, line in enumerate(lines):
            yield from line
            if index < len(lines) - 1 or not self.fitted:
                yield Segment.line()

    def _parts(self) -> Iterator[RenderableType]:
        snapshot = self.snapshot
        top = Table.grid(expand=True)
        top.add_column(ratio=1)
        top.add_column(justify="right", no_wrap=True)
        top.add_row(
            Text(printable(snapshot.headline), style=STYLES[snapshot.verdict]),
            Text(f" {datetime.fromtimestamp(snapshot.at, UTC):%H:%M:%S} UTC", style="dim"),
        )
        yield top
        yield from alarms(snapshot)
        for note in snapshot.notes:
            yield Text(printable(note), style="dim")
        yield Text("")
        if snapshot.queues:
            yield queues(snapshot)
            yield Text("")
        yield facts(snapshot)


def alarms(snapshot: Snapshot) -> Iterator[Text]:
    """One line for each thing that is wrong."""
    lines = [*snapshot.problems]
    for alert in snapshot.alerts.firing:
        severity = f" ({alert.severity})" if alert.severity else ""
        lines.append(f"{alert.name}{severity}: {alert.summary}")
    for line in lines[:SHOWN_ALARMS]:
        yield Text(printable(f"! {line}"), style="red")
    if len(lines) > SHOWN_ALARMS:
        yield Text(f"! and {len(lines) - SHOWN_ALARMS} more", style="red")


def queues(snapshot: Snapshot) -> Table:
    """Steps, messages and workers of each queue."""
    content = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    # Names give way on a narrow terminal, figures never: half a number is a wrong one.
    content.add_column("QUEUE", overflow="fold")
    for title in ("WAITING", "OLDEST", "RUNNING", "READY", "HELD", "WORKERS", "BUSY"):
        content.add_column(title, justify="right", no_wrap=True)
    content.add_column("CODE", overflow="fold")
    for queue in snapshot.queues:
        content.add_row(
            Text(printable(queue.name), style="red" if queue.problem else ""),
            number(queue.waiting),
            queue.oldest,
            number(queue.running),
            number(queue.ready),
            number(queue.in_flight),
            number(queue.consumers),
            percent(queue.utilisation),
            codes(queue, snapshot.code),
        )
    return content


def codes(queue: Queue, ours: str | None) -> Text:
    """The workers' code, and how many have another one than the deployment's."""
    if queue.workers is None:
        return Text("?")
    shown = sorted((code for code, count in queue.workers.items() if count), key=lambda code: code != ours)
    if not shown:
        return Text("-")
    others = sum(queue.workers[code] for code in shown[1:])
    words = f"{printable(shown[0])[:SHORT_CODE]}{f' +{number(others)}' if others else ''}"
    return Text(words, style="red" if ours and set(shown) - {ours} else "")


def facts(snapshot: Snapshot) -> Table:
    """The rest, a line each: its name, then figures."""
    runs, stores = snapshot.runs, snapshot.stores
    content = Table.grid(padding=(0, 2, 0, 0))
    content.add_column(style="bold", no_wrap=True)
    content.add_column(overflow="fold")
    by_status = runs.by_status
    states = (
        "?" if by_status is None else ", ".join(f"{number(n)} {status}" for status, n in by_status.items())
    )
    content.add_row("RUNS", Text(printable(states or "none in progress")))
    waiting = f", the oldest for {seconds(runs.queue_oldest_seconds)}" if runs.queue_length else ""
    content.add_row("RUN QUEUE", f"{number(runs.queue_length)}{waiting}")
    content.add_row("DAEMONS", daemons(snapshot))
    if snapshot.autoscale:
        content.add_row("AUTOSCALE", Text(printable(autoscale(snapshot))))
    if snapshot.hosts:
        told = ", ".join(f"{host} {counted(count, 'worker')}" for host, count in snapshot.hosts.items())
        content.add_row("HOSTS", Text(printable(told)))
    content.add_row("POSTGRES", connections(snapshot))
    content.add_row("EVENT LOG", f"{number(stores.event_log_rows)} rows, {size(stores.event_log_bytes)}")
    content.add_row("BUCKET", f"{size(stores.bucket_bytes)} in {number(stores.bucket_objects)} objects")
    if stores.retention_age_seconds is not None:
        freed = f"{number(stores.retention_rows)} rows, {size(stores.retention_bytes)} freed"
        content.add_row("RETENTION", f"{freed}, {seconds(stores.retention_age_seconds)} ago")
    content.add_row("CODE", Text(printable(snapshot.code or "?")))
    content.add_row("ALERTS", alerting(snapshot))
    return content


def daemons(snapshot: Snapshot) -> Text:
    if not snapshot.daemons:
        return Text("?" if snapshot.daemons is None else "none")
    content = Text()
    for name, age in snapshot.daemons.items():
        words = f"{printable(name).lower()} {seconds(age)}"
        content.append(", " if content else "").append(
            words, style="red" if age > DAEMON_SILENCE_SECS else ""
        )
    for name, age in (snapshot.leader or {}).items():
        content.append(f"; {printable(name)} leads", style="red" if age > STALE_SECS else "")
    return content


def autoscale(snapshot: Snapshot) -> str:
    return ", ".join(
        f"{number(each.running)} {each.service} of {number(each.least)} to {number(each.most)}"
        f" (wish {number(each.wish)}: {each.reason or '?'})"
        for each in snapshot.autoscale
    )


def connections(snapshot: Snapshot) -> RenderableType:
    used, limit = snapshot.stores.database_connections, snapshot.stores.database_connections_limit
    words = f"{number(used)} of {number(limit)} connections"
    if used is None or not limit:
        return words
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(words, ProgressBar(total=limit, completed=min(used, limit), width=BAR_WIDTH))
    return grid


def alerting(snapshot: Snapshot) -> Text:
    alerts = snapshot.alerts
    if alerts.state is Alerting.OFF:
        return Text("`make monitoring` switches them on", style="dim")
    if alerts.state is Alerting.AWAY:
        return Text(printable(alerts.complaint), style="yellow")
    return Text(f"{number(len(alerts.firing))} firing" if alerts.firing else "none")
