"""compose.yaml as Compose reads it, without Compose: with what it includes, and what its services extend."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from scripts.console import ROOT

FOLDER = ROOT / "compose"
#: What services extend.
SHAPES = ("compose/shapes.yaml", "compose/pages.yaml", "compose/workers.yaml", "compose/daemon.yaml")


class Strict(yaml.SafeLoader):
    """As Compose reads: a key that comes twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"a key comes twice:\n{node.start_mark}"
        return super().construct_mapping(node, deep)


@cache
def read(name: str) -> dict[str, Any]:
    return dict(yaml.load((ROOT / name).read_text(encoding="utf-8"), Strict))


def files(login: str = "off") -> list[str]:
    """The files that make up the stack: the first, and those that it includes."""
    return ["compose.yaml", *(chosen(each["path"], login) for each in read("compose.yaml")["include"])]


def texts() -> str:
    """All of them, and what they extend, as they are written."""
    names = [*dict.fromkeys([*files(), *files("on")]), *SHAPES]
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def services(login: str = "off") -> dict[str, dict[str, Any]]:
    """Every service by its name, variables as they are written."""
    return {
        name: whole(each, login) for file in files(login) for name, each in read(file)["services"].items()
    }


def shape(name: str, file: str = SHAPES[0], login: str = "off") -> dict[str, Any]:
    """What services have that extend it."""
    return whole(read(file)["services"][name], login, file)


def whole(service: dict[str, Any], login: str = "off", file: str = SHAPES[0]) -> dict[str, Any]:
    own = dict(service)
    extended = own.pop("extends", None)
    if extended is None:
        return own
    if isinstance(extended, str):
        found = shape(chosen(extended, login), file, login)
    else:
        found = shape(chosen(extended["service"], login), f"compose/{Path(extended['file']).name}", login)
    for key, value in own.items():
        match value:
            case dict():
                found[key] = found.get(key, {}) | value
            case list():
                found[key] = [*found.get(key, []), *value]
            case _:
                found[key] = value
    return found


def chosen(text: str, login: str) -> str:
    """A name of a file or shape, as it is with LOGIN and INTERNAL_TLS on or off, the stack's own store and no further host."""
    text = (
        text.replace("${HOSTS:+-shared}", "")
        .replace("${LOGIN:-off}", login)
        .replace("${INTERNAL_TLS:-off}", login)
    )
    return text.replace("${S3_ENDPOINT_URL:+-s3-is-outside}${OIDC_ISSUER:+-oidc}", "")
