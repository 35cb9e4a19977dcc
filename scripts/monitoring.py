"""`make monitoring`: figures, Flower and Prometheus beside the stack, now and after the next `make up`."""

import os

from scripts import compose, env_file, turns
from scripts.console import Failure, done, main, run_logged
from scripts.images import MONITORING
from scripts.up import REMOVE, up

#: The services of the profile.
SERVICES = ("metrics", "flower", "prometheus", "postgres-exporter")


def monitoring() -> None:
    """Switch the profile on, or off with OFF=1; figures that were kept stay."""
    if os.environ.get("COMPOSE_PROFILES") is not None:
        raise Failure(
            "COMPOSE_PROFILES is set in the environment and wins over .env: unset it, or change it there."
        )
    if os.environ.get("OFF", "0") not in ("", "0", "no"):
        switch_off()
        return
    env_file.complete()
    env_file.set_profiles(env_file.profiles() | {MONITORING})
    up()


def switch_off() -> None:
    compose.require_env_file()
    run_logged("Removing monitoring: the figures of the past stay", [*compose.compose(), *REMOVE, *SERVICES])
    env_file.set_profiles(env_file.profiles() - {MONITORING})
    done("monitoring is off; `make monitoring` switches it on again")


if __name__ == "__main__":
    main(turns.alone(monitoring))
