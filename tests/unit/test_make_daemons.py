"""DAEMONS=2 in `make deploy` and `make up`: schedules go on, the run queue rests, and the new code takes over first."""

from pathlib import Path

import pytest

from scripts import compose, connections, daemons, deploy, env_file, preflight, up
from scripts.compose import Container
from scripts.console import Failure
from tests.unit.machines import FakeDocker, calls
from tests.waiting import wait_until


def container(number: int, health: str = "healthy") -> Container:
    return Container(f"p-daemon-{number}", "daemon", "running", health, 0)


@pytest.fixture
def found(programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch) -> list[Container]:
    """The containers of a stack with two daemons, as they change."""
    env.write_text("BASE_IMAGE=base\nDAEMONS=2\n")
    FakeDocker().install(programs)
    listed = [container(1), container(2), Container("p-dagit-1", "dagit", "running", "healthy", 0)]
    monkeypatch.setattr(compose, "containers", lambda: listed)
    monkeypatch.setattr(up, "start_made", lambda: listed.append(container(3)))
    monkeypatch.setattr(up, "wait_until_healthy", lambda *_: None)
    return listed


def told(programs: Path) -> list[str]:
    """The signals that daemons got."""
    return [call.split()[2] for call in calls(programs) if call.startswith("kill ")]


def test_the_new_code_takes_over_before_the_old_daemons_leave(programs: Path, found: list[Container]) -> None:
    daemons.hand_over()

    heard = [call for call in calls(programs) if "daemon" in call]
    assert [call.split("--progress plain ")[-1] for call in heard] == [
        "create --no-recreate --scale daemon=3 daemon",
        "kill --signal USR1 p-daemon-1",
        "kill --signal USR1 p-daemon-2",
        "kill --signal USR1 p-daemon-3",
        "stop p-daemon-1 p-daemon-2",
        "rm --force p-daemon-1 p-daemon-2",
    ]


def test_the_queue_goes_on_when_what_it_rested_for_fails(programs: Path, found: list[Container]) -> None:
    with pytest.raises(Failure), daemons.queue_resting():
        raise Failure("no")

    assert told(programs) == ["USR1", "USR1", "USR2", "USR2"]


def test_the_queue_is_told_to_rest_for_as_long_as_it_is_to(
    programs: Path, found: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rest ends by itself after a minute."""
    monkeypatch.setattr(daemons, "TELL_SECS", 0)
    with daemons.queue_resting():
        wait_until(lambda: told(programs), 20, "they are told again", until=lambda seen: len(seen) >= 6)

    assert set(told(programs)) == {"USR1"}


def test_a_daemon_that_loads_the_code_hears_no_signal(programs: Path, found: list[Container]) -> None:
    """It would end of one."""
    found.append(container(3, "starting"))

    daemons.tell("USR1")

    assert not [call for call in calls(programs) if "p-daemon-3" in call]


def test_while_one_waits_for_runs_schedules_go_on(
    programs: Path, found: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    with deploy.queue_held():
        pass

    assert not [call for call in calls(programs) if "stop" in call]


@pytest.mark.parametrize(("setting", "running"), [("1", 2), ("2", 1)])
def test_a_daemon_that_has_nobody_to_take_over_stops(
    env: Path, programs: Path, found: list[Container], setting: str, running: int
) -> None:
    env.write_text(f"BASE_IMAGE=base\nDAEMONS={setting}\n")
    del found[running : found.index(next(each for each in found if each.service == "dagit"))]

    with deploy.queue_held():
        pass

    assert [call for call in calls(programs) if call.endswith("stop daemon")]


def test_make_up_starts_as_many_and_counts_their_connections(
    env: Path, found: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert up.wanted_scales()["daemon"] == 2
    env_file.set_value("POSTGRES_MAX_CONNECTIONS", "102")
    connections.require_connections(2)

    env_file.set_value("DAEMONS", "3")
    with pytest.raises(Failure, match="POSTGRES_MAX_CONNECTIONS=122"):
        connections.require_connections(2)


def test_none_at_all_is_refused_with_the_cure(env: Path) -> None:
    env.write_text("DAEMONS=0\n")

    (finding,) = preflight.daemons()

    assert finding.cure == "set DAEMONS=1 in .env: without a daemon no run starts"
