"""The unit by which systemd keeps `make autoscale` at work: `make autoscale UNIT=1` writes it."""

import os
import sys
from pathlib import Path

from scripts import compose, engine, env_file
from scripts.console import ROOT, Failure, done, say

UNIT = """\
[Unit]
Description=As many workers as there is work: {project}
After=docker.service network-online.target
Wants=network-online.target

[Service]
WorkingDirectory={root}
Environment="PATH={path}" "STACK_ENV_FILE={env}"
ExecStart={python} -m scripts.autoscaling
Restart=always
RestartSec=10

[Install]
WantedBy={target}
"""


def write() -> None:
    """Root's units are the system's, any other user's are his own. Raises Failure where systemd is not in charge."""
    if not engine.SYSTEMD.is_dir():
        raise Failure(
            "systemd is not this machine's first process: keep `make autoscale` running by what is."
        )
    is_root = os.geteuid() == 0
    folder = Path("/etc/systemd/system" if is_root else "~/.config/systemd/user").expanduser()
    name = f"{compose.project()}-autoscale.service"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text(is_root), encoding="utf-8")
    done(f"{folder / name} written")
    user = "" if is_root else " --user"
    say(
        f"\n  systemctl{user} daemon-reload && systemctl{user} enable --now {name}\n  journalctl{user} -f -u {name}"
    )
    if not is_root:
        say("  loginctl enable-linger   lets it start with the machine")


def text(is_root: bool) -> str:
    return UNIT.format(
        project=compose.project(),
        root=ROOT,
        path=os.environ.get("PATH", ""),
        env=env_file.env_path(),
        python=sys.executable,
        target="multi-user.target" if is_root else "default.target",
    )
