"""`make logs RUN=…` on lines as `docker compose logs --timestamps` printed them, of both forms."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import logs
from scripts.console import Failure
from scripts.logs import Line, RunLog, readable

RUN, OTHER = "449f82d5-e549-46b9-b1f1-908c9294a4a8", "449f82d5-0000-46b9-b1f1-908c9294a4a8"
#: Each container's own lines are in order; those of several come as they are read.
TEXT = f"""\
worker-1        | 2026-11-23T08:16:15.054312911Z 2026-11-23T08:16:15.054Z DEBUG worker run={RUN} step=talk task=t-1 action=step.started Started execution of step "talk".
worker-1        | 2026-11-23T08:16:15.067401290Z 2026-11-23T08:16:15.067Z INFO worker run={RUN} step=talk task=t-1 action=step.stdout hello from stdout
worker-1        | 2026-11-23T08:16:15.067401290Z 2026-11-23T08:16:15.067Z ERROR worker run={RUN} step=talk task=t-1 action=step.failed it failed ⏎ Traceback: ⏎   ValueError
worker-1        | 2026-11-23T08:16:16.100000000Z 2026-11-23T08:16:16.100Z INFO worker logger=celery.apps.worker dagster@1 ready.
postgres-1      | 2026-11-23T08:16:15.900000000Z 2026-11-23 08:16:15.900 UTC [77] dagster@dagster LOG:  duration: 1200 ms  statement: … '{RUN}'
rabbitmq-1      | 2026-11-23T08:16:00.000000000Z 2026-11-23 08:16:00 [info] <0.9.0> started
daemon-1        | 2026-11-23T08:16:14.000000000Z 2026-11-23T08:16:14.000Z INFO daemon logger=dagster.daemon Launched run for {RUN}
runner-1        | 2026-11-23T08:16:14.500000000Z 2026-11-23T08:16:14.500Z DEBUG runner run={RUN} task=t-0 action=run.started Started execution of run for "mine".
""".splitlines(keepends=True)  # fmt: skip
JSON = (
    f'worker-2  | 2026-11-23T08:16:15.5Z {{"time": "2026-11-23T08:16:15.500Z", "level": "INFO", "service": "worker",'
    f' "logger": "x", "run": "{RUN}", "step": "talk", "action": "step.failed", "message": "it failed",'
    ' "exception": "Traceback:\\n  ValueError"}\n'
)


def test_a_runs_lines_come_from_all_services_in_the_order_of_time() -> None:
    log = RunLog(RUN)

    lines = log.read([*TEXT, JSON])

    assert [line.container for line in lines] == [
        "daemon-1", "runner-1", "worker-1", "worker-1", "worker-1", "worker-2", "postgres-1"
    ]  # fmt: skip
    # Two that the engine stamped alike stay as they came
    assert "hello" in lines[3].text


@pytest.mark.parametrize("line", [TEXT[0], JSON])
def test_the_beginning_of_its_id_is_enough(line: str) -> None:
    log = RunLog(RUN[:8])

    assert len(log.read([line])) == 1
    assert log.run_id == RUN


def test_a_run_that_nobody_names_is_not_found() -> None:
    with pytest.raises(
        Failure, match=r"No log names the run 12345678\. Dagit lists all runs; the logs of containers"
    ):
        RunLog("12345678").read([*TEXT, JSON])


def test_a_whole_id_is_found_where_only_messages_name_it() -> None:
    line = f"daemon-1 | 2026-11-23T08:16:15Z t INFO daemon action=x about run {RUN}\n"
    (found,) = RunLog(RUN).read([line])
    assert found.container == "daemon-1"


def test_an_id_that_only_looks_alike_is_not_one_of_a_run() -> None:
    """A task's, or one that another run's message holds."""
    with pytest.raises(Failure, match="No log names"):
        RunLog("46b9b1f1").read(
            [f"worker-1 | 2026-11-23T08:16:15Z t INFO worker run={RUN} task=46b9b1f1-1 hello\n"]
        )


def test_a_beginning_that_two_runs_have_is_asked_for() -> None:
    with pytest.raises(Failure, match=f"Which one. These begin with 449f82d5: {OTHER}, {RUN}"):
        RunLog("449f82d5").read([*TEXT, TEXT[0].replace(RUN, OTHER)])


def test_what_is_followed_begins_where_reading_ended() -> None:
    # Given what was read
    log = RunLog(RUN)
    log.read(TEXT[:2])

    # When it is followed, which begins a little earlier
    followed = list(log.follow([*TEXT[:2], TEXT[2].replace("290Z", "291Z"), TEXT[3], TEXT[7]]))

    # Then what was shown is not shown again, and what no container had said yet is
    assert [(line.container, line.at) for line in followed] == [
        ("worker-1", "2026-11-23T08:16:15.067401291Z"),
        ("runner-1", "2026-11-23T08:16:14.500000000Z"),
    ]


def test_what_is_no_line_of_a_container_is_left_out() -> None:
    assert Line.of("\n") is None
    assert Line.of("worker-1 exited with code 0\n") is None


def test_json_is_shown_as_text() -> None:
    assert Line.of(f"\x1b[2K{JSON}") == Line.of(f"\x1b[2K\x1b[2K{JSON}") == Line.of(JSON)
    line = Line.of(JSON)
    assert line

    assert readable(line) == (
        f"worker-2        | 2026-11-23T08:16:15.500Z INFO worker run={RUN} step=talk action=step.failed"
        " it failed ⏎ Traceback: ⏎   ValueError"
    )


def test_json_of_others_is_shown_as_it_is() -> None:
    for text in ('{"level": "INFO", "msg": "of MinIO"}', "{not json"):
        assert readable(Line("minio-1", "t", text)).endswith(f"| {text}")


def test_on_a_terminal_a_traceback_has_its_lines_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    line = Line.of(TEXT[2])
    assert line

    assert readable(line).endswith("action=step.failed it failed\n    Traceback:\n      ValueError")


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(env: Path, programs: Path) -> Path:
    """An .env, and a Docker whose `compose logs` prints the lines above, and notes what it was asked for."""
    env.write_text("WORKERS=2\n")
    (programs / "recorded").write_text("".join(TEXT))
    client = programs / "docker"
    client.write_text(
        f'#!{os.path.realpath("/bin/sh")}\necho "$@" >> {programs}/asked\n'
        f'case "$*" in *nobody*) echo "no such service: nobody" >&2; exit 1 ;; esac\n'
        f'while IFS= read -r line; do printf "%s\\n" "$line"; done < {programs}/recorded\n'
    )
    client.chmod(0o755)
    return programs / "asked"


def calls(asked: Path) -> list[str]:
    return [call for call in asked.read_text().splitlines() if " logs " in call]


def run(monkeypatch: pytest.MonkeyPatch, **variables: str) -> int:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return logs.logs()


def test_without_a_terminal_the_command_prints_and_ends(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, RUN=RUN[:8].upper(), SERVICE="worker", SINCE="10m") == 0

    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    (call,) = calls(asked)
    assert call.endswith("logs --no-color --timestamps --since 10m worker")


def test_on_a_terminal_it_follows_until_it_is_interrupted(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "follow", interrupted)

    assert run(monkeypatch, RUN=RUN) == 0
    assert run(monkeypatch, FOLLOW="no") == 0


def test_what_follows_begins_before_all_was_read(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    assert run(monkeypatch, RUN=RUN) == 0

    (_, following) = calls(asked)
    assert following.endswith("logs --no-color --timestamps --follow --since 2026-11-23T08:16:16.100000000Z")


@pytest.mark.parametrize("wanted", ["449f", "not-an-id", f"{RUN}0"])
def test_what_is_no_id_is_refused(asked: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    with pytest.raises(Failure, match=f"Which run. make logs RUN=.* found {wanted}"):
        run(monkeypatch, RUN=wanted)


def test_what_compose_refuses_is_told_in_its_words(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match="no such service: nobody"):
        run(monkeypatch, RUN=RUN, SERVICE="nobody")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "--follow --tail 100"),
        ({"RUN": ""}, "--follow --tail 100"),
        ({"SERVICE": "worker,runner", "SINCE": "1h"}, "--follow --since 1h worker runner"),
        ({"FOLLOW": "no"}, "--tail 100"),
    ],
)
def test_without_a_run_all_logs_come(
    asked: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    became: list[str] = []

    class Became(Exception): ...

    def become(*arguments: str) -> None:
        became.extend(arguments)
        raise Became

    monkeypatch.setattr("scripts.compose.become", become)

    with pytest.raises(Became):
        run(monkeypatch, **variables)

    assert " ".join(became) == f"logs {expected}"
