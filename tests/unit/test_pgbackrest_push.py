"""What Postgres calls for each file of its journal: a repository that takes nothing must hold up nothing."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from scripts.console import ROOT

SCRIPT = ROOT / "docker" / "postgres" / "pgbackrest-push"
#: Seconds that the repository has here; and what must be enough to give up, on a busy machine.
PATIENCE, ENOUGH = 1, 15


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    cluster = tmp_path / "17"
    (cluster / "pg_wal" / "archive_status").mkdir(parents=True)
    return cluster


def push(cluster: Path, pgbackrest: str, *, low: int = 0) -> subprocess.CompletedProcess[str]:
    """Call the script with a repository that behaves so, and `low` MB of free disk as the border."""
    programs = cluster.parent / "programs"
    programs.mkdir()
    program = programs / "pgbackrest"
    program.write_text(f"#!/bin/sh\n{pgbackrest}\n")
    program.chmod(0o755)
    script = programs / "push"
    text = SCRIPT.read_text().replace("seconds=30", f"seconds={PATIENCE}").replace("low=1024", f"low={low}")
    script.write_text(text)
    return subprocess.run(
        ["bash", script, "pg_wal/000000010000000000000001"],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PGDATA": str(cluster)},
        cwd=cluster, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def waiting(cluster: Path, number: int) -> None:
    for each in range(number):
        (cluster / "pg_wal" / "archive_status" / f"{each:024X}.ready").touch()


def test_a_file_is_handed_over(cluster: Path) -> None:
    result = push(cluster, 'echo "$@" > "$PGDATA/asked"')
    assert result.returncode == 0
    assert (cluster / "asked").read_text() == "archive-push pg_wal/000000010000000000000001\n"


def test_what_the_repository_says_is_in_postgres_log_and_the_file_is_tried_again(cluster: Path) -> None:
    result = push(cluster, 'echo "ERROR: [045]: no room"; exit 45')
    assert result.returncode == 1
    assert "backups: ERROR: [045]: no room" in result.stderr


def test_a_repository_that_hangs_is_not_waited_for(cluster: Path) -> None:
    began = time.monotonic()
    result = push(cluster, f'echo $$ > "$PGDATA/pid"; exec sleep {ENOUGH * 2}')
    assert result.returncode == 1
    assert "does not answer for 1 s" in result.stderr
    assert time.monotonic() - began < ENOUGH
    # And it is not left behind
    assert not Path("/proc", (cluster / "pid").read_text().strip()).exists()


def test_the_journal_never_fills_the_disk(cluster: Path) -> None:
    # Given more files than may wait
    waiting(cluster, 257)
    result = push(cluster, "exit 45")
    # Then the file is dropped, which is said, and a base backup is asked for
    assert result.returncode == 0
    assert "is dropped" in result.stderr
    assert (cluster.parent / "journal-dropped").exists()


@pytest.mark.parametrize(("files", "dropped"), [(8, False), (9, True)])
def test_fewer_wait_where_the_disk_is_nearly_full(cluster: Path, files: int, dropped: bool) -> None:
    waiting(cluster, files)
    result = push(cluster, "exit 45", low=10**12)
    assert (result.returncode == 0) == dropped
    assert (cluster.parent / "journal-dropped").exists() == dropped
