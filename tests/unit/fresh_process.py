"""A look at what a program has, in a process of its own: what is loaded here has read its environment long ago."""

import json
import os
import subprocess
import sys
from typing import Any

from scripts.console import ROOT


def look(code: str, *arguments: str, **environment: str) -> Any:
    """The JSON that Python code prints; fails with what it complains of."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
