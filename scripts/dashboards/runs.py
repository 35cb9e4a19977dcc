"""How runs and steps go: how many, how fast, how they end; backfills, schedules and pools."""

from grafana_foundation_sdk.builders import dashboard as grafana

from scripts.dashboards.parts import RUNS, board, chart, choice, or_0, quantile, rate, row

#: The jobs that the reader chose.
CHOSEN = '{job=~"$job"}'


def dashboard() -> grafana.Dashboard:
    return board("dagster-runs", "Runs and steps", "How many there are, how fast they are, and how they end.", [
        row("Runs"),
        chart("In progress by status", "All jobs.", "short", {"{{status}}": RUNS}),
        chart("In progress by job", "In any status but an end.", "short", {"{{job}}": or_0(f"sum by (job) (dagster_runs{CHOSEN})")}),
        chart("Ended", "Runs a second, by status.", "ops", {
            "{{status}}": rate("dagster_runs_ended_total", "status", where=CHOSEN),
        }),
        chart("Failed", "Runs a second, by job.", "ops", {
            "{{job}}": rate("dagster_runs_ended_total", "job", where='{job=~"$job", status="failure"}'),
        }),
        chart("Launch to start", "From a run's entry into the run queue to its start.", "s", {
            "median": quantile(0.5, "dagster_run_launch_to_start_seconds", where=CHOSEN),
            "95 %": quantile(0.95, "dagster_run_launch_to_start_seconds", where=CHOSEN),
        }),
        chart("Duration of runs", "From start to end, by job.", "s", {
            "{{job}} median": quantile(0.5, "dagster_run_duration_seconds", "job", where=CHOSEN),
            "{{job}} 95 %": quantile(0.95, "dagster_run_duration_seconds", "job", where=CHOSEN),
        }),
        row("Steps, all jobs"),
        chart("Ended", "Attempts a second, by outcome.", "ops", {"{{outcome}}": rate("dagster_steps_ended_total", "outcome")}),
        chart("Failed and retried", "Attempts a second, by queue.", "ops", {
            "{{queue}} {{outcome}}": rate("dagster_steps_ended_total", "queue", "outcome", where='{outcome!="success"}'),
        }),
        chart("Duration of steps", "From start to end, by queue.", "s", {
            "{{queue}} median": quantile(0.5, "dagster_step_duration_seconds", "queue"),
            "{{queue}} 95 %": quantile(0.95, "dagster_step_duration_seconds", "queue"),
        }),
        row("Schedules, sensors, backfills, pools"),
        chart("Daemons", "Seconds since each one's last sign of life; 60 are too many.", "s", {
            "{{daemon}}": "max by (daemon) (dagster_daemon_heartbeat_age_seconds)",
        }),
        chart("Failed ticks", "Of the last hour, by schedule or sensor.", "short", {
            "{{instigator}}": or_0("sum by (instigator) (dagster_ticks_failed)"),
        }),
        chart("Backfills", "Runs of those under way, by job and status.", "short", {
            "{{job}} {{status}}": or_0("sum by (job, status) (dagster_backfill_runs)"),
        }),
        chart("Slots", "Of pools, by whether they are taken.", "short", {
            "{{pool}} {{state}}": or_0("sum by (pool, state) (dagster_concurrency_slots)"),
        }),
        chart("Waiting for a slot", "Steps that a pool's limit holds back.", "short", {
            "{{pool}}": or_0("sum by (pool) (dagster_concurrency_waiting)"),
        }),
    ], [choice("job", "dagster_runs_ended_total")])  # fmt: skip
