"""The dbt projects in the user's project, and what of their connection would surprise on the stack. Nothing runs dbt here.

`python -m dagster_stack.project.dbt FOLDER OUT` copies what dbt reads of a folder: the build parses that, and not again
after an edit of other code.
"""

import ast
import json
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
#: Beside the project's folder in the build: the variables that choose a target, with their values (scripts/project.py). And
#: in what dbt reads: these, and the targets that the code names, by the folders of dbt projects.
VARIABLES, CHOICES = ".dbt-variables.json", ".dbt-choices.json"
#: Names a target to dbt itself.
TARGET = "DBT_TARGET"
#: What code calls with `target=`.
CALLS = {"DbtProject", "DbtCliResource"}
#: A line that chooses a profile or a target, in YAML; and how a component asks for a variable there: `{{ env.NAME }}`,
#: `{{ env("NAME") }}`.
CHOOSES, COMPONENT = re.compile(r"^\s+target:\s*(.+?)\s*$", re.MULTILINE), "DbtProjectComponent"
IN_COMPONENT = re.compile(r"\{\{\s*env[.(]['\"]?([A-Za-z_]\w*)")
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
        """Which of the profile's connections is used: as the code, a variable or profiles.yml has it."""
        return self.chosen or str(self._profile.get("target") or "default")

    @cached_property
    def chosen(self) -> str:
        """The target that the code or DBT_TARGET names; empty where profiles.yml decides."""
        named = [each for each in targets_in_code(self) if each in self.outputs]
        of_dbt = os.environ.get(TARGET, "")
        # What the code leaves open is not guessed.
        return named[0] if len(named) == 1 else of_dbt if of_dbt in self.outputs else ""

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
        unset = [each for each in ASKED.finditer(self.target) if not has_default(each)]
        if self.chosen:
            found += ["--target", self.chosen]
        elif self.outputs and any(each[2] not in os.environ for each in unset):
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
    variables = root.parent / VARIABLES
    if variables.exists():
        os.environ.update(json.loads(variables.read_text(encoding="utf-8")))
    choices = {
        "variables": {name: os.environ[name] for name in choosing(root) if name in os.environ},
        "targets": {str(each.folder.relative_to(root)): targets_in_code(each) for each in find(root)},
    }
    (out / CHOICES).write_text(json.dumps(choices), encoding="utf-8")
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


def files(root: Path, *wanted: str) -> Iterator[Path]:
    """The files of these names, or with these suffixes, in a project's own folders."""
    for place, folders, names in os.walk(root):
        folders[:] = [
            each for each in folders if is_own(each) and not Path(place, each, "pyvenv.cfg").exists()
        ]
        yield from (Path(place, name) for name in names if name in wanted or Path(name).suffix in wanted)


# --- targets that are chosen elsewhere than in profiles.yml -----------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A target as the code names it: by itself, or by a variable, whose default it is then."""

    target: str
    variable: str
    #: Words of the code that may be the folder of a dbt project.
    words: frozenset[str]


def choosing(root: Path) -> list[str]:
    """The names of the variables that choose targets."""
    named = [each.variable for each in choices(root) if each.variable]
    for file in filter(Path.is_file, files(root, PROFILES)):
        lines = CHOOSES.findall(file.read_text(encoding="utf-8-sig", errors="replace"))
        named += [found[2] for line in lines for found in ASKED.finditer(line)]
    return sorted({TARGET, *named})


def targets_in_code(project: DbtProject) -> list[str]:
    """The targets that code names for a dbt project: for this one, else for none of its neighbours in particular."""
    kept = project.root / CHOICES
    if kept.exists():
        folder = str(project.folder.relative_to(project.root))
        found: list[str] = json.loads(kept.read_text(encoding="utf-8"))["targets"].get(folder, [])
        return found
    folders = {each.folder.name for each in find(project.root)}
    all_of_them = choices(project.root)
    own = [each for each in all_of_them if project.folder.name in each.words]
    own = own or [each for each in all_of_them if not folders & each.words]
    named = (os.environ.get(each.variable) or each.target for each in own)
    return sorted({target for target in named if target})


def choices(root: Path) -> list[Choice]:
    """What the project's Python and its components say of targets."""
    found: list[Choice] = []
    for file in filter(Path.is_file, files(root, ".py", ".yaml", ".yml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix != ".py":
            found += choices_of_component(text) if COMPONENT in text else []
        elif any(name in text for name in CALLS):
            try:
                found += choices_of_code(ast.parse(text))
            except (SyntaxError, ValueError):
                # It will be said when it is loaded.
                continue
    return found


def choices_of_component(text: str) -> Iterator[Choice]:
    for line in CHOOSES.findall(text):
        variable = IN_COMPONENT.search(line)
        target = "" if variable or "{{" in line else line.strip("'\"")
        yield Choice(target, variable[1] if variable else "", frozenset(re.findall(r"[\w.-]+", text)))


def choices_of_code(tree: ast.Module) -> Iterator[Choice]:
    known = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def resolved(node: ast.expr) -> ast.expr:
        return known.get(node.id, node) if isinstance(node, ast.Name) else node

    def texts_in(node: ast.expr, depth: int = 3) -> Iterator[str]:
        for each in ast.walk(node):
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield from re.split(r"[/\\]", each.value)
            elif isinstance(each, ast.Name) and each.id in known and depth:
                yield from texts_in(known[each.id], depth - 1)

    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.Call)
            or getattr(node.func, "attr", getattr(node.func, "id", "")) not in CALLS
        ):
            continue
        arguments = {each.arg: resolved(each.value) for each in node.keywords}
        places = [*node.args[:1], *(value for name, value in arguments.items() if name == "project_dir")]
        words = frozenset(text for place in places for text in texts_in(place))
        match arguments.get("target"):
            case ast.Constant(value=str(target)):
                yield Choice(target, "", words)
            case ast.Call(args=[ast.Constant(value=str(variable)), *rest]):
                # `os.getenv("NAME", "dev")`, `os.environ.get(…)`, `EnvVar("NAME")`.
                default = rest[0].value if rest and isinstance(rest[0], ast.Constant) else ""
                yield Choice(str(default or ""), variable, words)
            case ast.Subscript(slice=ast.Constant(value=str(variable))):
                yield Choice("", variable, words)


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
