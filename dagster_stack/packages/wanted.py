"""What a project asks for, apart from its code: an edit of the code leaves the layers of its packages alone.

`python -m dagster_stack.packages.wanted PROJECT OUT` writes `OUT/python` (what names Python packages), `OUT/debian.txt`
and `OUT/metadata` (name and entry points of the project, as if it had been installed).
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

from dagster_stack.packages import debian, sources
from dagster_stack.packages.errors import main

#: Where an environment of this Python keeps packages.
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
#: In OUT/python: what uv is given, and the Debian packages that must be there before.
SOURCES, TOOLS = "sources.json", "tools.txt"
#: There, once they are installed: what of the project's files gave way to the platform's versions, a sentence a line.
REPLACED = "replaced.txt"


def write(project: Path, out: Path) -> None:
    python, metadata = out / "python", out / "metadata" / SITE
    for folder in (python, metadata):
        folder.mkdir(parents=True, exist_ok=True)
    found = sources.collect(project, python)
    packages = [name for folder in sources.folders(project) for name in debian.names(folder)]
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in named(python))
    git = ["git"] if sources.from_git(texts) else []
    (python / SOURCES).write_text(json.dumps([asdict(each) for each in found]), encoding="utf-8")
    (python / TOOLS).write_text(lines(dict.fromkeys([*debian.tools(packages), *git])), encoding="utf-8")
    (out / "debian.txt").write_text(lines(dict.fromkeys(packages)), encoding="utf-8")
    for folder in sources.folders(project):
        describe(folder, metadata)


def named(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".toml", ".txt") and path.is_file()]


def lines(names: dict[str, None]) -> str:
    return "".join(f"{name}\n" for name in names)


def describe(folder: Path, metadata: Path) -> None:
    """Name, version and entry points of a project, where `importlib.metadata` looks for them; no code."""
    project = sources.table(sources.toml(folder / "pyproject.toml"), "project")
    if not isinstance(project.get("name"), str):
        return
    name, version = re.sub(r"[-_.]+", "_", project["name"]).lower(), str(project.get("version") or "0")
    info = metadata / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    groups = sources.table(project, "entry-points")
    text = "".join(
        f"[{group}]\n{''.join(f'{key} = {value}' + chr(10) for key, value in entries.items())}\n"
        for group, entries in groups.items()
        if entries
    )
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n", "utf-8"
    )
    (info / "entry_points.txt").write_text(text, "utf-8")
    (info / "INSTALLER").write_text("dagster_stack\n", "utf-8")
    (info / "RECORD").write_text("", "utf-8")


if __name__ == "__main__":
    main(lambda: write(Path(sys.argv[1]), Path(sys.argv[2])))
