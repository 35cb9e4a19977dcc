"""The packages of `[tool.poetry.dependencies]`, in the words that every other tool reads."""

import re
from collections.abc import Iterator, Mapping
from typing import Any


def requirements(dependencies: Mapping[str, Any]) -> list[str]:
    """Each of them as a requirement; Python's own version and those that are optional are passed over.

    Raises ValueError, with the entry, for what can't be said otherwise.
    """
    return [
        line
        for name, value in dependencies.items()
        if name != "python"
        for each in (value if isinstance(value, list) else [value])
        for line in requirement(name, each if isinstance(each, dict) else {"version": each})
    ]


def requirement(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    if entry.get("optional"):
        return
    extras = f"[{','.join(entry['extras'])}]" if entry.get("extras") else ""
    markers = [f"({entry['markers']})"] if "markers" in entry else []
    markers += [
        f"python_full_version {operator} '{version}'"
        for operator, version in bounds(str(entry.get("python", "*")))
    ]
    marker = f" ; {' and '.join(markers)}" if markers else ""
    if folder := entry.get("path") or entry.get("file"):
        yield f"./{folder}{extras}{marker}"
    elif git := entry.get("git"):
        at = next((f"@{entry[key]}" for key in ("rev", "tag", "branch") if key in entry), "")
        below = f"#subdirectory={entry['subdirectory']}" if "subdirectory" in entry else ""
        yield f"{name}{extras} @ git+{git}{at}{below}{marker}"
    elif url := entry.get("url"):
        yield f"{name}{extras} @ {url}{marker}"
    else:
        versions = ",".join(f"{operator}{version}" for operator, version in bounds(str(entry["version"])))
        yield f"{name}{extras}{versions}{marker}"


def bounds(text: str) -> list[tuple[str, str]]:
    """Poetry's `^1.2`, `~1.2`, `1.*`, `1.2` and `>=1,<2` as operators and versions; `*` is none."""
    found = []
    for part in re.split(r"\s*,\s*|(?<=\w)\s+(?=[<>=!~^])", text.strip()):
        match = re.fullmatch(r"(\^|~=|~|==|!=|<=|>=|<|>|=)?\s*v?(\d[\w.+!-]*(?:\.\*)?|\*)", part)
        if not match:
            raise ValueError(text)
        operator, version = match.groups()
        if version == "*":
            continue
        if operator in ("^", "~"):
            found += [(">=", version), ("<", above(version, operator))]
        else:
            found.append((operator if operator not in (None, "=") else "==", version))
    return found


def above(version: str, operator: str) -> str:
    """The first version that `^` or `~` no longer allows: `^1.2` 2, `^0.2.3` 0.3, `~1.2.3` 1.3, `~1` 2."""
    parts = [int(each) for each in re.split(r"[^\d.]", version)[0].strip(".").split(".")]
    kept = 1 if operator == "~" else next((at for at, part in enumerate(parts) if part), len(parts))
    at = min(kept, len(parts) - 1)
    return ".".join(str(each) for each in [*parts[:at], parts[at] + 1])
