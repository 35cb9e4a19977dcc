"""The faults from which `make soak` chooses two at a time: those that only delay."""

import random
from collections.abc import Sequence

from tests.faults.faults import (
    Fault,
    all_crashed,
    connections_exhausted,
    crashed,
    cut_off,
    disk_alarm,
    paused,
    pool_process_killed,
    postgres_read_only,
    restarted,
    scaled,
    stopped,
)

VOCABULARY = (
    *(
        crashed(service)
        for service in ("worker", "runner", "daemon", "dagit", "rabbitmq", "postgres", "minio")
    ),
    *(restarted(service) for service in ("rabbitmq", "postgres", "minio", "daemon")),
    *(stopped(service) for service in ("worker", "runner")),
    pool_process_killed(),
    all_crashed("runner"),
    scaled("worker", 1, 6),
    paused("worker", 80),
    paused("runner", 40),
    paused("rabbitmq", 40),
    paused("postgres", 30),
    paused("minio", 20),
    cut_off("worker", "broker", 40),
    cut_off("runner", "broker", 40),
    disk_alarm(20),
    connections_exhausted(15),
    postgres_read_only(20),
)


def pair(chance: random.Random, faults: Sequence[Fault] = VOCABULARY) -> tuple[Fault, Fault]:
    """Two faults of two services: what is gone can't be broken in another way at the same time."""
    first = chance.choice(faults)
    return first, chance.choice([fault for fault in faults if fault.service != first.service])
