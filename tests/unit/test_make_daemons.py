"""DAEMONS=2 in `make deploy` and `make up`: schedules go on, the run queue rests, and the new code takes over first."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from scripts import code_versions, compose, connections, daemons, deploy, env_file, preflight, schema, up
from scripts.compose import Container
from scripts.console import Failure
from scripts.hosts import host
from scripts.hosts import services as hosts
from scripts.hosts.host import Host
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


# --- on a further host -----------------------------------------------------------------------------------


@pytest.fixture
def box2(env: Path, found: list[Container], monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with one of two daemons."""
    env.write_text("BASE_IMAGE=base\nDAEMONS=1\nHOSTS=box2\nINTERNAL_TLS=on\n")
    del found[1]
    host = Host("box2")
    host.file.write_text("HOST_ENGINE=ssh://me@box2\nDAEMONS=1\n")
    there = [container(1), Container("p-worker-1", "worker", "running", "healthy", 0)]
    monkeypatch.setattr(Host, "containers", lambda _: there)
    return host


def refuse(*_: object, **__: object) -> None:
    raise Failure("no")


def on_box2(programs: Path) -> list[str]:
    """What was asked of its engine, but the containers that it has."""
    asked = [call for call in calls(programs) if "ssh://me@box2" in call]
    return [call.split("ssh://me@box2 ")[1] for call in asked]


def test_one_here_and_one_there_take_turns(env: Path, box2: Host) -> None:
    assert daemons.are_several()
    assert connections.rest() == connections.RESERVED + connections.DAEMON
    hosts.count()
    assert env_file.settings()["DAEMONS_IN_ALL"] == "2"

    env_file.set_value("DAEMONS", "0", box2.file)

    assert not daemons.are_several()
    hosts.count()
    assert env_file.settings()["DAEMONS_IN_ALL"] == ""


def test_a_daemon_of_a_host_is_told_to_rest(programs: Path, box2: Host) -> None:
    daemons.tell("USR1")

    assert on_box2(programs) == ["kill --signal USR1 p-daemon-1"]
    assert len(told(programs)) == 1


def test_a_host_that_does_not_answer_leaves_others_told(
    programs: Path, box2: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "containers", refuse)

    daemons.tell("USR1")

    assert told(programs) == ["USR1"]


def test_the_new_code_takes_over_from_all_hosts(programs: Path, box2: Host) -> None:
    daemons.hand_over()

    assert on_box2(programs) == ["kill --signal USR1 p-daemon-1", "stop p-daemon-1"]
    here = [call for call in calls(programs) if "box2" not in call]
    assert any(call.endswith("create --no-recreate --scale daemon=2 daemon") for call in here)
    assert here[-2:] == ["stop p-daemon-1", "rm --force p-daemon-1"]


def test_where_all_daemons_stop_those_of_hosts_do(programs: Path, box2: Host) -> None:
    with pytest.raises(Failure), deploy.queue_stopped():
        raise Failure("no")

    assert on_box2(programs) == ["stop p-daemon-1", "start p-daemon-1"]


def test_those_of_hosts_stay_stopped_for_the_swap(programs: Path, box2: Host) -> None:
    with deploy.queue_stopped():
        pass

    assert on_box2(programs) == ["stop p-daemon-1"]


def test_a_swap_in_which_nobody_takes_over_leaves_none_of_hosts_with_the_old_code(
    programs: Path, box2: Host, found: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    found[0] = container(1, "unhealthy")
    monkeypatch.setattr(hosts, "swapping", nullcontext)
    monkeypatch.setattr(up, "remove_unwanted", lambda: None)
    monkeypatch.setattr(up, "check_code_location", lambda: None)

    deploy.swap()

    assert on_box2(programs) == ["stop p-daemon-1"]
    assert not told(programs)


@pytest.mark.parametrize("fails", [True, False])
def test_a_schema_is_migrated_while_nothing_of_hosts_runs(
    programs: Path, box2: Host, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    migration = schema.Migration("aaa", "bbb", "a backup")
    monkeypatch.setattr(code_versions, "running", dict)
    if fails:
        monkeypatch.setattr(schema, "run_logged", refuse)
        with pytest.raises(Failure):
            migration.run("new")
    else:
        migration.run("new")

    stopped = "p-daemon-1 p-worker-1"
    assert on_box2(programs) == [f"stop {stopped}", *([f"start {stopped}"] if fails else [])]


@pytest.mark.parametrize("is_up", [True, False])
def test_make_up_lets_no_daemon_of_a_host_lead_with_what_is_replaced(
    programs: Path, box2: Host, monkeypatch: pytest.MonkeyPatch, is_up: bool
) -> None:
    monkeypatch.setattr(hosts, "is_up", lambda _: is_up)

    hosts.stop_old_daemons()

    assert on_box2(programs) == ([] if is_up else ["stop p-daemon-1"])


@pytest.mark.parametrize("skip", ["", "box2"])
def test_a_host_with_a_daemon_that_can_t_be_told_anything_is_not_gone_without(
    box2: Host, monkeypatch: pytest.MonkeyPatch, skip: str
) -> None:
    """It would lead with the code of before: what it launches no worker refuses."""
    monkeypatch.setattr(host, "unreachable", lambda _: "no route")
    monkeypatch.setenv("SKIP", skip)

    with pytest.raises(Failure, match=r"may lead.*make host REMOVE=box2"):
        hosts.prepare()


def test_a_host_by_hand_has_no_daemon(box2: Host) -> None:
    env_file.set_value("HOST_ENGINE", "", box2.file)

    with pytest.raises(Failure, match=r"by hand.*DAEMONS=0 in \.env\.box2"):
        hosts.prepare()
