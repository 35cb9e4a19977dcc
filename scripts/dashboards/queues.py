"""What each queue holds, who takes from it, and how long a step waits there."""

from grafana_foundation_sdk.builders import dashboard as grafana

from scripts.dashboards.parts import board, chart, choice, or_0, quantile, rate, row

#: The queues that the reader chose.
CHOSEN = '{queue=~"$queue"}'


def dashboard() -> grafana.Dashboard:
    return board("dagster-queues", "Queues and workers", "What each queue holds, who takes from it, and how long a step waits.", [
        row("Messages"),
        chart(
            "Ready", "Messages that no worker has taken yet.", "short",
            {"{{queue}}": 'sum by (queue) (dagster_queue_messages{queue=~"$queue", state="ready"})'},
        ),
        chart(
            "In flight", "Messages that a worker holds: its steps, and those that it took ahead.", "short",
            {"{{queue}}": 'sum by (queue) (dagster_queue_messages{queue=~"$queue", state="in_flight"})'},
        ),
        chart("Consumers", "Subscriptions as the broker counts them.", "short", {
            "{{queue}}": f"sum by (queue) (dagster_queue_consumers{CHOSEN})",
        }),
        row("Workers"),
        chart(
            "Workers", "By queue and code; two codes beside each other are a deployment that is not complete.", "short",
            {"{{queue}} {{code}}": or_0(f"sum by (queue, code) (dagster_workers{CHOSEN})")},
        ),
        chart(
            "Processes", "By queue: busy with a step, or idle.", "short",
            {"{{queue}} {{state}}": or_0(f"sum by (queue, state) (dagster_worker_processes{CHOSEN})")},
        ),
        chart(
            "Utilisation", "Busy processes of all, by queue.", "percentunit",
            {"{{queue}}": or_0(f"max by (queue) (dagster_queue_utilisation{CHOSEN})")}, high=1,
        ),
        row("Steps"),
        chart(
            "Steps", "Of runs in progress: sent and waiting, or running.", "short",
            {"{{queue}} {{state}}": or_0(f"sum by (queue, state) (dagster_steps{CHOSEN})")},
        ),
        chart(
            "Oldest waiting step", "Since it was sent.", "s",
            {"{{queue}}": or_0(f"max by (queue) (dagster_step_oldest_wait_seconds{CHOSEN})")},
        ),
        chart("Wait", "From the sending of a step to its start: of those that started in a while.", "s", {
            "{{queue}} median": quantile(0.5, "dagster_step_wait_seconds", "queue", where=CHOSEN),
            "{{queue}} 95 %": quantile(0.95, "dagster_step_wait_seconds", "queue", where=CHOSEN),
        }),
        row("Lost and foreign"),
        chart(
            "Redeliveries", "Executions after a step's first one, a second: workers died, stopped or were cut off.", "ops",
            {"{{queue}}": rate("dagster_step_redeliveries_total", "queue", where=CHOSEN)},
        ),
        chart(
            "Failed by the delivery limit", "Steps a second that took down MAX_DELIVERIES workers.", "ops",
            {"{{queue}}": rate("dagster_steps_failed_by_delivery_limit_total", "queue", where=CHOSEN)},
        ),
        chart(
            "Failed for their code", "Steps a second that no worker with their run's code took.", "ops",
            {"{{queue}}": rate("dagster_steps_failed_by_code_total", "queue", where=CHOSEN)},
        ),
    ], [choice("queue", "dagster_queue_messages")])  # fmt: skip
