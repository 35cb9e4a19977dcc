"""`make clean`: the stack and all its data, gone for good."""

from scripts import compose, engine, env_file
from scripts.console import confirm, done, interactive, main, run_logged, say


def clean() -> None:
    """Remove containers and volumes of this project; on a terminal only after a yes."""
    compose.require_env_file()
    engine.ensure()
    project = env_file.settings().get("COMPOSE_PROJECT_NAME") or "dagster-celery-stack"
    if interactive() and not confirm(f"Delete all runs, logs and data of {project}? There is no way back."):
        say("  nothing was deleted")
        return
    run_logged(
        f"Removing {project}",
        [*compose.compose(), "--progress", "plain", "--profile", "*", "down", "--volumes", "--remove-orphans"],
    )
    done("all data is gone; images and .env are kept, `make up` starts afresh")


if __name__ == "__main__":
    main(clean)
