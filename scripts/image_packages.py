"""The packages that images hold, of Debian and of Python, beside those that are newer: old → new, in words."""

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dagster_stack.packages import explain, locks
from scripts import images, proxies
from scripts.console import Failure, Progress
from scripts.engine import docker

#: Kinds of packages: Debian's, those of the platform's locks, and those that the user's project adds to them.
DEBIAN, PYTHON, PROJECT = "Debian", "Python", "your project"
STATUS = "/var/lib/dpkg/status"
#: Files that name an image's packages, and of which kind these are.
FILES = {
    STATUS: DEBIAN,
    "/opt/dagster/requirements/stack.lock": PYTHON,
    "/opt/dagster/requirements/flights.lock": PYTHON,
    "/opt/dagster/requirements/project.lock": PROJECT,
}
MARK = "=== "
READ = f'for file in {" ".join(FILES)}; do [ -e "$file" ] && echo "{MARK}$file" && cat "$file"; done; true'
#: Asks Debian's archive once for all images. Their `apt-get upgrade` in the Dockerfiles gets what is found here.
ASK = f"""
mkdir /tmp/statuses
tar -x -C /tmp/statuses
apt-get update -qq >&2
for file in /tmp/statuses/*; do
  echo "{MARK}$(basename "$file")"
  apt-get upgrade -qq --simulate -o Dir::State::status="$file"
done
"""
FIELD = re.compile(r"^(Package|Status|Version): (.*)$", re.MULTILINE)
#: A package that would be installed: of what name, in which version.
NEWER = re.compile(r"^Inst (\S+?)(?::\w+)? (?:\[\S+\] )?\((\S+)", re.MULTILINE)
#: What is told first, and as it is where it does not change.
PARTS = (
    ("Dagster", PYTHON, re.compile("dagster")),
    ("Postgres", DEBIAN, re.compile(r"postgresql-\d+")),
    ("RabbitMQ", DEBIAN, re.compile("rabbitmq-server")),
    ("Debian", DEBIAN, re.compile("base-files")),
)

#: The version of each package, by kind and name.
Packages = dict[tuple[str, str], str]


@dataclass(frozen=True, order=True)
class Change:
    """One package's, and in which images; without `old` it is added, without `new` removed."""

    kind: str
    package: str
    old: str
    new: str
    images: tuple[str, ...]


# --- what there is --------------------------------------------------------------------------------------


def texts(image: str) -> dict[str, str]:
    """The content of those of FILES that an image has."""
    command = [docker(), "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", READ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failure(f"The packages of {image} could not be read: {result.stderr.strip()}")
    return parts(result.stdout)


def parts(text: str) -> dict[str, str]:
    """What stands below each mark."""
    found = {}
    for part in f"\n{text}".split(f"\n{MARK}")[1:]:
        name, _, content = part.partition("\n")
        found[name] = f"{content}\n"
    return found


def packages(texts: Mapping[str, str]) -> Packages:
    """What an image's files say that it holds."""
    found: Packages = {}
    for file, text in texts.items():
        each = of_status(text) if file == STATUS else locks.versions(text)
        found |= {(FILES[file], name): version for name, version in each.items()}
    return found


def of_status(text: str) -> dict[str, str]:
    """The installed packages of a dpkg status file."""
    stanzas = [dict(FIELD.findall(stanza)) for stanza in re.split(r"\n{2,}", text)]
    return {
        each["Package"]: each["Version"]
        for each in stanzas
        if each.get("Status", "").endswith(" ok installed")
    }


def newer(base: str, statuses: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What of Debian's archive is newer than what dpkg status files have: package and version, by name."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number, text in enumerate(statuses.values()):
            entry = tarfile.TarInfo(str(number))
            entry.size = len(content := text.encode())
            tar.addfile(entry, io.BytesIO(content))
    # Named without their values: a password may be among these.
    proxied = [part for name in proxies.recorded() for part in ("--env", name)]
    command = [docker(), "run", "--rm", "--interactive", "--user", "0", *proxied, base, "sh", "-euc", ASK]
    with Progress("Asking Debian's archive for newer packages"):
        result = subprocess.run(
            command,
            input=archive.getvalue(),
            capture_output=True,
            env={**os.environ, **proxies.recorded()},
            check=False,
        )
    if result.returncode:
        said = result.stderr.decode(errors="replace")
        raise Failure(
            f"Debian's archive can't be asked:\n\n{explain.excerpt(said) or said}{images.cure(said)}"
        )
    found = parts(result.stdout.decode(errors="replace"))
    return {name: dict(NEWER.findall(found[str(number)])) for number, name in enumerate(statuses)}


# --- old → new -------------------------------------------------------------------------------------------


def changes(before: Mapping[str, Packages], after: Mapping[str, Packages]) -> list[Change]:
    """What differs, each package once for all images in which it changes the same way."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for image, old in before.items():
        new = after[image]
        for key in old.keys() | new.keys():
            if old.get(key) != new.get(key):
                found.setdefault((*key, old.get(key, ""), new.get(key, "")), []).append(image)
    return sorted(Change(*each, tuple(sorted(names))) for each, names in found.items())


def table(changed: Iterable[Change], before: Mapping[str, Packages]) -> list[str]:
    """The parts that people ask for first, whether they change or not; then every other package that changes."""
    changed = list(changed)
    told = []
    for title, kind, pattern in PARTS:
        if moved := [each for each in changed if each.kind == kind and pattern.fullmatch(each.package)]:
            told += [(title, moves(each), "") for each in moved]
            changed = [each for each in changed if each not in moved]
        elif here := sorted({version for each in before.values() for (of, name), version in each.items()
                             if of == kind and pattern.fullmatch(name)}):  # fmt: skip
            told.append((title, f"{', '.join(here)}, as it is", ""))
    return rows(changed, len(before), told)


def rows(changed: Iterable[Change], count: int, told: Iterable[tuple[str, str, str]] = ()) -> list[str]:
    """A line for each, below those that were `told`; `count` images are all of them."""
    found = list(told)
    for each in changed:
        where = "all images" if len(each.images) == count > 1 else ", ".join(each.images)
        found.append((f"{each.kind}: {each.package}", moves(each), where if each.kind == DEBIAN else ""))
    widths = [max((len(row[column]) for row in found), default=0) for column in (0, 1)]
    return [f"  {name:<{widths[0]}}  {said:<{widths[1]}}  {where}".rstrip() for name, said, where in found]


def moves(change: Change) -> str:
    return f"{change.old or 'none'} → {change.new or 'none'}"
