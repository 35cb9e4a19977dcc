"""A project's Python packages, added to the platform's.

`python -m dagster_stack.packages.install WANTED PLATFORM_LOCK PREFIX` resolves what was collected with the platform's
versions as constraints, and installs what the platform lacks below PREFIX, for the Python of /venv. Where that has no
solution, packages that the platform's own code does not import move, as far as those that need them allow.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from packaging.markers import Marker

from dagster_stack.packages import explain, locks, network, pins
from dagster_stack.packages.errors import Refused, main
from dagster_stack.packages.sources import Source
from dagster_stack.packages.wanted import REPLACED, SITE, SOURCES

UV = "/uv/bin/uv"
PYTHON = "/venv/bin/python"
COMPILE = [
    "pip",
    "compile",
    "--generate-hashes",
    "--no-annotate",
    "--no-header",
    "--no-emit-index-url",
    "--quiet",
]
INSTALL = ["pip", "install", "--no-deps", "--compile-bytecode", "--link-mode", "copy"]
COMMON = ["--color", "never", "--no-progress"]
#: What may move, and the oldest with which it is known to work. aiobotocore, and so s3fs, want one botocore of a few months.
FLOORS = {"boto3": "1.40"}
#: What came in, in WANTED: it counts as code.
LOCK = "project.lock"
#: What it is taken from, which has the platform's packages too.
RESOLVED = "resolved.lock"
#: There: the files of those of the platform's packages in whose place others came.
REMOVED = "removed.txt"
#: Never in another version than the platform was tested with: its own code and Dagster's go deeper into these than their
#: public interface, or speak to services by them.
KEPT = frozenset(
    (
        *("dagster", "dagster-aws", "dagster-celery", "dagster-graphql", "dagster-pipes", "dagster-postgres"),
        *("dagster-shared", "dagster-webserver", "celery", "kombu", "billiard", "amqp", "vine", "flower"),
        *("sqlalchemy", "alembic", "psycopg2-binary", "minio", "psutil"),
        *("starlette", "uvicorn", "graphql-core", "prometheus-client", "universal-pathlib"),
    )
)
#: How uv says that there is none, and of which package an index has nothing at all.
NO_SOLUTION, ABSENT = "No solution found", re.compile(r"Because (\S+) was not found in")
#: How a package's own build says that a program or a header is missing.
MISSING = re.compile(
    r"fatal error: (?P<header>\S+\.h)|(?:command |unable to execute )'(?P<command>[\w./+-]+)'"
    r"|(?P<program>\b(?:gcc|cc|g\+\+|cmake|cargo|rustc|gfortran|pkg-config|pg_config|mysql_config|make|ninja|swig))\b"
    r"[^\n]{0,40}(?:not found|No such file|not installed|is required|missing)"
    r"|(?:Could not find|Unknown compiler|Can't find|can't find)[^\n]{0,60}?(?P<tool>gcc|cc\b|cmake|Rust|pkg-config|\w+_config)",
    re.IGNORECASE,
)

#: Runs uv with arguments, in a folder: it takes and writes folders of the project relative to that.
Uv = Callable[[list[str], Path], "subprocess.CompletedProcess[str]"]


def uv(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run uv in the build's network; what it prints is without passwords."""
    result = subprocess.run(
        [UV, *arguments, *COMMON, "--python", PYTHON],
        cwd=folder,
        env=network.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    result.stdout = network.hidden(result.stdout)
    return result


def install(wanted: Path, lock: Path, prefix: Path, call: Uv = uv) -> None:
    """Add the project's packages; raises Refused for what can't be had, with both sides and the cure."""
    prefix.mkdir(parents=True, exist_ok=True)
    found = [Source(**each) for each in json.loads((wanted / SOURCES).read_text(encoding="utf-8"))]
    platform = locks.versions(here(lock.read_text(encoding="utf-8")))
    kept = {name: version for name, version in platform.items() if name in KEPT}
    told = [pins.settle(wanted / each.file, each.name, kept, exists_by(call, wanted)) for each in found]
    text, loosened = resolve(wanted, found, platform, lock, call) if found else ("", [])
    told += loosened
    versions = locks.versions(text)
    moved = {name: old for name, old in platform.items() if versions.get(name, old) != old}
    added = {name: entry for name, entry in entries(text, wanted) if name not in platform or name in moved}
    if moved:
        old, new = ([f"{name} {each[name]}" for name in moved] for each in (platform, versions))
        files = " and ".join(dict.fromkeys(source.name for source in found))
        told.append(f"{files} can't have the platform's {', '.join(old)}: {', '.join(new)} came in place.")
    (wanted / REPLACED).write_text("".join(f"{each}\n" for each in told if each), encoding="utf-8")
    (wanted / REMOVED).write_text("".join(f"{each}\n" for each in files_of(moved)), encoding="utf-8")
    target = wanted / LOCK
    target.write_text("".join(added.values()), encoding="utf-8")
    if added:
        result = call([*INSTALL, "--prefix", str(prefix), "-r", str(target)], wanted)
        print(result.stdout, flush=True)
        if result.returncode:
            raise Refused(
                not_built(result.stdout) or failed("The project's packages can't be installed", result.stdout)
            )
    print(f"{len(added)} packages of the project beside the platform's {len(platform)}", flush=True)


def files_of(names: Collection[str]) -> Iterator[str]:
    """The files of packages in the platform's environment, and the folders that describe them."""
    for each in importlib.metadata.distributions(path=[str(Path(PYTHON).parents[1] / SITE)]):
        if locks.canonical(each.name) in names:
            for file in each.files or []:
                place = Path(str(each.locate_file(file)))
                yield str(place.parent if file.name == "RECORD" else place)


def here(lock: str) -> str:
    """A lock without what it has for other systems and Pythons alone."""
    lines = ((match[0], match["marker"]) for match in locks.ENTRY.finditer(lock))
    return "".join(
        f"{text}\n" for text, marker in lines if not marker or Marker(marker.strip(" ;")).evaluate()
    )


def resolve(
    wanted: Path, found: list[Source], platform: dict[str, str], lock: Path, call: Uv
) -> tuple[str, list[str]]:
    """All packages of the project, as a lock; and what is to be said of it.

    With the platform's versions, else with those of KEPT; and where that has no solution either, as of `pip freeze` with
    versions of its own day, once more without pins for which the platform's version may stand.
    """
    result, command = attempt(wanted, found, platform, lock, call)
    told: list[str] = []
    if unsolved(result):
        exists = exists_by(call, wanted)
        told = [pins.settle(wanted / each.file, each.name, platform, exists, strict=False) for each in found]
        if any(told):
            result, command = attempt(wanted, found, platform, lock, call)
    if result.returncode:
        raise Refused(not_built(result.stdout) or conflict(found, result.stdout))
    output = wanted / RESOLVED
    match_dagster(locks.versions(output.read_text(encoding="utf-8")), platform, command, call, wanted)
    return output.read_text(encoding="utf-8"), told


def attempt(
    wanted: Path, found: list[Source], platform: dict[str, str], lock: Path, call: Uv
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """uv's answer, and how it was asked. The versions of the project's lock are preferred, and then those of the platform."""
    output = wanted / RESOLVED
    files = [source.file for source in found]
    prefer = preferred(wanted, found, platform)
    constraints = pinned(wanted / "platform.txt", platform)
    command = [*COMPILE, *files, "--constraints", constraints, "--output-file", str(output)]
    output.write_text(prefer, encoding="utf-8")
    result = call(command, wanted)
    if unsolved(result):
        # What these need counts, too: so they are asked for.
        kept = wanted / "kept.txt"
        pinned(kept, {name: version for name, version in platform.items() if name in KEPT})
        with kept.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}>={version}\n" for name, version in FLOORS.items() if name in platform)
        command = [*COMPILE, *files, str(kept), "--output-file", str(output)]
        free = (locks.entry(lock.read_text(encoding="utf-8"), name) for name in platform if name not in KEPT)
        output.write_text(prefer + "".join(free), encoding="utf-8")
        result = call(command, wanted)
    return result, command


def unsolved(result: subprocess.CompletedProcess[str]) -> bool:
    return NO_SOLUTION in result.stdout and not ABSENT.search(result.stdout)


def pinned(file: Path, versions: dict[str, str]) -> str:
    file.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()), encoding="utf-8")
    return str(file)


