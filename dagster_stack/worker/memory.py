"""What the kernel says of a container's memory: its limit, its peak, and how many processes were killed for it."""

from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
#: Where the two versions of control groups keep the figures.
VERSION_2 = {"limit": "memory.max", "peak": "memory.peak", "kills": "memory.events"}
VERSION_1 = {
    "limit": "memory/memory.limit_in_bytes",
    "peak": "memory/memory.max_usage_in_bytes",
    "kills": "memory/memory.oom_control",
}
#: A limit of version 1 from this many bytes on means that there is none.
NO_LIMIT = 2**60


@dataclass(frozen=True)
class Memory:
    """Bytes; None where the kernel does not say, or sets no limit."""

    limit: int | None
    peak: int | None
    #: Processes that were killed since the container's start.
    kills: int

    @staticmethod
    def read(folder: Path = CGROUPS) -> "Memory":
        files = VERSION_1 if (folder / VERSION_1["kills"]).exists() else VERSION_2
        limit = _number(folder / files["limit"])
        counts = dict(line.split(maxsplit=1) for line in _text(folder / files["kills"]).splitlines())
        return Memory(
            limit if limit is None or limit < NO_LIMIT else None,
            _number(folder / files["peak"]),
            int(counts.get("oom_kill", 0)),
        )

    def __str__(self) -> str:
        limit = f"limit {self.limit / 2**30:.1f} GiB" if self.limit is not None else ""
        peak = f"peak {self.peak / 2**30:.2f} GiB" if self.peak is not None else ""
        return ", ".join(part for part in (limit, peak) if part)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None
