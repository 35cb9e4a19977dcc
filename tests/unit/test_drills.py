"""The drills' own logic: what a verdict counts, which faults a seed chooses, how the table looks."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from scripts import drills
from scripts.console import Failure
from scripts.drills import Row
from tests.faults import marks
from tests.faults.marks import Mark
from tests.faults.verdict import SENT, STARTED, SUCCEEDED, Blow, Event, Evidence, Reference, judge
from tests.faults.vocabulary import VOCABULARY, pair

RUN = "run-1"
REFERENCE = Reference(frozenset({"a", "b"}), {"a/result": "one", "b/result": "two"})
#: A fault that came at 10 and was over at 20, and a crash at 10.
FAULT, CRASH = Blow(10, 20), Blow(10, 10)


def step(name: str, at: float, lasts: float = 1) -> list[Event]:
    """What the log says of a step that was sent at a time and went well."""
    return [
        Event(RUN, name, SENT, at),
        Event(RUN, name, STARTED, at + 0.1),
        Event(RUN, name, SUCCEEDED, at + lasts),
    ]


def execution(name: str, begin: float, end: float | None, host: str = "w1") -> list[Mark]:
    """The marks of an execution; without an end, of one that was killed."""
    marks = [Mark(RUN, "begin", name, host, 7, begin)]
    return [*marks, Mark(RUN, "end", name, host, 7, end)] if end else marks


EVENTS = [*step("a", 1), *step("b", 21)]
MARKS = [*execution("a", 1.1, 1.9), *execution("b", 21.1, 21.9)]


def evidence(**changes: Any) -> Evidence:
    """A drill in which all went well, but for the changes."""
    well: dict[str, Any] = {
        "ends": {RUN: "SUCCESS"},
        "events": EVENTS,
        "marks": MARKS,
        "objects": {RUN: dict(REFERENCE.objects)},
    }
    return Evidence(**(well | changes))


def test_a_drill_in_which_all_went_well_has_no_complaints() -> None:
    verdict = judge(evidence(), REFERENCE, FAULT)
    assert verdict.complaints == ()
    assert (verdict.runs, verdict.steps, verdict.lost, verdict.run_twice) == (1, 2, 0, 0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ends": {RUN: "STARTED"}}, "run run-1 is STARTED"),
        ({"events": step("a", 1)}, "step b of run run-1 has no success"),
        ({"events": [*EVENTS, EVENTS[-1]]}, "step b of run run-1 succeeded 2 times"),
        ({"events": [*EVENTS, *step("c", 22)]}, "step c of run run-1 is of no run without faults"),
        ({"events": [*step("a", 1), EVENTS[-1]]}, "step b of run run-1 succeeded without a start"),
        ({"marks": execution("a", 1.1, 1.9)}, "step b of run run-1 succeeded, unexecuted"),
        ({"objects": {RUN: {"a/result": "one"}}}, "run run-1 lacks the object b/result"),
        ({"objects": {RUN: {"a/result": "one", "b/result": "2"}}}, "run run-1 has other data in b/result"),
        ({"objects": {RUN: {**REFERENCE.objects, "c": "3"}}}, "run run-1 has the object c besides"),
    ],
)
def test_whatever_is_not_as_without_the_fault_is_a_complaint(changes: dict[str, Any], complaint: str) -> None:
    assert complaint in judge(evidence(**changes), REFERENCE, FAULT).complaints


def test_a_step_without_a_success_is_lost() -> None:
    assert judge(evidence(events=step("a", 1)), REFERENCE, FAULT).lost == 1


def test_a_step_that_began_twice_was_run_twice_and_is_no_complaint() -> None:
    # Given a step whose first execution was killed
    verdict = judge(evidence(marks=[*MARKS, *execution("b", 9, None)]), REFERENCE, CRASH)
    # Then it counts, and is not wrong: at least once is the promise
    assert verdict.run_twice == 1
    assert verdict.complaints == ()


def test_a_run_that_was_to_fail_need_not_have_all_steps() -> None:
    failed = evidence(ends={RUN: "FAILURE"}, events=step("a", 1), objects={})
    assert judge(failed, REFERENCE, FAULT, end="FAILURE").complaints == ()


@pytest.mark.parametrize(
    ("events", "marks", "blow", "recovered_after"),
    [
        # Something was sent at 21 and succeeded at 22, 2 s after the fault was over.
        (EVENTS, MARKS, FAULT, 2),
        # The killed step succeeded at 15.
        ([*step("a", 9, lasts=6), *step("b", 11)], [*execution("a", 9, None), *execution("a", 14, 15)], CRASH, 5),
        # A step that had ended when the fault came is not waited for.
        ([*step("a", 1), *step("b", 10.5)], MARKS[:2], CRASH, 1.5),
        # The step in the hands of a killed process never came back.
        (step("b", 11), execution("a", 9, None), CRASH, None),
        # All had been done before.
        ([*step("a", 1), *step("b", 2)], MARKS[:2], CRASH, 0),
    ],
)  # fmt: skip
def test_recovered_is_when_steps_are_sent_succeed_and_the_stricken_ones_have_succeeded(
    events: list[Event], marks: list[Mark], blow: Blow, recovered_after: float | None
) -> None:
    found = judge(evidence(events=events, marks=marks), REFERENCE, blow).recovered_after
    assert found == (None if recovered_after is None else pytest.approx(recovered_after))


def test_marks_are_read_as_the_steps_wrote_them(tmp_path: Path) -> None:
    (tmp_path / RUN).write_text("begin a w1 7 1.500\nend a w1 7 2.000\nbegin b w2 8 2.500\n")
    found = marks.read(tmp_path, [RUN, "a run without marks"])
    assert found == [*execution("a", 1.5, 2), Mark(RUN, "begin", "b", "w2", 8, 2.5)]
    assert marks.under_way(found)
    assert not marks.under_way(found[:2])


def test_a_seed_makes_the_same_choices_again_and_another_one_others() -> None:
    def choices(seed: int) -> list[tuple[str, str]]:
        chance = random.Random(seed)
        return [(first.name, second.name) for first, second in (pair(chance) for _ in range(20))]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)


def test_two_faults_at_once_are_never_of_one_service() -> None:
    chance = random.Random(0)
    assert all(first.service != second.service for first, second in (pair(chance) for _ in range(500)))


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in VOCABULARY}) == len(VOCABULARY)


# --- the table -------------------------------------------------------------------------------------------

WELL = Row("worker SIGKILL", "200 steps in flight", 1, 405, 0, 1, 4.26, passed=True)
REFUSED = Row("minio policy withdrawn", "200 steps in flight", 1, 405, 0, 0, None, passed=True, end="FAILURE")
BAD = Row("minio paused 20 s", "200 steps in flight", 1, 405, 2, 0, None, passed=False)


def test_the_table_tells_a_drill_that_failed_from_one_whose_run_must() -> None:
    lines = drills.drill_table([WELL, BAD, REFUSED]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["worker SIGKILL", "200 steps in flight", "1", "405", "0", "1", "4.3"]
    assert cells[3] == ["minio paused 20 s (FAILED)", "200 steps in flight", "1", "405", "2", "0", "never"]
    assert cells[4] == ["minio policy withdrawn", "200 steps in flight", "1", "405", "0", "0", "fails"]


def test_rows_are_read_back_from_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drills, "LEDGER", tmp_path / "drills.jsonl")
    assert drills.read() == []
    (tmp_path / "drills.jsonl").write_text("".join(f"{json.dumps(vars(row))}\n" for row in (WELL, BAD)))
    assert drills.read() == [WELL, BAD]


@pytest.mark.parametrize("name", ["MINUTES", "SEED"])
def test_soak_refuses_what_is_no_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "ten")
    with pytest.raises(Failure, match=f"{name}=ten is no whole number"):
        drills.soak()
