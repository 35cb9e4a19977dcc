"""How many workers there should be, and which one goes. What comes of it on a real stack: tests/stack/test_autoscale.py."""

import pytest

from scripts.autoscaling.decisions import (
    LEFT_SECS,
    REST_SECS,
    Course,
    Decision,
    Seen,
    Wish,
    needed,
    wish,
)
from scripts.autoscaling.limits import Limits

LIMITS = Limits("worker", 1, 8)
#: Of connections, and of memory.
ROOM = (100, 100)
COOLDOWN = 300


@pytest.mark.parametrize(
    ("messages", "concurrency", "workers"), [(0, 1, 0), (1, 1, 1), (5, 1, 5), (5, 4, 2), (8, 4, 2), (9, 4, 3)]
)
def test_all_messages_are_in_work_at_once(messages: int, concurrency: int, workers: int) -> None:
    assert needed(messages, concurrency) == workers


@pytest.mark.parametrize(
    ("number", "running", "rooms", "expected"),
    [
        (3, 1, ROOM, Wish(3, "work")),
        (0, 3, ROOM, Wish(1, "minimum")),
        (9, 1, ROOM, Wish(8, "maximum")),
        (6, 2, (3, 100), Wish(5, "connections")),
        (6, 2, (3, 1), Wish(3, "memory")),
        # Where there is no room for another one, those that work stay.
        (6, 4, (0, -3), Wish(4, "connections")),
        # The fewest were asked for, whatever memory is free.
        (6, 0, (9, 0), Wish(1, "memory")),
        (0, 0, (9, 0), Wish(1, "minimum")),
        # But one without a connection could do nothing, and take those of others.
        (0, 0, (0, 9), Wish(0, "connections")),
        # What needs no further worker needs no room.
        (2, 4, (0, 0), Wish(2, "work")),
    ],
)
def test_the_wish_keeps_to_the_limits_and_to_what_there_is_room_for(
    number: int, running: int, rooms: tuple[int, int], expected: Wish
) -> None:
    assert wish(LIMITS, number, running, *rooms) == expected


def test_none_at_all_is_a_wish_too() -> None:
    limits = Limits("worker-heavy", 0, 2)

    assert wish(limits, 0, 1, *ROOM) == Wish(0, "work")
    assert wish(limits, 1, 0, *ROOM) == Wish(1, "work")


def seen(container: str, held: int | None = 0, rests: float = 0) -> Seen:
    return Seen(container, f"dagster@{container}", held, rests)


@pytest.fixture
def course() -> Course:
    return Course(COOLDOWN)


def quiet(course: Course, running: int = 3, number: int = 1) -> float:
    """Until the quiet time is over; gives the time."""
    course.decide(1000, Wish(number, "work"), running)
    assert not course.needs_answers(1000 + COOLDOWN - 1)
    assert course.needs_answers(1000 + COOLDOWN)
    return 1000.0 + COOLDOWN


def test_up_at_once(course: Course) -> None:
    assert course.decide(1, Wish(6, "work"), 1, begin=8) == Decision(Wish(6, "work"), up_to=6)


def test_no_more_begin_at_once_than_have_processors(course: Course) -> None:
    wanted = Wish(6, "work")

    assert course.decide(1, wanted, 1, begin=2) == Decision(wanted, up_to=3)
    # While they begin, the wish stays
    assert course.decide(2, wanted, 3, begin=0) == Decision(wanted)
    assert course.decide(2, wanted, 3, begin=-1) == Decision(wanted)


def test_nothing_is_done_where_there_are_enough(course: Course) -> None:
    assert course.decide(1, Wish(2, "work"), 2) == Decision(Wish(2, "work"))


def test_down_only_after_a_quiet_time(course: Course) -> None:
    wanted = Wish(1, "work")
    crew = [seen("a"), seen("b")]

    assert course.decide(1000, wanted, 2, crew=crew) == Decision(Wish(1, "quiet time"))
    assert course.decide(1000 + COOLDOWN - 1, wanted, 2, crew=crew) == Decision(Wish(1, "quiet time"))
    assert course.decide(1000 + COOLDOWN, wanted, 2, crew=crew).rest == {"dagster@a": REST_SECS}