def match_dagster(
    locked: dict[str, str], platform: dict[str, str], command: list[str], call: Uv, folder: Path
) -> None:
    """Resolve anew with the right versions where a library of Dagster's would come in one of another Dagster.

    Early releases name no Dagster, so a resolver takes them when a lock has one, or the right one conflicts with something:
    then this raises Refused. Libraries of others are named as Dagster's, too.
    """
    exists, right = exists_by(call, folder), folder / "right.txt"
    right.write_text("", encoding="utf-8")
    for name, series in locks.foreign({**locked, **platform}).items():
        if not exists(name, series):
            continue
        with right.open("a", encoding="utf-8") as file:
            file.write(f"{name}=={series}\n")
        result = call([*command, "--constraints", str(right)], folder)
        if result.returncode:
            raise Refused(
                f"{name} {locked[name]} does not belong to Dagster {platform['dagster']}: {name}=={series} does.\n"
                f"{explain.explanation(result.stdout)}\n"
                f"Ask for {name}=={series}, and take out or loosen what stands against it."
            )


def exists_by(call: Uv, folder: Path) -> pins.Exists:
    """Asks the index for a package in a version, or a series."""

    def exists(name: str, version: str) -> bool:
        (folder / "one.txt").write_text(f"{name}=={version}\n", encoding="utf-8")
        command = [*COMPILE, "--no-deps", "one.txt", "--output-file", str(folder / "one.lock")]
        return not call(command, folder).returncode

    return exists


