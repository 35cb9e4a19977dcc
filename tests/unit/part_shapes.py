"""Prints how each part of `dagster_stack/patches` is in the installed release: a process that has replaced none."""

import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib import import_module
from types import FunctionType
from typing import Any

from sqlalchemy import Table

from dagster_stack import patches
from dagster_stack.errors import PartMissing
from dagster_stack.patches.part import Part


def parts_in(value: Any) -> Iterator[Part]:
    match value:
        case Part():
            yield value
        case tuple():
            for each in value:
                yield from parts_in(each)
        case Mapping():
            yield from parts_in(tuple(value.values()))


PARTS = [
    part
    for module in pkgutil.iter_modules(patches.__path__)
    for value in vars(import_module(f"{patches.__name__}.{module.name}")).values()
    for part in parts_in(value)
]


def shape_of(part: Part) -> str:
    """In the words of `Part.shape`."""
    owner = part.owner()
    try:
        found = inspect.getattr_static(owner, part.name)
    except AttributeError:
        return "attribute" if is_set_on_instances(owner, part.name) else "gone"
    match found:
        case property():
            shape = "property"
        case Table():
            shape = f"columns {', '.join(found.columns.keys())}"
        case dict():
            shape = f"dict of {', '.join(sorted(map(str, found)))}" if found else "dict"
        case None | bool() | int() | str():
            shape = repr(found)
        case type() | FunctionType() | classmethod() | staticmethod():
            shape = ", ".join(inspect.signature(getattr(owner, part.name)).parameters)
        case _:
            shape = type(found).__name__
    return shape


def is_set_on_instances(owner: Any, name: str) -> bool:
    """Whether a class, or one above it, does so somewhere in its code; a name of the process's counts for `self`."""
    classes = [each for each in getattr(owner, "__mro__", ()) if each is not object]
    return any(
        f".{name} = " in inspect.getsource(each) or f".{name}: " in inspect.getsource(each)
        for each in classes
    )


def digest_of(part: Part) -> str:
    return sha256(inspect.getsource(part.found()).encode()).hexdigest() if part.source else ""


def main() -> None:
    found = {}
    for part in PARTS:
        try:
            found[part.where] = shape_of(part), digest_of(part)
        except PartMissing as error:
            found[part.where] = str(error), ""
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
