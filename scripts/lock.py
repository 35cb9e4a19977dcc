"""`make lock`: requirements/*.lock anew from pyproject.toml, with hashes and without index addresses."""

from scripts import venv
from scripts.console import ROOT, main, run_logged

#: The oldest Python that the embedded mode supports; the locks hold for all later ones too.
OLDEST_PYTHON = "3.11"
OPTIONS = ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-emit-index-url",
           "--no-annotate", "--no-header", "--quiet", "--upgrade"]  # fmt: skip
#: What is resolved into which lock. The tests' environment holds the very versions of the stack's.
LOCKS = {
    "build": ["requirements/build.in"],
    "flights": ["--no-deps", "requirements/flights.in"],
    "stack": ["pyproject.toml"],
    "dev": ["--group", "dev", "--constraint", "requirements/stack.lock", "pyproject.toml"],
}


def lock() -> None:
    """Resolve every lock file; it takes part in the next build."""
    uv = str(venv.ensure("dev").parent / "uv")
    for name, sources in LOCKS.items():
        output = f"requirements/{name}.lock"
        run_logged(f"Resolving {output}", [uv, "pip", "compile", *OPTIONS, *sources, "-o", output], cwd=ROOT)


if __name__ == "__main__":
    main(lock)
