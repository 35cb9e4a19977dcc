"""What the engine says of the stack's containers, as the scripts understand it."""

import pytest

from scripts import compose


@pytest.mark.parametrize(
    ("state", "status", "found"),
    [
        ("running", "Up 2 minutes", ("", 0, True, "running")),
        ("running", "Up 2 minutes (healthy)", ("healthy", 0, True, "healthy")),
        ("running", "Up Less than a second (health: starting)", ("starting", 0, False, "starting")),
        ("running", "Up About an hour (unhealthy)", ("unhealthy", 0, False, "unhealthy")),
        ("paused", "Up 2 minutes (Paused)", ("", 0, False, "paused")),
        ("restarting", "Restarting (1) 3 seconds ago", ("", 1, False, "restarting")),
        ("exited", "Exited (137) 5 minutes ago", ("", 137, False, "ended with 137")),
        ("created", "Created", ("", 0, False, "created")),
        ("dead", "Dead", ("", 0, False, "dead")),
    ],
)
def test_health_exit_code_and_whether_all_is_well(
    state: str, status: str, found: tuple[str, int, bool, str]
) -> None:
    (one,) = compose.parsed(f"stack-worker-1\tworker\t{state}\t{status}\t0123456789ab\n")

    assert (one.name, one.service, one.state, one.id) == ("stack-worker-1", "worker", state, "0123456789ab")
    assert (one.health, one.exit_code, one.is_well, one.condition) == found


def test_a_one_shot_is_well_when_it_has_ended_well() -> None:
    lines = "init-1\tinit\texited\tExited (0) 5 minutes ago\t1\ncertificates-1\tcertificates\texited\tExited (1) 5 minutes ago\t2\n"
    assert [each.is_well for each in compose.parsed(lines)] == [False, True]


def test_of_one_project_alone_and_without_what_compose_run_made() -> None:
    command = compose.listing("mine")
    assert "label=com.docker.compose.project=mine" in command
    assert "label=com.docker.compose.oneoff=False" in command
