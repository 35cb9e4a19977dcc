"""Tables as pages and terminals show them."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A Markdown table, readable as text too; its last `numbers` columns are aligned to the right."""
    words = len(head) - numbers
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(head))]
    rules = [
        "-" * width if column < words else "-" * (width - 1) + ":" for column, width in enumerate(widths)
    ]
    padded = [
        [
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rules, *padded[1:]))
