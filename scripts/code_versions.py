"""`make versions`: versions of the stack's code, kept as images; what runs, and what `make rollback` can go back to.

An image's tag says when it was deployed last, in UTC, and the hash of its code: 20261130T035120-0123456789ab.
"""

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from scripts import compose, engine, images
from scripts.console import Failure, main, say, warn

#: Versions that are kept, besides those that containers have.
KEPT = 5
#: The tag of the version that the stack was rolled back to; gone once the checkout's code is deployed again.
ROLLED_BACK = "rolled-back"
#: What `make rollback` does, and what there is to do once it has.
BEFORE = (
    "`make rollback` goes to the version before the one that runs, `make rollback TO=code` to any of these."
)
AFTERWARDS = (
    "`make deploy` brings the checkout's code again, `make rollback TO=code` any that `make versions` lists."
)
STAMP = "%Y%m%dT%H%M%S"
TAG = re.compile(r"(\d{8}T\d{6})-([0-9a-f]+)")
#: Where the image keeps the hash of its code.
CODE_FILE = "/opt/dagster/code-version"


@dataclass(frozen=True)
class Version:
    """An image that is kept."""

    code: str
    deployed: datetime
    image_id: str
    tag: str

    @property
    def described(self) -> str:
        commit = label(self.image_id, images.COMMIT_LABEL)
        return f"code {self.code}, deployed {when(self.deployed)}" + (f", commit {commit}" if commit else "")


def versions() -> None:
    compose.require_env_file()
    keep_running()
    found, services, back = kept(), running(), rolled_back()
    if not found:
        say(
            f"No version of {compose.project()} is kept yet: `make up` and `make deploy` keep what they deploy."
        )
        return
    say(f"{'code':<12}  {'deployed (UTC)':<16}  {'commit':<24}  what runs")
    for each in found:
        runs = ", ".join(sorted(set(services.get(each.image_id, []))))
        if runs and len(services) == 1:
            runs = "all services"
        note = ", ".join(filter(None, (runs, "rolled back to" if back == each.image_id else "")))
        commit = label(each.image_id, images.COMMIT_LABEL)
        say(f"{each.code:<12}  {each.deployed:%Y-%m-%d %H:%M}  {commit:<24}  {note}".rstrip())
    say(f"\n{AFTERWARDS if back else BEFORE}")


# --- what is kept ------------------------------------------------------------------------------------


def kept() -> list[Version]:
    """The versions, the one that was deployed last first."""
    found: dict[str, Version] = {}
    for tag, image_id in sorted(tags().items(), reverse=True):
        if parts := TAG.fullmatch(tag):
            deployed = datetime.strptime(parts[1], STAMP).replace(tzinfo=UTC)
            # One whose former tag a killed command has left counts once.
            found.setdefault(parts[2], Version(parts[2], deployed, image_id, tag))
    return list(found.values())


def keep(image_id: str, code: str) -> None:
    """Keep an image as the version that was deployed last. The oldest ones go, never one that a container has."""
    name, now = images.dagster().name, datetime.now(UTC)
    tag = f"{now:{STAMP}}-{code}"
    give_tag(image_id, tag)
    former = [each for each in tags() if (parts := TAG.fullmatch(each)) and parts[2] == code and each != tag]
    used = with_containers()
    old = [each.tag for each in kept()[KEPT:] if each.image_id not in used]
    if gone := [f"{name}:{each}" for each in (*former, *old)]:
        # Where it can't be removed, a container that was just made has it: the next deployment tries again.
        engine.ask("image", "rm", *gone)


def keep_running() -> None:
    """Keep what containers run with where that is not kept yet: deployed before versions were, or its tag was removed."""
    known = {each.image_id for each in kept()}
    for image_id in running():
        if image_id not in known and (code := code_of(image_id)):
            keep(image_id, code)


def tags() -> dict[str, str]:
    """The image of each tag of this stack's."""
    listed = engine.ask("image", "ls", "--no-trunc", "--format", "{{.Tag}} {{.ID}}", images.dagster().name)
    return dict(fields for line in listed.splitlines() if len(fields := line.split()) == 2)


def give_tag(image_id: str, tag: str) -> None:
    command = [engine.docker(), "tag", image_id, f"{images.dagster().name}:{tag}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failure(f"The image could not be kept: {result.stderr.strip()}")


# --- a rollback, until the next deployment --------------------------------------------------------------


def rolled_back() -> str:
    """The image that the stack was rolled back to; empty when it was not."""
    return tags().get(ROLLED_BACK, "")


def warn_of_rollback() -> None:
    if back := rolled_back():
        warn(f"the stack was rolled back to code {code_of(back)}: it gets the checkout's again")


def forget_rollback() -> None:
    if rolled_back():
        engine.ask("image", "rm", f"{images.dagster().name}:{ROLLED_BACK}")


# --- what runs -----------------------------------------------------------------------------------------


def running() -> dict[str, list[str]]:
    """The services that run with each image of the stack's code."""
    names = [each.name for each in compose.containers() if each.state == "running"]
    found = defaultdict(list)
    for each in inspected("container", names):
        if each["Config"]["Image"] == images.dagster().name:
            found[each["Image"]].append(each["Config"]["Labels"]["com.docker.compose.service"])
    return dict(found)


def with_containers() -> set[str]:
    """The images that any container has, one that has ended too."""
    names = engine.ask("ps", "--all", "--quiet", "--no-trunc").split()
    return {each["Image"] for each in inspected("container", names)}


def code_of(image_id: str) -> str:
    """The hash of an image's code; empty when it has none."""
    for each in kept():
        if each.image_id == image_id:
            return each.code
    found = engine.ask("run", "--rm", "--network", "none", "--entrypoint", "cat", image_id, CODE_FILE)
    return found if re.fullmatch("[0-9a-f]+", found) else ""


def label(image_id: str, name: str) -> str:
    found = inspected("image", [image_id])
    return str((found[0]["Config"].get("Labels") or {}).get(name, "")) if found else ""


def inspected(kind: str, names: Iterable[str]) -> list[dict[str, Any]]:
    """What the engine says of these; of those that are still there."""
    if not (names := list(names)):
        return []
    command = [engine.docker(), kind, "inspect", *names]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found: list[dict[str, Any]] = json.loads(said or "[]")
    return found


def when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


if __name__ == "__main__":
    main(versions)
