"""SQL statements, which stand by their names in a file beside the module that executes them."""

import re
from pathlib import Path

import sqlalchemy

NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
NESTED = re.compile(r"\{(\w+)\}")
COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)


def statements(module: str) -> dict[str, sqlalchemy.TextClause]:
    """Those of a module, by its `__file__`; without their comments, which the server has no use for."""
    _, *parts = NAME.split(Path(module).with_suffix(".sql").read_text(encoding="utf-8"))
    texts = (COMMENT.sub("", part).strip().removesuffix(";") for part in parts[1::2])
    return dict(zip(parts[::2], map(sqlalchemy.text, texts), strict=True))


def nested(module: str) -> dict[str, sqlalchemy.TextClause]:
    """The same; in some, `{another}` stands for the text of another one."""
    found = statements(module)

    def whole(text: str) -> str:
        return NESTED.sub(lambda match: whole(found[match[1]].text), text)

    return {name: sqlalchemy.text(whole(each.text)) for name, each in found.items()}
