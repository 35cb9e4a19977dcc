"""Is all well? What is running? What waits, and why?"""

from grafana_foundation_sdk.builders import dashboard as grafana

from scripts.dashboards.parts import RUNS, board, chart, figure, or_0, rate, row

#: Queues in which messages are ready and that nobody takes from.
DESERTED = (
    'sum by (queue) (dagster_queue_messages{state="ready"}) > 0'
    " unless on(queue) sum by (queue) (dagster_queue_consumers) > 0"
    ' unless on(queue) sum by (queue) (dagster_worker_processes{state="busy"}) > 0'
)


def dashboard() -> grafana.Dashboard:
    return board("dagster-overview", "Overview", "Is all well, what is running, what waits and why.", [
        row("Is all well?"),
        figure(
            "Alerts", "Rules of Prometheus that are fulfilled; docs/monitoring.md has a page for each.", "none",
            or_0('count(ALERTS{alertstate="firing"})'), warning=1, critical=1,
        ),
        figure(
            "Not answering", "Services that Prometheus asks for figures and that don't give any.", "none",
            or_0("count(up == 0)"), warning=1, critical=1,
        ),
        figure(
            "Deserted queues", "Queues with messages in them and no worker. Cure: `make workers`, then `make scale`.",
            "none", or_0(f"count({DESERTED})"), warning=1, critical=1,
        ),
        figure(
            "Silent daemons", "Dagster daemons without a sign of life for 3 minutes: schedules, sensors or the run queue stand still.",
            "none", or_0("count(dagster_daemon_heartbeat_age_seconds > 180)"), warning=1, critical=1,
        ),
        figure(
            "Workers with other code", "They hand back the steps of runs that belong to this deployment's code. Cure: `make deploy`.",
            "none", or_0("sum(dagster_workers unless on(code) dagster_code)"), warning=1, critical=1,
        ),
        figure(
            "Database connections", "In use, of those that Postgres has to give. Cure: POSTGRES_MAX_CONNECTIONS.", "percentunit",
            "sum(dagster_database_connections) / max(dagster_database_connections_limit)", warning=0.8, critical=0.9,
        ),
        row("What is running"),
        chart("Runs in progress", "By status.", "short", {"{{status}}": RUNS}),
        chart(
            "Steps running", "Started and not ended, by queue.", "short",
            {"{{queue}}": or_0('sum by (queue) (dagster_steps{state="running"})')},
        ),
        chart(
            "Utilisation", "Busy worker processes of all, by queue: at 100 % more workers would help.", "percentunit",
            {"{{queue}}": or_0("max by (queue) (dagster_queue_utilisation)")}, high=1,
        ),
        chart("Steps ended", "Attempts a second, by outcome.", "ops", {"{{outcome}}": rate("dagster_steps_ended_total", "outcome")}),
        chart("Runs ended", "Runs a second, by status.", "ops", {"{{status}}": rate("dagster_runs_ended_total", "status")}),
        chart(
            "Workers", "By queue and code.", "short",
            {"{{queue}} {{code}}": or_0("sum by (queue, code) (dagster_workers)")},
        ),
        row("What waits, and why"),
        chart(
            "Run queue", "Runs that wait for a place: RUNNERS x RUNNER_CONCURRENCY, or a limit of their tags.", "short",
            {"waiting": "sum(dagster_run_queue_length)"},
        ),
        chart(
            "Longest in a state", "Since the run that is longest in it last changed. Long in STARTING: no runner takes it.", "s",
            {"{{status}}": "max by (status) (dagster_run_state_oldest_seconds)"},
        ),
        chart(
            "Steps waiting", "Sent and not started, by queue: more than the workers of that queue can take.", "short",
            {"{{queue}}": or_0('sum by (queue) (dagster_steps{state="waiting"})')},
        ),
        chart(
            "Oldest waiting step", "By queue.", "s", {"{{queue}}": or_0("max by (queue) (dagster_step_oldest_wait_seconds)")},
        ),
        chart(
            "Waiting for a slot", "Steps that a pool's limit holds back.", "short",
            {"{{pool}}": or_0("sum by (pool) (dagster_concurrency_waiting)")},
        ),
        chart(
            "Alerts over time", "Which fired when.", "short",
            {"{{alertname}}": or_0('count by (alertname) (ALERTS{alertstate="firing"})')},
        ),
    ])  # fmt: skip
