"""The user's code in the image that was built: whether it loads, and what of it would surprise on the stack.

`make up` and `make deploy` print what is wrong before anything is swapped.
"""

import json
from typing import Any

from scripts import compose
from scripts.console import Failure, Progress, done, warn

#: It may read files that the project brings, and that `init` has not laid on the volume yet.
SCRIPT = "python -P -m dagster_stack.project.data absent && exec python -m dagster_stack.project.check"
CHECK = ("cli", "sh", "-c", SCRIPT)
RUN = ("--progress", "quiet", "run", "--rm", "--no-deps", "--no-TTY")


def check() -> str:
    """Load the code in the new image and say what would go wrong; gives the code's hash.

    Raises Failure with the error of code that does not load.
    """
    found = ask()
    for warning in found["warnings"]:
        warn(warning)
    if errors := {name: text for name, text in found["errors"].items() if not excused(name, found)}:
        told = "\n\n".join(f"{name}: {text}" for name, text in errors.items())
        raise Failure(f"Your code does not load:\n\n{told}\n\nCorrect it and try again.")
    count = len(found["reports"])
    done(f"the code loads ({count} code location{'s' * (count > 1)})")
    return str(found["code"])


def ask() -> dict[str, Any]:
    """What the image says of its code."""
    with Progress("Loading the code in the new image"):
        said = compose.output(*RUN, *CHECK)
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError:
        raise Failure(f"The image does not say what it found in your project, but:\n\n{said}") from None
    return answer


def excused(name: str, found: dict[str, Any]) -> bool:
    """Whether code failed to load because it asked a store of a stack that is not up yet: Dagit tells later."""
    if any(each.service == "dagit" and each.state == "running" for each in compose.containers()):
        return False
    (report,) = (each for each in found["reports"] if each["name"] == name)
    hosts = {address.split(":")[0] for address in report["connections"]}
    if asked := hosts & {"postgres", "rabbitmq", "minio"}:
        warn(
            f"{name} asks {', '.join(sorted(asked))} while it is loaded: whether it loads is seen once that is up"
        )
    return bool(asked)
