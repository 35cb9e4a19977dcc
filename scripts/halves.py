"""The unit tests in two processes beside each other, each with every second file: on two cores half the minutes."""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.console import ROOT, Progress, say

FOLDER = "tests/unit"


def unit_tests(python: str | Path, checkout: Path = ROOT) -> int:
    """Run them; 0 when both halves pass. The first half is seen as it goes, all of the second when it has ended."""
    command = [str(python), "-m", "pytest"]
    files = sorted(str(each.relative_to(checkout)) for each in (checkout / FOLDER).rglob("test_*.py"))
    say("The unit tests, half of them beside the other half")
    with (
        tempfile.TemporaryFile() as output,
        # In a process group of its own: of Ctrl-C it hears once, from here.
        subprocess.Popen(
            [*command, *files[1::2]], cwd=checkout, process_group=0, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT,
        ) as second,
    ):  # fmt: skip
        try:
            first = subprocess.run([*command, *files[::2]], cwd=checkout, check=False).returncode
            with Progress("The other half of the unit tests"):
                second.wait()
        except BaseException:
            second.send_signal(signal.SIGINT)
            raise
        finally:
            second.wait()
            output.seek(0)
            shutil.copyfileobj(output, sys.stdout.buffer)
            sys.stdout.flush()
    # Of one that was killed the code is below 0.
    return max(map(abs, (first, second.wait())))
