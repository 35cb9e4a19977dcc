"""What the scripts print: steps with their time, the end of a failed command's log, questions."""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
BUILD_FOLDER = ROOT / ".build"
LOG_FOLDER = BUILD_FOLDER / "logs"

#: Seconds between progress lines on a terminal that can't rewrite them.
QUIET_INTERVAL_SECS = 15
#: Characters of a progress line's detail that are shown.
DETAIL_WIDTH = 100
#: Lines of a failed command's log that are printed.
LOG_TAIL_LINES = 30


class Failure(Exception):
    """Raised when a script can't go on: the message says what is wrong and how to cure it."""


def attended() -> bool:
    """Whether a person can answer questions (also with `make clean | tee log`)."""
    return sys.stdin.isatty() and not os.environ.get("CI")


def interactive() -> bool:
    """Whether there is a terminal on both sides, and no CI."""
    return attended() and sys.stdout.isatty()


def say(text: str) -> None:
    print(text, flush=True)


def done(text: str) -> None:
    say(f"  ✓ {text}")


def warn(text: str) -> None:
    say(f"  ! {text}")


def fail(error: Failure | str) -> NoReturn:
    print(f"\n  ✗ {error}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def main(entry: Callable[[], int | None]) -> NoReturn:
    """Run a script: failures as one readable message, Ctrl-C without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that knows no ✓ gets a ? in its place.
            stream.reconfigure(errors="replace")
    try:
        sys.exit(entry() or 0)
    except Failure as error:
        fail(error)
    except PermissionError as error:
        fail(
            f"{error.filename}: this user may not do that. If `sudo make` was used here before, use it again,"
            f" or take the files back: sudo chown -R $(id -u):$(id -g) {ROOT}"
        )
    except KeyboardInterrupt:
        print("\n  interrupted; what is running goes on, `make down` ends it", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`make up | head`).
        os._exit(141)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        fail(
            f"{error.filename}: this folder can only be read. `.env` and `.build` are written here: copy the checkout."
        )


def confirm(question: str) -> bool:
    """Ask on a terminal; without one the answer is no."""
    if not attended():
        return False
    try:
        return input(f"  ? {question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        say("")
        return False


class Progress:
    """One line that shows that a long part is alive: what it is, what it is at, the time so far."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._detail = ""
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._rewrites = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Progress":
        if not self._rewrites:
            say(f"  … {self._title}")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._rewrites:
            print("\r\033[K", end="", flush=True)

    @property
    def elapsed(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def at(self, detail: str) -> None:
        """Say what the part is at now."""
        self._detail = " ".join(detail.split())[:DETAIL_WIDTH]

    def _show(self) -> None:
        interval = 0.5 if self._rewrites else QUIET_INTERVAL_SECS
        while not self._ended.wait(interval):
            line = f"  … {self._title}  {self.elapsed}" + (f"  {self._detail}" if self._detail else "")
            if self._rewrites:
                width = shutil.get_terminal_size().columns
                print(f"\r\033[K{line[: width - 1]}", end="", flush=True)
            else:
                say(line)


def tail(log: str) -> str:
    """The lines that a log ends with."""
    return "\n".join(log.splitlines()[-LOG_TAIL_LINES:])


def run_logged(
    title: str,
    command: Sequence[str],
    *,
    detail: Callable[[str], str | None] = lambda line: line,
    excerpt: Callable[[str], str] = lambda log: "",
    environment: dict[str, str] | None = None,
    cwd: Path = ROOT,
) -> None:
    """Run a long command with a progress line; its output goes to a log, of which a failure shows a part.

    `detail` turns a line of output into what the progress line says, or None to keep it. `excerpt` finds in a log what
    says why it failed; the end of the log is shown where that finds nothing.
    Raises Failure when the command does not end with 0.
    """
    LOG_FOLDER.mkdir(parents=True, exist_ok=True)
    log = LOG_FOLDER / (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".log")
    with Progress(title) as progress, log.open("w", encoding="utf-8") as file:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
        except FileNotFoundError as error:
            raise Failure(f"{title} needs the program {command[0]}, which is not on this machine.") from error
        with process:
            assert process.stdout
            try:
                for line in process.stdout:
                    file.write(line)
                    text = detail(line.strip())
                    if text:
                        progress.at(text)
            except BaseException:
                process.terminate()
                raise
        elapsed = progress.elapsed
    if process.returncode:
        text = log.read_text(encoding="utf-8")
        if said := excerpt(text):
            raise Failure(f"{title} failed after {elapsed}. What {log} says:\n\n{said}")
        raise Failure(f"{title} failed after {elapsed}. The end of {log}:\n\n{tail(text)}")
    done(f"{title} ({elapsed})")
