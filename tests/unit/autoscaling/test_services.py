"""The services that are scaled, as Compose has them, on this host and on a further one."""

from pathlib import Path

import pytest

from scripts import engine, env_file
from scripts.autoscaling import services
from scripts.autoscaling.limits import Limits
from scripts.autoscaling.services import Service
from scripts.console import Failure
from scripts.hosts.host import Host

CONFIG = {
    "worker": {
        "command": ["celery", "-A", "a", "worker", "-Q", "dagster", "--concurrency", "4"],
        "mem_limit": "2147483648",
    },
    "worker-own": {"command": ["celery", "worker", "--queues=a,b", "-c", "2"]},
    "worker-odd": {"command": ["sleep", "9"]},
    "worker-all": {"command": ["celery", "worker", "-Q", "a", "-c", "0"]},
    "postgres": {},
}


def test_a_service_is_what_compose_has_of_it(env: Path) -> None:
    env.write_text("WORKERS=2\nOWN_WORKERS=1\n")

    assert services.described(Limits("worker", 1, 8), CONFIG) == Service(
        Limits("worker", 1, 8), ("dagster",), 4, 2 * 1024**3
    )
    assert services.described(Limits("worker-own", 0, 1), CONFIG) == Service(
        Limits("worker-own", 0, 1), ("a", "b"), 2, 0
    )


@pytest.mark.parametrize(
    ("service", "cure"),
    [
        (
            "worker-none",
            "no service of compose.yaml or compose.override.yaml: there are worker, worker-all, worker-odd, worker-own",
        ),
        ("worker-all", "--concurrency must be a number from 1 on"),
        ("worker-odd", "no -Q"),
        ("worker-own", r"scale: \$\{OWN_WORKERS:-1\}"),
    ],
)
def test_a_service_that_can_not_be_scaled_is_refused_with_the_cure(
    env: Path, service: str, cure: str
) -> None:
    env.write_text("WORKERS=2\n")

    with pytest.raises(Failure, match=cure):
        services.described(Limits(service, 0, 1), CONFIG)


# --- on a further host ----------------------------------------------------------------------------------

CONFIG_THERE = """{"services": {"worker": {"command": ["celery", "worker", "-Q", "dagster", "--concurrency", "4"],
                                     "mem_limit": "1024"}}}"""


def test_a_service_there_is_read_again_when_something_but_a_number_changes(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("WORKERS=2\n")
    path = env.with_name(".env.box9")
    path.write_text("HOST_ENGINE=box9\nWORKERS=2\nWORKER_MEMORY=1g\n")
    asked: list[tuple[str, ...]] = []

    def output(_: Host, *command: str) -> str:
        asked.append(command)
        return CONFIG_THERE

    monkeypatch.setattr(engine, "docker", lambda: "docker")
    monkeypatch.setattr(Host, "output", output)
    host, limits = Host("box9"), Limits("worker", 1, 8)

    assert services.there(limits, host) == Service(limits, ("dagster",), 4, 1024)
    env_file.set_value("WORKERS", "5", path)
    assert services.there(Limits("worker-own", 0, 1), host) is None
    assert len(asked) == 1
    env_file.set_value("WORKER_MEMORY", "2g", path)
    services.there(limits, host)
    assert len(asked) == 2
