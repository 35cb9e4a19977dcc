"""What steps do to their processes, and how the next one sees it: a module for each of `dagster_stack/pool/isolation/`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The entry's name in KEPT, what a step does, and what must be the same before and after.
Disturbance = tuple[str, Callable[[Path], Any], Callable[[], Any]]
DISTURBANCES: list[Disturbance] = []


def disturbance(
    name: str, see: Callable[[], Any]
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def add(disturb: Callable[[Path], Any]) -> Callable[[Path], Any]:
        DISTURBANCES.append((name, disturb, see))
        return disturb

    return add


def child(program: str) -> str:
    """What a program prints in a process that inherits from this one."""
    return subprocess.check_output([sys.executable, "-c", program], text=True).strip()
