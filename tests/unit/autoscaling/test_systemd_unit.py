"""The unit that `make autoscale UNIT=1` writes."""

import os
import sys
from pathlib import Path

import pytest

from scripts import engine
from scripts.autoscaling import systemd_unit
from scripts.console import ROOT, Failure


def test_the_unit_starts_this_checkouts_controller(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env.write_text("COMPOSE_PROJECT_NAME=second\n")
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))

    systemd_unit.write()

    unit = (tmp_path / ".config/systemd/user/second-autoscale.service").read_text()
    assert f"WorkingDirectory={ROOT}\n" in unit
    assert f"ExecStart={sys.executable} -m scripts.autoscaling\n" in unit
    assert f'"STACK_ENV_FILE={env}"' in unit
    assert (
        "systemctl --user daemon-reload && systemctl --user enable --now second-autoscale"
        in capsys.readouterr().out
    )


def test_without_systemd_no_unit_is_written(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path / "none")

    with pytest.raises(Failure, match="systemd"):
        systemd_unit.write()
