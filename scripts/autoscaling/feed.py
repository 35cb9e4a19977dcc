"""What `make autoscale` learns from inside the stack: a container of its own answers a line with a line.

It ends with its standard input, so it is gone when this process is, however that ends.
"""

import json
import select
import subprocess
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
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Raises Failure that says why there is no answer; the next question begins afresh."""
        seconds = ANSWER_SECS if self._process else FIRST_SECS
        process = self._process = self._process or start()
        assert process.stdin
        assert process.stdout
        try:
            print(json.dumps(question), file=process.stdin, flush=True)
            is_there = select.select([process.stdout], [], [], seconds)[0]
            answer = process.stdout.readline() if is_there else ""
            found: dict[str, Any] = json.loads(answer)
        except (OSError, ValueError):
            self.close()
            raise Failure(f"the stack does not answer: {last_words()}") from None
        return found

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


def start() -> subprocess.Popen[str]:
    LOG_FOLDER.mkdir(parents=True, exist_ok=True)
    with LOG.open("w") as log:
        # A session of its own: a Ctrl-C for this process must not end its container in the middle of an answer.
        return subprocess.Popen(
            [*compose.compose(), *COMMAND],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def last_words() -> str:
    lines = LOG.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"nothing in {LOG}")
