"""Progress for people, on stderr: stdout carries the results."""

import sys


def say(line: str) -> None:
    print(f"  · {line}", file=sys.stderr, flush=True)
