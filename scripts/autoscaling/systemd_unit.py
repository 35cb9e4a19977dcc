"""The unit by which systemd keeps `make autoscale` at work: `make autoscale UNIT=1` writes it."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts import compose, engine, env_file, proxies
from scripts.console import ROOT, Failure, done, say, warn
from scripts.hosts.host import SKIP, skipped, unreachable, wanted

#: What of this shell says which engine is asked, and how; `.env` has the rest. A session's ssh agent ends with it.
GIVEN = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS", "DOCKER_TLS_VERIFY",
         "DOCKER_API_VERSION", "COMPOSE_FILE")  # fmt: skip
#: It is told to end by itself: its children end with it, and its container by what it says. What is left then is killed.
UNIT = """\
[Unit]
Description=As many workers as there is work: {project}
After=docker.service network-online.target
Wants=network-online.target

[Service]
WorkingDirectory={root}
{environment}
ExecStart={python} -m scripts.autoscaling
Restart=always
RestartSec=10
KillMode=mixed
TimeoutStopSec=30

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
    warn_of_what_it_lacks()
    user = "" if is_root else " --user"
    say(
        f"\n  systemctl{user} daemon-reload && systemctl{user} enable {name} && systemctl{user} restart {name}"
        f"\n  journalctl{user} -f -u {name}"
    )
    if not is_root:
        say("  loginctl enable-linger   lets it start with the machine")


def text(is_root: bool) -> str:
    return UNIT.format(
        project=compose.project(),
        root=str(ROOT).replace("%", "%%"),
        environment="\n".join(f"Environment={quoted(f'{name}={value}')}" for name, value in given().items()),
        python=quoted(sys.executable),
        target="multi-user.target" if is_root else "default.target",
    )


def quoted(word: str) -> str:
    """As systemd reads it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def given() -> dict[str, str]:
    found = {name: os.environ[name] for name in GIVEN if name in os.environ}
    if "STACK_ENV_FILE" in os.environ:
        found["STACK_ENV_FILE"] = str(env_file.env_path())
    return found


def warn_of_what_it_lacks() -> None:
    """Settings of this shell, and hosts that ssh does not reach without it."""
    if lacking := of_the_shell(env_file.read(env_file.env_path())):
        file = env_file.env_path().name
        warn(f"{', '.join(lacking)} of this shell: the unit has {file} alone, so write them there")
    if left := skipped():
        warn(f"{SKIP}={','.join(sorted(left))} is of this command alone: the unit asks all hosts that answer")
    for host in wanted():
        if problem := unreachable(host.engine, given()):
            warn(f"{host.name}: the unit can't reach it: {problem.rstrip('.')}.")
            if host.engine.startswith("ssh:"):
                say(
                    "    It has no agent and nobody to ask: it needs a key without a passphrase, and a known host."
                )


def of_the_shell(file: Mapping[str, str]) -> list[str]:
    """Settings that stand in this process's environment, and in the file not or otherwise. Proxies `make up` has noted."""
    known = {*file, *re.findall(r"^#?([A-Z][A-Z0-9_]*)=", env_file.text_of(env_file.EXAMPLE), re.MULTILINE)}
    names = known - {*GIVEN, *proxies.NAMES}
    return sorted(name for name in names & os.environ.keys() if os.environ[name] != file.get(name))
