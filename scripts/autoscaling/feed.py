"""What `make autoscale` learns from inside the stack: a container of its own answers a line with a line.

It ends with its standard input, so it is gone when this process is, however that ends.
"""

import json
import os
import select
import subprocess
import time
from contextlib import suppress
from typing import Any

from scripts import compose
from scripts.console import LOG_FOLDER, ROOT, Failure

COMMAND = (
    "--progress",
    "quiet",
    "run",
    "--rm",
    "--no-deps",
    "--no-TTY",
    "cli",
    "python",
    "-m",
    "dagster_stack",
    "worker-feed",
)
LOG = LOG_FOLDER / "autoscale.log"
#: Seconds for the first answer, which waits for a container and a Python, and for any other.
FIRST_SECS, ANSWER_SECS = 60, 20
#: Seconds that it gets to end.
END_SECS = 10


class Feed:
    """Started with the first question, and anew after a failure or `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Raises Failure that says why there is no answer; the next question begins afresh."""
        seconds = ANSWER_SECS if self._process else FIRST_SECS
        process = self._process = self._process or start()
        assert process.stdin
        assert process.stdout
        why = "it says something else"
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            found = json.loads(line(process.stdout.fileno(), seconds))
            if isinstance(found, dict):
                return found
        except TimeoutError:
            why = f"nothing within {seconds:g} s"
        except (OSError, EOFError):
            why = "its container has ended"
        except ValueError:
            pass
        self.close()
        raise Failure(f"the stack does not answer: {last_words() or why}")

    def close(self) -> None:
        """End it, without a word to the workers: what they were told lapses."""
        process, self._process = self._process, None
        if not process:
            return
        assert process.stdin
        assert process.stdout
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(END_SECS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def line(file: int, seconds: float) -> bytes:
    """What comes up to the end of a line, in any number of pieces. Raises TimeoutError or EOFError."""
    deadline, found = time.monotonic() + seconds, b""
    while not found.endswith(b"\n"):
        if not select.select([file], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise TimeoutError
        if not (piece := os.read(file, 65536)):
            raise EOFError
        found += piece
    return found


def start() -> subprocess.Popen[bytes]:
    LOG_FOLDER.mkdir(parents=True, exist_ok=True)
    with LOG.open("w") as log:
        # A session of its own: a Ctrl-C for this process must not end its container in the middle of an answer.
        return subprocess.Popen(
            [*compose.compose(), *COMMAND],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )


def last_words() -> str:
    """Of its standard error; empty where it said nothing."""
    lines = LOG.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
