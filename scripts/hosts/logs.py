"""What containers of all hosts print, as one: lines of a further host begin with its name."""

import queue
import subprocess
import threading
from collections.abc import Iterator, Sequence

from scripts import compose
from scripts.console import ROOT, warn
from scripts.hosts.host import Host, wanted


def reachable() -> list[Host]:
    """Those whose logs can be read; one that does not answer is named."""
    found = []
    for host in wanted():
        if problem := host.problem():
            warn(f"without the logs of {host.name}, which can't be reached: {problem.splitlines()[-1]}")
        else:
            found.append(host)
    return found


def printed_lines(hosts: Sequence[Host], options: Sequence[str]) -> Iterator[str]:
    """The lines of `docker compose logs` on this host and on these, as they come."""
    asked = ("--progress", "quiet", "logs", "--no-color", *options)
    commands = {"": [*compose.compose(), *asked], **{f"{host.name}/": host.compose(*asked) for host in hosts}}
    environments = {f"{host.name}/": host.environment for host in hosts}
    lines: queue.Queue[str | None] = queue.Queue()

    def read(start: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout
        for line in process.stdout:
            # Compose 2.26 begins a line with a control sequence or some, whoever reads it.
            lines.put(start + line.replace("\x1b[2K", ""))
        lines.put(None)

    processes = []
    for start, command in commands.items():
        process = subprocess.Popen(
            command, cwd=ROOT, env=environments.get(start), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
        reader = threading.Thread(target=read, args=(start, process), daemon=True)
        reader.start()
        processes.append((process, reader))
    try:
        ended = 0
        while ended < len(processes):
            if (line := lines.get()) is None:
                ended += 1
            else:
                yield line
    finally:
        for process, reader in processes:
            process.terminate()
            reader.join()
            with process:
                pass
