"""What a project's package files can't be used for, in words."""

import sys
from collections.abc import Callable
from typing import NoReturn

from dagster_stack.packages.explain import MARK


class Refused(Exception):
    """Raised when a project asks for packages that it can't have: names the file, both sides and the cure."""


def main(entry: Callable[[], None]) -> NoReturn:
    """Run a part of the build; a refusal is marked, such that it is found in the build's log."""
    try:
        entry()
    except Refused as refused:
        first, *further = str(refused).splitlines()
        print(
            "\n".join([f"{MARK}{first}", *(f"  {line.strip()}" for line in further if line.strip())]),
            file=sys.stderr,
            flush=True,
        )
        sys.exit(1)
    sys.exit(0)
