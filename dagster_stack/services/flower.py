"""The `flower` service: Celery's tasks as they go, with logs as all services have them."""

from dagster_stack.logs.service import configure
from dagster_stack.patches.servers import OBSERVE_TASK


def bound_figures() -> None:
    """Let Flower count workers, not tasks, for Prometheus.

    It keeps series for each name of a task on each worker, and here a task is called after its step: thousands that
    nobody reads (7 KB each; with 8,000 of them an answer takes a second of Flower's only thread).
    """
    OBSERVE_TASK.replace(lambda *_: None)


def main() -> None:
    """Run Flower, as FLOWER_* configure it, until it is stopped."""
    # Whoever imports it becomes the app's process.
    from dagster_stack.app import app

    configure("flower")
    bound_figures()
    # Quiet: what it prints of itself at its start is made of many lines.
    app.start(["--quiet", "flower"])


if __name__ == "__main__":
    main()