def test_a_moment_of_work_begins_the_quiet_time_anew(course: Course) -> None:
    now = quiet(course, running=2)
    course.decide(now - 1, Wish(2, "work"), 2)

    assert course.decide(now, Wish(1, "work"), 2, crew=[seen("a")]) == Decision(Wish(1, "quiet time"))


def test_one_goes_after_the_other_each_once_it_rests_and_holds_nothing(course: Course) -> None:
    now = quiet(course)
    wanted = Wish(1, "minimum")

    first = course.decide(now, wanted, 3, crew=[seen("a"), seen("b"), seen("c")])
    second = course.decide(now + 2, wanted, 3, crew=[seen("a", rests=29), seen("b"), seen("c")])
    third = course.decide(now + 4, wanted, 2, crew=[seen("b"), seen("c")])
    fourth = course.decide(now + 6, wanted, 2, crew=[seen("b", rests=29), seen("c")])
    fifth = course.decide(now + 8, wanted, 1, crew=[seen("c")])

    assert (first.rest, first.remove) == ({"dagster@a": REST_SECS}, None)
    assert second.remove == "a"
    assert (third.rest, third.remove) == ({"dagster@b": REST_SECS}, None)
    assert fourth.remove == "b"
    assert fifth == Decision(wanted)


def test_who_has_the_least_to_do_goes(course: Course) -> None:
    now = quiet(course)

    decision = course.decide(
        now, Wish(1, "work"), 3, crew=[seen("a", held=2), seen("b", held=1), seen("c", held=2)]
    )

    assert decision == Decision(Wish(1, "ends its work"), rest={"dagster@b": REST_SECS})


def test_a_worker_at_work_is_never_stopped(course: Course) -> None:
    now = quiet(course, running=2)

    for later in range(0, 3600, 2):
        decision = course.decide(
            now + later, Wish(1, "work"), 2, crew=[seen("a", held=1, rests=29), seen("b", held=1)]
        )
        assert (decision.remove, decision.rest) == (None, {"dagster@a": REST_SECS})


def test_another_one_that_is_idle_goes_in_its_place(course: Course) -> None:
    now = quiet(course, running=2)
    course.decide(now, Wish(1, "work"), 2, crew=[seen("a", held=1), seen("b", held=2)])

    decision = course.decide(now + 2, Wish(1, "work"), 2, crew=[seen("a", held=1, rests=28), seen("b")])

    assert decision.rest == {"dagster@b": REST_SECS, "dagster@a": 0}


def test_whoever_rests_works_again_as_soon_as_it_is_needed(course: Course) -> None:
    now = quiet(course, running=2)
    course.decide(now, Wish(1, "work"), 2, crew=[seen("a"), seen("b")])

    assert course.decide(now + 2, Wish(2, "work"), 2) == Decision(Wish(2, "work"), rest={"dagster@a": 0})
    assert course.decide(now + 4, Wish(2, "work"), 2) == Decision(Wish(2, "work"))


def test_a_rest_that_is_nearly_over_is_renewed_first(course: Course) -> None:
    """Else the worker could take a message while its container is being stopped."""
    now = quiet(course, running=2)

    late = course.decide(now, Wish(1, "work"), 2, crew=[seen("a", rests=LEFT_SECS - 1), seen("b")])
    renewed = course.decide(now + 2, Wish(1, "work"), 2, crew=[seen("a", rests=REST_SECS - 1), seen("b")])

    assert (late.remove, late.rest) == (None, {"dagster@a": REST_SECS})
    assert renewed.remove == "a"


@pytest.mark.parametrize("crew", [[], [seen("a", held=None)]])
def test_one_that_does_not_say_what_it_holds_is_left_alone(course: Course, crew: list[Seen]) -> None:
    """One that starts, one that hangs, one of an older version."""
    now = quiet(course)

    assert course.decide(now, Wish(1, "work"), 2, crew=crew) == Decision(Wish(1, "no answer"))


def test_a_controller_that_starts_anew_goes_on_with_who_rests_already(course: Course) -> None:
    now = quiet(course, running=2)

    assert course.decide(now, Wish(1, "work"), 2, crew=[seen("a"), seen("b", rests=20)]).remove == "b"
