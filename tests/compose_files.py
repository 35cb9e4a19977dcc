"""compose.yaml as Compose reads it, without Compose: with what it includes, and what its services extend."""

from functools import cache
from typing import Any

import yaml

from scripts.console import ROOT

FOLDER = ROOT / "compose"


@cache
def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))


def files() -> list[str]:
    """The files that make up the stack: the first, and those that it includes."""
    return ["compose.yaml", *(each["path"] for each in read("compose.yaml")["include"])]


def texts() -> str:
    """All of them, and what they extend, as they are written."""
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in [*files(), "compose/shapes.yaml"])


def services() -> dict[str, dict[str, Any]]:
    """Every service by its name, variables as they are written."""
    return {name: whole(each) for file in files() for name, each in read(file)["services"].items()}


def shape(name: str) -> dict[str, Any]:
    """What services have that extend it."""
    return whole(read("compose/shapes.yaml")["services"][name])


def whole(service: dict[str, Any]) -> dict[str, Any]:
    own = dict(service)
    extended = own.pop("extends", None)
    if extended is None:
        return own
    found = shape(extended if isinstance(extended, str) else extended["service"])
    for key, value in own.items():
        match value:
            case dict():
                found[key] = found.get(key, {}) | value
            case list():
                found[key] = [*found.get(key, []), *value]
            case _:
                found[key] = value
    return found
