"""The git commits of what an image is built from."""

import subprocess
from pathlib import Path

from scripts import project as user_project
from scripts.console import ROOT


def commit() -> str:
    """One where project and stack are in one repository, else both; empty without git."""
    stack, own = described(ROOT), described(user_project.folder())
    if stack == own or not own:
        return stack
    return f"project {own}, stack {stack}" if stack else own


def described(folder: Path) -> str:
    """The commit that is checked out there, with `-dirty` after an edit."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
