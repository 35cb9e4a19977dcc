"""Docker engines that stand in for further hosts: each in a network namespace of this machine, with disks of its own.

A bridge joins them, and this machine's own engine with it: FIRST is its address there. What containers of one publish on their
address the others reach, and nothing else does. It needs root.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scripts import engine
from tests.waiting import wait_until

BRIDGE = "dcs-hosts"
NETWORK = "10.77.0"
FIRST = f"{NETWORK}.254"
STATE, DATA = Path("/run/dcs-hosts"), Path("/var/lib/dcs-hosts")
#: Where cgroups are: all of the first kind, or the one of the second.
CGROUPS = Path("/sys/fs/cgroup")
START_SECS, STOP_SECS = 60, 60
#: Chains that see all packets of containers and of the host itself, by the way these go.
CHAINS = {"in": ("raw", "PREROUTING", "-i"), "out": ("mangle", "POSTROUTING", "-o")}


@dataclass(frozen=True)
class Engine:
    """One host: its engine, its namespace, its address."""

    name: str
    address: str

    @property
    def namespace(self) -> str:
        return f"{BRIDGE}-{self.name}"

    @property
    def state(self) -> Path:
        return STATE / self.name

    @property
    def socket(self) -> Path:
        return self.state / "docker.sock"

    @property
    def url(self) -> str:
        """In place of ssh://user@host."""
        return f"unix://{self.socket}"

    def docker(self, *arguments: str, check: bool = True, timeout: float = 300) -> str:
        return _run([engine.docker(), "-H", self.url, *arguments], check, timeout)

    # --- a host comes and goes ---------------------------------------------------------------------------

    def plug_in(self) -> None:
        """Its namespace, joined to the bridge."""
        ip = ("ip", "-n", self.namespace)
        _run(["ip", "netns", "add", self.namespace])
        # A link's name has at most 15 characters.
        _run(
            ["ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace]
        )
        _run(["ip", "link", "set", self.link, "master", BRIDGE, "up"])
        _run([*ip, "addr", "add", f"{self.address}/24", "dev", "eth0"])
        _run([*ip, "link", "set", "eth0", "up"])
        _run([*ip, "link", "set", "lo", "up"])
        _run([*ip, "route", "add", "default", "via", FIRST])

    @property
    def link(self) -> str:
        return f"hb-{self.name}"[:15]

    def inside(self, *command: str) -> list[str]:
        """The command in its network. Not by `ip netns exec`, which hides the cgroups."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]

    def start(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        (DATA / self.name).mkdir(parents=True, exist_ok=True)
        (self.state / "docker.pid").unlink(missing_ok=True)
        (dockerd,) = engine.everywhere("dockerd")[:1]
        options = {
            "--data-root": DATA / self.name, "--exec-root": self.state / "exec", "--pidfile": self.state / "docker.pid",
            "--host": self.url, "--cgroup-parent": f"/{self.namespace}", "--config-file": "/dev/null",
            "--containerd-namespace": self.namespace, "--containerd-plugins-namespace": f"{self.namespace}-plugins",
        }  # fmt: skip
        command = self.inside(dockerd, *(f"{name}={value}" for name, value in options.items()))
        with (self.state / "log").open("a") as log:
            # It outlives the session that keeps it.
            subprocess.run(
                ["setsid", "--fork", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                check=True,
            )
        wait_until(lambda: self.docker("version", check=False), START_SECS, f"engine {self.name} answers")

    def stop(self) -> None:
        """The engine and its containers end as on a host that is shut down."""
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int((self.state / "docker.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not _lives(pid), STOP_SECS, f"engine {self.name} ended")

    def lose(self) -> None:
        """Without power: nothing runs any more, and nobody is told."""
        self.unplug()
        pids = [int((self.state / "docker.pid").read_text()), *self._containerd(), *self._contained()]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self._contained(), STOP_SECS, f"nothing of {self.name} runs")

    def power_on(self) -> None:
        self.plug()
        self.start()

    def _containerd(self) -> list[int]:
        """The engine's containerd and its shims."""
        found = _run(["pgrep", "--full", str(self.state / "exec")], check=False)
        return [int(pid) for pid in found.split()]

    def _contained(self) -> list[int]:
        folders = [*CGROUPS.glob(f"*/{self.namespace}"), CGROUPS / self.namespace]
        files = [file for folder in folders if folder.is_dir() for file in folder.rglob("cgroup.procs")]
        return sorted({int(pid) for file in files for pid in file.read_text().split()})

    # --- its network -------------------------------------------------------------------------------------

    def unplug(self) -> None:
        _run(["ip", "link", "set", self.link, "down"])

    def plug(self) -> None:
        _run(["ip", "link", "set", self.link, "up"])

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """What others send does not arrive there."""
        with self._dropping("in"):
            yield

    @contextmanager
    def mute(self) -> Iterator[None]:
        """What it sends does not arrive anywhere."""
        with self._dropping("out"):
            yield

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        self.unplug()
        try:
            yield
        finally:
            self.plug()

    @contextmanager
    def _dropping(self, way: str) -> Iterator[None]:
        table, chain, by = CHAINS[way]
        rule = [chain, by, "eth0", "--jump", "DROP"]
        _run(self.inside("iptables", "--wait", "--table", table, "--insert", *rule))
        try:
            yield
        finally:
            _run(self.inside("iptables", "--wait", "--table", table, "--delete", *rule))

    def remove(self) -> None:
        self.stop()
        _run(["ip", "netns", "delete", self.namespace], check=False)
        _run(["ip", "link", "delete", self.link], check=False)
        for folder in (DATA / self.name, self.state):
            for mount in mounted_below(folder):
                _run(["umount", "--lazy", mount], check=False)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def engines(*names: str, keep: bool = False) -> Iterator[Sequence[Engine]]:
    """As many further hosts, whose engines answer. Kept ones are found again, images and all."""
    if _run(["ip", "link", "show", BRIDGE], check=False) == "":
        _run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        _run(["ip", "addr", "add", f"{FIRST}/24", "dev", BRIDGE])
        _run(["ip", "link", "set", BRIDGE, "up"])
    made = [Engine(name, f"{NETWORK}.{number}") for number, name in enumerate(names, 2)]
    try:
        for each in made:
            if not Path("/run/netns", each.namespace).exists():
                each.plug_in()
            if not (each.socket.exists() and each.docker("version", check=False)):
                each.start()
        yield made
    finally:
        if not keep:
            for each in made:
                each.remove()
            _run(["ip", "link", "delete", BRIDGE], check=False)


def mounted_below(folder: Path) -> list[str]:
    """What an engine that was killed has left there, the inner ones first, and its data root itself."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [mount for mount in reversed(mounts) if f"{mount}/".startswith(f"{folder}/")]


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _run(command: list[str], check: bool = True, timeout: float = 120) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if result.returncode:
        if check:
            raise AssertionError(f"`{' '.join(command)}` ended with {result.returncode}: {result.stderr}")
        return ""
    return result.stdout
