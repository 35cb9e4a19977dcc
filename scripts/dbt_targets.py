"""The variables of the project that choose a target of dbt's: the only ones that the image's build has, to parse with."""

import json
import re

from dagster_stack.project.dbt import FILE, VARIABLES, choosing, files
from scripts import project, variables

#: A line that sets a variable to one word, as the name of a target is: nothing else is handed on.
LINE = r"^\s*(?:export\s+)?{name}\s*=\s*(['\"]?)([\w.-]+)\1\s*(?:#.*)?$"


def write() -> None:
    """Put them beside the staged project; it is to be staged before."""
    staged = project.context() / project.folder().name
    if next(files(staged, FILE), None):
        text = json.dumps(found([*choosing(staged)]), sort_keys=True)
        (project.context() / VARIABLES).write_text(text, encoding="utf-8")


def found(names: list[str]) -> dict[str, str]:
    """Their values, as the project's files of variables have them."""
    text = "\n".join(variables.checked(source) for source in variables.sources())
    lines = {name: re.findall(LINE.format(name=re.escape(name)), text, re.MULTILINE) for name in names}
    return {name: each[-1][1] for name, each in lines.items() if each}
