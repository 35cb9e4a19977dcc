"""What this project replaces or uses of other libraries, against the installed releases."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagster_stack.errors import PartMissing
from dagster_stack.patches.part import Part
from tests.unit import part_shapes
from tests.unit.part_shapes import PARTS

PACKAGE = Path(__file__).parents[2] / "dagster_stack"
ROOM = PACKAGE / "patches"
#: Underscores that are public: named tuples' methods, and how a forked child ends.
PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """By part, its shape and its source's digest, in a process in which nothing is replaced."""
    program = subprocess.run(
        [sys.executable, "-m", part_shapes.__name__],
        check=True,
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    return dict(json.loads(program.stdout))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.where)
def test_each_part_is_as_it_was_when_it_was_read(part: Part, found: dict[str, list[str]]) -> None:
    """It fails with a release that has changed one: read what has changed, mend what relies on it, then this entry."""
    shape, digest = found[part.where]
    assert shape == part.shape
    assert digest.startswith(part.source)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.where)
def test_each_part_says_why_it_is_needed_and_in_which_release_it_was_read(part: Part) -> None:
    assert part.why.endswith(".")
    assert part.read.split()[-1][0].isdigit()


def test_a_part_that_a_release_lacks_is_not_replaced_in_silence() -> None:
    for where in ("dagster:gone", "dagster:Gone.gone", "gone.library:thing"):
        part = Part(where=where, why="nobody else does it.", read="dagster 1.0", shape="self")
        with pytest.raises(
            PartMissing, match=rf"{where} is not there, which was in dagster 1\.0.*nobody else does it"
        ):
            part.replace(None)


# --- and nowhere else -------------------------------------------------------------------------------------------


def code() -> dict[Path, ast.Module]:
    return {
        file.relative_to(PACKAGE): ast.parse(file.read_text())
        for file in sorted(PACKAGE.rglob("*.py"))
        if ROOM not in file.parents
    }


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def defined(tree: ast.AST) -> set[str]:
    """Names that some code gives to something."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
    return found


def used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, node.attr


def test_what_is_private_in_others_is_used_in_their_room_or_listed_there() -> None:
    """By name: one that some module of this project defines as well passes for its own."""
    trees = code()
    own = set[str]().union(*map(defined, trees.values()))
    listed = {part.name for part in PARTS}

    found = [
        f"{file}:{line}: {name}"
        for file, tree in trees.items()
        for line, name in used(tree)
        if name not in own | listed
    ]

    assert not found, "put them into dagster_stack/patches, with a reason"


def imported(tree: ast.AST) -> set[str]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return {alias.asname or alias.name.partition(".")[0] for node in nodes for alias in node.names}


#: The interpreter's own switches, which are there to be set.
SWITCHES = {"sys.excepthook", "sys.argv", "threading.excepthook", "tempfile.tempdir", "os.environ"}


def test_nothing_of_others_is_replaced_elsewhere() -> None:
    found = [
        f"{file}:{node.lineno}: {ast.unparse(node)}"
        for file, tree in code().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id in imported(tree)
        and ast.unparse(node) not in SWITCHES
    ]

    assert not found, "put them into dagster_stack/patches, with a reason"
