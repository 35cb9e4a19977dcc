"""Which moments a repository can go back to, and from which base backup."""

import json
from pathlib import Path

import pytest
from backup import database, points
from backup.database import Base
from backup.errors import Failure
from backup.points import Point, Restore

DAY = 86400.0


def base(ended: float, kind: str = "full", timeline: int = 1) -> Base:
    return Base(f"{ended:.0f}F", kind, ended - 10, ended, 1, 1, timeline)


def point(at: float, timeline: int = 1) -> Point:
    return Point(at, points.stamp(at), f"{timeline:08X}0000000000000001")


# --- what is written down ------------------------------------------------------------------------------


def test_what_is_added_is_read_in_the_order_of_time(tmp_path: Path) -> None:
    for entry in (point(20.5), point(10.25), Restore(15.0, 12.0), point(2 * DAY)):
        points.add(entry, tmp_path)
    assert points.read(tmp_path) == ([point(10.25), point(20.5), point(2 * DAY)], [Restore(15.0, 12.0)])


def test_a_line_that_a_kill_has_cut_is_no_entry_and_spoils_no_other(tmp_path: Path) -> None:
    points.add(point(10), tmp_path)
    (file,) = tmp_path.glob("*.jsonl")
    with file.open("a") as stream:
        stream.write(json.dumps({"at": 11.0})[:5])
    points.add(point(12), tmp_path)
    assert points.read(tmp_path)[0] == [point(10), point(12)]


def test_days_that_are_over_are_forgotten(tmp_path: Path) -> None:
    points.add(point(DAY), tmp_path)
    points.forget(28, tmp_path)
    assert points.read(tmp_path) == ([], [])


def test_stamps_sort_by_time() -> None:
    times = [0.0, 0.5, 9.999999, 10.0, 1e9, 1764460800.25]
    assert sorted(points.stamp(at) for at in times) == [points.stamp(at) for at in times]


# --- which point, which base ------------------------------------------------------------------------------


def test_the_first_point_after_a_moment_has_all_that_was_there() -> None:
    found = [point(10), point(20), point(30)]
    assert points.choose(found, 15.0) == point(20)
    assert points.choose(found, 20.0) == point(20)
    assert points.choose(found, None) == point(30)


def test_a_moment_after_the_newest_point_is_refused_with_what_there_is() -> None:
    with pytest.raises(Failure, match="after the newest point, 1970-01-01 00:00:30 UTC"):
        points.choose([point(30)], 31.0)


def test_without_a_point_the_cure_is_a_backup() -> None:
    with pytest.raises(Failure, match="make backup"):
        points.choose([], None)


def test_of_dumps_the_last_one_before_a_moment_counts() -> None:
    found = [Point(10, "a", dump="dumps/a"), Point(20, "b", dump="dumps/b")]
    assert points.choose(found, 15.0).dump == "dumps/a"
    with pytest.raises(Failure, match="before the oldest dump"):
        points.choose(found, 5.0)


def test_the_newest_base_backup_before_a_moment_is_taken() -> None:
    found = [base(10), base(20), base(30)]
    assert database.chosen_base(found, [], 25.0, 26.0) == base(20)


def test_a_moment_before_all_base_backups_is_refused() -> None:
    with pytest.raises(Failure, match="Name a later TO"):
        database.chosen_base([base(30)], [], 25.0, 26.0)


def test_a_base_backup_of_an_abandoned_future_is_left_out() -> None:
    # Given a base backup at 20, and a restore at 40 that went back to 15
    found, restores = [base(10), base(20)], [Restore(40.0, 15.0)]
    # Then what came after it does not have that one in its past
    assert database.chosen_base(found, restores, 45.0, 46.0) == base(10)
    # And what was before the restore does
    assert database.chosen_base(found, restores, 30.0, 31.0) == base(20)


def test_a_point_knows_its_timeline() -> None:
    assert point(1, timeline=18).timeline == 18


def test_a_moment_keeps_its_microseconds() -> None:
    assert database.precise(1764460800.25) == "2025-11-30 00:00:00.250000+00"


# --- when a base backup is due ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "now", "restored", "due"),
    [
        ([], DAY, 0, "full"),
        ([base(DAY)], 1.5 * DAY, 0, ""),
        ([base(DAY)], 2 * DAY, 0, "incr"),
        ([base(DAY), base(2 * DAY, "incr")], 2.5 * DAY, 0, ""),
        ([base(DAY), base(7.9 * DAY, "incr")], 8 * DAY, 0, "full"),
        # A restore begins another future, which wants a base backup of its own.
        ([base(DAY)], 1.5 * DAY, 1.2 * DAY, "incr"),
    ],
)
def test_a_full_one_is_due_each_week_and_a_small_one_each_day(
    found: list[Base], now: float, restored: float, due: str
) -> None:
    assert database.kind_due(found, now, restored) == due


def test_a_gap_in_the_journal_asks_for_a_base_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = tmp_path / "dropped"
    monkeypatch.setattr(database, "DROPPED", dropped)
    dropped.touch()
    assert database.kind_due([base(DAY)], DAY + 60) == "incr"
    assert not database.has_gap([base(dropped.stat().st_mtime + 60)])


@pytest.mark.parametrize(("began", "ends", "way"), [(1, 1, "current"), (3, 3, "current"), (3, 4, "4")])
def test_the_way_to_a_point_needs_no_history_that_is_older_than_the_repository(
    began: int, ends: int, way: str
) -> None:
    assert database.target_timeline(base(10, timeline=began), point(20, timeline=ends)) == way


def test_a_base_backup_has_the_timeline_in_which_it_ended() -> None:
    entry = {
        "label": "20261130-042117F", "type": "full", "timestamp": {"start": 1, "stop": 2},
        "info": {"size": 3, "repository": {"delta": 4}},
        "archive": {"start": "00000003000000000000003A", "stop": "00000003000000000000003B"},
    }  # fmt: skip
    assert Base.of(entry).timeline == 3
