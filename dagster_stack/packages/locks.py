"""Lock files as text: the entries that are whole, what changed between two, and which of them belong to Dagster."""

import re

#: One pinned package with its hashes, as uv and pip-compile write it. Anything else in a lock is damage.
ENTRY = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)(?P<marker>[ ]*;[^\\\n]*?)?"
    r"(?P<hashes>(?:[ ]*\\\n[ ]+--hash=sha256:[0-9a-f]{64})+)[ ]*$",
    re.MULTILINE,
)
#: Dagster numbers its libraries apart from itself: 0.29.* belong to 1.13.*.
LIBRARIES_AHEAD = 16


def whole(text: str) -> str:
    """The lock without what is damaged: lines of a merge, half entries, foreign text."""
    return "".join(f"{match[0].rstrip()}\n" for match in ENTRY.finditer(text))


def entry(text: str, name: str) -> str:
    """The entry of one package; empty when the lock has none."""
    return next((f"{match[0]}\n" for match in ENTRY.finditer(text) if canonical(match["name"]) == name), "")


def versions(text: str) -> dict[str, str]:
    """The locked version of each package; those of a package that has several by marker as one text."""
    found: dict[str, list[str]] = {}
    for match in ENTRY.finditer(text):
        found.setdefault(canonical(match["name"]), []).append(match["version"])
    return {name: ", ".join(sorted(each)) for name, each in found.items()}


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What was added, removed and moved, in words, by name."""
    said = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            said.append(f"added {name} {after[name]}")
        elif name not in after:
            said.append(f"removed {name} {before[name]}")
        elif before[name] != after[name]:
            said.append(f"moved {name} {before[name]} → {after[name]}")
    return said


def foreign(locked: dict[str, str]) -> dict[str, str]:
    """Of packages named dagster-… those that don't belong to the locked Dagster, with the versions that would."""
    series = dagster_series(locked["dagster"])
    return {
        name: series[-1]
        for name, version in locked.items()
        if name.startswith("dagster-") and not any(belongs(version, each) for each in series)
    }


def dagster_series(dagster: str) -> tuple[str, str]:
    """The versions that belong to a Dagster: its own parts' and its libraries', as in `1.13.*` and `0.29.*`."""
    major, minor = dagster.split(".")[:2]
    return f"{major}.{minor}.*", f"0.{int(minor) + LIBRARIES_AHEAD}.*"


def belongs(version: str, series: str) -> bool:
    return f"{version}.".startswith(series.removesuffix("*"))


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
