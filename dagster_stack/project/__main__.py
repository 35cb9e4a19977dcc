"""`python -m dagster_stack.project`: finds the project and writes what the services read of it."""

import json
import sys
from pathlib import Path

from dagster_stack.errors import ProjectError
from dagster_stack.project.discovery import Project, discover

#: The link to the project's root: the working directory of whatever runs the user's code.
ROOT_LINK = ".root"


def write(project: Project, folder: Path) -> None:
    """`workspace.yaml` for Dagster, `project.json` for the platform, and the link to the project's root."""
    import yaml

    text = yaml.safe_dump(project.workspace(), allow_unicode=True, sort_keys=False)
    (folder / "workspace.yaml").write_text(f"# Found in {project.source}.\n{text}", encoding="utf-8")
    (folder / "project.json").write_text(json.dumps(project.as_dict(), indent=2) + "\n", encoding="utf-8")
    link = folder / ROOT_LINK
    link.unlink(missing_ok=True)
    link.symlink_to(project.root)


def main(folders: list[str]) -> None:
    """Look in the project's folder, and write to the second one; exits with a sentence that names the cure."""
    try:
        if len(folders) != 2:
            raise ProjectError(
                f"One folder with a project and one to write to, not {folders}: run `make up`."
            )
        write(discover(Path(folders[0])), Path(folders[1]))
    except ProjectError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
