"""Tables and numbers as the pages write them. Needs nothing but Python."""

from collections.abc import Iterable, Sequence

from dagster_stack.bench.figures import MB, Figure


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A Markdown table, readable as text too; its last `numbers` columns are aligned to the right."""
    words = len(head) - numbers
    cells = [[" ".join(cell.split()) for cell in line] for line in (head, *rows)]
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


def seconds(value: float) -> str:
    """Three digits that count."""
    if value >= 99.95:
        return f"{value:.0f} s"
    return f"{value:.1f} s" if value >= 9.995 else f"{value:.2f} s"


def milliseconds(value: float) -> str:
    if value < 0.00095:
        return f"{1000 * value:.2f} ms"
    return f"{1000 * value:,.1f} ms" if value < 0.1 else f"{1000 * value:,.0f} ms"


def megabytes(value: float) -> str:
    return f"{value / MB:,.0f} MB"


def spread(figure: Figure) -> str:
    """The lowest and the highest; nothing where there is but one."""
    return f"{seconds(figure.low)} – {seconds(figure.high)}" if figure.count > 1 else ""


def times(ratio: float) -> str:
    return f"{ratio:.2f} ×" if ratio < 9.995 else f"{ratio:.1f} ×"
