"""Figures as people read them; `?` stands for what nobody measures, never 0."""


def number(value: float | None) -> str:
    """`1,234`; `?` for what nobody measures."""
    return "?" if value is None else f"{value:,.0f}"


def counted(value: float | None, noun: str) -> str:
    """`1 step`, `12 steps`."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def seconds(value: float | None, exact: bool = False) -> str:
    """`0.4 s`, `12 s`, `4 min 05 s`, `1 h 02 min`, `3 d 04 h`; `exact`: `12.3 s`."""
    if value is None:
        return "?"
    if value < 60:
        return f"{value:.1f} s" if exact or value < 9.95 else f"{value:.0f} s"
    minutes, rest = divmod(int(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24:02d} h"


def size(value: float | None) -> str:
    """`512 B`, `1.5 GB`: powers of 1000."""
    if value is None:
        return "?"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 99.5 or unit == "B" else f"{value:.1f} {unit}"


def percent(value: float | None) -> str:
    return "?" if value is None else f"{value * 100:.0f} %"
