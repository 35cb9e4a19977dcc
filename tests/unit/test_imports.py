"""Which module knows which: arrows run one way, so that each can be read, tested and replaced by itself."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dagster_stack"


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    root = package.parent
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in package.rglob("*.py")
    }


def imported(code: ast.AST) -> Iterator[str]:
    """What some code imports, late imports included; not what it needs for annotations alone."""
    for node in ast.iter_child_nodes(code):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{each.name}" for each in names)
            case _:
                yield from imported(node)


def arrows(found: dict[str, Path]) -> dict[str, set[str]]:
    """By module, those of this package that it imports: the longest name that is a module's."""

    def module_of(name: str) -> str:
        while name and name not in found:
            name = name.rpartition(".")[0]
        return name

    return {
        name: {module_of(each) for each in imported(ast.parse(file.read_text()))}
        - {name, "", name.partition(".")[0]}
        for name, file in found.items()
    }


@pytest.mark.parametrize("package", ["dagster_stack", "scripts"])
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    try:
        TopologicalSorter(arrows(modules(PACKAGE.parent / package))).prepare()
    except CycleError as error:
        pytest.fail(f"{' -> '.join(reversed(error.args[1]))}: move what both need to a module below them")


def foreign(found: dict[str, Path]) -> set[str]:
    """The packages of this checkout that some modules import, but the platform."""
    names = {
        each.partition(".")[0] for file in found.values() for each in imported(ast.parse(file.read_text()))
    }
    return names & {"bench", "pipelines", "scripts", "tests"}


def test_the_platform_knows_nothing_of_what_is_around_it() -> None:
    assert foreign(modules()) == set()


def test_what_of_the_benchmark_is_executed_in_containers_needs_nothing_of_the_host() -> None:
    found = modules(PACKAGE.parent / "bench")
    known, reached = arrows(found), {"bench.__main__", "bench.location", "bench.jobs"}
    while new := {each for name in reached for each in known[name]} - reached:
        reached |= new

    assert "bench.charts" in reached
    assert foreign({name: found[name] for name in reached}) == {"bench"}


def test_a_circle_by_a_late_import_is_seen(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def late():\n    from dagster_stack.two import thing\n")
    (tmp_path / "two.py").write_text("import dagster_stack.one\n")
    found = {f"dagster_stack.{name}": tmp_path / f"{name}.py" for name in ("one", "two")}

    with pytest.raises(CycleError):
        TopologicalSorter(arrows(found)).prepare()
