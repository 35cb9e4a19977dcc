"""A real sshd on a further host's address, by which its engine is reached as any other is: `docker -H ssh://…`."""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts import apt, engine
from tests.hosts.engines import Engine
from tests.waiting import wait_until

PORT = 2222


@dataclass(frozen=True)
class Access:
    """The engine's address, and the folder with an `ssh` that has the key, for PATH."""

    url: str
    folder: Path

    @property
    def path(self) -> str:
        return f"{self.folder}:{os.environ['PATH']}"


@contextmanager
def sshd(box: Engine) -> Iterator[Access]:
    """It takes one key, and shows one that the client knows: a kept host's are kept."""
    apt.ensure("Installing sshd", "sshd", ["openssh-server"])
    folder = box.state / "ssh"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pid").unlink(missing_ok=True)
    for key in ("host", "user"):
        if (folder / key).exists():
            continue
        generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(generate, check=True)
    address = f"[{box.address}]:{PORT}"
    (folder / "known").write_text(f"{address} {(folder / 'host.pub').read_text()}")
    (folder / "config").write_text(
        f"Host *\n IdentityFile {folder}/user\n UserKnownHostsFile {folder}/known\n StrictHostKeyChecking yes\n BatchMode yes\n"
    )
    (folder / "ssh").write_text(
        f'#!/bin/sh\nexec /usr/bin/ssh -F {shlex.quote(str(folder / "config"))} "$@"\n'
    )
    (folder / "ssh").chmod(0o755)
    # The client asks for `docker` there, which must be one that has `system dial-stdio`.
    (folder / "sshd_config").write_text(
        f"Port {PORT}\nListenAddress {box.address}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"PidFile {folder}/pid\nPasswordAuthentication no\nStrictModes no\nUsePAM no\n"
        f"SetEnv PATH={Path(engine.docker()).parent}:/usr/bin:/bin\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    (program,) = engine.everywhere("sshd")[:1]
    subprocess.run(box.inside(program, "-f", str(folder / "sshd_config")), check=True)
    pid = int(
        wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), 10, "sshd is there")
    )
    try:
        yield Access(f"ssh://root@{box.address}:{PORT}{box.socket}", folder)
    finally:
        os.kill(pid, signal.SIGTERM)
