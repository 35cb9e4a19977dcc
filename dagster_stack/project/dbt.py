"""The dbt projects in the user's project, and what of their connection would surprise on the stack. Nothing runs dbt here.

`python -m dagster_stack.project.dbt FOLDER OUT` copies what dbt reads of a folder: the build parses that, and not again
after an edit of other code.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

FILE, PROFILES, MANIFEST = "dbt_project.yml", "profiles.yml", Path("target", "manifest.json")
#: Folders in which dbt's packages lie; and those with what it makes, or with what is nobody's own code.
OF_PACKAGES = {"dbt_packages", "dbt_modules"}
PASSED_OVER = {*OF_PACKAGES, "target", "logs", "node_modules", "site-packages", "__pycache__"}
#: `env_var('NAME')` or `env_var('NAME', default)`, as dbt's templates have it.
ASKED = re.compile(r"""env_var\(\s*(['"])(\w+)\1\s*(?:,\s*(?:(['"])(.*?)\3|([^)'"]*?))\s*)?\)""")
#: A template that is a variable, whatever its value is made into.
TEMPLATE = re.compile(r"\{\{-?\s*" + ASKED.pattern + r"[^}]*\}\}")
#: dbt shows no value of these, and takes them in connections alone.
SECRET = "DBT_ENV_SECRET"
#: Fields of connections that hold one.
SECRETS = (
    "password",
    "pass",
    "token",
    "private_key",
    "private_key_passphrase",
    "client_secret",
    "keyfile_json",
)


@dataclass(frozen=True)
class DbtProject:
    """A folder with a dbt_project.yml, in the user's project."""

    folder: Path
    root: Path

    @property
    def name(self) -> str:
        """The folder, as people know it."""
        return self.shown(self.folder)

    @property
    def manifest(self) -> Path:
        return self.folder / MANIFEST

    @cached_property
    def content(self) -> dict[str, Any]:
        return read(self.folder / FILE)

    @cached_property
    def profiles(self) -> Path | None:
        """The profiles.yml with its profile: its own, else another one of the user's project; None for a package."""
        own, named = self.folder / PROFILES, rendered(str(self.content.get("profile") or ""))
        if not named:
            return own if len(read(own).keys() - {"config"}) == 1 else None
        return next(
            (file for file in (own, *sorted(files(self.root, PROFILES))) if named in read(file)), None
        )

    @cached_property
    def profile(self) -> str:
        """The name of its profile; that of the only one there is, where dbt_project.yml leaves it to the code."""
        named = rendered(str(self.content.get("profile") or ""))
        return named or (min(read(self.profiles).keys() - {"config"}) if self.profiles else "")

    @property
    def target(self) -> str:
        """Which of the profile's connections is used, as profiles.yml has it."""
        return str(self._profile.get("target") or "default")

    @property
    def outputs(self) -> dict[str, Any]:
        return table(self._profile.get("outputs"))

    @property
    def _profile(self) -> dict[str, Any]:
        return table(read(self.profiles).get(self.profile)) if self.profiles else {}

    @cached_property
    def output(self) -> dict[str, Any]:
        """The connection that is used, as profiles.yml has it; empty where that is not known."""
        return table(self.outputs.get(rendered(self.target)))

    @property
    def adapter(self) -> str:
        return rendered(str(self.output.get("type") or ""))

    @property
    def arguments(self) -> list[str]:
        """What dbt is to be told where its files leave it open without the project's variables."""
        found = [] if self.content.get("profile") else ["--profile", self.profile]
        if self.outputs and any(not has_default(each) for each in ASKED.finditer(self.target)):
            found += ["--target", next(iter(self.outputs))]
        return found

    def variables(self) -> Iterator[tuple[str, str]]:
        """The variables that the connection can't do without, each with the place that asks."""
        if not self.profiles:
            return
        for value in (self.target, *self.output.values()):
            for found in ASKED.finditer(str(value)):
                if not has_default(found):
                    yield found[2], self.shown(self.profiles)

    def plain_secrets(self) -> list[str]:
        """The fields of the connection that hold a secret as it is: profiles.yml goes into the image."""
        return [name for name in SECRETS if (value := self.output.get(name)) and not ASKED.search(str(value))]

    def duckdb_file(self) -> Path | None:
        """Where DuckDB keeps its file; None where it has none."""
        path = rendered(str(self.output.get("path") or ""))
        if self.adapter != "duckdb" or not path or path.startswith((":", "md:")) or "://" in path:
            return None
        return Path(os.path.normpath(self.folder / path))

    def shown(self, path: Path) -> str:
        return os.path.relpath(path, self.root.parent)


def find(root: Path) -> list[DbtProject]:
    """All dbt projects below a folder, but for packages that they have installed."""
    root = Path(os.path.abspath(root))
    return [DbtProject(file.parent, root) for file in sorted(files(root, FILE))]


def collect(root: Path, out: Path) -> None:
    """Copy what dbt reads: its projects, of their Python what is a model, and all profiles.yml."""
    root = root.resolve()
    out.mkdir(parents=True)
    found: dict[Path, None] = dict.fromkeys(files(root, PROFILES))
    for project in find(root):
        add(project.folder, root, found)
    for path in found:
        if path.is_symlink() or path.is_file():
            target = out / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target, follow_symlinks=False)


def add(path: Path, root: Path, found: dict[Path, None]) -> None:
    """A file, or those of a folder; links as such, and what they lead to within the project."""
    if path in found or not path.is_relative_to(root):
        return
    if path.is_symlink():
        found[path] = None
        add(path.resolve(), root, found)
    elif path.is_dir():
        found[path] = None
        for each in sorted(path.iterdir()):
            if not each.is_dir() or each.name in OF_PACKAGES or is_own(each.name):
                add(each, root, found)
    elif path.is_file() and (path.suffix != ".py" or b"def model(" in path.read_bytes()):
        found[path] = None


def files(root: Path, name: str) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        folders[:] = [
            each for each in folders if is_own(each) and not Path(place, each, "pyvenv.cfg").exists()
        ]
        if name in names:
            yield Path(place, name)


def is_own(folder: str) -> bool:
    return folder not in PASSED_OVER and not folder.startswith(".")


def read(file: Path) -> dict[str, Any]:
    """A YAML file of dbt; empty for what is none: dbt itself says what is wrong with it."""
    import yaml

    try:
        return table(yaml.safe_load(file.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}


def table(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}


def has_default(found: re.Match[str]) -> bool:
    return found[4] is not None or bool(found[5])


def rendered(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text with its variables; one that is not set, and has no default, is empty."""
    return TEMPLATE.sub(lambda found: environment.get(found[2], found[4] or found[5] or ""), text)


if __name__ == "__main__":
    collect(Path(sys.argv[1]), Path(sys.argv[2]))
