"""The unit that `make autoscale UNIT=1` writes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import engine
from scripts.autoscaling import systemd_unit
from scripts.console import ROOT, Failure


@pytest.fixture
def home(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of a user, on a machine that systemd keeps."""
    env.write_text("COMPOSE_PROJECT_NAME=second\nAUTOSCALE=worker:1..8\n")
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def written(home: Path) -> str:
    systemd_unit.write()
    return (home / ".config/systemd/user/second-autoscale.service").read_text()


def test_the_unit_starts_this_checkouts_controller(
    home: Path, env: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = written(home)

    assert f"WorkingDirectory={ROOT}\n" in unit
    assert f'ExecStart="{sys.executable}" -m scripts.autoscaling\n' in unit
    assert f'Environment="STACK_ENV_FILE={env}"\n' in unit
    said = capsys.readouterr().out
    assert "systemctl --user daemon-reload && systemctl --user enable second-autoscale" in said
    assert "!" not in said


def test_it_asks_the_engine_that_the_command_asks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    unit = written(home)

    assert 'Environment="DOCKER_HOST=unix:///run/user/1000/docker.sock"\n' in unit
    # Whose contexts, logins and proxies Docker's client reads; systemd gives a service of root's none
    assert f'Environment="HOME={home}"\n' in unit
    assert "DOCKER_CONTEXT" not in unit


def test_what_stands_in_the_shell_alone_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOSCALE", "worker:1..4")
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "second")
    monkeypatch.setenv("WORKER_MEMORY", "4g")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    written(home)

    assert "AUTOSCALE, WORKER_MEMORY of this shell: the unit has .env alone" in capsys.readouterr().out


def test_it_skips_no_host_which_may_be_shut_out_before_it_starts_again(
    home: Path, env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env.write_text(env.read_text() + "HOSTS=box2\n")
    env.with_name(".env.box2").write_text("HOST_ENGINE=ssh://me@box2\n")
    monkeypatch.setenv("SKIP", "box2")

    assert "SKIP" not in written(home)
    assert (
        "SKIP=box2 is of this command alone: the unit asks all hosts that answer" in capsys.readouterr().out
    )


def test_a_host_that_it_would_not_reach_is_named_with_the_cure(
    home: Path,
    env: Path,
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Given two hosts, one of which this shell reaches by its agent
    env.write_text(env.read_text() + "HOSTS=box2,box3\n")
    for name in ("box2", "box3"):
        env.with_name(f".env.{name}").write_text(f"HOST_ENGINE=ssh://me@{name}\n")
    docker = programs / "docker"
    docker.write_text(
        '#!/bin/sh\ncase "$*" in *box2*) [ "$SSH_AUTH_SOCK" ] || { echo "stderr=me@box2: Permission denied (publickey)." >&2; exit 1; };; esac\n'
    )
    docker.chmod(0o755)
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent")

    written(home)

    said = capsys.readouterr().out
    assert "box2: the unit can't reach it: me@box2: Permission denied (publickey)." in said
    assert "no agent" in said
    assert "box3" not in said


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_it_whatever_stands_in_paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = home / "my 100%n stäck"
    root.mkdir()
    (root / "python").symlink_to(sys.executable)
    monkeypatch.setattr(systemd_unit, "ROOT", root)
    monkeypatch.setattr(sys, "executable", str(root / "python"))
    monkeypatch.setenv("DOCKER_CONFIG", r'a\b "c" 5% $d')
    unit = written(home)
    path = home / "second-autoscale.service"
    path.write_text(unit)

    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )

    assert [line for line in found.stderr.splitlines() if "second-autoscale" in line] == []
    assert r'Environment="DOCKER_CONFIG=a\\b \"c\" 5%% $d"' in unit
    assert f"WorkingDirectory={str(root).replace('%', '%%')}\n" in unit


def test_without_systemd_no_unit_is_written(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path / "none")

    with pytest.raises(Failure, match="systemd"):
        systemd_unit.write()
