"""The figures of one scrape, looked up by name and label; one that nobody gave is None, never 0."""

from collections.abc import Iterable

from prometheus_client.core import Metric


class Samples:
    """An index over metric families. A family without samples says that there is none of it: a sum of 0."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = {family.name: family for family in families}

    def rows(self, name: str, **only: str) -> list[tuple[dict[str, str], float]] | None:
        """Labels and values of a gauge, where the labels are as given; None when nobody measures it."""
        if name not in self._families:
            return None
        return [
            (sample.labels, sample.value)
            for sample in self._families[name].samples
            if sample.name == name and only.items() <= sample.labels.items()
        ]

    def total(self, name: str, **only: str) -> float | None:
        rows = self.rows(name, **only)
        return None if rows is None else sum(value for _, value in rows)

    def value(self, name: str, **only: str) -> float | None:
        """The figure itself; None also when it has no such sample."""
        rows = self.rows(name, **only)
        return rows[0][1] if rows else None

    def by(self, name: str, label: str, **only: str) -> dict[str, float] | None:
        """Sums over all other labels."""
        rows = self.rows(name, **only)
        if rows is None:
            return None
        sums: dict[str, float] = {}
        for labels, value in rows:
            sums[labels.get(label, "")] = sums.get(labels.get(label, ""), 0) + value
        return dict(sorted(sums.items()))

    def labels(self, name: str, label: str) -> set[str]:
        """The values that a label has; empty when nobody measures it."""
        return set(self.by(name, label) or ())
