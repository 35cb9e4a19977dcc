"""Drill 9: two things at once, whatever they are."""

import os
import random
import time

import pytest

from tests.faults.drill import Drill, NothingTried
from tests.faults.grounds import Grounds
from tests.faults.vocabulary import pair


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_two_faults_at_once_chosen_at_random_lose_nothing(grounds: Grounds) -> None:
    # Given a seed that makes the same choices again
    assert os.environ.get("SEED"), "make soak [MINUTES=10] [SEED=n] holds this drill"
    seed, minutes = int(os.environ["SEED"]), float(os.environ["MINUTES"])
    chance = random.Random(seed)
    print(f"\nSEED={seed}")

    held, until = 0, time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        grounds.stack.wait_until_healthy()
        drill = Drill(grounds)
        # When two faults come while many steps, or many runs, are under way
        chance.choice((drill.steps_in_flight, drill.runs_in_flight))()
        try:
            drill.strike(*pair(chance))
        except NothingTried as reason:
            # Scaling may take longer than a small load: neither held nor failed.
            print(f"{', '.join(drill.faults)}: {reason}")
            continue
        # Then, each time
        drill.nothing_is_lost()
        held += 1
    assert held, "no drill was held"
