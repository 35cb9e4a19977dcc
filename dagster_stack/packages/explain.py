"""What uv and apt print when they fail, as the few lines that say what and why."""

import re
from collections.abc import Iterable

#: Characters of uv's own explanation that are kept: its first sentences name both sides, later ones repeat them.
EXPLANATION_CHARACTERS = 700
#: What uv puts in front of an explanation's lines, in its newer and its older form.
FRAME = re.compile(r"^\s*(?:error:|cause:|[×✗]|├─▶|╰─▶|│)\s?")
#: Lines that say what failed, where none of ours does.
SIGNS = re.compile(
    r"^\s*(?:error\b|ERROR\b|cause:|fatal:|E: |W: .*NO_PUBKEY|×|├─▶|╰─▶|hint: |\S*Error: |.*: error: |.*: fatal error: "
    r"|.*: not found$|.*: command not found$)"
)
#: BuildKit's own words for a command that failed.
OF_BUILDKIT = ("did not complete successfully", "failed to solve")
#: What BuildKit puts in front of a program's line.
BUILDKIT = re.compile(r"^(?:#\d+ )?(?:\d+\.\d+ )?")
#: How the programs of this package begin the line that says what failed; the lines after it are indented.
MARK = "✗ "
#: Lines that a failed command's excerpt has at most.
EXCERPT_LINES = 12


def explanation(output: str) -> str:
    """uv's reason as running text, without its frame and without what only repeats the conclusion."""
    lines = [line for line in output.splitlines() if FRAME.match(line) or line.startswith(" ")]
    text = " ".join(" ".join(FRAME.sub("", line).split()) for line in lines)
    text = re.sub(r"^No solution found when resolving [^:]*?(?::|(?=Because))\s*", "", text)
    if len(text) > EXPLANATION_CHARACTERS:
        cut = text[:EXPLANATION_CHARACTERS].rfind(". ")
        text = text[: cut + 1 if cut > 0 else EXPLANATION_CHARACTERS] + " …"
    return text


def excerpt(log: str) -> str:
    """The lines of a build's or a resolver's log that say what failed; empty where none is known."""
    lines = [BUILDKIT.sub("", line).rstrip() for line in log.splitlines()]
    signs = [line for line in lines if SIGNS.match(line) and not any(each in line for each in OF_BUILDKIT)]
    return "\n".join(marked(lines) or list(dict.fromkeys(signs))[:EXCERPT_LINES])


def marked(lines: Iterable[str]) -> list[str]:
    """The first message of our own, with its further lines."""
    found: list[str] = []
    for line in lines:
        if found and not line.startswith("  "):
            break
        if found or line.startswith(MARK):
            found.append(line.removeprefix(MARK))
    return found
