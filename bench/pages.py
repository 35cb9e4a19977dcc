"""Tables in pages that are written by hand: between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`, nowhere else."""

import re
from collections.abc import Mapping
from itertools import zip_longest

from scripts.console import Failure

MARK = re.compile(r"<!-- *(?P<end>/?)bench:(?P<name>[\w-]+) *-->")
#: What stands where nothing was measured: a figure of another day would pass for one of this.
NOTHING = "Not measured."


def filled(pages: Mapping[str, str], tables: Mapping[str, str]) -> dict[str, str]:
    """The pages, each by its name, with these tables; raises Failure unless each place has a table, and each table a place."""
    found = {page: places(page, text) for page, text in pages.items()}
    for page, of_page in found.items():
        if unknown := [name for name in of_page if name not in tables]:
            raise Failure(f"{page}: there is no table `{unknown[0]}`. There are {', '.join(tables)}.")
    if missing := [name for name in tables if not any(name in of_page for of_page in found.values())]:
        raise Failure(
            f"No place for the table `{missing[0]}`: add the lines {marks(missing[0])} to {' or '.join(pages)}."
        )
    return {page: fill(text, found[page], tables) for page, text in pages.items()}


def places(page: str, text: str) -> dict[str, tuple[int, int]]:
    """By a table's name, where its place begins and ends; raises Failure for marks that are not in pairs, or there twice."""
    found: dict[str, tuple[int, int]] = {}
    every = list(MARK.finditer(text))
    for begin, end in zip_longest(every[::2], every[1::2]):
        name = begin["name"]
        if begin["end"] or end is None or not end["end"] or end["name"] != name:
            line = text.count("\n", 0, begin.start()) + 1
            raise Failure(
                f"{page}, line {line}: {begin[0]} is no half of a pair: a table stands between {marks(name)}."
            )
        if name in found:
            raise Failure(f"{page} has two places for the table `{name}`: leave one of {marks(name)}.")
        found[name] = begin.end(), end.start()
    return found


def fill(text: str, places: dict[str, tuple[int, int]], tables: Mapping[str, str]) -> str:
    # From the end on, so that the places before stay where they are.
    for name, (begin, end) in reversed(places.items()):
        text = f"{text[:begin]}\n\n{tables[name] or NOTHING}\n\n{text[end:]}"
    return text


def marks(name: str) -> str:
    return f"<!-- bench:{name} --> and <!-- /bench:{name} -->"
