"""Where new workers begin."""

import pytest

from scripts.autoscaling.limits import MOST
from scripts.autoscaling.placement import Room, begin_at_once, placed


@pytest.mark.parametrize(
    ("number", "rooms", "missing", "expected"),
    [
        # Where most is free, then where most is left.
        (3, {"": Room(8, 2, 9), "b": Room(5, 2, 9)}, 0, {"": 2, "b": 1}),
        # Of the same much the first.
        (1, {"": Room(8, 2, 9), "b": Room(8, 2, 9)}, 0, {"": 1}),
        # A processor for each.
        (3, {"": Room(8, 2, 1), "b": Room(5, 2, 1)}, 0, {"": 1, "b": 1}),
        (3, {"": Room(8, 2, -1)}, 0, {}),
        # One that has a processor, and no memory, is no place.
        (3, {"": Room(1, 2, 9), "b": Room(5, 2, 1)}, 0, {"b": 1}),
        # But for the fewest.
        (3, {"": Room(1, 2, 9), "b": Room(-5, 2, 9)}, 2, {"": 2}),
        # Without a limit for one.
        (3, {"": Room(-1, 0, 9)}, 0, {"": 3}),
        # A large one where it fits.
        (1, {"": Room(5, 8, 9), "b": Room(4, 2, 9)}, 0, {"b": 1}),
    ],
)
def test_where_new_workers_begin(
    number: int, rooms: dict[str, Room], missing: int, expected: dict[str, int]
) -> None:
    assert +placed(number, rooms, missing) == {host: n for host, n in expected.items() if n}


def test_room_is_in_workers() -> None:
    assert [Room(memory, 2, 1).number for memory in (5, 1, -3)] == [2, 0, 0]
    assert Room(1, 0, 1).number == MOST


def test_half_as_many_begin_at_once_as_there_are_processors() -> None:
    assert [begin_at_once(processors) for processors in (1, 2, 4, 16)] == [1, 1, 2, 8]
