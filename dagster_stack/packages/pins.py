"""What a project's files say of packages that the platform has in another version.

A pin within the same major version gives way to the platform's version, and is told; one of what user code does not import
gives way in any version. Any other line is refused.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import Specifier
from packaging.version import InvalidVersion, Version

from dagster_stack.packages import locks
from dagster_stack.packages.errors import Refused
from dagster_stack.packages.sources import table

#: Says whether the index has a package in a version.
Exists = Callable[[str, str], bool]
#: What the services of the platform need, and user code does not: such a pin comes of `pip freeze`.
SERVICES = {"amqp", "billiard", "celery", "flower", "kombu", "psutil", "starlette", "uvicorn", "vine"}
#: What Dagster's webserver was called up to 1.5; each of its versions wants one version of everything.
RENAMED = {"dagit": "dagster-webserver"}
#: Below it are versions; years, as in pytz 2026.6, say nothing of what changed.
YEARS = 1970


def settle(file: Path, name: str, platform: dict[str, str], exists: Exists, *, strict: bool = True) -> str:
    """Take from a file what pins the platform's packages to other versions; returns a sentence about it, or nothing.

    Lines whose place the platform's version can't take stay; if strict they are Refused, all at once.
    """
    replaced, wrong = [], []
    for place, line, requirement in list(asked(file)):
        if is_renamed := requirement.name in RENAMED:
            requirement.name = RENAMED[requirement.name]
        version = platform.get(locks.canonical(requirement.name), "").split(", ")[0]
        if requirement.marker and not requirement.marker.evaluate():
            continue
        if not version and (right := library(requirement, platform["dagster"])):
            version = right if exists(requirement.name, right) else ""
        if not version or (is_met(requirement, version) and not is_renamed):
            continue
        if (is_renamed or gives_way(requirement, version)) and rewrite(place, line, requirement):
            replaced.append((line, f"{requirement.name} {version}"))
        else:
            wrong.append(f"{line}: the platform has {requirement.name} {version}")
    if wrong and strict:
        raise Refused(
            "\n".join(
                [
                    f"{name} asks for other versions than the platform has, and one process can't have both:",
                    *wrong,
                    "Leave these lines out, as the platform brings the packages, or allow its versions"
                    f" ({suggestion(wrong[0])}). Another version of the platform: UPGRADE of `make lock`.",
                ]
            )
        )
    if not replaced:
        return ""
    lines, versions = (", ".join(dict.fromkeys(each)) for each in zip(*replaced, strict=True))
    return (
        f"{name} asks for {lines}: the platform's {versions} {'takes its' if len(replaced) == 1 else 'take their'} place, as"
        " one process can't have both. If the code needs what it asks for: UPGRADE of `make lock`."
    )


def library(requirement: Requirement, dagster: str) -> str:
    """The version that belongs to this Dagster, of a library that is asked for in another one; else nothing."""
    if not locks.canonical(requirement.name).startswith("dagster-") or not requirement.specifier:
        return ""
    # Its tools, as dagster-dg-cli, are numbered as Dagster itself.
    numbered = any(major(each) for each in requirement.specifier)
    version = locks.dagster_series(dagster)[not numbered].replace("*", dagster.split(".")[2])
    return "" if is_met(requirement, version) else version


def is_met(requirement: Requirement, version: str) -> bool:
    return not requirement.url and requirement.specifier.contains(version, prereleases=True)


def gives_way(requirement: Requirement, version: str) -> bool:
    """Whether the platform's version may stand for what is asked for: the same major one, and not below a lower bound."""
    ours = Version(version)
    missed = [each for each in requirement.specifier if not each.contains(ours, prereleases=True)]
    upper = bool(missed) and all(each.operator in ("==", "===", "~=", "<", "<=") for each in missed)
    any_major = locks.canonical(requirement.name) in SERVICES
    return upper and (any_major or all(same(major(each), ours.major) for each in missed))


def major(bound: Specifier) -> int:
    """The major version that a bound allows at most; below 2 it is 1."""
    try:
        version = Version(bound.version.removesuffix(".*"))
    except InvalidVersion:
        return -1
    return version.major - (bound.operator == "<" and not any(version.release[1:]))


def same(one: int, other: int) -> bool:
    return one == other or min(one, other) > YEARS


def rewrite(file: Path, line: str, requirement: Requirement) -> bool:
    """Leave of a line the name, with extras and marker; whether it was found as it stands there."""
    text = file.read_text(encoding="utf-8", errors="replace")
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    loose = f"{requirement.name}{extras}" + (f"; {requirement.marker}" if requirement.marker else "")
    if file.suffix == ".toml":
        found = text.replace(json.dumps(line), json.dumps(loose)).replace(f"'{line}'", json.dumps(loose))
    else:
        # With the hashes that follow it.
        found = "".join(f"{loose if stripped(each) == line else each}\n" for each in joined(text))
    file.write_text(found, encoding="utf-8")
    return found != text


def asked(file: Path) -> Iterator[tuple[Path, str, Requirement]]:
    """The requirements of a file as they stand there, those of included files too."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix == ".toml":
        lines = [str(each) for each in table(tomllib.loads(text), "project")["dependencies"]]
    else:
        lines = joined(text)
    for line in lines:
        if included := re.match(r"(?:-r|--requirement|-c|--constraint)[ =]*(\S+)", line.strip()):
            yield from asked(file.parent / included[1])
        try:
            yield file, stripped(line), Requirement(stripped(line))
        except InvalidRequirement:
            # An option, or what uv itself has to say something about.
            continue


def joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def stripped(line: str) -> str:
    """A line without its comment, and without options such as hashes."""
    return re.split(r"(?:^|\s)#|\s--", line, maxsplit=1)[0].strip()


def suggestion(line: str) -> str:
    """A range that allows the platform's version: `dagster>=1.13,<2`."""
    name, version = line.rpartition(": the platform has ")[2].split(" ")[:2]
    parts = version.split(".")
    return f"{name}>={'.'.join(parts[:2])}" + (f",<{int(parts[0]) + 1}" if parts[0].isdigit() else "")
