"""A file of variables as Compose reads it: the grammar of compose-go's `dotenv` and of its templates."""

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

#: Space within a line, to Compose.
BLANKS = "[ \t\v\f\r\x85\xa0]*"
#: Lines without a variable, and comments.
GAP = re.compile(r"(?:\s+|\#[^\n]*)*")
NAME = re.compile(rf"(?:export[ \t\v\f\r\x85\xa0]+)?([\w.\-\[\]]+){BLANKS}(?:([=:])({BLANKS})|(?=\n)|\Z)")
#: A quote before a quoted value's own end has a backslash before it.
QUOTED = re.compile(r"""'((?:\\.|[^'\\])*)'|"((?:\\.|[^"\\])*)\"""", re.DOTALL)
PLAIN = re.compile(r"[^\n]*")
COMMENT = re.compile(rf"{BLANKS}(?:\#[^\n]*)?(?=\n|\Z)")
ESCAPE = re.compile(r"""\\([abcfnrtv$"\\]|0[0-7]{0,3})""")
ESCAPES = dict(zip('abfnrtv"\\', '\a\b\f\n\r\t\v"\\', strict=True)) | {"$": "$$"}
REFERENCE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-+])([^${}]*))?\}|)", re.ASCII)


@dataclass(frozen=True)
class Statement:
    """One variable of a file: where its value stands in the text, quotes included, and what that means."""

    name: str
    start: int
    end: int
    value: str
    #: Why Compose reads something else than was meant, or nothing, with the cure; empty when all is clear.
    objection: str = ""


def statements(text: str, environment: Mapping[str, str]) -> Iterator[Statement]:
    """The variables in their order. What sets none comes without a name, with an objection."""
    known: dict[str, str] = {}
    outer = dict(environment)
    at = len(text) - len(text.removeprefix("\ufeff"))
    while (at := _end(GAP, text, at)) < len(text):
        name = NAME.match(text, at)
        if not name:
            yield Statement("", at, at, "", "it sets no variable: take it out, or write NAME=value")
            at = _end(PLAIN, text, at)
        elif not name[2]:
            # A name alone is that variable of the environment.
            at = name.end()
        else:
            statement, at = _valued(text, name, ChainMap(outer, known))
            known[statement.name] = statement.value
            yield statement


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _valued(text: str, name: re.Match[str], known: Mapping[str, str]) -> tuple[Statement, int]:
    """The statement, and where the text goes on."""
    start = name.end()
    if text[start : start + 1] not in ("'", '"'):
        line = PLAIN.match(text, start)
        assert line
        raw = line[0].partition(" #")[0].rstrip()
        value, objection = expanded(raw, known)
        if raw.startswith("#") and name[3]:
            objection = f"to Compose its value is {raw!r}, no comment: take that out, or write {name[1]}=''"
        start = start if raw else name.end(2)
        return Statement(name[1], start, start + len(raw), value, objection), line.end()
    quoted = QUOTED.match(text, start)
    if not quoted:
        objection = f"the quote {text[start]} that begins its value has no end"
        return Statement(name[1], start, start, "", objection), _end(PLAIN, text, start)
    if quoted[1] is not None:
        value, objection = quoted[1].replace("\\'", "'"), ""
    else:
        value, objection = expanded(ESCAPE.sub(_unescaped, quoted[2].replace('\\"', '"')), known)
    end = quoted.end()
    if not COMMENT.match(text, end):
        objection = (
            "there is text after the quote that ends its value. A quote in a value has a backslash before it"
        )
        return Statement(name[1], start, end, value, objection), _end(PLAIN, text, end)
    return Statement(name[1], start, end, value, objection), end


def _unescaped(match: re.Match[str]) -> str:
    sign = match[1]
    if sign.startswith("0"):
        return chr(int(sign[1:], 8)) if len(sign) == 4 and int(sign[1:], 8) < 256 else match[0]
    return ESCAPES.get(sign, match[0])


def expanded(text: str, known: Mapping[str, str]) -> tuple[str, str]:
    """A text with the values of the variables that it names, and an objection to a $ that names none."""
    objections = []

    def value(match: re.Match[str]) -> str:
        escaped, plain, braced, operator, other = match.groups()
        if escaped:
            return "$"
        name = plain or braced
        found = known.get(name) if name else None
        if operator:
            is_there = bool(found) if operator[0] == ":" else found is not None
            return other if is_there == operator.endswith("+") else (found or "")
        if found is None:
            objections.append(
                f"{match[0]} in its value names no variable. Single quotes let a $ be a $: NAME='…'"
            )
        return found if found is not None else match[0]

    result = REFERENCE.sub(value, text)
    return result, objections[0] if objections else ""


def names_part(raw: str) -> bool:
    """Whether a value as it stands in a file names a variable, and is more than that name."""
    if raw.startswith("'"):
        return False
    inner = raw.strip('"')
    names = [match for match in REFERENCE.finditer(inner.replace("\\$", "")) if match[2] or match[3]]
    return any(match[0] != inner for match in names)