def preferred(wanted: Path, found: list[Source], platform: dict[str, str]) -> str:
    """Versions and hashes of the projects' locks, uv's or Poetry's, for what the platform lacks: a lock that uv goes by."""
    text = ""
    for lock in dict.fromkeys(source.lock for source in found if source.lock):
        packages = tomllib.loads((wanted / lock).read_text(encoding="utf-8")).get("package", [])
        names = [package["name"] for package in packages]
        for package in packages:
            if names.count(package["name"]) > 1 or package["name"] in platform:
                continue
            files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
            files += package.get("files", [])
            hashes = sorted(
                {each["hash"] for each in files if str(each.get("hash", "")).startswith("sha256:")}
            )
            # Poetry names a source only for what comes from elsewhere.
            if "registry" in package.get("source", {"registry": ""}) and hashes:
                end = "".join(f" \\\n    --hash={each}" for each in hashes)
                text += f"{package['name']}=={package['version']}{end}\n"
    return text


def entries(text: str, root: Path) -> Iterator[tuple[str, str]]:
    """The packages of a lock with their text: pinned, from an address, or from a folder, which is not left there."""
    for block in re.split(r"\n(?=\S)", text):
        entry = re.sub(r"^-e ", "", block.strip())
        if match := re.match(r"[A-Za-z0-9][\w.-]*(?=\s*(?:\[|==|@))", entry):
            yield locks.canonical(match[0]), f"{entry}\n"
        elif entry:
            # A folder, which uv writes as it would a name.
            folder = entry if entry.startswith(("/", "file:")) else f"./{below(root, entry)}"
            yield folder, f"{folder}\n"


def below(root: Path, path: str) -> str:
    """A folder's path from the root; uv writes that of another local package's need as that package names it."""
    place = os.path.normpath(path)
    if not place.startswith(".."):
        return place
    tail = place.replace("../", "")
    found = {each.parent.relative_to(root).as_posix() for each in root.rglob("*/pyproject.toml")}
    ends = [each for each in sorted(found) if f"/{each}".endswith(f"/{tail}")]
    return ends[0] if len(ends) == 1 else place


def conflict(found: list[Source], output: str) -> str:
    """Why there is no solution, with both sides; what uv calls `you` is the project and the platform."""
    if NO_SOLUTION not in output:
        return failed("The project's packages can't be resolved", output)
    files = " and ".join(dict.fromkeys(source.name for source in found))
    if absent := ABSENT.search(output):
        return f"No package index has {absent[1]}, for which {files} asks, itself or by another package.\n{login(output)}"
    return (
        f"The packages of {files} can't be had together with the platform's.\n{explain.explanation(output)}\n"
        f"Where it says that you require one exact version, that is the platform's (requirements/stack.lock); the rest is"
        f" what {files} asks for. Allow other versions there."
    )


def failed(what: str, output: str) -> str:
    said = explain.excerpt(output) or "\n".join(output.splitlines()[-3:])
    return f"{what}.\n{said}\n{login(output)}"


def login(output: str) -> str:
    """What to do where an index, or git, wanted another login than it got; empty where none did."""
    if not re.search(
        r"\b40[13] |Unauthorized|[Aa]uthentication|could not read (?:Username|Password)", output
    ):
        return ""
    return (
        "A login was refused, or is missing: PIP_EXTRA_INDEX_URL, UV_INDEX_… or NETRC in .env"
        " (docs/operations.md, Packages)."
    )


def not_built(output: str) -> str:
    """What to do about a package that has no wheel and could not be built here; empty where that is not the reason."""
    package = re.search(r"Failed to (?:download and )?build `([^`]+)`", output)
    if not package or "Git operation failed" in output:
        return ""
    missing = MISSING.search(output)
    what = next((each for each in missing.groups() if each), "") if missing else ""
    said = explain.excerpt(output) if not what else ""
    return (
        f"{package[1]} has no wheel for this Python ({sys.version_info.major}.{sys.version_info.minor}) and had to be built,"
        f" which failed{f': {what} is missing' if what else ''}.\n{said}\n"
        "Choose a version with wheels, or name in packages.txt what builds it: build-essential, and the -dev packages of the"
        " libraries that it needs."
    )


if __name__ == "__main__":
    main(lambda: install(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))
