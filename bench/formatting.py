"""Numbers as the pages write them. Needs nothing but Python."""

from bench.figures import MB, Figure


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
